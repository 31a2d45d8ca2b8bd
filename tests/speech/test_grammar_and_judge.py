"""The grammar and the recogniser that uses it; controls show that the recogniser does not simply guess right."""

import random

import numpy as np
import pytest

from zipper_jax.metrics.error_rates import wer
from zipper_jax.speech import grammar
from zipper_jax.speech.judge import Judge, transcribe_all
from zipper_jax.utils.errors import UserError


def test_words_and_sentences():
    assert 60 <= len(grammar.words()) <= 80
    rng = random.Random(0)
    sentences = [grammar.sample(rng) for _ in range(2000)]
    assert {len(sentence.split()) for sentence in sentences} <= set(range(3, 9))
    assert {word for sentence in sentences for word in sentence.split()} == set(grammar.words())
    assert len(set(sentences)) < grammar.num_sentences()
    again = random.Random(0)
    assert sentences == [grammar.sample(again) for _ in range(2000)]


def test_the_judge_transcribes_speech_and_nothing_else(judge, speech):
    sentences, waveforms = speech
    transcripts = [judge.transcribe(waveform) for waveform in waveforms]
    assert wer(sentences, transcripts) < 0.1
    assert wer(sentences, [judge.transcribe(waveform[::-1]) for waveform in waveforms]) > 0.6
    rng = np.random.default_rng(0)
    noise = [0.1 * rng.standard_normal(len(waveform)).astype(np.float32) for waveform in waveforms]
    assert wer(sentences, [judge.transcribe(waveform) for waveform in noise]) > 0.6
    assert wer(sentences, transcripts[1:] + transcripts[:1]) > 0.6
    # order does not matter, nor which process transcribes
    assert transcribe_all(waveforms[::-1], grammar.jsgf(), processes=2) == transcripts[::-1]


def test_earlier_audio_does_not_change_a_transcript(judge, speech):
    """Checked on audio that is hard to recognise, as a model's can be: sentences in pieces of 0.3 s, shuffled."""
    rng = np.random.default_rng(0)
    pieces = [np.array_split(waveform, max(1, len(waveform) // 4800)) for waveform in speech[1]]
    hard = [np.concatenate([piece[i] for i in rng.permutation(len(piece))]) for piece in 3 * pieces]
    transcripts = [judge.transcribe(waveform) for waveform in hard]
    assert [judge.transcribe(waveform) for waveform in hard[::-1]] == transcripts[::-1]


@pytest.mark.parametrize("name", list(grammar.TEMPLATES))
def test_the_jsgf_accepts_what_is_sampled(judge, engine, name, monkeypatch):
    """A synthesised sentence of each template is transcribed word for word: so the grammar has it."""
    monkeypatch.setitem(grammar.GRAMMARS, "home", {name: grammar.TEMPLATES[name]})
    rng = random.Random(3)
    spoken = [grammar.sample(rng) for _ in range(3)]
    transcripts = [judge.transcribe(engine.say(text, engine.default_voices[0], engine.default_rate)) for text in spoken]
    assert set(spoken) & set(transcripts)


def test_the_wide_grammar(engine):
    """Ten times the words, all pronounceable; one synthesised sentence of each template is mostly recognised."""
    words = grammar.words("wide")
    assert 600 <= len(words) <= 800
    rng = random.Random(0)
    sentences = []
    while len(sentences) < len(grammar.GRAMMARS["wide"]):
        sentence = grammar.sample(rng, "wide")
        assert set(sentence.split()) <= set(words)
        sentences.append(sentence)
    spoken = [engine.say(text, engine.default_voices[0], engine.default_rate) for text in sentences]
    assert wer(sentences, transcribe_all(spoken, grammar.jsgf("wide"))) < 0.35
    assert wer(sentences, transcribe_all([w[::-1] for w in spoken], grammar.jsgf("wide"))) > 0.8


def test_silence_has_an_empty_transcript(judge):
    assert judge.transcribe(np.zeros(0, np.float32)) == ""
    assert judge.transcribe(np.zeros(16_000, np.float32)) == ""
    assert judge.transcribe(np.full(16_000, np.nan, np.float32)) == ""


def test_bad_grammars():
    with pytest.raises(UserError, match="cannot pronounce zzyzzx"):
        Judge("#JSGF V1.0;\ngrammar g;\npublic <s> = hello zzyzzx;\n")
    with pytest.raises(UserError, match="no words"):
        Judge("#JSGF V1.0;\ngrammar g;\n")
    with pytest.raises(UserError, match="syntax"):
        Judge("#JSGF V1.0;\ngrammar g;\npublic <s> = (hello;\n")

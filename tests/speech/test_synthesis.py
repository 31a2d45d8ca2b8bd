"""The synthesisers: deterministic in any order, following rate and pitch, clear about what they cannot do."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from zipper_jax.speech import espeak, flite, neural_voices, synthesis
from zipper_jax.speech.workers import package_environment
from zipper_jax.utils.errors import UserError

ENGINES = [
    pytest.param(
        "flite", marks=pytest.mark.skipif(not flite.is_available(), reason="flite's libraries are not installed")
    ),
    pytest.param(
        "espeak",
        marks=pytest.mark.skipif(not espeak.is_available(), reason="the espeakng-loader wheel is not installed"),
    ),
    pytest.param(
        "piper",
        marks=pytest.mark.skipif(not neural_voices.is_available("piper"), reason="Piper's voice is not installed"),
    ),
]
TEXT = "turn the kitchen light off"


def _pitch_hz(waveform):
    """The median over loud 64 ms pieces of the strongest lag of the autocorrelation between 60 and 400 Hz."""
    found = []
    for start in range(0, len(waveform) - 1024, 320):
        piece = waveform[start : start + 1024]
        correlation = np.correlate(piece, piece, "full")[1023:]
        lag = 40 + correlation[40:267].argmax()
        if np.square(piece).mean() > 1e-3 and correlation[lag] > 0.5 * correlation[0]:
            found.append(16_000 / lag)
    return np.median(found)


@pytest.mark.parametrize("name", ENGINES)
def test_the_same_call_gives_the_same_samples_in_any_order(name):
    engine = synthesis.find_engine(name)
    requests = [(TEXT, voice, rate) for voice in engine.default_voices for rate in (1.0, 1.3)]
    forward = [engine.say(*request) for request in requests]
    backward = [engine.say(*request) for request in reversed(requests)][::-1]
    for first, second in zip(forward, backward, strict=True):
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, second)
    # ... and in a process that never synthesised anything else
    code = (
        "import hashlib; from zipper_jax.speech.synthesis import find_engine; "
        f"print(hashlib.sha256(find_engine({name!r}).say(*{requests[-1]!r}).tobytes()).hexdigest())"
    )
    alone = subprocess.run(
        [sys.executable, "-c", code], env=package_environment(), check=True, capture_output=True, text=True
    )
    assert alone.stdout.strip() == hashlib.sha256(forward[-1].tobytes()).hexdigest()


@pytest.mark.parametrize("name", ENGINES)
def test_every_voice_synthesises(name):
    engine = synthesis.find_engine(name)
    said = [engine.say("seven two", voice) for voice in engine.voices]
    assert all(np.abs(waveform).max() > 0.05 for waveform in said)
    assert len({waveform.tobytes() for waveform in said}) == len(engine.voices)


@pytest.mark.parametrize("name", ENGINES)
def test_rate_and_pitch(name):
    engine = synthesis.find_engine(name)
    voice = engine.default_voices[0]
    plain = engine.say(TEXT, voice)
    assert len(engine.say(TEXT, voice, rate=1.4)) / len(plain) == pytest.approx(1 / 1.4, abs=0.1)
    raised = engine.say(TEXT, voice, pitch=1.25)
    assert len(raised) == pytest.approx(len(plain), rel=0.12)  # Piper rounds each phoneme up to whole frames
    assert _pitch_hz(raised) / _pitch_hz(plain) == pytest.approx(1.25, abs=0.1)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"voice": "nobody"}, "nobody.*give one of"),
        ({"text": " . "}, "nothing to synthesise"),
        ({"rate": 0.0}, "rate = 0.0"),
        ({"pitch": float("nan")}, "pitch = nan"),
    ],
)
def test_bad_requests(name, change, message):
    engine = synthesis.find_engine(name)
    with pytest.raises(UserError, match=message):
        engine.say(**{"text": TEXT, "voice": engine.default_voices[0]} | change)


@pytest.mark.skipif(not flite.is_available(), reason="flite's libraries are not installed")
def test_the_voice_without_pitch_control_says_so():
    with pytest.raises(UserError, match="no pitch control"):
        synthesis.find_engine("flite").say(TEXT, "rms", pitch=1.1)


@pytest.mark.skipif(not espeak.is_available(), reason="the espeakng-loader wheel is not installed")
def test_espeak_is_never_loaded_into_this_process():
    synthesis.find_engine("espeak").say(TEXT, "en-us")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert "espeak" not in maps.read()


def test_unknown_engine():
    with pytest.raises(UserError, match=r"festival.*auto, flite, espeak, piper, kokoro"):
        synthesis.find_engine("festival")

"""Files and arrays in; clear messages for what cannot be used."""

import numpy as np
import pytest
import soundfile

from zipper_jax.errors import UserError
from zipper_jax.speech.audio import LEVEL, SAMPLE_RATE, add_noise, load_audio, normalise_level, save_flac, trim_silence

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.float32)  # one second at 48 kHz


def _peak_hz(waveform):
    return np.abs(np.fft.rfft(waveform)).argmax() * SAMPLE_RATE / len(waveform)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_stereo_file_of_another_rate_becomes_mono_16_khz(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([TONE, 0 * TONE], axis=1), 48_000)
    waveform = load_audio(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (16_000,)
    assert _peak_hz(waveform) == pytest.approx(440, abs=1)
    assert np.abs(waveform[2000:-2000]).max() == pytest.approx(0.15, abs=0.01)


def test_arrays_of_any_type_are_scaled_alike():
    integers = np.round(TONE * 32768).astype(np.int16)
    np.testing.assert_allclose(load_audio(integers, 48_000), load_audio(TONE, 48_000), atol=1e-4)
    np.testing.assert_array_equal(load_audio(TONE.astype(np.float64), 16_000), TONE)


def test_flac_round_trip(tmp_path):
    save_flac(tmp_path / "x.flac", 2 * TONE)
    np.testing.assert_allclose(load_audio(tmp_path / "x.flac"), load_audio(2 * TONE, SAMPLE_RATE), atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["x.flac"]


@pytest.mark.parametrize(
    "content, message",
    [(None, "does not exist"), (b"", "cannot be read"), (b"not audio at all", "cannot be read")],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.wav.*{message}"):
        load_audio(path)


def test_file_without_samples_and_file_with_nan(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(UserError, match=r"empty\.wav.*0 samples"):
        load_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0], np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan\.wav.*NaN"):
        load_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize(
    "array, rate, message",
    [
        (np.zeros(0, np.float32), 16_000, "0 samples"),
        (np.full(9, np.inf, np.float32), 16_000, "infinite"),
        (np.zeros(9, np.float32), None, "sample rate"),
        (np.zeros((2, 16_000), np.float32), 16_000, "shape"),
        (np.zeros(9, np.uint8), 16_000, "uint8"),
    ],
)
def test_bad_arrays(array, rate, message):
    with pytest.raises(UserError, match=message):
        load_audio(array, rate)


def test_a_file_states_its_own_rate(tmp_path):
    with pytest.raises(UserError, match="leave out sample_rate"):
        load_audio(tmp_path / "x.wav", 16_000)


def test_silence_is_trimmed_and_level_is_standard():
    sound = load_audio(TONE, 48_000)
    padded = np.concatenate([np.zeros(8000, np.float32), sound, np.zeros(8000, np.float32)])
    assert len(trim_silence(padded)) == pytest.approx(len(sound) + 2 * 640, abs=320)
    for quiet in (padded, 0.01 * padded):
        level = np.sqrt(np.square(trim_silence(normalise_level(quiet), 0.0)).mean())
        assert level == pytest.approx(LEVEL, rel=0.02)
    for blank in (np.zeros(500, np.float32), np.zeros(0, np.float32)):
        np.testing.assert_array_equal(trim_silence(blank), blank)
        np.testing.assert_array_equal(normalise_level(blank), blank)


def test_noise_has_the_ratio_asked_for():
    sound = load_audio(TONE, 48_000)
    noise = add_noise(sound, 20.0, np.random.default_rng(0)) - sound
    assert 10 * np.log10(np.square(sound).mean() / np.square(noise).mean()) == pytest.approx(20, abs=0.3)

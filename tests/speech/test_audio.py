"""Files and arrays in; clear messages for what cannot be used."""

import os

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.speech import audio
from zipper_jax.speech.audio import (
    LEVEL,
    SAMPLE_RATE,
    AudioError,
    add_noise,
    load_audio,
    normalise_level,
    read_audio,
    read_blocks,
    save_audio,
    trim_silence,
)
from zipper_jax.utils.errors import UserError

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


@pytest.mark.parametrize("name", ["x.flac", "x.wav", "x.OGG"])
def test_round_trip(tmp_path, name):
    save_audio(tmp_path / name, TONE / 2)
    error = np.abs(load_audio(tmp_path / name) - TONE / 2).max()
    assert error < (0.1 if name == "x.OGG" else 1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_samples_outside_one_are_clipped(tmp_path):
    save_audio(tmp_path / "x.flac", 4 * TONE)
    np.testing.assert_allclose(load_audio(tmp_path / "x.flac"), np.clip(4 * TONE, -1, 1), atol=1e-4)


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


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.mp3", "a.flac"])
def test_a_truncated_file_is_corrupt(tmp_path, name):
    rng, path = np.random.default_rng(0), tmp_path / name
    soundfile.write(path, 0.1 * rng.uniform(-1, 1, 32_000), 16_000)
    assert len(load_audio(path)) == 32_000
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(AudioError, match=name) as caught:
        load_audio(path)
    assert caught.value.reason == "corrupt audio"
    if not name.endswith("flac"):  # what is there of the others can be used
        assert len(load_audio(path, start=0.5, seconds=0.5)) == 8_000


def test_an_ogg_file_that_is_damaged_in_the_middle_is_corrupt(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, 0.1 * np.random.default_rng(0).uniform(-1, 1, 64_000), 16_000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.ogg' ends .* s too early"):
        load_audio(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_streamed_wav_states_no_length(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, TONE, 48_000)
    content = bytearray(path.read_bytes())
    where = content.index(b"data") + 4
    content[where : where + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(load_audio(path)) == 16_000


def test_an_mp3_whose_length_is_guessed_is_whole(tmp_path):
    """Variable bit rate without the header that states the length: the guess is far off."""
    path = tmp_path / "a.mp3"
    loud = np.random.default_rng(0).uniform(-1, 1, 64_000) * np.repeat([0.0001, 0.5], 32_000)
    soundfile.write(path, loud, 16_000, bitrate_mode="VARIABLE", compression_level=0.5)
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 10) :])
    assert soundfile.info(path).frames > 96_000
    assert len(load_audio(path)) >= 64_000


@pytest.fixture(scope="module", params=["wav", "flac", "ogg", "mp3"])
def stereo(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stereo") / f"a.{request.param}"
    soundfile.write(path, np.random.default_rng(0).normal(size=(9_000, 2)) * 0.1, 16_000)
    return path


@given(
    block=st.integers(1, 5_000),
    start=st.floats(0, 0.5),
    seconds=st.none() | st.floats(0.01, 0.3),
    channel=st.sampled_from([None, 0, 1]),
)
def test_blocks_make_the_whole(stereo, block, start, seconds, channel):
    whole, rate = read_audio(stereo, start, seconds, channel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "_CHUNK", block)
        blocks = list(read_blocks(stereo, start, seconds, channel))
    assert {other for _, other in blocks} == {rate}
    assert max(len(one) for one, _ in blocks) <= max(1, block // 2)  # two channels
    np.testing.assert_array_equal(np.concatenate([one for one, _ in blocks]), whole)
    frames, _ = soundfile.read(stereo, dtype="float32")
    first = round(start * rate)
    expected = frames[first : None if seconds is None else first + round(seconds * rate)]
    if stereo.suffix in (".wav", ".flac"):  # the others decode a little differently behind a seek
        np.testing.assert_array_equal(whole, expected.mean(axis=1) if channel is None else expected[:, channel])


def test_a_part_of_a_damaged_file_is_corrupt(tmp_path):
    """Behind a damage, a seek in an OGG file may miss its place."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, 0.1 * np.random.default_rng(0).uniform(-1, 1, 64_000), 16_000)
    content = bytearray(path.read_bytes())
    for number in range(len(content) // 3, len(content) - 4000, 2000):
        content[number] ^= 255
    path.write_bytes(content)
    for start, seconds in ((1.0, None), (1.0, 1.0), (2.5, 1.0)):
        with pytest.raises(AudioError) as caught:
            load_audio(path, start=start, seconds=seconds)
        assert caught.value.reason in ("corrupt audio", "part beyond its end")


def test_a_part_beyond_the_end(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, TONE, 48_000)
    assert len(load_audio(path, start=0.5, seconds=0.7)) == 8_000
    for start, seconds in ((0.5, 29.5), (3.0, 1.0)):
        with pytest.raises(AudioError, match=r"has 1 s, .* are asked for") as caught:
            load_audio(path, start=start, seconds=seconds)
        assert caught.value.reason == "part beyond its end"
    with pytest.raises(AudioError, match=r"has no audio from 3 s on") as caught:
        load_audio(path, start=3.0)
    assert caught.value.reason == "part beyond its end"


@pytest.mark.parametrize("name", ["a.raw", f"{'a' * 300}.wav", os.fsdecode(b"caf\xe9.wav")])
def test_names_that_cannot_be_opened(tmp_path, name):
    if len(name) < 255:
        soundfile.write(tmp_path / "a.wav", TONE, 48_000)
        (tmp_path / "a.wav").rename(tmp_path / name)
    with pytest.raises(AudioError, match="cannot be read") as caught:
        load_audio(tmp_path / name)
    str(caught.value).encode()


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
    with pytest.raises(UserError, match="omit sample_rate"):
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

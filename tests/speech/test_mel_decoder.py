"""The learned decoder of units: bounded reach, the same samples in any pieces, stored with its tokenizer; it learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zipper_jax.cli.main import main
from zipper_jax.speech import features, mel_decoder, vocoder
from zipper_jax.speech.mel_decoder import WINDOW, MelDecoder, forward, initial_parameters
from zipper_jax.speech.mel_decoder_training import MelDecoderSettings, pair, train
from zipper_jax.speech.streaming_vocoder import lookahead, stream
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.speech.tokenizers import VocodedTokenizer, load_tokenizer
from zipper_jax.tasks import SPEECH
from zipper_jax.utils.errors import UserError

SMALL = MelDecoderSettings(steps=120, batch=8, crop=32, dim=48, blocks=2)


@pytest.fixture(scope="module")
def spoken(tokenizer, speech):
    return [pair(tokenizer, waveform, "one") for waveform in speech[1]]


@pytest.fixture(scope="module")
def trained(tokenizer, spoken):
    return train(tokenizer, spoken[:8], SMALL)


def _decoder(units=32, frames=2, blocks=2):
    rng = np.random.default_rng(0)
    mean = np.zeros(frames * features.NUM_BANDS, np.float32)
    features_of_units = rng.standard_normal((units, 8)).astype(np.float32)
    return MelDecoder(initial_parameters(features_of_units, 2, frames, mean, rng, 16, blocks), ("a", "b"), "b", "x")


def test_frames_depend_on_the_units_within_reach_alone():
    decoder, rng = _decoder(), np.random.default_rng(1)
    assert decoder.reach == 6
    units = rng.integers(0, 32, 3 * WINDOW + 5)
    frames = decoder.decode(units)
    assert frames.shape == (2 * len(units), features.NUM_BANDS)
    for place in (0, WINDOW - 1, WINDOW + 20, len(units) - 1):
        other = units.copy()
        other[place] = (other[place] + 1) % 32
        changed = np.flatnonzero((decoder.decode(other) != frames).any(axis=1)) // 2
        assert changed.min() == max(0, place - decoder.reach)
        assert changed.max() == min(len(units) - 1, place + decoder.reach)
    # and bitwise not on what follows beyond it
    np.testing.assert_array_equal(decoder.decode(units[:100])[: 2 * (100 - 6)], frames[: 2 * (100 - 6)])


def test_numpy_and_jax_compute_the_same():
    decoder = _decoder()
    units = np.random.default_rng(1).integers(0, 32, (3, 40))
    voices = np.array([0, 1, 0])
    ours = forward(np, decoder.parameters, units, voices)
    theirs = jax.jit(lambda p: forward(jnp, p, units, voices))(decoder.parameters)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ours.shape == (3, 40 - 2 * decoder.reach, 160)
    assert not np.allclose(ours[0], forward(np, decoder.parameters, units[:1], np.array([1]))[0], atol=1e-3)


def test_it_learns_what_the_codebook_cannot_say(tokenizer, spoken, trained):
    """On sentences it has not seen, closer to the audio than the centroids are."""
    vocoded = VocodedTokenizer(tokenizer, trained)

    def distance(decode):
        return np.mean([np.abs(decode(one.units) - one.frames.reshape(-1, 80)).mean() for one in spoken[8:]])

    untrained = train(tokenizer, spoken[:8], replace(SMALL, steps=0))
    assert distance(vocoded.decode) < 0.8 * distance(untrained.decode)


def test_the_same_seed_trains_the_same_decoder(tokenizer, spoken, trained):
    few = replace(SMALL, steps=3)
    assert train(tokenizer, spoken[:8], few).digest == train(tokenizer, spoken[:8], few).digest
    assert train(tokenizer, spoken[:8], replace(few, seed=1)).digest != train(tokenizer, spoken[:8], few).digest


def test_it_is_stored_with_the_tokenizer(tokenizer, spoken, trained, tmp_path):
    made = VocodedTokenizer(tokenizer, trained)
    made.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    units = spoken[0].units
    assert (loaded.digest, loaded.num_units, loaded.rate_hz) == (tokenizer.digest, 128, 25)
    np.testing.assert_array_equal(loaded.decode(units), made.decode(units))
    np.testing.assert_array_equal(vocoder.synthesize(loaded, units), vocoder.synthesize(made, units))
    assert not np.array_equal(loaded.decode(units), tokenizer.decode(units))
    tokenizer.save(tmp_path / "plain")  # without one, the codebook decodes as before
    np.testing.assert_array_equal(load_tokenizer(tmp_path / "plain").decode(units), tokenizer.decode(units))
    with pytest.raises(UserError, match="units must be integers from 0 to 127"):
        loaded.decode(np.array([128]))


def test_damage_and_other_units_are_refused(tokenizer, speech, trained, tmp_path):
    trained.save(tmp_path)
    path = tmp_path / mel_decoder.FILE_NAME
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "weights/output": arrays["weights/output"] + 1})
    with pytest.raises(UserError, match="not what was saved"):
        MelDecoder.load(tmp_path)
    np.savez(path, **{**arrays, "weights/input": arrays["weights/input"][:3]})
    with pytest.raises(UserError, match="do not fit each other"):
        MelDecoder.load(tmp_path)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged"):
        MelDecoder.load(tmp_path)
    with pytest.raises(UserError, match="trained on units"):
        VocodedTokenizer(UnitTokenizer.fit(speech[1], num_units=64), trained)
    with pytest.raises(UserError, match="voice = 'nobody'"):
        train(tokenizer, [pair(tokenizer, speech[1][0], "one")], replace(SMALL, voice="nobody"))


def test_streamed_audio_waits_for_no_more_than_the_lookahead():
    decoder, rng = _decoder(), np.random.default_rng(1)
    units = rng.integers(0, 32, 3 * WINDOW + 9).tolist()
    read = 0

    def arriving():
        nonlocal read
        for unit in units:
            read += 1
            yield unit

    pieces, done = [], 0
    for piece in stream(decoder, arriving(), iterations=4):
        done = min(len(units), done + WINDOW)
        assert read <= done + lookahead(decoder)
        pieces.append(piece)
    assert [len(piece) for piece in pieces] == [WINDOW * 640] * 3 + [9 * 640]
    # Bitwise the same where the units differ beyond the lookahead.
    other = [*units[: WINDOW + lookahead(decoder)], 1, 2, 3]
    np.testing.assert_array_equal(next(stream(decoder, other, iterations=4)), pieces[0])
    assert list(stream(decoder, [])) == []
    with pytest.raises(UserError, match="units must be integers"):
        next(stream(decoder, [32]))


def test_streamed_audio_is_that_of_the_whole(tokenizer, spoken, trained):
    """Its spectra are as close to the frames as those of Griffin-Lim over the whole, at the joins, too."""
    units = np.concatenate([one.units for one in spoken])[: 6 * WINDOW]
    frames = trained.decode(units)
    whole, streamed = vocoder.griffin_lim(frames), np.concatenate(list(stream(trained, units.tolist())))
    assert whole.shape == streamed.shape
    error = [np.abs(features.log_mel(w) - frames).mean(axis=1) for w in (whole, streamed)]
    pieces = error[1].reshape(6, -1).mean(axis=1)
    assert (pieces < 1.15 * error[0].reshape(6, -1).mean(axis=1)).all()
    joins = [slice(2 * place - 3, 2 * place + 3) for place in range(WINDOW, 6 * WINDOW, WINDOW)]
    assert np.mean([error[1][j].mean() for j in joins]) < 1.5 * error[0].mean()


def test_the_command(engine, tmp_path, capsys):
    corpus, prepared = str(tmp_path / "corpus"), tmp_path / "prepared"
    few = ["--validation", "1", "--test", "1", "--test_other", "0"]
    assert main(["data", "synth", "--out", corpus, "--sentences", "12", *few, "--processes", "1"]) == 0
    lengths = ["--text_length", "64", "--speech_length", "128", "--num_units", "32", "--unit_features", "log-mel"]
    lengths += ["--processes", "1"]
    assert main(["data", "prepare", "--corpus", corpus, "--out", str(prepared), *lengths]) == 0
    plain = load_tokenizer(prepared / "vocabularies" / SPEECH)
    command = ["data", "vocoder", str(prepared), "--corpus", corpus, "--steps", "2", "--dim", "16", "--blocks", "1"]
    assert main([*command, "--voice", engine.default_voices[1], "--processes", "1"]) == 0
    found = load_tokenizer(prepared / "vocabularies" / SPEECH)
    assert isinstance(found, VocodedTokenizer)
    assert found.digest == plain.digest
    assert found.mel_decoder.voice == engine.default_voices[1]
    assert set(found.mel_decoder.voices) == set(engine.default_voices)
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    # Trained again, over a damaged one, it is the same.
    again = [*command, "--voice", engine.default_voices[1], "--processes", "1", "--overwrite"]
    home = prepared / "vocabularies" / SPEECH
    (home / mel_decoder.FILE_NAME).write_bytes(b"damaged")
    with pytest.raises(UserError, match="zipper data vocoder"):
        load_tokenizer(home)
    assert main(again) == 0
    assert load_tokenizer(home).mel_decoder.digest == found.mel_decoder.digest
    assert main([*command, "--voice", "nobody", "--overwrite"]) == 2
    assert "voice = 'nobody'" in capsys.readouterr().err

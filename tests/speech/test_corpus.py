"""The corpus: disjoint splits, resumable, honest about a folder that holds something else."""

import dataclasses
import json

import numpy as np
import pytest
from logged import logged

from zipper_jax.speech import corpus
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.corpus import CorpusSettings, synthesise_corpus
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.utils.errors import UserError

SMALL = CorpusSettings(train=6, validation=2, test=2, test_other=4)


@pytest.fixture(scope="module")
def made(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    with logged() as lines:
        synthesise_corpus(folder, SMALL, processes=2)
    return folder, lines


def _contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifest_and_files(made):
    folder, lines = made
    rows = read_manifest(folder)
    assert [sum(row["split"] == split for row in rows) for split in corpus.SPLITS] == [6, 2, 2, 4]
    assert {"id", "split", "text", "voice", "rate", "pitch", "audio", "seconds"} <= rows[0].keys()
    for row in rows:
        assert len(load_audio(folder / row["audio"])) / 16_000 == pytest.approx(row["seconds"], abs=1e-3)
    assert json.loads((folder / "corpus.json").read_text())["complete"]
    assert "complete" in lines[-1]
    assert not list(folder.rglob("*.partial"))


def test_test_other_has_known_voices_at_unseen_rate_and_pitch(made):
    rows = read_manifest(made[0])
    train = [row for row in rows if row["split"] == "train"]
    other = [row for row in rows if row["split"] == "test_other"]
    assert {row["voice"] for row in other} <= {row["voice"] for row in train}
    assert not {row["rate"] for row in other} & {row["rate"] for row in train}
    assert not {row["pitch"] for row in other} & {row["pitch"] for row in train}
    assert {row["snr_db"] for row in other} == {SMALL.other_snr_db}


def test_no_sentence_in_two_splits(engine):
    for seed in range(2):
        utterances = corpus.plan(CorpusSettings(train=1500, seed=seed), engine)
        assert len({u.text for u in utterances}) == len({u.id for u in utterances}) == len(utterances)


def test_finished_corpus_is_no_work(made, monkeypatch):
    before = _contents(made[0])
    monkeypatch.setattr(corpus, "find_engine", lambda *wanted: pytest.fail("a finished corpus needs no engine"))
    synthesise_corpus(made[0], SMALL)
    assert _contents(made[0]) == before


def test_resume_after_an_interruption(made, engine, tmp_path):
    def interrupted(items, **options):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zipper_jax.speech.corpus.progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            synthesise_corpus(tmp_path, SMALL, processes=1)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "audio").glob("*.flac")}
    assert 0 < len(kept) < 14
    with pytest.raises(UserError, match="finish the corpus first"):
        read_manifest(tmp_path)
    (tmp_path / "audio" / "train_000005.flac.123.partial").write_bytes(b"half")
    with logged() as lines:
        synthesise_corpus(tmp_path, SMALL, processes=2)
    assert "continuing" in lines[0]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert _contents(tmp_path) == _contents(made[0])


def test_a_folder_of_other_settings_is_left_alone(made):
    with pytest.raises(UserError, match="made with seed = 0, now 1"):
        synthesise_corpus(made[0], dataclasses.replace(SMALL, seed=1))


@pytest.mark.parametrize(
    "change, message",
    [({"train": 0}, "train = 0"), ({"test": -1}, "test = -1"), ({"other_rates": ()}, "other_rates is empty")],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message):
        CorpusSettings(**change)


def test_settings_that_the_engine_cannot_meet(engine, tmp_path):
    with pytest.raises(UserError, match=r"nobody.*give some of"):
        synthesise_corpus(tmp_path / "x", CorpusSettings(voices=("nobody",)))
    with pytest.raises(UserError, match="ask for fewer"):
        corpus.plan(CorpusSettings(train=150_000), engine)
    for voice in engine.without_pitch:  # reported before the first of thousands of sentences is synthesised
        with pytest.raises(UserError, match=rf"other_pitches has 0.97.*{voice}.*no pitch control"):
            corpus.plan(CorpusSettings(voices=(voice,)), engine)


def test_bad_manifests(made, tmp_path):
    with pytest.raises(UserError, match="split 'dev' is unknown"):
        read_manifest(made[0], "dev")
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"id": "a"\n')
    with pytest.raises(UserError, match="line 1 is not a JSON object"):
        read_manifest(tmp_path)
    path.write_text('{"id": "a", "split": "test"}\n')
    with pytest.raises(UserError, match="line 1 lacks audio, text"):
        read_manifest(tmp_path)
    path.write_text('{"id": "a", "split": "test", "text": "x"}\n\n' * 2)
    with pytest.raises(UserError, match="line 3 has id 'a', as line 1 has: give each row an id of its own"):
        read_manifest(tmp_path)


def test_noise_is_the_same_in_every_run(made, engine, tmp_path):
    row = read_manifest(made[0], "test_other")[0]
    utterance = next(u for u in corpus.plan(SMALL, engine) if u.id == row["id"])
    (tmp_path / "audio").mkdir()
    corpus.make_speaker(str(tmp_path), engine.name)(utterance)
    np.testing.assert_array_equal(load_audio(tmp_path / row["audio"]), load_audio(made[0] / row["audio"]))

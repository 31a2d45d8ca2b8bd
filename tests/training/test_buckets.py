"""Runs in a bucket: the promises of a run on a disk, with the same tests."""

import random
import signal
import time
import uuid

import numpy as np
import pytest
from buckets import any_folder, failing, folder, gcs, s3  # noqa: F401
from killing import Job, wait_for
from running import log, params, run
from test_kill import disturb_a_group, kill_and_restart, same_end

import zipper_jax
from zipper_jax.checkpoint import checkpoints, tools
from zipper_jax.cli.main import main
from zipper_jax.training import run_folder
from zipper_jax.training.config import FreezeConfig, SaveCheckpointConfig
from zipper_jax.utils import storage
from zipper_jax.utils.errors import DamagedError, ServiceError, UserError
from zipper_jax.utils.storage import MARKER, as_path
from zipper_jax.utils.trees import flatten


@pytest.fixture
def rows_in_bucket(prepared, gcs):  # noqa: F811
    """The prepared folder, in the bucket."""
    target = as_path(f"{gcs}/{uuid.uuid4().hex}")
    storage.copy_tree(prepared, target)
    return target


@pytest.mark.slow
def test_twelve_kills_leave_no_trace_in_a_bucket(prepared, rows_in_bucket, folder, tmp_path):  # noqa: F811
    """A run in the bucket that is killed equals one on a disk that is not."""
    reference = Job(tmp_path, "reference", prepared, 200)
    assert reference.finish() == 0, reference.said()
    job = Job(tmp_path, "killed", rows_in_bucket, 200, where=as_path(folder))
    done = kill_and_restart(job, reference, kills=12, reach=12, rng=random.Random(1))
    print(done)
    same_end(job, reference)
    assert "in 13 attempts" in job.said()
    assert any("in a write" in how for how in done)


@pytest.mark.slow
def test_a_group_of_four_in_a_bucket_survives_ten_kills(rows_in_bucket, folder, tmp_path):  # noqa: F811
    disturb_a_group(rows_in_bucket, tmp_path, kills=10, steps=150, seed=1, where=as_path(folder))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5, 80])
def test_a_group_survives_an_outage_of_the_store(rows_in_bucket, folder, tmp_path, seconds):  # noqa: F811
    """A short one is bridged by repeating requests; in a long one the group ends and is restarted until it is over."""
    reference = Job(tmp_path, "reference", rows_in_bucket, 60, ("--processes=2", "--restarts=0"))
    assert reference.finish() == 0, reference.said()
    job = Job(tmp_path, "outage", rows_in_bucket, 60, ("--processes=2", "--restarts=50"), where=as_path(folder))
    launcher = job.start()
    try:
        wait_for(lambda: job.logged() >= 10, launcher, pause=0.05)
        with failing(".*", 503):
            time.sleep(seconds)
        assert launcher.wait(timeout=600) == 0, job.said()[-3000:]
    finally:
        launcher.terminate()
    same_end(job, reference)
    assert ("restarting it" in job.said()) == (seconds > 60)


def test_a_run_in_a_bucket_equals_one_on_a_disk_and_resumes(zipper_run, rows_in_bucket, folder):  # noqa: F811
    local = zipper_run(steps=4, save=SaveCheckpointConfig(period=2), freeze=FreezeConfig(towers=("text",)))
    assert run(local)[0].status == "finished"
    data = local.data.__class__(**{**vars(local.data), "folder": str(rows_in_bucket)})
    config = zipper_run(steps=2, save=local.save, freeze=local.freeze, model_dir=folder, data=data)
    assert run(config)[0].status == "finished"
    config = zipper_run(steps=4, save=local.save, freeze=local.freeze, model_dir=folder, data=data)
    _, said = run(config)
    assert "resuming after step 2" in said
    assert log(config) == log(local)
    for key, leaf in params(local).items():
        np.testing.assert_array_equal(params(config)[key], leaf)
    names = storage.keys(folder)
    assert "config.json" in names
    assert not [name for name in names if ".lock" in name or "partial" in name or "tmp" in name]
    model, other = zipper_jax.load(folder), zipper_jax.load(local.model_dir)
    given = [[("speech", np.arange(4, dtype=np.int32))]]
    assert [r.tokens.tolist() for r in model._generator(given, ("text",), {"text": 4})[0]] == [
        r.tokens.tolist() for r in other._generator(given, ("text",), {"text": 4})[0]
    ]


# Orbax closes its event loop at the first read that fails, while others are under way: Python says so of each.
READS_UNDER_WAY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
DAMAGES = {
    "flipped": lambda path: storage.write(path, bytes([storage.read(path)[0] ^ 1]) + storage.read(path)[1:]),
    "truncated": lambda path: storage.write(path, storage.read(path)[:-1]),
    "missing": lambda path: storage.write(path, None),
}


@READS_UNDER_WAY
def test_a_damaged_step_in_a_bucket_is_found_and_set_aside(text_run, folder):  # noqa: F811
    config = text_run(model_dir=folder)
    run(config)
    before = params(config)
    assert checkpoints.steps(folder) == [3, 6]
    newest = as_path(folder) / "checkpoints" / "6"
    for name in [n for n in storage.keys(newest) if n.startswith("trainable/d/")]:
        content = storage.read(newest / name)
        for damage in DAMAGES.values():
            damage(newest / name)
            assert any(name in problem for problem in checkpoints.verify(folder, 6)), name
            storage.write(newest / name, content)
    assert checkpoints.verify(folder, 6) == []
    for name in [n for n in storage.keys(newest) if "trainable/" in n and "/d/" in n]:
        DAMAGES["truncated"](newest / name)
    _, said = run(text_run(model_dir=folder, steps=9))
    assert "it is moved to" in said
    assert "resuming from step 3" in said
    assert storage.is_complete(as_path(folder) / "damaged" / "6")
    assert checkpoints.steps(folder) == [6, 9]
    for key, leaf in params(config, 6).items():
        np.testing.assert_array_equal(before[key], leaf)


@READS_UNDER_WAY
def test_a_failing_server_is_not_taken_for_damage(text_run, folder, capsys):  # noqa: F811
    save = SaveCheckpointConfig(period=3, keep=1, keep_best=1, best_mode="max")
    config = text_run(model_dir=folder, save=save, eval_period=3)
    run(config)
    here, steps = folder.rpartition("/")[2], checkpoints.steps(folder)
    assert steps == [3, 6], "the first is kept as the best only"
    names = [name for name in storage.keys(folder) if name.startswith("checkpoints/")]
    newest = f"{here}/checkpoints/{steps[-1]}"
    for part in ("manifest/metadata", "trainable/.*", "files.json"):
        with failing(f"GET .*{newest}/{part}.*alt=media"):
            if part != "files.json":
                with pytest.raises(ServiceError):
                    checkpoints.load_params(folder)
                with pytest.raises(ServiceError):
                    run(text_run(model_dir=folder, steps=9, save=save, eval_period=3))
            with pytest.raises(ServiceError):
                checkpoints.verify(folder, steps[-1])
            assert main(["ckpt", "prune", folder, "--keep", "1"]) == 1
            assert "PERMISSION_DENIED" in capsys.readouterr().err
    with failing(f"GET .*{here}/checkpoints/.*/manifest/metadata.*alt=media"):
        checkpoints.Checkpoints(folder, save)._tidy()
    found = storage.keys(folder)
    assert [name for name in found if name.startswith("checkpoints/")] == names
    assert not [name for name in found if name.startswith("damaged/")]


def test_a_vocabulary_whose_upload_was_killed_is_written_again(text_run, folder):  # noqa: F811
    config = text_run(model_dir=folder, steps=1)
    vocabulary = as_path(folder) / "vocabularies" / "text"
    run_folder.open_run(config)
    names = storage.keys(folder)
    storage.delete_tree(vocabulary)
    storage.write(vocabulary / storage.PARTIAL, b"")
    run_folder.open_run(config)
    assert storage.keys(folder) == names


def test_a_step_without_its_marker_does_not_exist(text_run, folder):  # noqa: F811
    config = text_run(model_dir=folder)
    run(config)
    whole = log(config)
    storage.write(as_path(folder) / "checkpoints" / "6" / MARKER, None)  # as if it were killed before the last object
    assert checkpoints.steps(folder) == [3]
    _, said = run(config)
    assert "resuming after step 3" in said
    assert log(config) == whole
    assert checkpoints.steps(folder) == [3, 6]


@READS_UNDER_WAY
def test_all_steps_damaged_in_a_bucket_stops_and_moves_nothing(text_run, folder):  # noqa: F811
    config = text_run(model_dir=folder)
    run(config)
    for step in (3, 6):
        storage.write(as_path(folder) / "checkpoints" / str(step) / "manifest" / "metadata", b"{")
    names = storage.keys(as_path(folder) / "checkpoints")
    with pytest.raises(DamagedError):
        run(text_run(model_dir=folder, steps=9))
    assert storage.keys(as_path(folder) / "checkpoints") == names


def test_a_frozen_part_that_was_half_written_is_written_again(zipper_run, folder):  # noqa: F811
    config = zipper_run(steps=2, freeze=FreezeConfig(towers=("text",)), model_dir=folder)
    run(config)
    (frozen,) = storage.complete_subfolders(as_path(folder) / "frozen")
    before = params(config)
    storage.delete_tree(as_path(folder) / "checkpoints")
    storage.write(as_path(folder) / "frozen" / frozen / MARKER, None)
    storage.write(as_path(folder) / "metrics.jsonl", None)
    run(config)
    for key, leaf in params(config).items():
        np.testing.assert_array_equal(before[key], leaf)


def test_a_run_folder_on_s3_is_refused(text_run):
    with pytest.raises(UserError, match=r"MODEL_DIR.*checkpoints are written to disks and gs:// only"):
        text_run(model_dir="s3://bucket/run")


def test_ctrl_c_saves_in_a_bucket(prepared, folder, tmp_path):  # noqa: F811
    """The metrics of an interrupted run are in the bucket when it has ended, and its lock is not."""
    job = Job(tmp_path, "run", prepared, 100_000, where=as_path(folder))
    process = job.start()
    wait_for(lambda: job.logged() >= 10, process, pause=0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 128 + signal.SIGINT, job.said()[-2000:]
    saved = checkpoints.steps(folder)[-1]
    assert job.logged() == saved
    assert not (as_path(folder) / ".lock").is_file()


def test_checkpoints_in_a_bucket_are_listed_verified_pruned_and_exported(text_run, folder, tmp_path):  # noqa: F811
    config = text_run(model_dir=folder)
    run(config)
    assert [line.split()[:2] for line in tools.listing(folder)] == [["step", "3"], ["step", "6"]]
    assert not any("?" in line for line in tools.listing(folder))
    assert [(step, problems) for step, problems, _ in tools.verify_run(folder, None, True)] == [(3, []), (6, [])]
    for out in (f"{folder}/exported", str(tmp_path / "exported")):
        assert tools.export(folder, out, step=3) == 3
        assert checkpoints.steps(out) == [3]
        assert f"checkpoints/3/{MARKER}" in storage.files(as_path(out))
        assert checkpoints.verify(out, 3) == []
        for key, leaf in flatten(checkpoints.load_params(folder, 3)[1]).items():
            np.testing.assert_array_equal(flatten(checkpoints.load_params(out)[1])[key], leaf)
    storage.write(f"{folder}/checkpoints/9/trainable/x", b"")  # of an interrupted write
    lines = tools.prune(folder, keep=1)
    assert [line.split()[1] for line in lines] == ["checkpoints/3", "checkpoints/9"]
    assert storage.subfolders(as_path(folder) / "checkpoints") == ["6"]
    assert checkpoints.steps(folder) == [6]
    assert not [name for name in storage.keys(as_path(folder) / "checkpoints") if name.startswith("3/")]


def test_models_in_buckets_are_written_fused_and_trained_further(text_run, prepared, any_folder, tmp_path, capsys):  # noqa: F811
    config = text_run()
    run(config)
    tower = f"{any_folder}/tower"
    assert main(["convert", "export", config.model_dir, "--out", tower]) == 0
    assert main(["convert", "export", config.model_dir, "--out", tower]) == 2
    assert f"--out '{tower}' exists" in capsys.readouterr().err
    assert main(["inspect", tower]) == 0
    assert "a model folder" in capsys.readouterr().out
    for key, leaf in params(config).items():
        np.testing.assert_array_equal(flatten(checkpoints.load_params(tower)[1])[key], leaf)
    fused = f"{any_folder}/fused"
    towers = ["--tower", f"text={tower}", "--tower", f"other={tower}"]
    assert main(["fuse", *towers, "--zips", "text=1,other=1", "--out", fused]) == 0, capsys.readouterr().err
    assert set(zipper_jax.load(fused).config.towers) == {"text", "other"}
    further = text_run(model_dir=str(tmp_path / "further"), initialise_from={"text": tower}, steps=1)
    assert run(further)[0].status == "finished"
    storage.write(as_path(tower) / ".partial", b"")
    storage.write(as_path(tower) / MARKER, None)
    with pytest.raises(UserError, match="is incomplete: its writer was stopped"):
        zipper_jax.load(tower)
    whole = storage.read(as_path(fused) / "model.safetensors")
    storage.write(as_path(fused) / "model.safetensors", whole[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        zipper_jax.load(fused)

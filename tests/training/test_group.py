"""Several processes that train one model: the same batches and losses, and errors that all of them report."""

import random
import shutil
import subprocess

import numpy as np
import pytest
from killing import GIN, Job

from zipper_jax.utils.distributed import Group
from zipper_jax.utils.errors import UserError

FUSION = """
include 'runs/base.gin'
include 'models/zipper.gin'
include 'tasks/asr_tts.gin'
TASK_FEATURE_LENGTHS = {'text': 16, 'speech': 24}
BATCH_SIZE = 4
ZIP_PAIRS = ((1, 1),)
FreezeConfig.towers = ('text',)
text/ModalityConfig.tower = 'text'
text/ModalityConfig.size = 22
speech/ModalityConfig.tower = 'speech'
speech/ModalityConfig.size = 32
text/TowerConfig.vocab_size = 22
speech/TowerConfig.vocab_size = 32
text/TowerConfig.embed_dim = 16
speech/TowerConfig.embed_dim = 24
TowerConfig.num_layers = 1
TowerConfig.num_heads = 4
TowerConfig.num_kv_heads = 2
TowerConfig.head_dim = 4
TowerConfig.mlp_dim = 32
OptimizerConfig.learning_rate = 1e-2
TrainConfig.log_period = 1
"""


def losses(job: Job) -> list[float]:
    return [line["loss"] for line in job.lines() if line["split"] == "train"]


@pytest.mark.slow
def test_one_two_and_four_processes_compute_the_same_losses(prepared, tmp_path):
    """Four devices each time. In one process XLA adds the devices' gradients in another order than gloo does."""
    runs = [
        Job(tmp_path, f"of_{count}", prepared, 20, (f"--processes={count}", "--restarts=0"), devices=4 // count)
        for count in (1, 2, 4)
    ]
    for job in runs:
        assert job.finish() == 0, job.said()
    for job in runs[1:]:
        np.testing.assert_allclose(losses(job), losses(runs[0]), rtol=1e-6)
    again = Job(tmp_path, "again", prepared, 20, ("--processes=4", "--restarts=0"))
    assert again.finish() == 0
    assert losses(again) == losses(runs[2]), "the same program: bitwise"

    # A run of four processes resumes in one, and one of one process in four.
    assert runs[2].finish_with("launch", "--processes=1", "--restarts=0", steps=26) == 0, runs[2].said()
    assert runs[0].finish_with("launch", "--processes=4", "--restarts=0", steps=26, devices=1) == 0, runs[0].said()
    np.testing.assert_allclose(losses(runs[2]), losses(runs[0]), rtol=1e-5)
    assert len(losses(runs[0])) == 26


@pytest.mark.slow
@pytest.mark.parametrize("gin", [GIN, FUSION], ids=["pretraining", "fusion, text frozen"])
def test_processes_may_share_one_copy_of_the_model(prepared, tmp_path, gin):
    """Parameters sharded over the devices of 1, 2 and 4 processes, losses within 1e-6."""
    cut = ("--gin.MeshConfig.data=1", "--gin.MeshConfig.fsdp=2", "--gin.MeshConfig.tensor=2")
    runs = [
        Job(tmp_path, f"of_{n}", prepared, 8, (f"--processes={n}", "--restarts=0"), 4 // n, bindings=cut, gin=gin)
        for n in (1, 2, 4)
    ]
    for job in runs:
        assert job.finish() == 0, job.said()
    assert len(losses(runs[0])) == 8
    for job in runs[1:]:
        np.testing.assert_allclose(losses(job), losses(runs[0]), rtol=1e-6)


@pytest.mark.slow
def test_a_group_decodes_in_the_loop_what_one_process_decodes(prepared, tmp_path):
    """Four devices each time, parameters sharded over two processes; the scores decide which checkpoint is the best."""
    values = {
        "MeshConfig.data": 2,
        "MeshConfig.fsdp": 2,
        "TrainConfig.eval_period": 4,
        "InferEvalConfig.period": 4,
        "InferEvalConfig.examples": 6,
        "InferEvalConfig.metrics": {"asr": ("zipper_jax.metrics.task_metrics:unit_error_rate",)},
    }
    bindings = tuple(f"--gin.{name}={value}" for name, value in values.items())
    runs = [
        Job(
            tmp_path,
            f"of_{n}",
            prepared,
            8,
            (f"--processes={n}", "--restarts=0"),
            4 // n,
            bindings=bindings,
            gin=FUSION,
        )
        for n in (1, 2)
    ]
    for job in runs:
        assert job.finish() == 0, job.said()
    scores = [[line for line in job.lines() if line["split"] == "inference"] for job in runs]
    assert [line["step"] for line in scores[0]] == [4, 8]
    assert scores[1] == scores[0]


def port() -> int:
    return random.SystemRandom().randint(20_000, 50_000)


def test_processes_that_disagree_report_the_difference(prepared, tmp_path):
    """Two runs of one group, each with its own BATCH_SIZE: both end with the same error before anything is written."""
    jobs = [Job(tmp_path, "run", prepared, 5, bindings=(f"--gin.BATCH_SIZE={size}",)) for size in (4, 8)]
    where = f"--coordinator=127.0.0.1:{port()}"
    started: list[subprocess.Popen] = []
    for index, job in enumerate(jobs):
        job.output = tmp_path / f"{index}.out"
        started.append(job.start(where, "--process_count=2", f"--process_index={index}", "--heartbeat_seconds=10"))
    assert [process.wait(timeout=120) for process in started] == [2, 2]
    for job in jobs:
        assert "process 1 has another configuration than process 0: train.batch_size: 8, not 4" in job.said()
    assert not jobs[0].run_dir.exists()


def test_a_mesh_that_leaves_a_process_idle_is_refused(prepared, tmp_path):
    job = Job(tmp_path, "run", prepared, 5, ("--processes=2", "--restarts=0"), bindings=("--gin.MeshConfig.data=1",))
    assert job.finish() == 2, job.said()
    assert "MeshConfig uses 1 of 2 devices in 2 processes" in job.said()


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_the_group(prepared, tmp_path):
    """Only process 0 writes TensorBoard's files; it must not wait for the others, who wait for it."""
    alone = Job(tmp_path, "run", prepared, 3)
    assert alone.finish() == 0, alone.said()
    shutil.rmtree(alone.run_dir / "tensorboard")
    (alone.run_dir / "tensorboard").write_text("in the way")
    group = Job(tmp_path, "run", prepared, 6, ("--processes=2", "--restarts=0"))
    assert group.finish() == 1, group.said()
    assert "tensorboard" in group.said()


@pytest.mark.slow
def test_a_damaged_row_that_one_process_reads_ends_the_group(prepared, tmp_path):
    """Each process makes its own rows, so the others see no error: they must not wait for this one."""
    damaged = tmp_path / "prepared"
    shutil.copytree(prepared, damaged)
    path = damaged / "rows" / "text_lm" / "train" / "spans.npy"
    spans = np.load(path)
    spans["segment"][len(spans) // 2] = 7
    np.save(path, spans)
    group = Job(tmp_path, "run", damaged, 40, ("--processes=4", "--restarts=3"))
    assert group.finish() == 2, group.said()
    assert "is damaged: prepare the rows again" in group.said()
    assert "Traceback" not in group.said()


def test_a_process_that_does_not_join_is_reported(prepared, tmp_path):
    job = Job(tmp_path, "run", prepared, 5)
    status = job.finish(
        f"--coordinator=127.0.0.1:{port()}", "--process_count=2", "--process_index=0", "--join_seconds=5"
    )
    assert status == 1, job.said()
    assert "process 0 of 2 waited 5 s for the others" in job.said()
    assert not job.run_dir.exists()


def test_the_settings_of_a_group_must_be_complete():
    with pytest.raises(UserError, match="needs --process_count and --process_index"):
        Group("127.0.0.1:1")
    with pytest.raises(UserError, match="give 0 to 3"):
        Group("127.0.0.1:1", 4, 4)
    with pytest.raises(UserError, match="HOST:PORT"):
        Group("somewhere", 4, 0)
    assert Group("auto").count is None

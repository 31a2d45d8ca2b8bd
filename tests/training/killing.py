"""Real ``zipper train`` processes, killed on purpose: what the kill tests are made of."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zipper_jax
from zipper_jax.training.monitor import read_metrics
from zipper_jax.utils import storage
from zipper_jax.utils.storage import AnyPath

CLOCK = ("tokens_per_second", "flops_per_second", "goodput")
GIN = """
include 'runs/base.gin'
MIXTURE_OR_TASK_NAME = 'text_lm'
TASK_FEATURE_LENGTHS = {'text': 16}
BATCH_SIZE = 4
TrainConfig.model = @ZipperConfig()
ZipperConfig.towers = {'text': @TowerConfig()}
ZipperConfig.modalities = {'text': @ModalityConfig()}
ModalityConfig.tower = 'text'
ModalityConfig.size = 22
TowerConfig.vocab_size = 22
TowerConfig.num_layers = 2
TowerConfig.embed_dim = 16
TowerConfig.num_heads = 4
TowerConfig.num_kv_heads = 2
TowerConfig.head_dim = 4
TowerConfig.mlp_dim = 32
FreezeConfig.paths = ('towers/text/embedding/.*',)
OptimizerConfig.learning_rate = 1e-2
TrainConfig.log_period = 1
TrainConfig.eval_period = 10
SaveCheckpointConfig.period = 10
SaveCheckpointConfig.keep_best = 1
SaveCheckpointConfig.best_metric = 'loss'
"""


class Job:
    """One run folder and the command that trains into it.

    Args:
        folder: Where the gin file and the run go.
        name: Of the run.
        data: A prepared folder.
        steps: TRAIN_STEPS.
        launch: Options of ``zipper launch``; None: plain ``zipper train``.
        devices: Virtual devices of each process.
        bindings: Further gin flags.
        gin: What is trained.
        where: The run folder; None: ``folder/name``.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        data: AnyPath,
        steps: int,
        launch: tuple[str, ...] | None = None,
        devices: int = 1,
        bindings: tuple[str, ...] = (),
        gin: str = GIN,
        where: AnyPath | None = None,
    ):
        self.run_dir = where or folder / name
        self.folder = folder
        file = folder / f"{name}.gin"
        file.write_text(gin)
        train = ["train", f"--gin_file={file}", f"--gin.DATA={str(data)!r}", f"--gin.MODEL_DIR={str(self.run_dir)!r}"]
        train += [f"--gin.TRAIN_STEPS={steps}", *bindings]
        command = train if launch is None else ["launch", *launch, "--", *train]
        self.command = [sys.executable, "-m", "zipper_jax.cli.main", *command]
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(Path(zipper_jax.__file__).parents[1]),  # the package under test, wherever it is installed
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        self.output = folder / f"{name}.out"

    def start(self, *extra: str) -> subprocess.Popen:
        with self.output.open("a") as out:
            return subprocess.Popen(
                [*self.command, *extra],
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )

    def finish(self, *extra: str) -> int:
        """Run to the end; the exit status."""
        return self.start(*extra).wait(timeout=600)

    def finish_with(self, *launch: str, steps: int, devices: int = 4) -> int:
        """Resume with another number of processes, up to more steps; the exit status."""
        train = self.command[self.command.index("train") :]
        command = [*self.command[:3], *launch, "--", *train, f"--gin.TRAIN_STEPS={steps}"]
        environment = {**self.environment, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        with self.output.open("a") as out:
            return subprocess.run(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=600
            ).returncode

    def said(self) -> str:
        return self.output.read_text()

    def lines(self) -> list[dict]:
        """The log so far, without what depends on the clock; a torn last line is skipped."""
        return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(self.run_dir)]

    def logged(self) -> int:
        """The newest step that is logged."""
        try:
            content = (self.run_dir / "metrics.jsonl").read_bytes()
            whole = content.rpartition(b"\n")[0].rpartition(b"\n")[2]
            return int(json.loads(whole)["step"]) if whole else 0
        except FileNotFoundError:
            return 0

    def writing(self) -> bool:
        """Whether a checkpoint is half written."""
        folder = self.run_dir / "checkpoints"
        if not isinstance(folder, Path):
            return set(storage.subfolders(folder)) != set(storage.complete_subfolders(folder))
        return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 240, pause: float | None = None
) -> None:
    """Poll until it holds; fails when the process ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with status {process.returncode} before it could be killed"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.0005 if pause is None else pause)


def moment(job: Job, rng: random.Random, reach: int) -> Callable[[], bool]:
    """A random moment to come: after a few more steps than now, or while a checkpoint is being written.

    A write can be too quick to be seen: then the moment comes some steps later.
    """
    target = job.logged() + rng.randint(1, reach)
    latest = target + (20 if rng.random() < 0.4 else 0)
    return lambda: (steps := job.logged()) >= target and (steps >= latest or job.writing())


def children(pid: int) -> list[int]:
    """The processes that a process has started, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(found)


def check_prefix(lines: list[dict], reference: list[dict]) -> None:
    """Every line of a run that was disturbed is the undisturbed one's, bit for bit; replayed lines included."""
    known = {(line["split"], line["step"]): line for line in reference}
    for line in lines:
        assert line == known[line["split"], line["step"]]


SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)

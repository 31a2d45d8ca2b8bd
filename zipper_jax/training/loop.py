"""The training loop: batches in, updates, metrics and checkpoints out, and an end that is always clean.

The position in the data is the step number, nothing else; so a run that is stopped at any checkpoint and started again
reads the same batches and computes the same losses, bit for bit, as one that was never stopped (on the same devices).

The loop looks at a step's metrics only after it has sent off the next one, so the device never waits for the host. A
loss that is not finite is thus seen one step late; the update it belongs to was already left out inside the step.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from zipper_jax.errors import UserError
from zipper_jax.training import data_source, initial, program, run_folder
from zipper_jax.training.checkpoints import Checkpoints
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.monitor import Monitor, duration, losses, nest_gates
from zipper_jax.training.partitioning import put_batch
from zipper_jax.training.signals import GracefulStop
from zipper_jax.training.state import TrainState
from zipper_jax.training.step import Batch, Metrics, Sums


@runtime_checkable
class Batches(Protocol):
    """Global batches by step; a pure function of the step."""

    def get(self, step: int) -> Batch: ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: ``finished``, ``already finished`` or ``interrupted``.
        step: Updates done.
        exit_code: For the command line: 0, or 128 + the signal's number.
        model_dir: The run folder.
    """

    status: str
    step: int
    exit_code: int
    model_dir: str


def train(
    config: TrainConfig,
    *,
    provenance: str = "",
    stream: Any = None,
    wrap_batches: Callable[[Batches], Batches] | None = None,
) -> TrainResult:
    """Train until ``config.steps``, resuming from the newest checkpoint in ``config.model_dir``.

    Args:
        config: The run.
        provenance: gin text to keep beside ``config.json``.
        stream: Where progress is shown; None: standard error.
        wrap_batches: Sees the batches before the loop does (experiments, tests).

    Raises:
        UserError: Anything in the configuration, the folders or the data that does not fit; or a loss that is not
            finite, with the path of the saved batch.
    """
    run_dir = run_folder.open_run(config, provenance)
    with (
        GracefulStop() as stop,
        Checkpoints(run_dir, config.checkpoints_kept, config.asynchronous_checkpoints) as checkpoints,
    ):
        done = checkpoints.latest()
        if done is not None and done >= config.steps:
            return TrainResult("already finished", done, 0, config.model_dir)
        source = data_source.open_data(config)
        batches = wrap_batches(source.batches) if wrap_batches else source.batches
        built = program.build(config, len(source.tasks))
        progress: dict[str, Any] = {}
        if done is None:
            state = built.start(initial.initial_params(config.model, config.seed, config.initialise_from))
        else:
            state, progress = checkpoints.restore(built.like)
        monitor = Monitor(
            run_dir,
            start=done or 0,
            total=config.steps,
            flops_per_step=built.flops_per_step,
            peak=built.peak_flops,
            stream=stream,
            quiet=jax.process_index() != 0,
        )
        try:
            _announce(config, built, state, monitor, done)
            before = progress.get("seconds", 0.0)
            run = _Run(config, run_dir, source, batches, built, checkpoints, monitor, stop, before)
            step = run.loop(state, done or 0)
        finally:
            monitor.close()
    if stop.requested is not None and step < config.steps:
        return TrainResult("interrupted", step, 128 + stop.requested, config.model_dir)
    return TrainResult("finished", step, 0, config.model_dir)


def _announce(
    config: TrainConfig, built: program.Program, state: TrainState, monitor: Monitor, done: int | None
) -> None:
    trained = sum(int(np.prod(leaf.shape)) for leaf in state.trainable.values())
    frozen = sum(int(np.prod(leaf.shape)) for leaf in state.frozen.values())
    where = "starting" if done is None else f"resuming after step {done}"
    mesh = " x ".join(f"{name} {size}" for name, size in built.mesh.shape.items() if size > 1) or "one device"
    monitor.say(
        f"{config.model_dir}: {where}, {config.steps} steps of {config.batch_size} rows ({config.data.mixture}), "
        f"{trained:,} parameters trained, {frozen:,} frozen, {mesh} ({built.mesh.devices.flat[0].device_kind})"
    )
    for note in built.notes:
        monitor.say(f"note: {note}")


class _Run:
    """The loop and what it needs at hand."""

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        source: "data_source.DataSource",
        batches: Batches,
        built: program.Program,
        checkpoints: Checkpoints,
        monitor: Monitor,
        stop: GracefulStop,
        seconds_before: float,
    ) -> None:
        self.config, self.run_dir, self.source, self.batches, self.built = config, run_dir, source, batches, built
        self.checkpoints, self.monitor, self.stop = checkpoints, monitor, stop
        self.began = time.perf_counter() - seconds_before

    def loop(self, state: TrainState, start: int) -> int:
        """Run from ``start`` updates to the end, or to a stop; returns the updates done, which are saved."""
        config = self.config
        pending: tuple[int, Metrics, Batch] | None = None
        for step in range(start, config.steps):
            batch = self.batches.get(step)
            state, metrics = self.built.train_step(state, put_batch(batch, self.built.mesh))
            if pending is not None:
                self.report(*pending)
            pending = (step + 1, metrics, batch)
            if step == start:
                self.first_step(*pending)
                pending = None
            done = step + 1
            last = done == config.steps or self.stop.requested is not None
            saves = last or done % config.checkpoint_period == 0
            evaluates = bool(config.eval_period) and (done % config.eval_period == 0 or done == config.steps)
            if pending is not None and (saves or evaluates):
                self.report(*pending)  # nothing is saved or judged before the step is known to be good
                pending = None
            if evaluates:
                self.aside(self.evaluate, state, done)
            if saves:
                self.aside(self.save, state)
            if last:
                self.finish(done)
                return done
        raise AssertionError("unreachable: a run has at least one step left")

    def first_step(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """Report the first step at once: it compiles, so it is kept off the clock."""
        self.report(step, metrics, batch)
        self.monitor.start_clock(step)

    def aside(self, task: Callable[..., None], *args: Any) -> None:
        """Do something that is not training; the speed shown does not count it."""
        began = time.perf_counter()
        task(*args)
        self.monitor.pause(time.perf_counter() - began)

    def report(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """Check one step's result and log it when its turn has come."""
        host: Metrics = jax.device_get(metrics)
        if not host.applied:
            self.fail(step, host, batch)
        self.monitor.add_tokens(float(host.tokens))
        if step % self.config.log_period and step != self.config.steps and step != 1:
            return
        values: dict[str, Any] = {
            "grad_norm": float(host.grad_norm),
            "learning_rate": float(self.built.schedule(step - 1)),
        }
        if host.gates:
            values["gates"] = nest_gates(host.gates)
        self.monitor.train(step, float(host.loss), losses(host.towers, self.source.tasks), values)

    def fail(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """Save the batch that gave no finite loss or gradient, and stop; checkpoints stay as they are."""
        path = self.run_dir / f"bad_batch_step_{step}.npz"
        arrays = {"task": np.asarray(batch["task"])}
        for name, tower in batch["towers"].items():
            arrays |= {f"towers/{name}/{field}": np.asarray(value) for field, value in tower._asdict().items()}
        aside = path.with_name(f".{path.name}")
        with aside.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        aside.replace(path)
        last = self.checkpoints.latest()
        kept = f"the checkpoint of step {last} is good" if last is not None else "there is no checkpoint yet"
        raise UserError(
            f"step {step}: loss {float(metrics.loss)}, gradient norm {float(metrics.grad_norm)}: the update was not "
            f"applied and the run stops; {kept}. Its batch is in {path}. "
            "Lower OptimizerConfig.learning_rate or clip_norm, lengthen the warm-up, or look at that batch"
        )

    def evaluate(self, state: TrainState, step: int) -> None:
        """Validation loss: the same formula over a fixed set of validation rows."""
        totals: dict[str, Sums] | None = None
        params = state.params
        for index in range(self.source.validation_batches):
            batch = put_batch(self.source.validation.get(index), self.built.mesh)
            sums: dict[str, Sums] = jax.device_get(self.built.eval_step(params, batch))
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        if totals is None:
            return
        parts = losses(totals, self.source.tasks)
        weights = self.config.loss_weights
        loss = math.fsum(weights.get(name, 1.0) * tower["loss"] for name, tower in parts["towers"].items())
        self.monitor.validation(step, loss, parts)

    def save(self, state: TrainState) -> None:
        """Save a checkpoint."""
        self.checkpoints.save(state, {"seed": self.config.seed, "seconds": time.perf_counter() - self.began})

    def finish(self, step: int) -> None:
        """Wait for the last checkpoint and say how it ended."""
        self.checkpoints.wait()
        seconds = duration(time.perf_counter() - self.began)
        if self.stop.requested is not None and step < self.config.steps:
            name = self.stop.requested.name
            self.monitor.say(f"{name}: saved step {step} of {self.config.steps}; the same command goes on from there")
        else:
            self.monitor.say(f"{self.config.model_dir}: finished {step} steps in {seconds}")

"""The training loop: reads batches, applies updates, and writes metrics and checkpoints.

The position in the data depends only on the number of applied updates and the skipped batches. A run that is stopped
or killed at any step therefore resumes with the same batches and bit-identical losses (on the same devices).

The loop reads a step's metrics only after dispatching the next step, so the device never waits for the host. A bad
loss is seen one step late, but the compiled step has already discarded its update.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from zipper_jax.checkpoint.checkpoints import Checkpoints
from zipper_jax.checkpoint.state import TrainState
from zipper_jax.sharding.mesh import own_rows, put_batch, put_flag
from zipper_jax.training import bad_batches, data_source, initial, program, run_folder, sinks
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.goodput import Goodput
from zipper_jax.training.monitor import Monitor, losses, nest_gates, read_metrics
from zipper_jax.training.skips import Skips
from zipper_jax.training.step import Batch, Metrics, Sums
from zipper_jax.training.traces import Traces
from zipper_jax.utils import distributed
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked
from zipper_jax.utils.logs import to_file
from zipper_jax.utils.signals import GracefulStop
from zipper_jax.utils.staging import Staging, staged
from zipper_jax.utils.storage import AnyPath, as_path

logger = logging.getLogger(__name__)


@runtime_checkable
class Batches(Protocol):
    """Batches by batch number, of which a process has the rows of its own devices; ``get`` is a pure function."""

    def get(self, step: int) -> Batch: ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: ``finished``, ``already finished`` or ``interrupted``.
        step: Applied updates.
        exit_code: For the command line: 0, or 128 + the signal number.
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
    wrap_batches: Callable[[Batches], Batches] | None = None,
    infer: Callable[[dict[str, Any]], dict[str, dict[str, float]]] | None = None,
    began: float | None = None,
) -> TrainResult:
    """Train until ``config.steps``, resuming from the newest good checkpoint in ``config.model_dir``.

    In a multi-process run every process calls it with the same configuration; process 0 writes the run folder.

    Args:
        config: The run.
        provenance: gin text to keep beside ``config.json``.
        wrap_batches: Sees the batches before the loop does (experiments, tests).
        infer: Scores parameters by decoding, task -> metric -> value (``evaluation.in_loop.make``).
        began: ``time.perf_counter()`` at process start, in seconds; None: now.

    Returns:
        How the run ended.

    Raises:
        UserError: The configuration, the folders or the data do not fit together; or the loss stays bad after the last
            allowed rollback (the message has the path of the saved batch).
    """
    began = time.perf_counter() if began is None else began
    distributed.require_same(run_folder.resolved(config), "configuration")
    first = jax.process_index() == 0
    run_dir = as_path(config.model_dir)
    with ExitStack() as stack:
        stop = stack.enter_context(GracefulStop(config.save.grace_seconds))
        # Process 0 writes the folder, and only while it holds the folder's lock.
        distributed.together(lambda: sinks.require(config) if first else None)
        distributed.together(lambda: run_folder.check_run(config) if first else None)
        distributed.together(lambda: stack.enter_context(locked(run_dir)) if first else None)
        name = "train.log" if first else f"train.process_{jax.process_index()}.log"
        staging = stack.enter_context(staged(run_dir))
        staging.fetch(name, *(("metrics.jsonl", "goodput.json") if first else ()))
        stack.enter_context(to_file(staging.folder / name))
        distributed.together(lambda: run_folder.open_run(config, provenance) if first else None)
        checkpoints = stack.enter_context(Checkpoints(run_dir, config.save))
        done = checkpoints.latest()
        if done is None and (run_dir / "damaged").is_dir():
            raise UserError(
                f"{config.model_dir!r} has no good checkpoint, only damaged ones in {run_dir / 'damaged'}: restore one "
                "from a backup, or remove the folder to start from step 0"
            )
        if done is not None and done >= config.steps:
            return TrainResult("already finished", done, 0, config.model_dir)
        source = distributed.together(data_source.open_data, config)
        built = distributed.together(program.build, config, len(source.tasks))
        source = source.only(own_rows(built.mesh, config.batch_size))
        batches = wrap_batches(source.batches) if wrap_batches else source.batches
        furthest = max((line["step"] for line in read_metrics(staging.folder) if line["split"] == "train"), default=0)
        goodput = Goodput(staging.folder / "goodput.json" if first else None, began, furthest)
        traces = stack.enter_context(Traces(config.profile, staging.folder, run_dir))
        run = _Run(config, run_dir, source, batches, built, checkpoints, stop, goodput, infer, traces, staging)
        with goodput.spend("restore" if done is not None else "start"):
            state, step = run.restore() if done is not None else run.start()
        further = distributed.together(lambda: sinks.further(config, staging.folder) if first else [])
        with Monitor(
            staging.folder,
            start=step,
            batch=run.next,
            total=config.steps,
            flops_per_step=built.flops_per_step,
            peak=built.peak_flops,
            silent=not first,
            more=further,
        ) as run.monitor:
            _announce(config, built, state, step if done is not None else None)
            step = run.loop(state, step)
    if step < config.steps:  # this process or another one received a signal
        return TrainResult("interrupted", step, 128 + (stop.requested or signal.SIGTERM), config.model_dir)
    return TrainResult("finished", step, 0, config.model_dir)


def _announce(config: TrainConfig, built: program.Program, state: TrainState, done: int | None) -> None:
    trained = sum(int(np.prod(leaf.shape)) for leaf in state.trainable.values())
    frozen = sum(int(np.prod(leaf.shape)) for leaf in state.frozen.values())
    where = "starting" if done is None else f"resuming after step {done}"
    mesh = " x ".join(f"{name} {size}" for name, size in built.mesh.shape.items() if size > 1) or "one device"
    group = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    logger.info(
        f"{config.model_dir}: {where}, {config.steps} steps of {config.batch_size} rows ({config.data.mixture}), "
        f"{trained:,} parameters trained, {frozen:,} frozen, {mesh} ({built.mesh.devices.flat[0].device_kind}){group}"
    )
    for note in built.notes:
        logger.info(f"note: {note}")


class _Sent(NamedTuple):
    """A dispatched update whose metrics have not been read yet."""

    number: int
    batch: Batch
    metrics: Metrics


class _Run:
    """The loop and its state."""

    monitor: Monitor

    def __init__(
        self,
        config: TrainConfig,
        run_dir: AnyPath,
        source: "data_source.DataSource",
        batches: Batches,
        built: program.Program,
        checkpoints: Checkpoints,
        stop: GracefulStop,
        goodput: Goodput,
        infer: Callable[[dict[str, Any]], dict[str, dict[str, float]]] | None,
        traces: Traces,
        staging: Staging,
    ) -> None:
        self.config, self.run_dir, self.source, self.batches, self.built = config, run_dir, source, batches, built
        self.checkpoints, self.stop, self.goodput, self.infer = checkpoints, stop, goodput, infer
        self.traces, self.staging = traces, staging
        self.skips = Skips(config.data.skip_batches)
        self.next = self.skips.batch(0)
        self.streak = self.rollbacks = self.last_bad = 0
        self.stopping = False
        self.validated: dict[str, float] | None = None

    # Initial state, restore and save.

    def start(self) -> tuple[TrainState, int]:
        """The state of step 0."""
        config = self.config
        params = distributed.together(
            initial.initial_leaves,
            config.model,
            config.seed,
            config.initialise_from,
            config.restore,
            config.allow_changes,
        )
        return self.built.start(params, self.checkpoints.keep_frozen), 0

    def restore(self, only: Sequence[int] | None = None) -> tuple[TrainState, int]:
        """Restore the newest good checkpoint, or the newest good one among the steps ``only``."""
        state, progress = self.checkpoints.restore(self.built.like, only=only)
        step = int(state.step)
        self.skips = Skips(self.config.data.skip_batches).plus(*progress.get("skipped", ()))
        self.next = self.skips.batch(step)
        self.streak, self.rollbacks = int(progress.get("streak", 0)), int(progress.get("rollbacks", 0))
        return state, step

    def save(self, state: TrainState) -> None:
        """Save a checkpoint."""
        progress = {
            "seed": self.config.seed,
            "skipped": self.skips.as_json(),
            "streak": self.streak,
            "rollbacks": self.rollbacks,
        }
        self.staging.copy()  # so that a restored step never lacks the lines before it
        self.checkpoints.save(state, progress, self.validated)

    # The loop.

    def loop(self, state: TrainState, step: int) -> int:
        """Train from ``step`` to the last step or to a signal; returns the applied updates, which are saved."""
        config, total = self.config, self.config.steps
        sent: _Sent | None = None
        compiled = False
        while True:
            arrived = 0  # 1: ``state`` has just been confirmed as the state after ``step`` updates
            with self.goodput.spend("data"):
                batch = self.own(self.batches, self.next)
                placed = put_batch(batch, self.built.mesh, config.batch_size)
                flag = put_flag(self.stop.requested is not None, self.built.mesh)
            with self.goodput.spend("compile" if not compiled else self.kind(step)):
                with self.traces.update(step + 1 + (sent is not None)) as traced:
                    state, metrics = self.built.train_step(state, placed, flag)
                    traced.append(metrics)
                if sent is not None:
                    step += self.report(sent, step)
                sent, self.next = _Sent(self.next, batch, metrics), self.skips.after(self.next)
                # A state must be confirmed good before it is saved or evaluated, and the first step compiles: read its
                # metrics now. Not once a rollback is due, which discards this state.
                waits = not compiled or self.stopping or step + 1 == total or self.pauses(step + 1)
                if waits and self.streak < config.guard.skips_in_a_row:
                    arrived = self.report(sent, step)
                    step, sent = step + arrived, None
            if not compiled:
                compiled = True
                self.monitor.start_clock(step)
            if self.streak >= config.guard.skips_in_a_row:
                state, step = self.roll_back(step)
                sent = None
                continue
            ends = step == total or (self.stopping and sent is None)
            if ends or (arrived and self.pauses(step)):
                self.aside(state, step, arrived)
            if ends:
                self.finish(step)
                return step

    def own(self, batches: Batches, number: int) -> Batch:
        """This process's rows of a batch."""
        with self.alone():
            return batches.get(number)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For what this process does alone: the others do not see its UserError, and would wait for it."""
        try:
            yield
        except UserError as error:
            if jax.process_count() == 1:
                raise
            raise distributed.FailedAloneError(str(error)) from error

    def kind(self, step: int) -> str:
        """The goodput category of the update after ``step``: recovery if an earlier attempt has already done it."""
        return "recovery" if step < self.goodput.furthest else "steps"

    def pauses(self, done: int) -> bool:
        """Whether a checkpoint or an evaluation is due after ``done`` updates."""
        config = self.config
        return done % config.save.period == 0 or bool(config.eval_period and done % config.eval_period == 0)

    def aside(self, state: TrainState, done: int, arrived: int) -> None:
        """Evaluate, then save a checkpoint; the reported speed excludes this time.

        A state that is not newly confirmed (``arrived`` is 0: a skipped update before a stop) was evaluated before.
        """
        config = self.config
        last = done == config.steps
        began = time.perf_counter()
        self.validated = None
        if arrived and config.eval_period and (done % config.eval_period == 0 or last):
            with self.goodput.spend("evaluation"):
                self.evaluate(state, done)
        if done and (done % config.save.period == 0 or last or self.stopping):
            with self.goodput.spend("checkpoint"):
                self.save(state)
        self.monitor.pause(time.perf_counter() - began)

    def report(self, sent: _Sent, step: int) -> int:
        """Read one update's metrics and log them every ``log_period`` steps; returns 1 if it was applied, else 0."""
        host: Metrics = jax.device_get(sent.metrics)
        self.stopping = self.stopping or int(host.stops) > 0
        if not host.applied:
            self.skip(sent, host, step)
            return 0
        self.streak = 0
        self.checkpoints.poll()
        step += 1
        self.monitor.add_tokens(float(host.tokens))
        self.goodput.reached(step)
        if step % self.config.log_period == 0 or step in (1, self.config.steps):
            values: dict[str, Any] = {
                "grad_norm": float(host.grad_norm),
                "learning_rate": float(self.built.schedule(step - 1)),
            }
            if host.gates:
                values["gates"] = nest_gates(host.gates)
            parts = losses(host.towers, self.source.tasks)
            self.monitor.train(step, float(host.loss), parts, values, self.goodput)
        return 1

    def evaluate(self, state: TrainState, step: int) -> None:
        """Log the validation loss over a fixed set of rows and, when due, the metrics of decoded examples."""
        totals: dict[str, Sums] | None = None
        params = state.params
        for index in range(self.source.validation_batches):
            batch = self.own(self.source.validation, index)
            batch = put_batch(batch, self.built.mesh, self.config.batch_size)
            sums: dict[str, Sums] = jax.device_get(self.built.eval_step(params, batch))
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        if totals is not None:
            parts = losses(totals, self.source.tasks)
            self.validated = self.monitor.validation(step, parts, self.config.term_weights)
        period = self.config.infer_eval.period
        if self.infer is not None and period and (step % period == 0 or step == self.config.steps):
            scores = self.monitor.inference(step, self.infer(params))
            self.validated = {**(self.validated or {}), **scores}

    # Bad updates.

    def skip(self, sent: _Sent, metrics: Metrics, step: int) -> None:
        """Record an update that was not applied: skip its batch from now on and save it for ``zipper replay``."""
        before = self.skips
        self.skips = before.plus((sent.number, sent.number + 1))
        self.streak, self.last_bad = self.streak + 1, sent.number
        path = bad_batches.path_of(self.run_dir, sent.number)
        if jax.process_index() == 0:
            with self.alone():
                whole = sent.batch if jax.process_count() == 1 else self.source.batches.whole(sent.number)
                bad_batches.write(path, whole, sent.number, step, before)
        self.monitor.skipped(step, sent.number, metrics, path)

    def roll_back(self, step: int) -> tuple[TrainState, int]:
        """Restore the newest checkpoint after too many bad updates in a row and skip every batch since then."""
        stop = self.last_bad + 1
        if self.rollbacks >= self.config.guard.rollbacks:
            self.give_up(self.last_bad)
        rollbacks = self.rollbacks + 1
        with self.goodput.spend("restore"):
            self.checkpoints.wait()
            # An uninterrupted run has no checkpoint saved on a signal, so such a one is the last resort.
            target = self.checkpoints.periodic_steps() or (
                self.checkpoints.steps() if step >= self.config.save.period else []
            )
            if target:
                state, step = self.restore(target)
            else:
                state, step = self.start()
                self.skips = Skips(self.config.data.skip_batches)
            self.checkpoints.discard_after(step)
        start = self.skips.batch(step)
        self.skips = self.skips.plus((start, stop))
        self.next = self.skips.batch(step)
        self.streak, self.rollbacks = 0, rollbacks
        self.monitor.rolled_back(step, (start, stop), rollbacks)
        return state, step

    def give_up(self, number: int) -> None:
        """Raise the error of a run whose loss stayed bad after the last allowed rollback."""
        last = self.checkpoints.latest()
        kept = f"the checkpoint of step {last} is good" if last is not None else "there is no checkpoint yet"
        raise UserError(
            f"the loss stayed bad: {self.config.guard.skips_in_a_row} batches in a row, the last one {number}, after "
            f"{self.rollbacks} rollbacks; the run stops and {kept}. "
            f"Inspect the batch with `{bad_batches.command(bad_batches.path_of(self.run_dir, number))}`, lower "
            "OptimizerConfig.learning_rate or clip_norm, lengthen the warm-up, or skip batches with "
            "DataConfig.skip_batches"
        )

    def finish(self, step: int) -> None:
        """Wait for the last checkpoint and print how the run ended."""
        with self.goodput.spend("checkpoint"):
            self.checkpoints.wait()
        self.goodput.write()
        skipped = f"; {len(self.skips)} batches skipped" if len(self.skips) else ""
        if step < self.config.steps:
            asked = self.stop.requested.name if self.stop.requested is not None else "another process was stopped"
            logger.info(f"{asked}: saved step {step} of {self.config.steps}; the same command resumes from there")
        else:
            logger.info(f"{self.config.model_dir}: finished {step} steps{skipped}")
        logger.info(self.goodput.summary())

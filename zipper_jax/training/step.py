"""The training step and the evaluation step: pure functions under ``jax.jit``.

Loss = sum over towers of lambda_tower * (sum w * ce / sum w), and the same over the choices of the next modality that
each tower makes at end tokens, where the model makes them. Each denominator is summed over the global batch: all
devices (``jit`` sees global arrays) and all microbatches (before the first one runs). Accumulation and mesh thus change
rounding only.

Axes: B rows, T positions, M microbatches, Q tasks.
"""

import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int

from zipper_jax.checkpoint.state import Guard, TrainState
from zipper_jax.models.choice import loss_terms
from zipper_jax.models.dropout import row_keys
from zipper_jax.ops.losses import Losses
from zipper_jax.training.config import GuardConfig
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import Flat, join

Batch = dict[str, Any]
"""``{"towers": {name: TowerBatch of [B, T]}, "task": int32[B]}``"""
LossFunction = Callable[..., dict[str, Losses]]
"""(params, towers) to the losses of each tower's tokens and choices, `Zipper.losses`; with dropout (params, towers,
keys)."""


class Sums(NamedTuple):
    """Sums over a tower's tokens, or its choices, per task."""

    nll: Float[Array, " Q"]
    correct: Float[Array, " Q"]
    weight: Float[Array, " Q"]


class Metrics(NamedTuple):
    """Metrics of one step; device arrays, replicated.

    Attributes:
        loss: The minimised loss, in nats.
        towers: Per tower, sums per task (mean loss = nll / weight); those of choices are named by `choice.choice_of`.
        tokens: Positions that hold a token, all towers.
        grad_norm: Global norm over the trainable leaves, before clipping.
        gates: tanh of every scalar gate after the update, by path.
        applied: False when loss or gradient are not finite, or the loss is a spike; the state is then unchanged.
        limit: A loss above it is a spike; infinite while there is no limit.
        stops: Number of devices whose process was asked to stop before this step.
    """

    loss: Float[Array, ""]
    towers: dict[str, Sums]
    tokens: Float[Array, ""]
    grad_norm: Float[Array, ""]
    gates: Flat
    applied: Bool[Array, ""]
    limit: Float[Array, ""]
    stops: Int[Array, ""]


def new_guard() -> Guard:
    """Loss statistics before the first update."""
    return Guard(*(cast(Any, np.zeros((), dtype)) for dtype in (np.int32, np.float32, np.float32)))


def spike_limit(guard: Guard, config: GuardConfig) -> Float[Array, ""]:
    """The largest loss that is no spike: mean + deviations * standard deviation; infinite for the first updates.

    The standard deviation is at least 1 % of the mean, so that a converged loss does not make every change a spike.
    """
    deviation = jnp.maximum(jnp.sqrt(guard.variance), 0.01 * jnp.abs(guard.mean))
    active = (config.spike_deviations > 0) & (guard.updates >= config.window)
    return jnp.where(active, guard.mean + config.spike_deviations * deviation, jnp.inf)


def observe(guard: Guard, loss: Float[Array, ""], window: int) -> Guard:
    """Add a loss to the statistics: a plain mean over the first ``window`` losses, then an exponential one."""
    updates = guard.updates + 1
    share = 1.0 / jnp.minimum(updates, window).astype(jnp.float32)
    mean = guard.mean + share * (loss - guard.mean)
    variance = guard.variance + share * ((loss - guard.mean) * (loss - mean) - guard.variance)
    return Guard(updates, mean, jnp.maximum(variance, 0.0))


def _denominators(batch: Batch) -> dict[str, Float[Array, ""]]:
    """Sum of weights per term of the loss; 1 where a tower has no target (its numerator is then 0)."""
    totals = {name: jnp.sum(weights) for name, weights in loss_terms(batch["towers"]).items()}
    return {name: jnp.where(total > 0, total, 1.0) for name, total in totals.items()}


def _loss(
    losses: LossFunction,
    params: dict[str, Any],
    batch: Batch,
    denominators: Mapping[str, Float[Array, ""]],
    loss_weights: Mapping[str, float],
    num_tasks: int,
    keys: Any = None,
) -> tuple[Float[Array, ""], dict[str, Sums]]:
    found = losses(params, batch["towers"]) if keys is None else losses(params, batch["towers"], keys)
    loss = jnp.float32(0.0)
    sums: dict[str, Sums] = {}
    terms = loss_terms(batch["towers"])
    for name, (total, nll, correct) in sorted(found.items()):
        loss += loss_weights.get(name, 1.0) * total / denominators[name]
        rows = (jnp.sum(x, axis=1) for x in (nll, correct, terms[name]))
        sums[name] = Sums(*(jax.ops.segment_sum(x, batch["task"], num_tasks) for x in rows))
    return loss, sums


def loss_and_gradients(
    losses: LossFunction,
    trainable: Flat,
    frozen: Flat,
    batch: Batch,
    *,
    num_tasks: int,
    loss_weights: Mapping[str, float] | None = None,
    microbatches: int = 1,
    keys: Any = None,
) -> tuple[Float[Array, ""], dict[str, Sums], Flat]:
    """Compute the loss, sums per tower and task, and gradients of the trainable leaves only.

    Args:
        losses: The model, see ``LossFunction``.
        trainable: Flat leaves to differentiate.
        frozen: Flat leaves that are constants.
        batch: B rows; B is a multiple of ``microbatches``.
        num_tasks: Q; tasks are 0 .. Q - 1.
        loss_weights: lambda per tower; 1 where not named.
        microbatches: M; rows are assigned round-robin (row r to microbatch r mod M), so that every device of a
            batch-sharded mesh has an equal share of each.
        keys: A random key per row, for dropout, see `models.dropout.row_keys`; None: the model gets none.

    Returns:
        Loss, sums per tower, gradients by path.
    """
    denominators = _denominators(batch)
    weights = loss_weights or {}

    def of(trainable: Flat, batch: Batch, keys: Any) -> tuple[Float[Array, ""], dict[str, Sums]]:
        return _loss(losses, join(trainable, frozen), batch, denominators, weights, num_tasks, keys)

    value_and_grad = jax.value_and_grad(of, has_aux=True)
    if microbatches == 1:
        (loss, sums), gradients = value_and_grad(trainable, batch, keys)
        return loss, sums, gradients

    def accumulate(carry: Any, microbatch: Any) -> tuple[Any, None]:
        (loss, sums), gradients = value_and_grad(trainable, *microbatch)
        return jax.tree.map(jnp.add, carry, (loss, sums, gradients)), None

    split = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), (batch, keys))
    first = jax.tree.map(lambda x: x[0], split)
    (loss, sums), gradients = jax.eval_shape(value_and_grad, trainable, *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, sums, gradients))
    (loss, sums, gradients), _ = jax.lax.scan(accumulate, zeros, split)
    return loss, sums, gradients


def _tokens(batch: Batch) -> Float[Array, ""]:
    return sum((jnp.sum(t.segment_ids > 0, dtype=jnp.float32) for t in batch["towers"].values()), jnp.float32(0.0))


def make_train_step(
    losses: LossFunction,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    num_tasks: int,
    loss_weights: Mapping[str, float] | None = None,
    microbatches: int = 1,
    guard: GuardConfig = GuardConfig(),
    gates: Collection[str] = (),
    dropout_seed: int | None = None,
    state_shardings: TrainState | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    debug_nans: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Build the compiled update ``(state, batch, stop) -> (state, metrics)``; it donates the state.

    ``stop`` (int32, one per device or a scalar) is 1 where a process was asked to stop. Its sum is part of the metrics,
    so that every process sees the request at the same step without a separate collective.

    Args:
        losses: The model, see ``LossFunction``.
        optimizer: Over the flat trainable leaves, see ``optimizer.make_optimizer``.
        num_tasks: Number of tasks in the mixture.
        loss_weights: lambda per tower; 1 where not named.
        microbatches: Gradient accumulation: number of parts of a batch, run one after another.
        guard: Which updates are not applied.
        gates: Paths of the scalars whose tanh is reported.
        dropout_seed: ``losses`` gets a random key per row, a pure function of this seed, the step and the row; None: it
            gets none.
        state_shardings: Shardings of the new state; None lets the compiler choose.
        compiler_options: XLA options by name.
        debug_nans: Where loss or gradient are not finite, the update raises UserError with the name and the place of
            the first operation that made a NaN. The state is not donated.
    """

    def step(state: TrainState, batch: Batch, stop: Any = 0) -> tuple[TrainState, Metrics]:
        loss, sums, gradients = loss_and_gradients(
            losses,
            state.trainable,
            state.frozen,
            batch,
            num_tasks=num_tasks,
            loss_weights=loss_weights,
            microbatches=microbatches,
            keys=None if dropout_seed is None else row_keys(dropout_seed, state.step, len(batch["task"])),
        )
        grad_norm = optax.tree.norm(gradients)
        # The norm is also infinite when the squares of finite gradients overflow; clipping would divide by infinity.
        limit = spike_limit(state.guard, guard)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (loss <= limit)

        def update(old: Any) -> Any:
            step, trainable, opt_state, statistics = old
            with jax.named_scope("optimizer"):
                updates, opt_state = optimizer.update(gradients, opt_state, trainable, grad_norm=grad_norm)
                trainable = optax.apply_updates(trainable, updates)
            return step + 1, trainable, opt_state, observe(statistics, loss, guard.window)

        # A branch, not a select of each leaf: the state is updated in place, or neither read nor written.
        old = (state.step, state.trainable, state.opt_state, state.guard)
        number, trainable, opt_state, statistics = jax.lax.cond(good, update, lambda old: old, old)
        new = TrainState(number, trainable, state.frozen, opt_state, statistics)
        leaves = {**new.frozen, **new.trainable}
        opened = {path: jnp.tanh(leaves[path]) for path in gates}
        return new, Metrics(loss, sums, _tokens(batch), grad_norm, opened, good, limit, jnp.sum(stop))

    out = None if state_shardings is None else (state_shardings, None)
    options = dict(compiler_options) if compiler_options else None
    if not debug_nans:
        return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=options)
    kept = jax.jit(step, out_shardings=out, compiler_options=options)

    def stop_at_nan(state: TrainState, batch: Batch, stop: Any = 0) -> tuple[TrainState, Metrics]:
        new, metrics = kept(state, batch, stop)
        if np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm):
            return new, metrics
        # Not jax_debug_nans: it names the scan over the blocks, and no operation in it. The checks make the program
        # several times as large, so it is compiled now.
        error, _ = jax.jit(checkify.checkify(step, errors=checkify.nan_checks))(state, batch, stop)
        raise UserError(
            f"--debug_nans: update {int(state.step) + 1}: {_named(error)}; lower OptimizerConfig.learning_rate, look "
            "at what that operation reads, or run without --debug_nans, which skips such updates"
        )

    return stop_at_nan


def _named(error: checkify.Error) -> str:
    """The operation that made the first NaN, and the line of this package that calls it."""
    try:
        error.throw()
    except checkify.JaxRuntimeError as found:
        cause = found.__cause__ or found
        frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if "zipper_jax" in frame.filename]
        place = f" ({frames[-1].filename}:{frames[-1].lineno}, {frames[-1].name})" if frames else ""
        return f"{str(found).rstrip('.')}{place}"
    return "no operation made a NaN: a sum overflowed to infinity"


def make_eval_step(losses: LossFunction, *, num_tasks: int) -> Callable[[dict[str, Any], Batch], dict[str, Sums]]:
    """Build the compiled ``(params, batch) -> sums per tower and task``; add over batches, then divide."""

    def step(params: dict[str, Any], batch: Batch) -> dict[str, Sums]:
        return _loss(losses, params, batch, _denominators(batch), {}, num_tasks)[1]

    return jax.jit(step)

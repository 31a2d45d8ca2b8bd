"""Replays a bad batch on the training state it was skipped at (``zipper replay``).

Axes: B rows, T positions.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipper_jax.checkpoint import checkpoints
from zipper_jax.checkpoint.state import TrainState
from zipper_jax.models import zipper
from zipper_jax.models.choice import loss_terms
from zipper_jax.models.dropout import Dropout, row_keys
from zipper_jax.sharding.mesh import put_batch
from zipper_jax.training import bad_batches, data_source, initial, program, run_folder
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.skips import Skips
from zipper_jax.training.step import loss_and_gradients, spike_limit
from zipper_jax.utils import storage
from zipper_jax.utils.errors import DamagedError, UserError
from zipper_jax.utils.storage import AnyPath


def replay(path: AnyPath, rows: int = 8) -> Iterator[str]:
    """Report losses and gradient norms of the stored batch ``path``, line by line.

    Args:
        path: A ``bad_batches/*.npz`` of a run folder.
        rows: Number of rows with the largest loss to list.

    Raises:
        UserError: The file is no stored batch, or the run's checkpoints or data are gone.
    """
    batch, number, step, skips = bad_batches.read(path)
    run_dir = storage.absolute(path).parent.parent
    config = run_folder.stored_config(run_dir)
    source = data_source.open_data(config)
    built = program.build(config, len(source.tasks))
    state = _state_before(config, built, run_dir, skips, step)
    start = int(state.step)
    yield f"{path.name}: batch {number}, skipped after {step} updates; replayed from the state of step {start}"
    following = skips.batch(start)
    while int(state.step) < step:
        if following >= number:
            raise UserError(f"{path}: data or configuration of its run have changed since; it cannot be replayed")
        state, _ = built.train_step(state, put_batch(source.batches.get(following), built.mesh))
        following = skips.after(following)
    yield from _anatomy(config, built, state, batch, source.tasks, rows)


def _state_before(config: TrainConfig, built: program.Program, run_dir: AnyPath, skips: Skips, step: int) -> TrainState:
    """The newest good checkpoint up to ``step`` with the same skipped batches as ``skips``, or the state of step 0."""
    for candidate in reversed(checkpoints.steps(run_dir)):
        try:
            stored = checkpoints.read_manifest(run_dir, candidate)["progress"].get("skipped", ())
            then = Skips(config.data.skip_batches).plus(*stored)
            on_the_way = candidate <= step and all(then.batch(n) == skips.batch(n) for n in range(candidate))
            if on_the_way:
                return checkpoints.restore_step(run_dir, built.like, candidate)[0]
        except DamagedError:
            continue
    try:
        params = initial.initial_leaves(
            config.model, config.seed, config.initialise_from, config.restore, allow_changes=True
        )
    except UserError as error:
        raise UserError(f"no good checkpoint of {run_dir} is older than the batch, and: {error}") from None
    return built.start(params)


def _anatomy(
    config: TrainConfig, built: program.Program, state: TrainState, batch: Any, tasks: tuple[str, ...], rows: int
) -> Iterator[str]:
    placed = put_batch(batch, built.mesh)

    def losses(params: Any, towers: Any, keys: Any = None) -> Any:
        dropout = None if keys is None else Dropout(config.dropout, keys, config.token_noise)
        return zipper.bind_params(config.model, params).losses(towers, config.z_loss, dropout, True)

    def measure(state: TrainState, batch: Any) -> tuple[Any, ...]:
        weights, seed = config.term_weights, config.dropout_seed
        keys = None if seed is None else row_keys(seed, state.step, len(batch["task"]))  # as the update had them
        loss, _, gradients = loss_and_gradients(
            losses, state.trainable, state.frozen, batch, num_tasks=len(tasks), loss_weights=weights, keys=keys
        )
        nll = {name: jnp.sum(found.nll, axis=1) for name, found in losses(state.params, batch["towers"], keys).items()}
        norms = {key: jnp.linalg.norm(leaf.ravel()) for key, leaf in gradients.items()}
        return loss, nll, norms, spike_limit(state.guard, config.guard)

    loss, nll, norms, limit = jax.device_get(jax.jit(measure)(state, placed))
    known = f" (a spike above {float(limit):.4g})" if math.isfinite(float(limit)) else ""
    yield f"loss {float(loss):.6g}{known}, gradient norm {math.hypot(*map(float, norms.values())):.6g}"
    terms = {name: np.asarray(weights) for name, weights in loss_terms(batch["towers"]).items() if name in nll}
    for name, weights in sorted(terms.items()):
        weight = float(np.sum(weights))
        yield f"tower {name}: loss {float(np.sum(nll[name])) / max(weight, 1e-9):.6g} over weight {weight:g}"
    worst = sorted(
        ((float(values[row]), name, row) for name, values in nll.items() for row in range(len(values))),
        key=lambda item: (math.isfinite(item[0]), -item[0] if math.isfinite(item[0]) else 0.0),
    )
    for value, name, row in worst[:rows]:
        weight = float(np.sum(terms[name][row]))
        if weight or not math.isfinite(value):
            task = tasks[int(batch["task"][row])]
            yield f"row {row} ({task}), tower {name}: summed loss {value:.6g} over weight {weight:g}"
    broken = [key for key, norm in norms.items() if not math.isfinite(float(norm))]
    if broken:
        yield f"gradients not finite: {len(broken)} of {len(norms)} leaves, first {broken[0]}"
    for key in sorted((k for k in norms if k not in broken), key=lambda k: -float(norms[k]))[:5]:
        yield f"gradient norm {float(norms[key]):.4g}  {key}"

"""The state of a training run."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from zipper_jax.utils.trees import Flat, join


class Guard(NamedTuple):
    """Statistics of the losses of applied updates, for detecting spikes; see ``step.spike_limit``.

    Attributes:
        updates: Number of losses.
        mean: Running mean of the loss.
        variance: Running variance of the loss.
    """

    updates: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]


class TrainState(NamedTuple):
    """A pytree. ``trainable`` and ``frozen`` are flat, see ``partition_tree``.

    Attributes:
        step: Updates applied so far. With the skipped batches it determines the next batch; there is no iterator state.
        trainable: Leaves that are updated.
        frozen: Leaves without gradient and optimizer state, written once per run.
        opt_state: optax state of the trainable leaves.
        guard: Loss statistics that decide whether an update is applied.
    """

    step: Int[Array, ""]
    trainable: Flat
    frozen: Flat
    opt_state: Any
    guard: Guard

    @property
    def params(self) -> dict[str, Any]:
        """The nested parameter tree (split leaves are concatenated at each call)."""
        return join(self.trainable, self.frozen)

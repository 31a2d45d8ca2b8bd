"""What a training run carries from step to step."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from zipper_jax.utils.trees import Flat, join


class Guard(NamedTuple):
    """Statistics of the losses of applied updates, for telling a spike; see ``step.spike_limit``.

    Attributes:
        updates: Losses seen.
        mean: Running mean of the loss.
        variance: Running variance around it.
    """

    updates: Int[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]


class TrainState(NamedTuple):
    """A pytree. ``trainable`` and ``frozen`` are flat, see ``partition_tree``.

    Attributes:
        step: Updates applied so far. With the batches left out it gives the next batch; there is no iterator state.
        trainable: Leaves that get updates.
        frozen: Leaves that never change: no gradient, no optimizer state, written once per run.
        opt_state: optax state of the trainable leaves.
        guard: Statistics by which an update is applied or not.
    """

    step: Int[Array, ""]
    trainable: Flat
    frozen: Flat
    opt_state: Any
    guard: Guard

    @property
    def params(self) -> dict[str, Any]:
        """The whole nested parameter tree (split leaves are concatenated anew at each call)."""
        return join(self.trainable, self.frozen)

"""What a training run carries from step to step."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int

from zipper_jax.training.partition_tree import Flat, join


class TrainState(NamedTuple):
    """A pytree. ``trainable`` and ``frozen`` are flat, see ``partition_tree``.

    Attributes:
        step: Updates applied so far; also the index of the next batch (there is no iterator state).
        trainable: Leaves that get updates.
        frozen: Leaves that never change: no gradient, no optimizer state, written once per run.
        opt_state: optax state of the trainable leaves.
    """

    step: Int[Array, ""]
    trainable: Flat
    frozen: Flat
    opt_state: Any

    @property
    def params(self) -> dict[str, Any]:
        """The whole nested parameter tree (split leaves are concatenated anew at each call)."""
        return join(self.trainable, self.frozen)

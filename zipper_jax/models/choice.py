"""The choice of the next modality, at each end token: which modality follows, or that the example ends.

A linear head per tower reads the state that `Zipper.head` reads, at end tokens alone. Its targets are the order of the
spans (`TowerBatch.next_modality`). The forward pass does not depend on it, so a model with heads computes what it
computes without them.

Axis letters: B rows, T positions, D embed_dim, C choices (the modalities in sorted order, then the end of the example).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zipper_jax.models.config_parts import TowerConfig
from zipper_jax.models.layers import Linear
from zipper_jax.ops.losses import Losses, cross_entropy
from zipper_jax.sequences import TowerBatch

_SUFFIX = "/next_modality"


def choice_of(tower: str) -> str:
    """The name of a tower's choices among losses, beside the tower's own, which is that of its tokens."""
    return tower + _SUFFIX


def tower_of(name: str) -> str | None:
    """The tower whose choices are called ``name`` among losses; None: ``name`` is a tower."""
    return name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else None


def loss_terms(towers: Mapping[str, TowerBatch]) -> dict[str, Float[Any, "B T"]]:
    """Name -> weight of each token in the loss of that name, of towers and of their choices where they are known.

    Every end token counts as 1, also that of a condition: it is there that decoding chooses.
    """
    known = {choice_of(name): _ends(batch) for name, batch in towers.items() if batch.next_modality is not None}
    return {name: batch.weights for name, batch in towers.items()} | known


def _ends(batch: TowerBatch) -> Float[Any, "B T"]:
    assert batch.next_modality is not None, "choices need a batch of sequences.rows_to_towers"
    return jnp.asarray(batch.next_modality > 0, jnp.float32)


class ChoiceHead(Linear):
    """The head of one tower."""

    def __init__(self, config: TowerConfig, choices: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        shape = (config.embed_dim, choices)
        super().__init__("BTD,DC->BTC", shape, ("embed", None), fan_in=shape[0], bias=True, rngs=rngs, dtype=dtype)

    @jax.named_scope("next_modality")
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T C"]:
        """Float32 logits of the choices."""
        return super().__call__(x).astype(jnp.float32)

    def losses(self, x: Float[Array, "B T D"], batch: TowerBatch) -> Losses:
        """Losses at the end tokens of ``batch``; 0 at other tokens."""
        weights = _ends(batch)
        return cross_entropy(self(x), jnp.maximum(jnp.asarray(batch.next_modality) - 1, 0), weights)

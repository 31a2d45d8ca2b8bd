"""Projector: the source tower's states, projected, are soft tokens in the receiver's own sequence.

SLAM-ASR (arXiv 2402.08846) runs a speech encoder alone, projects its last states by a small MLP into the embedding
space of a language model, and lets that model read them like words. Here either tower can be the encoder of the other,
in one model: the source is read as on its unimodal path (``alone``), so that neither tower's states wait for the
other's, and a soft token enters in front of the receiver's first block. From there on the receiver's own blocks process
it; the receiver's tokens attend to it as to an earlier token of their own.

``ZipConfig.pairs`` has one pair: the block of each tower after which it is read, the last one in the papers. Of the
other fields it uses ``projection`` (SLAM-ASR: depth 2, ReLU between, none at the end) and ``normalise_source``, with
``norm``. There is no gate, as in the papers: without a token of the source the receiver is the tower itself, with one
its sequence is another.

Not as in SLAM-ASR: every source token becomes a soft token; neighbours are not stacked.

Axis letters: B rows, S source positions, D receiver embed_dim.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zipper_jax.models.config_parts import TowerConfig, ZipConfig
from zipper_jax.models.fusion.base import Fusion, SourceState, register
from zipper_jax.models.layers import Norm, Projection


@register("projector")
class Projector(Fusion):
    """The source tower alone, projected into the receiver's sequence; see the module's docstring."""

    placement = "sequence"
    alone = True
    sources = ("source_norm", "projection")

    def __init__(
        self, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.source_norm = Norm(source.embed_dim, kind=config.norm, rngs=rngs) if config.normalise_source else None
        self.projection = Projection(config.projection, source.embed_dim, receiver.embed_dim, rngs=rngs, dtype=dtype)

    def read(self, source: SourceState) -> Float[Array, "B S D"]:
        """The soft tokens."""
        x = source.state
        return self.projection(x if self.source_norm is None else self.source_norm(x))

    @classmethod
    def check(cls, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, name: str) -> None:
        """UserError also if there is no projection and embed_dim differs."""
        super().check(config, source, receiver, name)
        cls.check_projection(config, source, receiver, name)

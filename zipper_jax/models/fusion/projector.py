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

``ZipConfig.options = {"stack": {"speech": 5}}`` makes one soft token of 5 consecutive states of the speech tower, side
by side, as SLAM-ASR does (its downsampling). A soft token is visible once its last state is there; as in SLAM-ASR, the
last states of a span that are too few for one are not read (`models.stacking`).

Axis letters: B rows, S source positions, or groups of k of them, C source embed_dim, D receiver embed_dim.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zipper_jax.models.config_parts import TowerConfig, ZipConfig
from zipper_jax.models.fusion.base import Fusion, SourceState, register
from zipper_jax.models.layers import Norm, Projection
from zipper_jax.utils.configs import closest, freeze_fields
from zipper_jax.utils.errors import UserError


@dataclass(frozen=True)
class ProjectorOptions:
    """Fields of ``ZipConfig.options``.

    Attributes:
        stack: Source tower -> how many of its consecutive states become one soft token; 1 where not named.
    """

    stack: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze_fields(self, "stack")
        for tower, k in self.stack.items():
            if k < 1:
                raise UserError(f"stack = {dict(self.stack)}: {tower!r} needs 1 or more states per soft token")


@register("projector")
class Projector(Fusion):
    """The source tower alone, projected into the receiver's sequence; see the module's docstring."""

    placement = "sequence"
    alone = True
    Options = ProjectorOptions
    fields = ("projection", "normalise_source", "norm")
    sources = ("source_norm", "projection")

    def __init__(
        self, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.source_norm = Norm(source.embed_dim, kind=config.norm, rngs=rngs) if config.normalise_source else None
        (into,) = config.receivers
        width = self.stack(config, config.other(into)) * source.embed_dim
        self.projection = Projection(config.projection, width, receiver.embed_dim, rngs=rngs, dtype=dtype)

    def read(self, source: SourceState) -> Float[Array, "B S D"]:
        """The soft tokens."""
        x = source.state if self.source_norm is None else self.source_norm(source.state)
        return self.projection(x.reshape(*x.shape[:2], math.prod(x.shape[2:])))

    @classmethod
    def stack(cls, config: ZipConfig, source: str) -> int:
        """That of the options."""
        k: int = cls.options(config).stack.get(source, 1)
        return k

    @classmethod
    def check(cls, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, name: str) -> None:
        """UserError also if ``stack`` names no source, or there is no projection and embed_dim differs."""
        super().check(config, source, receiver, name)
        sources, stack = sorted(map(config.other, config.receivers)), cls.options(config).stack
        for tower in stack:
            if tower not in sources:
                raise UserError(
                    f"zip {config.name}, fusion {config.fusion!r}: options stack = {dict(stack)} names {tower!r}, "
                    f"which the zip does not read{closest(tower, sources)}; known: {sources}"
                )
        if config.projection.form == "none" and (k := cls.stack(config, config.other(name))) > 1:
            raise UserError(
                f"zip {config.name}: projection form 'none' cannot bring {k} stacked states into one; use form 'mlp'"
            )
        cls.check_projection(config, source, receiver, name)

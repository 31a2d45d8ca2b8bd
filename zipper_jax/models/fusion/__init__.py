"""Fusions: the protocol of what flows between two towers at a zip, and the package's own implementations."""

from zipper_jax.models.fusion.base import FUSIONS, CacheEntry, Fusion, SourceState, fusion_class, register
from zipper_jax.models.fusion.gated_cross_attention import GatedCrossAttention
from zipper_jax.models.fusion.projector import Projector
from zipper_jax.models.fusion.shared_attention import SharedAttention

__all__ = [
    "FUSIONS",
    "CacheEntry",
    "Fusion",
    "GatedCrossAttention",
    "Projector",
    "SharedAttention",
    "SourceState",
    "fusion_class",
    "register",
]

"""What can flow between two towers at a zip: the protocol, and the fusions that come with the package."""

from zipper_jax.models.fusion.base import FUSIONS, CacheEntry, Fusion, SourceState, fusion_class, register
from zipper_jax.models.fusion.gated_cross_attention import GatedCrossAttention

__all__ = ["FUSIONS", "CacheEntry", "Fusion", "GatedCrossAttention", "SourceState", "fusion_class", "register"]

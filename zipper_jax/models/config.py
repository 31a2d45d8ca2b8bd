"""Configuration of a model: towers, modalities and zips. Built from gin, flags or JSON; it validates itself.

The parts are defined in `models.config_parts` and re-exported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from zipper_jax.models.config_parts import (
    Activation,
    ModalityConfig,
    ProjectionConfig,
    RopeScaling,
    TowerConfig,
    ZipConfig,
    check,
)
from zipper_jax.models.fusion import fusion_class
from zipper_jax.models.schedule import make_schedule
from zipper_jax.ops.interval_attention.registry import Implementation
from zipper_jax.utils.configs import closest, freeze_fields

__all__ = [
    "Activation",
    "ModalityConfig",
    "ProjectionConfig",
    "RopeScaling",
    "TowerConfig",
    "ZipConfig",
    "ZipperConfig",
]


@dataclass(frozen=True)
class ZipperConfig:
    """Towers, their modalities, zips and input projections. A single tower is a valid model.

    Attributes:
        towers: Name -> tower.
        modalities: Name -> its slice of a tower's vocabulary.
        zips: At most one per pair of towers.
        input_projections: Tower -> projection of its embeddings.
        added_tokens: Tower -> number of tokens added for the fused path, with ids from the tower's vocab_size on.
        dtype: Of matrix products; parameters, norms, softmax and losses are float32.
        scan: Run identical blocks under lax.scan (constant compile time) or unrolled (faster on CPU for small models).
        remat: What the backward pass recomputes: "none", "dots" (all but matrix products) or "full" (all of a block).
            Time and memory of each: docs/performance.md.
        attention: Implementation of attention: "auto" chooses by platform and shapes, `zipper inspect --kernels` shows
            what; "dense", "blockwise", "pallas_tpu" (interpreted, slowly, where there is no TPU), see
            `ops.interval_attention`.
        next_modality: A head per tower predicts at end tokens which modality comes next, see `models.choice`.
    """

    towers: Mapping[str, TowerConfig]
    modalities: Mapping[str, ModalityConfig]
    zips: tuple[ZipConfig, ...] = ()
    input_projections: Mapping[str, ProjectionConfig] = field(default_factory=dict)
    added_tokens: Mapping[str, int] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = True
    remat: Literal["none", "dots", "full"] = "none"
    attention: Implementation = "auto"
    next_modality: bool = False

    def __post_init__(self) -> None:
        freeze_fields(self, "towers", "modalities", "zips", "input_projections", "added_tokens")
        kernels = get_args(Implementation)
        check(
            self.attention in kernels,
            f"ZipperConfig.attention = {self.attention!r} is unknown{closest(self.attention, kernels)}",
        )
        known = sorted(self.towers)
        for name in known:
            check(
                name.isidentifier(),
                f"tower name {name!r} must be letters, digits and underscores: it is part of parameter paths",
            )
        for name, modality in self.modalities.items():
            check(modality.tower in self.towers, f"modality {name!r} names tower {modality.tower!r}; known: {known}")
            rows = self.rows(modality.tower)
            added = self.added_tokens.get(modality.tower)
            more = f" and {added} added tokens" if added else ""
            check(
                modality.offset >= 0 and modality.size > 0 and modality.offset + modality.size <= rows,
                f"modality {name!r}: tokens {modality.offset} to {modality.offset + modality.size - 1} do not fit "
                f"tower {modality.tower!r} with vocab_size = {self.towers[modality.tower].vocab_size}{more}",
            )
        for name, count in self.added_tokens.items():
            check(name in self.towers, f"added tokens for unknown tower {name!r}; known: {known}")
            check(count > 0, f"ZipperConfig.added_tokens[{name!r}] = {count} must be positive; leave the tower out")
        self._check_overlaps()
        for name in self.input_projections:
            check(name in self.towers, f"input projection for unknown tower {name!r}; known: {known}")
        check(
            len({z.name for z in self.zips}) == len(self.zips),
            f"two zips join the same towers: {[z.name for z in self.zips]}; give all their pairs in one ZipConfig",
        )
        for z in self.zips:
            for tower in z.towers:
                check(tower in self.towers, f"zip {z.name} names tower {tower!r}; known: {known}")
            fusion_class(z.fusion).check_fields(z)
            for tower in z.receivers:
                fusion_class(z.fusion).check(z, self.towers[z.other(tower)], self.towers[tower], tower)
        make_schedule(self)  # checks pairs and cycles

    def rows(self, tower: str) -> int:
        """Vocabulary size of a tower on the fused path, added tokens included."""
        return self.towers[tower].vocab_size + self.added_tokens.get(tower, 0)

    @property
    def choices(self) -> tuple[str | None, ...]:
        """What a tower with `next_modality` chooses from: the modalities in sorted order; None: the example ends."""
        return (*sorted(self.modalities), None)

    def _check_overlaps(self) -> None:
        """Raise UserError when two modalities of one tower share rows of its vocabulary."""
        names = sorted(self.modalities, key=lambda name: self.modalities[name].offset)
        for number, later in enumerate(names):
            for earlier in names[:number]:
                a, b = self.modalities[earlier], self.modalities[later]
                first, second = sorted((earlier, later))
                check(
                    a.tower != b.tower or a.offset + a.size <= b.offset,
                    f"modalities {first!r} and {second!r} overlap in tower {b.tower!r}: {earlier!r} has rows "
                    f"{a.offset} to {a.offset + a.size - 1}, {later!r} starts at {b.offset}",
                )

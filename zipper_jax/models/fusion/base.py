"""The fusion protocol: what flows from one tower (the source) into another (the receiver) at one zip.

A fusion is one class in one file: its parameters, what it reads from each source token (decoding caches that), its
effect on the receiver, its gates, its FLOPs. Schedule, training, caches, sharding, FLOPs and controls use only this
protocol.

To add one, subclass `Fusion`, here or in a package of your own, and name it in ``ZipConfig.fusion``
("package.module:Class"); CONTRIBUTING.md has the steps, tests/outside_fusions.py examples.

Axis letters: B rows, T receiver positions, S source positions, D receiver embed_dim, C source embed_dim, N query heads,
K key/value heads, G = N // K, H head_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int

from zipper_jax.models.config_parts import FUSION_FIELDS, Placement, TowerConfig, ZipConfig
from zipper_jax.models.masks import Range
from zipper_jax.models.module import Module
from zipper_jax.utils.errors import UserError

Kept = Any
"""What a fusion caches of each source token: a pytree of arrays [B, S, ...]."""


class SourceState(NamedTuple):
    """The source tower at the zip.

    Attributes:
        state: A block's pre-fusion output; for placement "inside", its input. For soft tokens that stack k source
            tokens the states of each complete group, [B, G, k, C].
        positions: Local positions; of a group that of its last token.
        heads: For placement "inside": returns keys and values of the source's own block, [B, S, K, H] of the source, at
            no extra cost, since the block computes them anyway.
    """

    state: Float[Array, "B S *k C"]
    positions: Int[Array, "B S"]
    heads: Callable[[], tuple[Array, Array]] | None = None


@dataclass(frozen=True)
class CacheEntry:
    """One array that decoding caches per source token: shape and logical axes after [members, B, S]."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


@dataclass(frozen=True)
class NoOptions:
    """The options of fusions without fields."""


class Fusion(Module):
    """One direction of one zip; its ``config`` has one receiver.

    A subclass sets ``placement`` and ``sources``, declares its parameters in ``__init__`` with the layers of
    `models.layers` (or plain Flax ones), and has ``read`` and, by its placement, ``effect`` or ``keys_and_values``.

    Attributes:
        placement: "behind": the effect is added to the output of a block; zips read pre-fusion block outputs. "inside":
            extra keys and values join the block's own attention, in one softmax; zips read block inputs. "sequence":
            what ``read`` returns joins the receiver's own sequence as soft tokens, one per source token (or per
            ``stack`` of them), starting at the one receiver block that ``pairs`` names. They are in the order of the
            linear sequence and count as positions of the receiver; zips and the head apply to its own tokens only.
        alone: Placement "sequence": the source is read as on its unimodal path (with its added tokens), after the block
            that ``pairs`` names for it, and soft tokens enter before the receiver's first block. Both directions are
            then possible in one zip; the source's blocks process its tokens once more.
        Options: A frozen dataclass with the fields of ``ZipConfig.options``.
        fields: The names in `config_parts.FUSION_FIELDS` that the fusion uses; another one that is not at its default
            raises UserError.
        sources: Names of the parts (paths from this module, "attention/key") that process source tokens; all others
            process receiver tokens.

    ``__init__`` is given a config of which ``receivers`` is the one receiver.
    """

    placement: ClassVar[Placement] = "behind"
    alone: ClassVar[bool] = False
    Options: ClassVar[type] = NoOptions
    fields: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, *, rngs: nnx.Rngs, dtype: Any = "float32"
    ):
        raise NotImplementedError

    def read(self, source: SourceState) -> Kept:
        """What is read from each source token. Computed once per token; decoding caches it (for soft tokens [B, S, D]
        it caches their keys and values in the receiver's blocks)."""
        raise NotImplementedError

    def effect(
        self, m: Float[Array, "B T D"], kept: Kept, visible: Range, positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Placement "behind": what is added to the receiver's state m. Must be finite where no key is visible.

        Args:
            m: The block's pre-fusion output.
            kept: From `read`, of all source tokens [B, S, ...].
            visible: Range of the source tokens that each receiver token may depend on.
            positions: The receiver's local positions.
        """
        raise NotImplementedError

    def keys_and_values(self, kept: Kept) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Placement "inside": keys and values with the receiver's number of heads and head_dim."""
        raise NotImplementedError

    def share(self) -> Float[Array, ""] | None:
        """Placement "inside": what the share of its keys in the block's softmax is multiplied by, the receiver's own
        keys getting the rest, see `ops.interval_attention.merge_gated`; None: 1."""
        return None

    def visible(self, earlier: Range) -> Range:
        """The attention range over source tokens; may only narrow ``earlier``, all preceding ones. Not used for soft
        tokens, which are visible like any token of the receiver."""
        return earlier

    def weights(
        self, m: Float[Array, "B T D"], kept: Kept, visible: Range, positions: Int[Array, "B T"]
    ) -> Float[Array, "B K G T S"] | None:
        """Attention weights, for figures; None: the fusion has none."""
        return None

    @classmethod
    def cache(cls, config: ZipConfig, source: TowerConfig, receiver: TowerConfig) -> Any:
        """A pytree of `CacheEntry`, in the structure of what `read` returns."""
        raise NotImplementedError

    @classmethod
    def preserves(cls, config: ZipConfig) -> bool:
        """Whether a receiver token that sees no source token stays as it is, whatever the parameters."""
        return cls.placement != "behind"

    @classmethod
    def stack(cls, config: ZipConfig, source: str) -> int:
        """Placement "sequence": k, the consecutive tokens of the tower ``source`` that become one soft token, see
        `models.stacking`; `read` then gets their states [B, G, k, C]. 1: every token becomes one."""
        return 1

    @classmethod
    def heads(cls, config: ZipConfig, receiver: TowerConfig) -> tuple[int, int]:
        """(query heads, head_dim) of its attention, for FLOPs: a visible pair of tokens costs 4 N H forward. (0, 0) for
        soft tokens, which use the receiver's own attention."""
        return (0, 0) if cls.placement == "sequence" else (receiver.num_heads, receiver.head_dim)

    @classmethod
    def unused(cls, config: ZipConfig) -> tuple[str, ...]:
        """The fields of ``config`` that are not at their defaults, and have no effect on this fusion."""
        others = (name for name in FUSION_FIELDS if name not in cls.fields)
        return tuple(name for name in others if getattr(config, name) != getattr(ZipConfig, name))

    @classmethod
    def check_fields(cls, config: ZipConfig) -> None:
        """Raise UserError if a field of ``config`` has no effect."""
        for name in cls.unused(config):
            used = ", ".join(cls.fields) or "options only"
            raise UserError(
                f"ZipConfig.{name} = {getattr(config, name)!r}: zip {config.name} has fusion {config.fusion!r}, which "
                f"does not use it (it uses {used}); leave it at {getattr(ZipConfig, name)!r}"
            )

    @classmethod
    def check(cls, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, name: str) -> None:
        """Raise UserError if the fusion cannot join these towers; ``name`` is the receiver's."""
        cls.options(config)
        if cls.placement != "sequence":
            return
        what = f"zip {config.name}, fusion {config.fusion!r} (soft tokens in the receiver's sequence)"
        if len(config.receivers) != 1 and not cls.alone:
            raise UserError(f"{what}: needs one receiver, got {list(config.receivers)}; set into")
        if config.pairs is None or len(config.pairs) != 1:
            blocks = "the receiver's block before which they enter, the source's block after which they are read"
            blocks = "the block of each tower after which it is read" if cls.alone else blocks
            raise UserError(
                f"{what}: needs one pair ({blocks}), got pairs = {config.pairs}; set pairs instead of intervals"
            )
        if receiver.positions == "relative":
            raise UserError(f"{what}: {name} has positions = 'relative', a bias by distance among its own tokens only")

    @classmethod
    def check_projection(cls, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, name: str) -> None:
        """For fusions that use ``ZipConfig.projection``: raise UserError if there is none and embed_dim differs."""
        if config.projection.form == "none" and source.embed_dim != receiver.embed_dim:
            widths = [source.embed_dim, receiver.embed_dim]
            widths = widths if config.towers[1] == name else widths[::-1]
            raise UserError(
                f"zip {config.name}: projection form 'none' needs equal embed_dim, got {widths}; use form 'mlp'"
            )

    @classmethod
    def options(cls, config: ZipConfig) -> Any:
        """``ZipConfig.options`` as this fusion's ``Options``.

        Raises:
            UserError: An unknown field or a wrong type.
        """
        from zipper_jax.utils.configs import from_dict

        try:
            return from_dict(cls.Options, config.options)
        except UserError as error:
            raise UserError(f"zip {config.name}, fusion {config.fusion!r}: {error}") from None

    @classmethod
    def reads_source(cls, path: str) -> bool:
        """Whether the parameter at ``path`` (relative to this module) processes source tokens."""
        return any(path == part or path.startswith(f"{part}/") for part in cls.sources)


FUSIONS: dict[str, type[Fusion]] = {}
"""Name in ``ZipConfig.fusion`` -> class."""


def register(name: str) -> Callable[[type[Fusion]], type[Fusion]]:
    """Decorator that gives a fusion a short name for ``ZipConfig.fusion``."""

    def add(cls: type[Fusion]) -> type[Fusion]:
        FUSIONS[name] = cls
        return cls

    return add


def fusion_class(name: str) -> type[Fusion]:
    """The class that ``ZipConfig.fusion`` names.

    Raises:
        UserError: Neither a known name nor an importable ``package.module:Class``.
    """
    import importlib

    from zipper_jax.utils.configs import closest

    if name in FUSIONS:
        return FUSIONS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"ZipConfig.fusion = {name!r} is unknown{closest(name, FUSIONS)}; or give package.module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"ZipConfig.fusion = {name!r} cannot be imported ({error}); give package.module:Class"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Fusion)):
        raise UserError(f"ZipConfig.fusion = {name!r} is no subclass of zipper_jax.models.fusion.Fusion")
    return found

"""Configuration of the parts of a model: frozen dataclasses that validate themselves, built from gin, flags or JSON.

What the paper does not specify is a field here; the default follows the paper, or the code it cites.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zipper_jax.utils.configs import freeze_fields
from zipper_jax.utils.errors import UserError

Activation = Literal["relu", "gelu", "gelu_exact", "silu", "squared_relu"]
"""``gelu`` is the tanh approximation, ``gelu_exact`` the one with erf."""
Placement = Literal["behind", "inside", "sequence"]
"""Where a fusion acts, see `models.fusion.Fusion`."""


def check(condition: bool, message: str) -> None:
    """Raise UserError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies for sequences longer than those of pretraining; see `models.rotary`.

    Attributes:
        kind: "linear" divides all frequencies by ``factor``; "llama3" (Llama 3.1) divides those whose wavelength is
            above original_length / low_frequency_factor, keeps those below original_length / high_frequency_factor, and
            interpolates between; "yarn" (arXiv 2309.00071) interpolates from divided to unchanged between beta_slow and
            beta_fast rotations per original_length positions, and multiplies sine and cosine by ``amplitude``.
        original_length: Context length of pretraining, in positions.
        truncate: yarn rounds the ends of its ramp outwards to integer frequency indices.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_length: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    amplitude: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        check(self.factor > 0, f"RopeScaling.factor = {self.factor} must be positive")
        check(
            self.kind == "linear" or self.original_length > 0,
            f"RopeScaling.original_length = {self.original_length}: {self.kind} needs the length of pretraining",
        )
        check(
            self.high_frequency_factor > self.low_frequency_factor,
            f"RopeScaling.high_frequency_factor = {self.high_frequency_factor} must be above low_frequency_factor = "
            f"{self.low_frequency_factor}",
        )


@dataclass(frozen=True)
class TowerConfig:
    """A decoder-only transformer. The defaults are the paper's: RMSNorm, RoPE, gated MLP, tied head; the other options
    are those of pretrained families (`zipper_jax.conversion`).

    Attributes:
        vocab_size: Rows of the embedding, begin and end tokens included.
        head_dim: Need not be embed_dim / num_heads.
        rope_base: Base of the rotary frequencies.
        norm_epsilon: Added to the mean square.
        activation: Of the MLP.
        tied_head: The output softmax shares the embedding table (paper, §3).
        embedding_scale: Factor on the input embedding.
        positions: "rotary" (RoPE on query and key), "learned" (a table, added to the embedding; on the fused path after
            the input projection), "relative" (T5: a bias on the scores per head and distance bucket, shared by layers).
        max_positions: Rows of the learned table, without position_offset; longer examples raise UserError. With other
            positions it is informational.
        position_offset: Row of the learned table for position 0 (OPT: 2).
        rope_fraction: Fraction of head_dim that RoPE rotates, the first elements (GPT-NeoX).
        rope_scaling: See `RopeScaling`.
        windows: Sliding window per layer, in tokens, the query included; 0: none. (): no layer has one.
        window_rope_base: Base of the layers with a window, unscaled (Gemma 3); None: rope_base.
        norm: "rms" or "layer" (with a bias).
        norm_offset: Added to the norms' scale (Gemma stores scale - 1).
        norm_placement: "before" attention and MLP, or "both" before and after them (Gemma 2).
        query_key_norm: RMSNorm of each query and key head before RoPE (Qwen 3).
        attention_bias: "none", on query, key and value ("qkv"), or also on the output ("all").
        mlp_bias: A bias on every linear layer of the MLP.
        gated_mlp: down(activation(gate(x)) * up(x)), else down(activation(up(x))).
        parallel: Attention and MLP read the same state, x + attention(norm(x)) + mlp(norm'(x)) (GPT-NeoX).
        attention_scale: Factor on the scores; None: head_dim ** -0.5.
        attention_softcap: c * tanh(x / c) on the scores (Gemma 2); None: no cap.
        logit_softcap: The same on the logits.
        logit_scale: Factor on the logits (T5 with a tied head: embed_dim ** -0.5).
        family: The architecture it was converted from, for export; the computation does not depend on it.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    activation: Activation = "silu"
    tied_head: bool = True
    embedding_scale: float = 1.0
    positions: Literal["rotary", "learned", "relative"] = "rotary"
    max_positions: int | None = None
    position_offset: int = 0
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None
    windows: tuple[int, ...] = ()
    window_rope_base: float | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    norm_placement: Literal["before", "both"] = "before"
    query_key_norm: bool = False
    attention_bias: Literal["none", "qkv", "all"] = "none"
    mlp_bias: bool = False
    gated_mlp: bool = True
    parallel: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    family: str = ""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            check(getattr(self, name) > 0, f"TowerConfig.{name} = {getattr(self, name)} must be positive")
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"TowerConfig.num_heads = {self.num_heads} must be a multiple of num_kv_heads = {self.num_kv_heads}",
        )
        check(
            self.positions != "rotary" or (self.rotary_size > 0 and self.rotary_size % 2 == 0),
            f"TowerConfig.head_dim = {self.head_dim} times rope_fraction = {self.rope_fraction} must be even and "
            "positive (RoPE rotates pairs)",
        )
        for name in ("max_positions", "attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            check(value is None or value > 0, f"TowerConfig.{name} = {value} must be positive, or None")
        check(
            self.positions != "learned" or self.max_positions is not None,
            "TowerConfig.max_positions is None: learned positions need the number of rows of their table",
        )
        check(
            len(self.windows) in (0, self.num_layers) and min(self.windows, default=0) >= 0,
            f"TowerConfig.windows = {self.windows}: give one number of 0 or more per layer ({self.num_layers}), or ()",
        )

    @property
    def rotary_size(self) -> int:
        """Elements of a head that RoPE rotates."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def window_of(self) -> tuple[int, ...]:
        """Sliding window of each layer, in tokens; 0: none."""
        return self.windows or (0,) * self.num_layers

    def check_length(self, length: int, what: str) -> None:
        """Raise UserError when ``length`` tokens of one example exceed the learned positions; ``what`` names them."""
        check(
            self.positions != "learned" or length <= (self.max_positions or 0),
            f"{what} = {length}, but the tower has learned positions for {self.max_positions} tokens (max_positions); "
            "give fewer",
        )


@dataclass(frozen=True)
class ModalityConfig:
    """A modality's slice of a tower's vocabulary: its token i is row ``offset + i`` of ``tower``'s embedding."""

    tower: str
    size: int
    offset: int = 0


@dataclass(frozen=True)
class ProjectionConfig:
    """A projection: of a tower's embeddings (input projection), or from one tower's embed_dim to the other's.

    Attributes:
        form: "mlp" is the paper's ReLU(MLP(x)); "residual" is x + tanh(gate) * MLP(x) (the identity at gate 0; input
            projections only); "none" is the identity.
        depth: Linear layers ("3-layer MLP", paper §4.1).
        hidden_dim: None: the output dimension (unspecified in the paper).
        activation: Between layers (unspecified in the paper).
        final_activation: None: relu for "mlp", none for "residual".
        bias: Whether the linear layers have one (unspecified in the paper).
        gate_init: Initial value of the gate.
    """

    form: Literal["mlp", "residual", "none"] = "mlp"
    depth: int = 3
    hidden_dim: int | None = None
    activation: Activation = "relu"
    final_activation: Literal["relu", "none"] | None = None
    bias: bool = True
    gate_init: float = 0.0

    def __post_init__(self) -> None:
        check(self.depth >= 1, f"ProjectionConfig.depth = {self.depth} must be at least 1")
        check(
            self.hidden_dim is None or self.hidden_dim > 0,
            f"ProjectionConfig.hidden_dim = {self.hidden_dim} must be positive, or None for the output dimension",
        )

    @property
    def last(self) -> str:
        """The activation after the last layer, resolved."""
        return self.final_activation or ("relu" if self.form == "mlp" else "none")


@dataclass(frozen=True)
class ZipConfig:
    """The zips between two towers: which blocks they join, and by which fusion.

    Fields from num_heads to diagonal_init (`FUSION_FIELDS`) are those of "gated_cross_attention"; other fusions have
    ``options``, and say which of these fields they use (``Fusion.fields``): one that has no effect raises UserError.

    Attributes:
        towers: The two names.
        intervals: {tower: i}: zip n joins block n*i of each tower (blocks counted from 1), while both have one. Give
            either this or pairs.
        pairs: Explicit block numbers, in the order of ``towers``.
        after_last_block: Whether intervals may zip after a tower's last block (the equations allow it; Figure 1 shows
            none). Explicit pairs always may.
        into: Receiving towers; None: both (the paper).
        num_heads, num_kv_heads, head_dim: Of the cross-attention; None: those of the receiver.
        mlp_multiplier, mlp_activation, bias, norm: Of the feed-forward and its norms (open_flamingo: 4, gelu, no bias,
            LayerNorm).
        normalise_source: Also normalise the input of keys and values (open_flamingo: no).
        gate_init: Initial value of both scalar tanh gates (Flamingo: 0).
        projection: ReLU(3-layer MLP) from the source's embed_dim to the receiver's (paper §3, §4.1).
        feed_forward: "always" (Flamingo: also for tokens without visible keys) or "where_visible" (training then does
            not change text without speech).
        positions: "learned" adds a vector per local position to the input of keys (after the projection and its norm)
            and of queries (after the norm); "rotary" turns keys and queries by their local positions times
            ``position_scales`` (RoPE), so that weights can depend on progress through both sequences; the paper has
            none.
        max_positions: "learned": rows of the two tables; positions beyond share the last row.
        position_scales: "rotary": {tower: factor on its local positions}, 1 where unnamed. With the pairs' mean number
            of tokens of the other tower per token of this one, tokens that correspond stand at about equal positions.
        rope_base: "rotary": longest wavelength in scaled positions, over 2 pi.
        diagonal_init: "rotary": above 0, queries and keys have a bias, all of whose elements start at this value before
            they are turned: weights start out largest where scaled positions are equal. 1.0 with a rope_base of 100
            weighs equal positions some 3 times as much as those 2 apart, 20 times as much as those 5 apart.
        fusion: A name in `models.fusion.FUSIONS`, or ``package.module:Class``.
        options: Fields of the fusion's ``Options``.
        insulate: Towers whose states the zip reads without passing a gradient back ("knowledge insulation", arXiv
            2505.23705): a tower that is trained learns from its own loss alone. The forward pass is the same.
    """

    towers: tuple[str, str]
    intervals: Mapping[str, int] | None = None
    pairs: tuple[tuple[int, int], ...] | None = None
    after_last_block: bool = False
    into: tuple[str, ...] | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_multiplier: int = 4
    mlp_activation: Activation = "gelu"
    bias: bool = False
    norm: Literal["layer", "rms"] = "layer"
    normalise_source: bool = False
    gate_init: float = 0.0
    projection: ProjectionConfig = ProjectionConfig()
    feed_forward: Literal["always", "where_visible"] = "always"
    positions: Literal["none", "learned", "rotary"] = "none"
    max_positions: int = 2048
    position_scales: Mapping[str, float] | None = None
    rope_base: float = 10_000.0
    diagonal_init: float = 0.0
    fusion: str = "gated_cross_attention"
    options: Mapping[str, Any] = field(default_factory=dict)
    insulate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        freeze_fields(self, "towers", "intervals", "pairs", "into", "position_scales", "options", "insulate")
        a, b = self.towers
        check(a != b, f"ZipConfig.towers = {self.towers}: a zip joins two different towers")
        check(
            (self.intervals is None) != (self.pairs is None),
            f"zip {self.name}: give either intervals or pairs, got intervals={self.intervals}, pairs={self.pairs}",
        )
        check(self.pairs is None or len(self.pairs) > 0, f"zip {self.name}: pairs = () is empty; remove the zip")
        for name in ("num_heads", "num_kv_heads", "head_dim", "mlp_multiplier", "max_positions", "rope_base"):
            value = getattr(self, name)
            check(value is None or value > 0, f"zip {self.name}: {name} = {value} must be positive")
        if self.intervals is not None:
            check(
                set(self.intervals) == set(self.towers) and min(self.intervals.values()) > 0,
                f"zip {self.name}: intervals must name {a} and {b} with positive numbers, got {dict(self.intervals)}",
            )
        scales = self.position_scales or {}
        check(
            set(scales) <= set(self.towers) and all(0 < scale < math.inf for scale in scales.values()),
            f"zip {self.name}: position_scales = {dict(scales)} must give {a}, {b} or both a positive factor",
        )
        for name in ("position_scales", "diagonal_init"):
            check(
                not getattr(self, name) or self.positions == "rotary",
                f"zip {self.name}: {name} has no effect with positions = {self.positions!r}; set 'rotary'",
            )
        check(
            self.into is None or (len(self.into) > 0 and set(self.into) <= set(self.towers)),
            f"zip {self.name}: into = {self.into} must name {a}, {b} or both",
        )
        sources = sorted({self.other(into) for into in self.receivers})
        for tower in self.insulate:
            check(
                tower in sources,
                f"zip {self.name}: insulate = {self.insulate} names {tower!r}, which it does not read; give "
                f"{' or '.join(map(repr, sources))}",
            )
        check(
            self.projection.form != "residual",
            f"zip {self.name}: projection.form = 'residual' is for input projections; use 'mlp' or, for equal "
            "embed_dim, 'none'",
        )

    @property
    def name(self) -> str:
        """The two tower names in sorted order, joined by '-': the key under ``zips/`` in the parameters."""
        return "-".join(sorted(self.towers))

    @property
    def receivers(self) -> tuple[str, ...]:
        """The towers that the zip writes to, sorted."""
        return tuple(sorted(self.into if self.into is not None else self.towers))

    def other(self, tower: str) -> str:
        """The other of the two towers."""
        return self.towers[1] if tower == self.towers[0] else self.towers[0]


FUSION_FIELDS = (
    "num_heads", "num_kv_heads", "head_dim", "mlp_multiplier", "mlp_activation", "bias", "norm", "normalise_source",
    "gate_init", "projection", "feed_forward", "positions", "max_positions", "position_scales", "rope_base",
    "diagonal_init",
)  # fmt: skip
"""Fields of `ZipConfig` that describe what a fusion computes; each fusion uses some of them, see ``Fusion.fields``."""

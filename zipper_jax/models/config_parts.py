"""What the parts of a model are: frozen dataclasses that check themselves. gin, flags and JSON only build them.

Every silence of the paper is a field here, with the paper's choice, or the code it points to, as default.
"""

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
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for longer sequences than a tower was pretrained on; see `models.rotary`.

    kind: "linear" divides all of them by ``factor``; "llama3" (Llama 3.1) divides those whose wavelength is above
      original_length / low_frequency_factor, leaves those below original_length / high_frequency_factor, and
      interpolates between; "yarn" (arXiv 2309.00071) goes from divided to unchanged between beta_slow and beta_fast
      turns in original_length positions, and multiplies sine and cosine by ``amplitude``.
    truncate: yarn rounds the ends of that ramp outwards to whole frequencies.
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

    def __post_init__(self):
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
    """One decoder-only transformer. The defaults are the paper's kind: RMSNorm, RoPE, gated MLP, tied head; the other
    options are what pretrained families need (`zipper_jax.conversion`).

    vocab_size: rows of the embedding, begin and end tokens included.
    num_layers, embed_dim (D), num_heads (N), num_kv_heads (K), head_dim (H, free of D / N), mlp_dim (F).
    rope_base: base of the rotary angles. norm_epsilon: added to the mean square. activation: of the MLP.
    tied_head: the output softmax shares the embedding table (the paper, §3).
    embedding_scale: factor on the embedding as it enters the tower.
    positions: "rotary" (RoPE on query and key), "learned" (a table, added to the embedding, on the fused path behind
      the input projection), "relative" (T5: a bias on the scores per head and bucket of distances, for all layers).
    max_positions: the longest example the tower is meant for: rows of the learned table, without position_offset; a
      longer example is refused there. With other positions it is only recorded.
    position_offset: row of the learned table that position 0 has (OPT: 2).
    rope_fraction: share of the head that RoPE turns, its first elements (GPT-NeoX). rope_scaling: see `RopeScaling`.
    windows: of each layer, how many of the newest tokens it sees, itself included; 0: all. (): all layers see all.
    window_rope_base: layers with a window turn with this base, unscaled (Gemma 3); None: like the others.
    norm: "rms" or "layer" (with a bias). norm_offset: what is added to the norms' scale (Gemma stores scale - 1).
    norm_placement: "before" attention and MLP, or "both" before and after them (Gemma 2).
    query_key_norm: RMSNorm of each query and key head before RoPE (Qwen 3).
    attention_bias: none, on query, key and value ("qkv"), or on the output too ("all"). mlp_bias: on all its maps.
    gated_mlp: down(activation(gate(x)) * up(x)), else down(activation(up(x))).
    parallel: attention and MLP read the same state, x + attention(norm(x)) + mlp(norm'(x)) (GPT-NeoX).
    attention_scale: factor on the scores; None: head_dim ** -0.5.
    attention_softcap, logit_softcap: c * tanh(x / c) on scores and logits (Gemma 2); None: no cap.
    logit_scale: factor on the logits (T5 with a tied head: embed_dim ** -0.5).
    family: the architecture it was converted from, for the way back; it changes nothing here.
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

    def __post_init__(self):
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            check(getattr(self, name) > 0, f"TowerConfig.{name} = {getattr(self, name)} must be positive")
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"TowerConfig.num_heads = {self.num_heads} must be a multiple of num_kv_heads = {self.num_kv_heads}",
        )
        check(
            self.positions != "rotary" or (self.rotary_size > 0 and self.rotary_size % 2 == 0),
            f"TowerConfig.head_dim = {self.head_dim} times rope_fraction = {self.rope_fraction} must be even and "
            "positive (RoPE turns pairs)",
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
        """Elements of a head that RoPE turns."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def window_of(self) -> tuple[int, ...]:
        """Each layer's window, resolved; 0: none."""
        return self.windows or (0,) * self.num_layers

    def check_length(self, length: int, what: str) -> None:
        """UserError when ``length`` tokens of one example have no learned positions; ``what`` names it."""
        check(
            self.positions != "learned" or length <= (self.max_positions or 0),
            f"{what} = {length}, but the tower has learned positions for {self.max_positions} tokens (max_positions); "
            "give less",
        )


@dataclass(frozen=True)
class ModalityConfig:
    """Where a modality's vocabulary lies: its token i is row ``offset + i`` of ``tower``'s embedding."""

    tower: str
    size: int
    offset: int = 0


@dataclass(frozen=True)
class ProjectionConfig:
    """A projection: into a tower's blocks (input projection) or into the other tower's width (cross-tower).

    form: "mlp" is the paper's ReLU(MLP(x)); "residual" is x + tanh(gate) * MLP(x) with the gate starting at
      ``gate_init`` (identity-preserving at 0, for input projections only); "none" leaves x as it is.
    depth: linear layers ("3-layer MLP", paper §4.1). hidden_dim: None means the output dimension (paper silent).
    activation: between layers (paper silent). final_activation: None means the form's own, relu for "mlp", none
      for "residual". bias: whether the linear layers have one (paper silent).
    """

    form: Literal["mlp", "residual", "none"] = "mlp"
    depth: int = 3
    hidden_dim: int | None = None
    activation: Activation = "relu"
    final_activation: Literal["relu", "none"] | None = None
    bias: bool = True
    gate_init: float = 0.0

    def __post_init__(self):
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
    """The joining points between two towers, and what joins them in each direction.

    fusion: what flows between them: a name in `models.fusion.FUSIONS`, or ``package.module:Class`` of your own. The
      fields from num_heads on are those of "gated_cross_attention", the paper's; others have theirs in ``options``.
    options: fields of another fusion's ``Options``.
    towers: the two names. intervals: {tower: i}, zip n joins block n*i of each (blocks counted from 1), for as long
      as both towers have one; pairs: explicit block numbers in the order of ``towers`` instead. Give one of the two.
    after_last_block: whether intervals may zip behind a tower's last block (the equations allow it; Figure 1 shows
      none, so the default is no). Explicit pairs may always.
    into: towers that are written to; None means both (the paper).
    num_heads, num_kv_heads, head_dim: of the cross-attention; None means those of the tower written to.
    mlp_multiplier, mlp_activation, bias, norm: of the feed-forward and its norms (open_flamingo: 4, gelu, no bias,
      LayerNorm). normalise_source: also norm the keys' and values' input (open_flamingo: no).
    gate_init: start of both scalar tanh gates (Flamingo: 0).
    projection: ReLU(3-layer MLP) from the source's width to the receiver's (paper §3, §4.1).
    feed_forward: "always" (Flamingo, so also for tokens that see nothing) or "where_visible" (then text without
      speech stays what it was after training too).
    positions: "learned" adds a vector per local position to the keys' input (after the projection and its norm) and
      one to the queries' input (after the norm); the paper names none. max_positions: rows of the two tables;
      positions beyond share the last row.
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
    positions: Literal["none", "learned"] = "none"
    max_positions: int = 2048
    fusion: str = "gated_cross_attention"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        freeze_fields(self, "towers", "intervals", "pairs", "into", "options")
        a, b = self.towers
        check(a != b, f"ZipConfig.towers = {self.towers}: a zip joins two different towers")
        check(
            (self.intervals is None) != (self.pairs is None),
            f"zip {self.name}: give either intervals or pairs, got intervals={self.intervals}, pairs={self.pairs}",
        )
        check(self.pairs is None or len(self.pairs) > 0, f"zip {self.name}: pairs = () joins nothing; drop the zip")
        for name in ("num_heads", "num_kv_heads", "head_dim", "mlp_multiplier", "max_positions"):
            value = getattr(self, name)
            check(value is None or value > 0, f"zip {self.name}: {name} = {value} must be positive")
        if self.intervals is not None:
            check(
                set(self.intervals) == set(self.towers) and min(self.intervals.values()) > 0,
                f"zip {self.name}: intervals must name {a} and {b} with positive numbers, got {dict(self.intervals)}",
            )
        check(
            self.into is None or (len(self.into) > 0 and set(self.into) <= set(self.towers)),
            f"zip {self.name}: into = {self.into} must name {a}, {b} or both",
        )
        check(
            self.projection.form != "residual",
            f"zip {self.name}: a residual projection needs equal widths; use form 'mlp' or, for equal widths, 'none'",
        )

    @property
    def name(self) -> str:
        """The two tower names in sorted order, joined by '-': the key under ``zips/`` in the parameters."""
        return "-".join(sorted(self.towers))

    @property
    def receivers(self) -> tuple[str, ...]:
        return tuple(sorted(self.into if self.into is not None else self.towers))

    def other(self, tower: str) -> str:
        return self.towers[1] if tower == self.towers[0] else self.towers[0]

"""Converts decoder-only checkpoints of google-research/t5x to a tower, leaf by leaf. t5x itself is not needed.

The network is that of ``t5x/examples/decoder_only``: RMSNorm, T5's relative positions in one table for all layers, no
scaling of the attention scores, a gated or plain MLP. Each layer has its own leaves (``decoder/layers_0/...``) or, in
networks trained under ``scan``, layers are stacked on the axis ``param_scan_axis`` (in T5X itself only
encoder-decoders have stacked layers; third-party decoder-only networks may).

`plan` reads the gin file and the shapes, and makes all checks; ``Plan.write`` then reads one leaf at a time (of a
stacked one, about a gigabyte of layers at a time).

Axes: L layers, D embed_dim, V vocab_size, F mlp_dim, N heads, H head_dim.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.checkpoint.safetensors_files import DTYPES
from zipper_jax.conversion.from_hf import Move, require_finite, tower_shapes
from zipper_jax.conversion.t5x_checkpoint import Reader
from zipper_jax.conversion.t5x_gin import GinFiles, Setting
from zipper_jax.conversion.tensor_map import Rule, Shape, leaf_dtype, of_one_layer, rules_for
from zipper_jax.conversion.to_tower import Progress, Put
from zipper_jax.models.config import Activation, TowerConfig
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError

FAMILY = "t5x_decoder_only"

ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}
"""Flax's name of each supported activation; its gelu is the tanh approximation."""

_SIZES = ("vocab_size", "emb_dim", "num_heads", "num_layers", "head_dim", "mlp_dim", "param_scan_axis")
_NETWORK = "TransformerConfig"
_DEFAULTS = {
    "emb_dim": 512,
    "num_heads": 8,
    "num_layers": 6,
    "head_dim": 64,
    "mlp_dim": 2048,
    "mlp_activations": ("relu",),
    "logits_via_embedding": False,
    "param_scan_axis": 1,
}
# Fields that concern training or precision; scan_layers is recognised from the leaves' names.
_HARMLESS = ("dtype", "dropout_rate", "remat_policy", "scan_layers", "float32_attention_logits")

_LAYER = "decoder/layers_{layer}/"
_STACKED = ("decoder/decoder/layers/", "decoder/layers/", "decoder/decoder/")

_RULES = (
    Rule("decoder/token_embedder/embedding", ("embedding/table",)),  # [V, D]
    Rule("decoder/relpos_bias/rel_embedding", ("relative_bias/table",), "linear"),  # [N, 32]
    Rule("decoder/decoder_norm/scale", ("final_norm/scale",)),
    Rule("decoder/logits_dense/kernel", ("head/table",), "linear"),  # [D, V]
    Rule(_LAYER + "pre_self_attention_layer_norm/scale", ("blocks/attention_norm/scale",)),
    Rule(_LAYER + "self_attention/query/kernel", ("blocks/attention/query/kernel",), "conv1d"),  # [D, N H]
    Rule(_LAYER + "self_attention/key/kernel", ("blocks/attention/key/kernel",), "conv1d"),
    Rule(_LAYER + "self_attention/value/kernel", ("blocks/attention/value/kernel",), "conv1d"),
    Rule(_LAYER + "self_attention/out/kernel", ("blocks/attention/output/kernel",), "conv1d", inputs=2),  # [N H, D]
    Rule(_LAYER + "pre_mlp_layer_norm/scale", ("blocks/mlp_norm/scale",)),
    Rule(_LAYER + "mlp/wo/kernel", ("blocks/mlp/down/kernel",)),  # [F, D]
)


@dataclass(frozen=True)
class Network:
    """The network that a gin file configures.

    Attributes:
        tower: Configuration of the tower.
        rules: Rules of its leaves, including those of its kind of MLP.
        where: The gin files, for messages.
        scan_axis: Axis of stacked layers.
        notes: Notes for the user.
    """

    tower: TowerConfig
    rules: tuple[Rule, ...]
    where: str
    scan_axis: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A checked conversion, ready to be written.

    Attributes:
        source: The checkpoint folder.
        network: The network of the gin files.
        tower: Configuration of the tower.
        reader: Reader of the checkpoint.
        stacked: Prefix of leaves with stacked layers; None: each layer has its own leaves.
        moves: Leaves to copy, with their rules.
        leaves: Leaf -> (dtype, shape).
        left_out: Skipped part of the checkpoint -> reason.
    """

    source: Path
    network: Network
    tower: TowerConfig
    reader: Reader
    stacked: str | None
    moves: tuple[Move, ...]
    leaves: Mapping[str, tuple[Any, Shape]]
    left_out: Mapping[str, str]

    @property
    def count(self) -> int:
        """Number of parameters of the tower."""
        return sum(math.prod(shape) for _, shape in self.leaves.values())

    def lines(self) -> Iterator[str]:
        """Mapped leaves, skipped parts with reasons, and parameter counts on both sides."""
        t = self.tower
        layers = "one leaf per layer" if self.stacked is None else f"stacked on axis {self.network.scan_axis}"
        yield (
            f"{self.source}: T5X decoder-only by {self.network.where}, {t.num_layers} blocks ({layers}), embed_dim "
            f"{t.embed_dim}, {t.num_heads} heads of {t.head_dim}, mlp_dim {t.mlp_dim}, vocabulary {t.vocab_size}"
        )
        for move in self.moves:
            if move.layer in (None, 0):
                many = "" if move.layer is None else f"  ({t.num_layers} layers)"
                yield f"  {move.tensor if self.stacked else move.rule.name} -> {move.rule.leaves[0]}{many}"
        for name, why in self.left_out.items():
            yield f"  {name}: skipped, {why}"
        for note in self.network.notes:
            yield f"  note: {note}"
        yield f"parameters: {self.reader.count:,} in the checkpoint, all of them used, {self.count:,} in the tower"

    def write(self, put: Put, progress: Progress = lambda count: None) -> None:
        """Pass every leaf, or one layer of it, to ``put``, reading one at a time.

        Raises:
            UserError: A file of the checkpoint is damaged.
        """
        for move in self.moves:
            if move.layer is None or self.stacked is None:
                array = self.reader.read(move.tensor)
            else:
                array = self.reader.read_layer(move.tensor, self.network.scan_axis, move.layer)
            require_finite(array, move.tensor, self.source)
            dtype, shape = self.leaves[move.rule.leaves[0]]
            shape = of_one_layer(shape, move.rule)
            (leaf,) = move.rule.split(array.reshape(move.rule.shape([shape])), [shape])
            put(move.rule.leaves[0], leaf.astype(dtype, copy=False), move.layer)
            progress(array.size)


def plan(
    folder: str | Path,
    gin_files: Sequence[str | Path] = (),
    gin_bindings: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> Plan:
    """Plan and check a conversion without reading weights.

    Args:
        folder: ``checkpoint_NNN``, native or Orbax.
        gin_files: gin files of the network; none: the ``config.gin`` that T5X wrote beside the checkpoint.
        gin_bindings: Lines ``NAME = VALUE``, which override the files.
        ignored: Fields of the network's configuration to ignore.

    Raises:
        UserError: No such checkpoint or gin file; an unknown field, value or leaf (the message names it); a leaf that
            is missing or has another shape or dtype; damage that is visible without reading weights.
    """
    source = Path(folder)
    reader = Reader(source)
    if not gin_files:
        beside = [path for path in (source / "config.gin", source.resolve().parent / "config.gin") if path.is_file()]
        gin_files = beside[:1]
    network = read_network(gin_files, gin_bindings, ignored)
    tower, shapes = network.tower, tower_shapes(network.tower)
    there, unknown = frozenset(reader.names), set(reader.names)
    stacked = next((p for p in _STACKED if any(name.startswith(f"{p}self_attention/") for name in there)), None)
    moves = []
    for rule in rules_for(network.rules, shapes):
        for layer in range(tower.num_layers) if rule.per_layer else (None,):
            name = rule.name.format(layer=layer) if stacked is None else rule.name.replace(_LAYER, stacked)
            if name not in there:
                raise UserError(
                    f"{str(source)!r} has no leaf {name!r}, which {network.where} requires: the checkpoint is "
                    "incomplete, or of another network"
                )
            moves.append(Move(name, rule, layer))
            if name in unknown:
                _check(reader, moves[-1], shapes, network, stacked is not None)
            unknown.discard(name)
    for name in sorted(unknown):
        raise UserError(
            f"{str(source)!r}: unknown leaf {name!r} {list(reader.shape(name))}{_hint(name, tower)}: not converted"
        )
    leaves = {leaf: (_dtype(reader, leaf, moves), shape) for leaf, shape in shapes.items()}
    return Plan(source, network, tower, reader, stacked, tuple(moves), leaves, reader.left_out)


def read_network(
    gin_files: Sequence[str | Path], gin_bindings: Sequence[str] = (), ignored: Sequence[str] = ()
) -> Network:
    """Read the network from the ``TransformerConfig`` of gin files; unset fields have T5X's defaults.

    Raises:
        UserError: No such file or configuration, or an unknown field or value (the message names its file and line).
    """
    gin = GinFiles(gin_files, gin_bindings)
    where = ", ".join(map(str, gin_files)) or "the gin bindings given"
    given = gin.parameters(_NETWORK)
    if not given:
        other = "; T5Config is for encoder-decoders, which are not supported" if gin.parameters("T5Config") else ""
        raise UserError(
            f"{where}: no network.{_NETWORK} in it{other}; give the gin file that the network was built from, or the "
            "config.gin that T5X wrote into its MODEL_DIR"
        )
    for name, setting in given.items():
        if name not in ("vocab_size", *_DEFAULTS, *_HARMLESS, *ignored):
            known = ("vocab_size", *_DEFAULTS)
            raise UserError(
                f"{setting.where}: {_NETWORK}.{name} = {setting.value!r} is no field of T5X's decoder-only network and "
                f"may change what it computes{closest(name, known)}; if you know that it does not, give "
                f"--ignore_field {name}"
            )
    if "vocab_size" not in given:
        raise UserError(f"{where}: {_NETWORK}.vocab_size is missing; give --gin.network.{_NETWORK}.vocab_size=NUMBER")
    settings = {name: Setting(value, "T5X's default") for name, value in _DEFAULTS.items()} | given
    sizes = {name: _whole(name, settings[name]) for name in _SIZES}
    if sizes["param_scan_axis"] not in (0, 1):
        raise _refused("param_scan_axis", settings["param_scan_axis"], "0 or 1")
    tied = settings["logits_via_embedding"].value
    if not isinstance(tied, bool):
        raise _refused("logits_via_embedding", settings["logits_via_embedding"], "True or False")
    activation, into = _activations(settings["mlp_activations"])
    tower = TowerConfig(
        vocab_size=sizes["vocab_size"],
        num_layers=sizes["num_layers"],
        embed_dim=sizes["emb_dim"],
        num_heads=sizes["num_heads"],
        num_kv_heads=sizes["num_heads"],
        head_dim=sizes["head_dim"],
        mlp_dim=sizes["mlp_dim"],
        norm_epsilon=1e-6,
        activation=activation,
        tied_head=tied,
        positions="relative",
        gated_mlp="gate" in into,
        attention_scale=1.0,
        logit_scale=sizes["emb_dim"] ** -0.5 if tied else 1.0,
        family=FAMILY,
    )
    mlp = tuple(Rule(f"{_LAYER}mlp/{name}/kernel", (f"blocks/mlp/{leaf}/kernel",)) for leaf, name in into.items())
    notes = tuple(
        f"{setting.where}: trained with inputs_bidirectional_attention; a tower's attention is causal, so outputs on "
        "inputs differ"
        for setting in gin.bound("inputs_bidirectional_attention")
        if setting.value is not False
    )
    return Network(tower, (*_RULES, *mlp), where, sizes["param_scan_axis"], notes)


def _activations(setting: Setting) -> tuple[Activation, dict[str, str]]:
    """The activation, and T5X's name of each input kernel of our MLP."""
    names = list(setting.value) if isinstance(setting.value, tuple | list) else [setting.value]
    known = [name for name in names if isinstance(name, str) and name in ACTIVATIONS]
    if isinstance(setting.value, tuple | list) and len(known) == 1:
        if len(names) == 1:
            return ACTIVATIONS[known[0]], {"up": "wi"}
        if len(names) == 2 and "linear" in names:
            gate, up = names.index(known[0]), names.index("linear")
            return ACTIVATIONS[known[0]], {"gate": f"wi_{gate}", "up": f"wi_{up}"}
    one = " or ".join(repr(name) for name in ACTIVATIONS)
    raise _refused("mlp_activations", setting, f"({one},), or one of these with 'linear' (gated)")


def _whole(name: str, setting: Setting) -> int:
    if not isinstance(setting.value, int) or isinstance(setting.value, bool):
        raise _refused(name, setting, "a whole number")
    return setting.value


def _refused(name: str, setting: Setting, wanted: str) -> UserError:
    return UserError(
        f"{setting.where}: {_NETWORK}.{name} = {setting.value!r} must be {wanted}; "
        f"give --gin.network.{_NETWORK}.{name}=VALUE, as T5X had it in training"
    )


def _check(reader: Reader, move: Move, shapes: Mapping[str, Shape], network: Network, stacked: bool) -> None:
    """Check shape and dtype of a leaf. Attention kernels may have separate axes for heads and head_dim."""
    leaf = of_one_layer(shapes[move.rule.leaves[0]], move.rule)
    wanted = [list(move.rule.shape([leaf]))]
    if move.rule.layout == "conv1d":
        wanted.append(list(leaf))
    if stacked and move.rule.per_layer:
        for shape in wanted:
            shape.insert(network.scan_axis, network.tower.num_layers)
    found = list(reader.shape(move.tensor))
    if found not in wanted:
        axis = f" with param_scan_axis = {network.scan_axis}" if stacked and move.rule.per_layer else ""
        raise UserError(
            f"{str(reader.folder)!r}: {move.tensor} has shape {found}, but {_NETWORK} of {network.where} "
            f"implies {' or '.join(map(str, wanted))}{axis}; give the gin file that it was trained with"
        )
    if reader.dtype(move.tensor) not in DTYPES.values():
        raise UserError(
            f"{str(reader.folder)!r}: {move.tensor} has dtype {reader.dtype(move.tensor)}, not floating-point: "
            "not converted"
        )


def _dtype(reader: Reader, leaf: str, moves: list[Move]) -> np.dtype:
    """The checkpoint's dtype; float32 where a leaf's layers differ or are float64."""
    return leaf_dtype(reader.dtype(move.tensor) for move in moves if leaf in move.rule.leaves)


def _hint(name: str, tower: TowerConfig) -> str:
    """The likely reason for an unknown leaf."""
    if name.startswith("encoder/") or "encoder_decoder_attention" in name:
        return " (of an encoder-decoder; only decoder-only networks are supported)"
    if "relpos_bias" in name:
        return " (a table of positions per layer; a tower has one for all layers)"
    if name == "decoder/logits_dense/kernel":
        return f" ({_NETWORK}.logits_via_embedding = True excludes it)"
    if name.startswith("decoder/layers_"):
        return f" ({_NETWORK}.num_layers is {tower.num_layers})"
    return ""

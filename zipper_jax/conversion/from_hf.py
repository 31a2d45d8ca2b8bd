"""Converts a Hugging Face decoder to a tower, tensor by tensor.

`plan` reads only ``config.json`` and the headers of the weights, and makes all checks; ``Plan.write`` then streams one
tensor at a time into the stacked layout, so that peak memory is the size of the largest tensor.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.checkpoint.safetensors_files import Reader, listed, other_layout
from zipper_jax.conversion.gguf import GGUFFile
from zipper_jax.conversion.hugging_face import read_tower
from zipper_jax.conversion.hugging_face.family import TIED, Family
from zipper_jax.conversion.tensor_map import Rule, Shape, leaf_dtype, of_one_layer, rules_for
from zipper_jax.conversion.to_tower import Progress, Put
from zipper_jax.models import zipper
from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipperConfig
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten


@dataclass(frozen=True)
class Move:
    """One tensor, its rule, and its layer (None: not per layer)."""

    tensor: str
    rule: Rule
    layer: int | None


@dataclass(frozen=True)
class Plan:
    """A checked conversion, ready to be written.

    Attributes:
        source: The Hugging Face folder, or the GGUF file.
        config: Its ``config.json``.
        family: The model family.
        tower: Configuration of the tower.
        reader: Reader of the weights.
        moves: Tensors to copy, with their rules.
        leaves: Leaf -> (dtype, shape).
        left_out: Skipped tensor -> reason.
        wrappers: Prefixes of the tensors' names that a wrapper of the model has added.
    """

    source: Path
    config: Mapping[str, Any]
    family: Family
    tower: TowerConfig
    reader: Reader | GGUFFile
    moves: tuple[Move, ...]
    leaves: Mapping[str, tuple[Any, Shape]]
    left_out: Mapping[str, str]
    wrappers: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of parameters of the tower."""
        return sum(math.prod(shape) for _, shape in self.leaves.values())

    def lines(self) -> Iterator[str]:
        """The summary that `zipper convert from-hf` prints before converting."""
        t = self.tower
        yield (
            f"{self.source}: {self.family.architecture}, {t.num_layers} blocks, embed_dim {t.embed_dim}, "
            f"{t.num_heads} heads ({t.num_kv_heads} key/value) of {t.head_dim}, "
            f"mlp_dim {t.mlp_dim}, vocabulary {t.vocab_size}"
        )
        for move in self.moves:
            if move.layer in (None, 0):
                layers = "" if move.layer is None else f"  ({t.num_layers} layers)"
                yield f"  {move.rule.name} -> {', '.join(move.rule.leaves)}{layers}"
        for prefix in self.wrappers:
            yield f"  names without {prefix!r}, which {_WRAPPERS[prefix]} has added"
        for name, why in self.left_out.items():
            yield f"  {name}: skipped, {why}"
        read = sum(math.prod(self.reader.shape(move.tensor)) for move in self.moves)
        yield f"parameters: {self.reader.count:,} in the file, {read:,} of them used, {self.count:,} in the tower"

    def write(self, put: Put, progress: Progress = lambda count: None) -> None:
        """Pass every leaf, or one layer of it, to ``put``, reading one tensor at a time."""
        for move in self.moves:
            tensor = require_finite(self.reader.read(move.tensor), move.tensor, self.source)
            shapes = [of_one_layer(self.leaves[leaf][1], move.rule) for leaf in move.rule.leaves]
            for leaf, array in zip(move.rule.leaves, move.rule.split(tensor, shapes), strict=True):
                put(leaf, array.astype(self.leaves[leaf][0], copy=False), move.layer)
            progress(tensor.size)


def plan(folder: str | Path, ignored: tuple[str, ...] = ()) -> Plan:
    """Plan and check a conversion without reading weights.

    Args:
        folder: A Hugging Face model folder.
        ignored: Fields of ``config.json`` to ignore.

    Raises:
        UserError: No such folder; an unknown architecture, field or tensor (the message names it); a tensor that is
            missing, has another shape, or is quantised.
    """
    source = Path(folder)
    config = read_json(source / "config.json")
    family, tower = read_tower(config, str(source / "config.json"), ignored)
    return _plan(config, family, tower, Reader(source))


def plan_gguf(file: GGUFFile) -> Plan:
    """Plan and check the conversion of a GGUF file. Raises UserError as `plan` does."""
    family, tower = read_tower(file.config, str(file.folder))
    return _plan(file.config, family, tower, file)


def _plan(config: Mapping[str, Any], family: Family, tower: TowerConfig, reader: Reader | GGUFFile) -> Plan:
    source, shapes = reader.folder, tower_shapes(tower)
    names, wrappers = _full_names(reader, family, {rule.name for rule in family.rules})
    moves = []
    for rule in rules_for(family.rules, shapes):
        for layer in range(tower.num_layers) if rule.per_layer else (None,):
            wanted = rule.name.format(layer=layer)
            if wanted not in names:
                raise UserError(
                    f"{str(source)!r} has no tensor {wanted!r}: it is incomplete, or its config.json is wrong; its "
                    f"{len(reader.names)} tensors are {listed(reader.names)}"
                )
            moves.append(Move(names.pop(wanted), rule, layer))
            _check(reader, moves[-1], shapes)
    left_out = {}
    for wanted, name in names.items():
        why = family.reason(wanted)
        if why is None:
            raise UserError(
                f"{str(source)!r}: unknown tensor {name!r} {list(reader.shape(name))}: this is not the "
                f"{family.architecture} that config.json describes"
            )
        if why == TIED and not _same(reader, name, next(m.tensor for m in moves if "embedding/table" in m.rule.leaves)):
            raise UserError(
                f"{str(source)!r}: config.json ties the head to the embedding, but {name} differs from the embedding: "
                "set tie_word_embeddings to false in config.json if the head is to be used"
            )
        left_out[name] = why
    leaves = {leaf: (_dtype(reader, leaf, moves), shape) for leaf, shape in shapes.items()}
    return Plan(source, config, family, tower, reader, tuple(moves), leaves, left_out, wrappers)


def require_finite(array: np.ndarray, name: str, source: str | Path) -> np.ndarray:
    """The array. Raises UserError if it has NaN or infinite values, as in a damaged file or of a failed training."""
    if not np.isfinite(array).all():
        raise UserError(f"{str(source)!r}: tensor {name} has NaN or infinite values: get it again, or another step")
    return array


def tower_shapes(tower: TowerConfig) -> dict[str, Shape]:
    """Leaf -> shape; stacked leaves have the layer axis first."""
    alone = ZipperConfig(towers={"tower": tower}, modalities={"tower": ModalityConfig("tower", 1)})
    flat = flatten(zipper.abstract_params(alone))
    return {name.removeprefix("towers/tower/"): tuple(leaf.shape) for name, leaf in flat.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: The file is missing, damaged, or no object.
    """
    if not path.is_file():
        names = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise UserError(
            other_layout(str(path.parent), names)
            or f"{str(path.parent)!r} has no {path.name}: give a Hugging Face model folder, or the id of one; it has "
            f"{listed(names)}"
        )
    return user_json.read_object(path, "it is damaged: download it again")


_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "peft",
}
"""Prefix of a tensor's name -> the wrapper that adds it when the wrapped model is saved."""


def _full_names(
    reader: Reader | GGUFFile, family: Family, patterns: set[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Full name -> name in the file, and the wrappers' prefixes that the file's names have.

    Files saved from the bare model lack the family's prefix; a wrapper's prefix may also stand before a layer's part.

    Raises:
        UserError: Two tensors have one name without the prefixes, or there are adapters beside the weights.
    """
    tops = {pattern.split(".")[0] for pattern in patterns}
    full: dict[str, str] = {}
    stripped: dict[str, None] = {}
    for name in reader.names:
        if re.search(r"\.lora_[AB]\b|\.base_layer\.", name):
            raise UserError(
                f"{str(reader.folder)!r}: tensor {name!r} is of an adapter (LoRA) that is not merged: load the model "
                "with peft, then model.merge_and_unload().save_pretrained(NEW_FOLDER)"
            )
        bare = name
        while prefix := next((p for p in _WRAPPERS if bare.startswith(p)), ""):
            bare = bare.removeprefix(prefix)
            stripped[prefix] = None
        for prefix in (p for p in _WRAPPERS if p.startswith("_") and f".{p}" in bare):
            bare = bare.replace(f".{prefix}", ".")
            stripped[prefix] = None
        wanted = bare if bare.split(".")[0] in tops else family.prefix + bare
        if wanted in full:
            raise UserError(f"{str(reader.folder)!r}: {name!r} and {full[wanted]!r} are the same tensor: remove one")
        full[wanted] = name
    return full, tuple(stripped)


def _check(reader: Reader | GGUFFile, move: Move, shapes: Mapping[str, Shape]) -> None:
    wanted = move.rule.shape([of_one_layer(shapes[leaf], move.rule) for leaf in move.rule.leaves])
    if reader.shape(move.tensor) != wanted:
        raise UserError(
            f"{str(reader.folder)!r}: {move.tensor} has shape {list(reader.shape(move.tensor))}, but config.json "
            f"implies {list(wanted)}"
        )
    if reader.dtype(move.tensor) is None:
        raise UserError(
            f"{str(reader.folder)!r}: {move.tensor} is quantised or not floating-point: save it unquantised"
        )


def _same(reader: Reader | GGUFFile, one: str, other: str) -> bool:
    return reader.shape(one) == reader.shape(other) and bool(np.array_equal(reader.read(one), reader.read(other)))


def _dtype(reader: Reader | GGUFFile, leaf: str, moves: list[Move]) -> np.dtype:
    """The file's dtype; float32 where a leaf's tensors differ or are float64."""
    return leaf_dtype(reader.dtype(move.tensor) or np.dtype(np.float32) for move in moves if leaf in move.rule.leaves)

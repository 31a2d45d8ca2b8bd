"""Exports a tower as a Hugging Face folder for ``AutoModelForCausalLM`` and ``AutoTokenizer``."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from zipper_jax.checkpoint.model_folder import Weights
from zipper_jax.checkpoint.safetensors_files import FILE, Writer
from zipper_jax.conversion.from_hf import tower_shapes
from zipper_jax.conversion.hugging_face import FAMILIES
from zipper_jax.conversion.hugging_face.family import Family
from zipper_jax.conversion.hugging_face.fields import Fields
from zipper_jax.conversion.tensor_map import Rule, Shape, rules_for
from zipper_jax.models.config import TowerConfig
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import new_folder
from zipper_jax.utils.storage import AnyPath
from zipper_jax.vocabularies import HuggingFaceVocabulary, Vocabulary

_NAMES = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}


@dataclass(frozen=True)
class HuggingFacePlan:
    """A planned export: config.json and the tensors, each from leaves under ``prefix``."""

    family: Family
    tower: TowerConfig
    config: dict[str, Any]
    rules: tuple[Rule, ...]
    weights: Weights
    prefix: str
    dtype: np.dtype
    tensors: dict[str, Shape]
    vocabulary: Vocabulary | None

    def lines(self) -> Iterator[str]:
        """The summary that `zipper convert to-hf` prints before converting."""
        yield f"{self.family.architecture}, {len(self.tensors)} tensors, {self.dtype}"
        for rule in self.rules:
            layers = f"  ({self.tower.num_layers} layers)" if rule.per_layer else ""
            yield f"  {', '.join(rule.leaves)} -> {rule.name}{layers}"
        ours = sum(int(np.prod(self.weights.shape(self.prefix + leaf))) for rule in self.rules for leaf in rule.leaves)
        theirs = sum(int(np.prod(shape)) for shape in self.tensors.values())
        yield f"parameters: {ours:,} in the tower, {theirs:,} in the file"
        if not isinstance(self.vocabulary, HuggingFaceVocabulary):
            kind = "none" if self.vocabulary is None else self.vocabulary.kind
            yield f"  tokenizer: skipped, the vocabulary ({kind}) is no Hugging Face tokenizer"


def plan(
    weights: Weights,
    name: str,
    tower: TowerConfig,
    vocabulary: Vocabulary | None = None,
    family: str | None = None,
    dtype: Any = None,
) -> HuggingFacePlan:
    """Plan the export of a tower.

    Args:
        weights: Weights of the whole model.
        name: Name of the tower.
        tower: Its configuration.
        vocabulary: Its vocabulary; a Hugging Face tokenizer is exported with it.
        family: A ``model_type``; None: the tower's own family, else the first that can represent the tower.
        dtype: Dtype of the tensors; None: as stored.

    Raises:
        UserError: No family, or not the requested one, can represent the tower; the message names the options.
    """
    prefix = f"towers/{name}/"
    chosen = family_of(tower, family)
    shapes = tower_shapes(tower)
    rules = tuple(rules_for(chosen.rules, shapes))
    tensors: dict[str, Shape] = {}
    for rule in rules:
        shape = rule.shape([shapes[leaf][1:] if rule.per_layer else shapes[leaf] for leaf in rule.leaves])
        for layer in range(tower.num_layers) if rule.per_layer else (0,):
            tensors[rule.name.format(layer=layer)] = shape
    found = {np.dtype(weights.dtype(prefix + leaf)) for rule in rules for leaf in rule.leaves}
    stored = found.pop() if len(found) == 1 else np.dtype(np.float32)
    resolved = stored if dtype is None else np.dtype(dtype)
    config = {
        "architectures": [chosen.architecture],
        "model_type": chosen.model_type,
        "torch_dtype": _NAMES.get(resolved, "bfloat16"),
        **chosen.fields(tower),
        **_special_tokens(tower, vocabulary),
    }
    return HuggingFacePlan(chosen, tower, config, rules, weights, prefix, resolved, tensors, vocabulary)


def write(plan: HuggingFacePlan, out: str | AnyPath, progress: Callable[[int], None] = lambda count: None) -> None:
    """Write config.json, model.safetensors and the tokenizer's files; ``out`` is created atomically.

    Raises:
        UserError: ``out`` exists.
    """
    with new_folder(out) as folder:
        (folder / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: (plan.dtype, shape) for name, shape in plan.tensors.items()}
        with Writer(folder / FILE, tensors, {"format": "pt"}) as writer:
            for rule in plan.rules:
                leaves = [plan.weights.read(plan.prefix + leaf) for leaf in rule.leaves]
                for layer in range(plan.tower.num_layers) if rule.per_layer else (None,):
                    parts = leaves if layer is None else [leaf[layer] for leaf in leaves]
                    tensor = rule.join(parts).astype(plan.dtype, copy=False)
                    writer.write(rule.name.format(layer=layer), tensor)
                    progress(tensor.size)
        if isinstance(plan.vocabulary, HuggingFaceVocabulary):
            for name, content in plan.vocabulary.contents.items():
                (folder / name).write_bytes(content)


def family_of(tower: TowerConfig, wanted: str | None = None) -> Family:
    """Find the family whose config.json represents ``tower`` exactly.

    Raises:
        UserError: See `plan`.
    """
    if wanted is not None and wanted not in FAMILIES:
        raise UserError(f"--family {wanted!r} is not known{closest(wanted, FAMILIES)}")
    if wanted is not None:
        candidates = [FAMILIES[wanted]]
    else:
        candidates = sorted(FAMILIES.values(), key=lambda family: family.model_type != tower.family)
    lost = {family.model_type: _differences(family, tower) for family in candidates}
    nearest = min(lost, key=lambda name: len(lost[name]))
    if not lost[nearest]:
        return FAMILIES[nearest]
    missing = ", ".join(lost[nearest])
    if wanted is not None:
        raise UserError(f"--family {wanted}: cannot represent this tower's {missing}")
    raise UserError(
        f"no Hugging Face family can represent this tower: the nearest, {nearest}, does not support its {missing}"
    )


def _differences(family: Family, tower: TowerConfig) -> list[str]:
    """``field = value`` of every field that changes when the tower is written as ``family`` and read back."""
    try:
        back = family.tower(Fields(family.fields(tower), family.model_type))
    except (UserError, TypeError, ZeroDivisionError) as error:
        return [str(error)]
    ignored = {"family"} if tower.positions == "learned" else {"family", "max_positions"}  # without effect on outputs
    names = [f.name for f in fields(TowerConfig) if f.name not in ignored]
    return [f"{name} = {getattr(tower, name)!r}" for name in names if getattr(back, name) != getattr(tower, name)]


def _special_tokens(tower: TowerConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Begin and end token ids, where they are in the tower's own vocabulary."""
    if vocabulary is None:
        return {}
    own = {"bos_token_id": vocabulary.begin_id, "eos_token_id": vocabulary.end_id}
    return {name: value if value < tower.vocab_size else None for name, value in own.items()}

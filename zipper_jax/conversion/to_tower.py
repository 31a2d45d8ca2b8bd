"""A plan of conversion carried out: to a model folder, streaming, or to a `zipper_jax.Model` in memory."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zipper_jax.checkpoint.model_folder import added_rows, default_lengths, rms, write_model_folder
from zipper_jax.checkpoint.safetensors_files import Writer
from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipperConfig
from zipper_jax.utils.trees import unflatten
from zipper_jax.vocabularies import Vocabulary
from zipper_jax.vocabularies.tokenizer_files import added_tokens

Put = Callable[[str, np.ndarray, int | None], None]
"""``put(leaf, array, layer)``: a leaf of the tower, or one layer of it."""
Progress = Callable[[int], None]
"""Is told of every tensor how many numbers it had."""


@runtime_checkable
class Plan(Protocol):
    """What `from_hf.plan` and `t5x.plan` return: everything about a conversion but the numbers."""

    @property
    def tower(self) -> TowerConfig: ...

    @property
    def leaves(self) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
        """leaf -> (dtype, shape), stacked over layers."""
        ...

    @property
    def count(self) -> int:
        """Parameters of the tower."""
        ...

    def lines(self) -> Iterator[str]:
        """What it maps, what it leaves out and why, parameter counts on both sides."""
        ...

    def write(self, put: Put, progress: Progress) -> None:
        """Reads one tensor at a time and hands it on."""
        ...


def one_tower_model(name: str, tower: TowerConfig, vocabulary: Vocabulary) -> ZipperConfig:
    """The tower alone, with its only modality of the same name, and the tokens that it lacks."""
    added = added_tokens(vocabulary, tower.vocab_size)
    return ZipperConfig(
        towers={name: tower},
        modalities={name: ModalityConfig(name, vocabulary.size)},
        added_tokens={name: added} if added else {},
    )


def write_tower(
    plan: Plan, out: str | Path, name: str, vocabulary: Vocabulary, source: str, progress: Progress = lambda n: None
) -> None:
    """Writes the model folder of a converted tower; memory stays at the size of its largest tensor.

    Args:
      plan: what to convert. out: a folder that does not exist. name: of the tower and of its modality.
      vocabulary: what its tokens mean. source: where it came from, for ``config.json``.

    Raises:
      UserError: ``out`` exists.
    """
    model = one_tower_model(name, plan.tower, vocabulary)
    added = added_rows(model, name, 1.0, seed=0)
    leaves = {f"towers/{name}/{leaf}": about for leaf, about in plan.leaves.items()}
    leaves |= {path: (rows.dtype, rows.shape) for path, rows in added.items()}

    def fill(writer: Writer) -> None:
        size = 1.0

        def put(leaf: str, array: np.ndarray, layer: int | None) -> None:
            nonlocal size
            writer.write(f"towers/{name}/{leaf}", array, layer)
            size = rms(array) if leaf == "embedding/table" else size

        plan.write(put, progress)
        for path, rows in added.items():
            writer.write(path, rows * np.float32(size))

    write_model_folder(out, model, leaves, fill, {name: vocabulary}, source={name: source})


def load_tower(plan: Plan, name: str, vocabulary: Vocabulary):
    """The same as a `zipper_jax.Model`, without a folder."""
    from zipper_jax.inference.model import Model

    model = one_tower_model(name, plan.tower, vocabulary)
    flat = {f"towers/{name}/{leaf}": np.zeros(shape, np.float32) for leaf, (_, shape) in plan.leaves.items()}

    def put(leaf: str, array: np.ndarray, layer: int | None) -> None:
        flat[f"towers/{name}/{leaf}"][... if layer is None else layer] = array

    plan.write(put, lambda count: None)
    flat |= added_rows(model, name, rms(flat[f"towers/{name}/embedding/table"]), seed=0)
    return Model(model, unflatten(flat), {name: vocabulary}, default_lengths(model))

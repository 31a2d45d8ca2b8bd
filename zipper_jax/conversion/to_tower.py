"""Executes a conversion plan: streaming to a model folder, or into a `zipper_jax.Model` in memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zipper_jax.checkpoint.model_folder import added_rows, default_lengths, rms, write_model_folder
from zipper_jax.checkpoint.safetensors_files import Writer
from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipperConfig
from zipper_jax.utils.storage import AnyPath
from zipper_jax.utils.trees import unflatten
from zipper_jax.vocabularies import Vocabulary
from zipper_jax.vocabularies.tokenizer_files import added_tokens

Put = Callable[[str, np.ndarray, int | None], None]
"""``put(leaf, array, layer)``: a leaf of the tower, or one layer of it."""
Progress = Callable[[int], None]
"""Called with the number of elements of every converted tensor."""


@runtime_checkable
class Plan(Protocol):
    """A checked conversion, as returned by `from_hf.plan` and `t5x.plan`."""

    @property
    def tower(self) -> TowerConfig: ...

    @property
    def leaves(self) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
        """Leaf -> (dtype, shape), stacked over layers."""
        ...

    @property
    def count(self) -> int:
        """Number of parameters of the tower."""
        ...

    def lines(self) -> Iterator[str]:
        """Mapped tensors, skipped ones with reasons, and parameter counts on both sides."""
        ...

    def write(self, put: Put, progress: Progress) -> None:
        """Read one tensor at a time and pass it to ``put``."""
        ...


def one_tower_model(name: str, tower: TowerConfig, vocabulary: Vocabulary) -> ZipperConfig:
    """Configuration of a model of one tower, with one modality of the same name, and its added tokens."""
    added = added_tokens(vocabulary, tower.vocab_size)
    return ZipperConfig(
        towers={name: tower},
        modalities={name: ModalityConfig(name, vocabulary.size)},
        added_tokens={name: added} if added else {},
    )


def write_tower(
    plan: Plan, out: str | AnyPath, name: str, vocabulary: Vocabulary, source: str, progress: Progress = lambda n: None
) -> None:
    """Write the model folder of a converted tower; peak memory is the size of its largest tensor.

    Args:
        plan: The conversion.
        out: A folder that does not exist.
        name: Name of the tower and of its modality.
        vocabulary: The tower's vocabulary.
        source: Origin of the weights, recorded in ``config.json``.
        progress: Called with the number of elements of every tensor.

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
    """Convert into a `zipper_jax.Model` in memory, without a folder."""
    from zipper_jax.inference.model import Model

    model = one_tower_model(name, plan.tower, vocabulary)
    flat = {f"towers/{name}/{leaf}": np.zeros(shape, np.float32) for leaf, (_, shape) in plan.leaves.items()}

    def put(leaf: str, array: np.ndarray, layer: int | None) -> None:
        flat[f"towers/{name}/{leaf}"][... if layer is None else layer] = array

    plan.write(put, lambda count: None)
    flat |= added_rows(model, name, rms(flat[f"towers/{name}/embedding/table"]), seed=0)
    return Model(model, unflatten(flat), {name: vocabulary}, default_lengths(model))

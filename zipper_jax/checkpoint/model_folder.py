"""The model folder: a model for distribution, its weights in one file.

    config.json             as in a run folder (``checkpoint.run_format``), without ``train``
    model.safetensors       every parameter under its path, ``towers/text/blocks/attention/query/kernel`` [L, D, N, H]
    vocabularies/MODALITY/  as in a run folder

`zipper convert from-hf`, `zipper fuse` and `zipper convert export` write it; ``zipper_jax.load``, ``initialise_from``
and ``RestoreCheckpointConfig.path`` read it like a run folder. Weights are stored in their original dtype and loaded
as float32, which is exact.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zipper_jax.checkpoint.run_format import read_config, write_config
from zipper_jax.checkpoint.safetensors_files import FILE, Reader, Writer
from zipper_jax.models import zipper
from zipper_jax.models.config import ZipperConfig
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.files import copy_tree, new_folder
from zipper_jax.utils.storage import AnyPath, as_path
from zipper_jax.utils.trees import flatten, unflatten
from zipper_jax.vocabularies import Vocabulary

DEFAULT_LENGTH = 1024
"""Length of generation and caches of a model without training rows: pretrained models allow up to 131,072."""


@runtime_checkable
class Weights(Protocol):
    """Leaves by path, read one at a time: a `Reader`, or `Loaded`."""

    @property
    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> Any: ...

    def read(self, name: str) -> np.ndarray: ...


class Loaded:
    """`Weights` in memory."""

    def __init__(self, params: Mapping[str, Any]):
        self._flat = {name: np.asarray(leaf) for name, leaf in flatten(dict(params)).items()}
        self.names = sorted(self._flat)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._flat[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._flat[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self._flat[name]


def is_model_folder(folder: str | AnyPath) -> bool:
    """Whether ``folder`` is a model folder rather than a run folder."""
    return (as_path(folder) / FILE).is_file() and (as_path(folder) / "vocabularies").is_dir()


def read_model_folder(folder: str | AnyPath) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(config, params)``: config.json, and the nested float32 parameters on the host.

    Raises:
        UserError: A file is missing or damaged.
    """
    config, reader = read_config(folder), Reader(folder)
    return config, unflatten({name: reader.read(name).astype(np.float32, copy=False) for name in reader.names})


def write_model_folder(
    out: str | AnyPath,
    model: ZipperConfig,
    leaves: Mapping[str, tuple[Any, tuple[int, ...]]],
    fill: Callable[[Writer], None],
    vocabularies: Mapping[str, Vocabulary | AnyPath],
    lengths: Mapping[str, int] | None = None,
    **more: Any,
) -> None:
    """Write a model folder; ``out`` appears once it is complete.

    Args:
        out: The new folder.
        model: The config of the model.
        leaves: Path -> (dtype, shape) of every parameter.
        fill: Writes all of them, in any order, as tensors or by layers.
        vocabularies: Modality -> its vocabulary, or the vocabulary's folder, which is copied (that of speech contains
            the audio tokenizer).
        lengths: Tower -> row length in positions; None: `default_lengths`.
        more: Additional fields of config.json.

    Raises:
        UserError: ``out`` exists.
    """
    assert leaves.keys() == flatten(zipper.abstract_params(model)).keys()
    with new_folder(out) as folder:
        with Writer(folder / FILE, leaves, {"format": "zipper_jax"}) as writer:
            fill(writer)
        for modality, vocabulary in vocabularies.items():
            home = folder / "vocabularies" / modality
            if isinstance(vocabulary, os.PathLike):
                copy_tree(vocabulary, home)
            else:
                vocabulary.save(home)
        written = dict(default_lengths(model) if lengths is None else lengths)
        write_config(folder, {"model": to_dict(model), "lengths": written, **more})


def default_lengths(model: ZipperConfig) -> dict[str, int]:
    """Tower -> row length of a model that was not trained here."""
    return {name: min(tower.max_positions or DEFAULT_LENGTH, DEFAULT_LENGTH) for name, tower in model.towers.items()}


def added_rows(model: ZipperConfig, tower: str, table_rms: float, seed: int) -> dict[str, np.ndarray]:
    """Path -> random float32 rows, of root mean square ``table_rms``, for the tokens ``model`` adds to ``tower``."""
    shapes = flatten(zipper.abstract_params(model))
    prefix = f"added_embeddings/{tower}/"
    rng = np.random.default_rng([seed, model.towers[tower].vocab_size])
    return {
        path: (rng.standard_normal(leaf.shape) * table_rms).astype(np.float32)
        for path, leaf in sorted(shapes.items())
        if path.startswith(prefix)
    }


def rms(rows: np.ndarray) -> float:
    """Root mean square of a table, over at most its first 4,000,000 elements."""
    some = rows[: max(1, 4_000_000 // math.prod(rows.shape[1:]))].astype(np.float32)
    return float(np.sqrt(np.mean(np.square(some))))

"""The model folder: a model as one file of weights, for handing on.

    config.json             as in a run folder (``training.run_format``), without ``train``
    model.safetensors       every parameter under its path, ``towers/text/blocks/attention/query/kernel`` [L, D, N, H]
    vocabularies/MODALITY/  as in a run folder

`zipper convert from-hf`, `zipper fuse` and `zipper convert export` write it; ``zipper_jax.load``, ``initialise_from``
and ``RestoreCheckpointConfig.path`` take it like a run folder. Weights keep the dtype they came in; read, they become
float32, exactly.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zipper_jax.checkpoint.run_format import read_config, write_config
from zipper_jax.checkpoint.safetensors_files import FILE, Reader, Writer
from zipper_jax.models import zipper
from zipper_jax.models.config import ZipperConfig
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.files import copy_tree, new_folder
from zipper_jax.utils.trees import flatten, unflatten
from zipper_jax.vocabularies import Vocabulary

DEFAULT_LENGTH = 1024
"""Slots of generation and caches where no training has said more: pretrained models allow up to 131,072."""


@runtime_checkable
class Weights(Protocol):
    """Leaves by path, one at a time: a `Reader`, or `Loaded`."""

    @property
    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> Any: ...

    def read(self, name: str) -> np.ndarray: ...


class Loaded:
    """`Weights` that are in memory."""

    def __init__(self, params: Mapping[str, Any]):
        self._flat = {name: np.asarray(leaf) for name, leaf in flatten(dict(params)).items()}
        self.names = sorted(self._flat)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._flat[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._flat[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self._flat[name]


def is_model_folder(folder: str | Path) -> bool:
    """Whether ``folder`` holds a model in this form, rather than a run with checkpoints."""
    return (Path(folder) / FILE).is_file() and (Path(folder) / "vocabularies").is_dir()


def read_model_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(config, params)``: config.json, and the nested float32 parameters on the host.

    Raises:
        UserError: something is missing or damaged.
    """
    config, reader = read_config(folder), Reader(folder)
    return config, unflatten({name: reader.read(name).astype(np.float32, copy=False) for name in reader.names})


def write_model_folder(
    out: str | Path,
    model: ZipperConfig,
    leaves: Mapping[str, tuple[Any, tuple[int, ...]]],
    fill: Callable[[Writer], None],
    vocabularies: Mapping[str, Vocabulary | Path],
    lengths: Mapping[str, int] | None = None,
    **more: Any,
) -> None:
    """Writes a model folder; ``out`` appears when it is whole.

    Args:
        leaves: path -> (dtype, shape) of every parameter. fill: writes them all, in any order, whole or by layers.
        vocabularies: of each modality, or the folder it lies in, which is copied whole (that of speech has the audio
          tokenizer in it). lengths: slots per tower; None: `default_lengths`.
        more: further fields of config.json.

    Raises:
        UserError: ``out`` exists.
    """
    assert leaves.keys() == flatten(zipper.abstract_params(model)).keys()
    with new_folder(out) as folder:
        with Writer(folder / FILE, leaves, {"format": "zipper_jax"}) as writer:
            fill(writer)
        for modality, vocabulary in vocabularies.items():
            home = folder / "vocabularies" / modality
            if isinstance(vocabulary, Path):
                copy_tree(vocabulary, home)
            else:
                vocabulary.save(home)
        written = dict(default_lengths(model) if lengths is None else lengths)
        write_config(folder, {"model": to_dict(model), "lengths": written, **more})


def default_lengths(model: ZipperConfig) -> dict[str, int]:
    """Slots per tower before anyone has trained the model."""
    return {name: min(tower.max_positions or DEFAULT_LENGTH, DEFAULT_LENGTH) for name, tower in model.towers.items()}


def added_rows(model: ZipperConfig, tower: str, table_rms: float, seed: int) -> dict[str, np.ndarray]:
    """path -> fresh float32 rows for the tokens that ``model`` adds to ``tower``, as large as the tower's own are."""
    shapes = flatten(zipper.abstract_params(model))
    prefix = f"added_embeddings/{tower}/"
    rng = np.random.default_rng([seed, model.towers[tower].vocab_size])
    return {
        path: (rng.standard_normal(leaf.shape) * table_rms).astype(np.float32)
        for path, leaf in sorted(shapes.items())
        if path.startswith(prefix)
    }


def rms(rows: np.ndarray) -> float:
    """The root mean square of (the first rows of) a table."""
    some = rows[: max(1, 4_000_000 // math.prod(rows.shape[1:]))].astype(np.float32)
    return float(np.sqrt(np.mean(np.square(some))))

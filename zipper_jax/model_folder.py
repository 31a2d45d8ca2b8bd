"""The model folder: a model as one file of weights, for handing on.

    config.json             as in a run folder (``training.run_format``), without ``train``
    model.safetensors       every parameter under its path, ``towers/text/blocks/attention/query/kernel`` [L, D, N, H]
    vocabularies/MODALITY/  as in a run folder

What `zipper convert from-hf`, `zipper fuse` and `zipper convert export` write. ``zipper_jax.load``, ``initialise_from``
and ``RestoreCheckpointConfig.path`` take it like a run folder. Weights keep the dtype they came in; read, they are
float32, exactly.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.configs import to_dict
from zipper_jax.models.config import ZipperConfig
from zipper_jax.safetensors_files import FILE, Reader
from zipper_jax.training.partition_tree import unflatten
from zipper_jax.training.run_format import read_config, write_config


def is_model_folder(folder: str | Path) -> bool:
    """Whether ``folder`` holds a model in this form, not a run with checkpoints."""
    return (Path(folder) / FILE).is_file() and (Path(folder) / "vocabularies").is_dir()


def read_model_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(config, params)``: config.json, and the nested float32 parameters on the host.

    Raises:
      UserError: something is missing or damaged.
    """
    config, reader = read_config(folder), Reader(folder)
    return config, unflatten({name: reader.read(name).astype(np.float32) for name in reader.names})


def write_header(folder: str | Path, model: ZipperConfig, lengths: Mapping[str, int], **more: Any) -> None:
    """Writes config.json: last of all, so that a folder which has it is complete."""
    write_config(folder, {"model": to_dict(model), "lengths": dict(lengths), **more})

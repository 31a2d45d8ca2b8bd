"""gin configurables: the configuration dataclasses, and ``train``. gin only builds these objects.

Import this module before reading gin files. ``train_config()`` returns the ``TrainConfig`` that the files describe.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import gin
from zipper_jax.cli.gin_flags import configurable
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.tasks import DataModality, Interleaving, TaskConfig, TaskSet
from zipper_jax.training.config import (
    DataConfig,
    GuardConfig,
    InferEvalConfig,
    ProfileConfig,
    RestoreCheckpointConfig,
    SaveCheckpointConfig,
    TrainConfig,
    WandbConfig,
)
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig, LayerRange
from zipper_jax.utils.configs import from_dict, nearest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import any_path, local_path
from zipper_jax.utils.storage import as_path

CONFIGURABLES = (
    TowerConfig,
    ModalityConfig,
    ProjectionConfig,
    ZipConfig,
    ZipperConfig,
    DataModality,
    TaskConfig,
    Interleaving,
    TaskSet,
    PrepareSettings,
    DataConfig,
    OptimizerConfig,
    LayerRange,
    FreezeConfig,
    MeshConfig,
    SaveCheckpointConfig,
    RestoreCheckpointConfig,
    GuardConfig,
    InferEvalConfig,
    ProfileConfig,
    WandbConfig,
    TrainConfig,
)

_MACRO_WITHOUT_VALUE = re.compile(r"In call to configurable 'macro' .* in scope '([^']+)'")
_WHERE_CALLED = re.compile(r"\n  In call to configurable '.*", re.DOTALL)


def _checked(cls: type) -> Callable[..., Any]:
    """Wrap ``cls`` so that its fields are checked against their annotations, as those of a stored config are."""

    @functools.wraps(cls, updated=())  # gin inspects the parameters
    def build(**fields: Any) -> Any:
        return from_dict(cls, fields)

    return build


for _cls in CONFIGURABLES:
    configurable(_checked(_cls), _cls.__name__)


@configurable
def train(config: TrainConfig = gin.REQUIRED) -> TrainConfig:
    """Return the run that gin files describe by ``train.config = @TrainConfig()``."""
    return config


@configurable
def vocabulary_size(folder: str = gin.REQUIRED, modalities: tuple[str, ...] = gin.REQUIRED) -> int:
    """Return the total vocabulary size of these modalities in a prepared folder."""
    from zipper_jax.vocabularies import load_vocabulary

    total, folder = 0, any_path(folder, "DATA")
    for modality in modalities:
        path = as_path(folder) / "vocabularies" / modality
        if not path.is_dir():
            raise UserError(f"DATA = {folder!r}: there is no {path}; give a folder that `zipper data prepare` wrote")
        total += load_vocabulary(path).size
    return total


@configurable
def position_scales(folder: str = gin.REQUIRED, task: str = gin.REQUIRED) -> dict[str, float]:
    """See `data.packed_rows.position_scales`."""
    from zipper_jax.data import packed_rows

    return packed_rows.position_scales(any_path(folder, "DATA"), task)


@configurable
def stored_model(
    folder: str = gin.REQUIRED,
    dtype: str | None = None,
    scan: bool | None = None,
    remat: str | None = None,
    attention: str | None = None,
) -> ZipperConfig:
    """Return the model configuration stored in a run or model folder (`zipper fuse` writes one).

    Args:
        folder: The run or model folder.
        dtype: Compute dtype; None: as stored.
        scan: Whether to scan over blocks; None: as stored.
        remat: Rematerialisation; None: as stored.
        attention: Implementation of attention; None: as stored.
    """
    from zipper_jax.checkpoint.run_format import read_model

    model = read_model(any_path(folder, "FUSED"))[1]
    changes: dict[str, Any] = {"dtype": dtype, "scan": scan, "remat": remat, "attention": attention}
    return replace(model, **{name: value for name, value in changes.items() if value is not None})


def prepare_settings(given: Mapping[str, Any]) -> PrepareSettings:
    """Build the preparation settings that the gin files read so far describe; ``given`` fields override them.

    Raises:
        UserError: Invalid settings, tasks or modalities.
    """
    try:
        configured = gin.get_configurable("PrepareSettings")
        task_set = gin.get_configurable("TaskSet")
        found = configured(**{"task_set": task_set(), **given})
    except UserError as error:
        raise UserError(_WHERE_CALLED.sub("", str(error))) from error
    paths = {name: getattr(found, name) for name in ("text_vocabulary", "tokenizer", "speech_vocabulary")}
    own = {m: local_path(path, f"--vocabularies {m}") for m, path in found.vocabularies.items() if path}
    return replace(found, vocabularies=own, **{n: local_path(path, f"--{n}") for n, path in paths.items() if path})


def train_config() -> TrainConfig:
    """Build the run that the gin files read so far describe.

    Raises:
        UserError: A macro without a value, files that describe no run, or an invalid config.
    """
    try:
        gin.query_parameter("train.config")
    except ValueError:
        raise UserError(
            "the gin files describe no run (train.config): begin with one of runs/, e.g. --gin_file=runs/fuse.gin"
        ) from None
    try:
        return train()
    except UserError as error:  # gin appends its call chain; the message already names the field
        raise UserError(_WHERE_CALLED.sub("", str(error))) from error
    except TypeError as error:
        macro = _MACRO_WITHOUT_VALUE.search(str(error))
        if macro is None:
            raise
        bound = re.findall(r"^([A-Z][A-Z0-9_]*) = ", gin.config_str(), re.MULTILINE)
        hint = nearest(macro[1], bound)
        raise UserError(f"%{macro[1]} has no value{hint or f': give --gin.{macro[1]}=...'}") from None

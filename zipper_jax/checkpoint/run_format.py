"""Reading and writing ``config.json`` of a run folder, with conversion of older formats.

Formats:
    1   checkpoint fields directly in ``train``; steps have ``progress`` and no digests
    2   ``train.save``; each step has a manifest with a digest per array, and digests of its files
    3   renamed model fields (`utils.configs.RENAMED`)
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from zipper_jax.models.config import ZipConfig, ZipperConfig
from zipper_jax.models.config_parts import FUSION_FIELDS
from zipper_jax.models.fusion import fusion_class
from zipper_jax.utils import user_json
from zipper_jax.utils.configs import RENAMED, from_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_text
from zipper_jax.utils.storage import AnyPath, as_path, is_partial

T = TypeVar("T")

FORMAT_VERSION = 3
_FIX = "the file is damaged: restore it from a copy"

_SAVE_FIELDS_OF_1 = {
    "checkpoint_period": "period",
    "checkpoints_kept": "keep",
    "asynchronous_checkpoints": "asynchronous",
}


class _Model(msgspec.Struct):
    """Objects whose field names `renamed_model` maps; `ZipperConfig` checks the fields themselves."""

    towers: dict[str, dict[str, Any]] = {}
    input_projections: dict[str, dict[str, Any]] = {}
    zips: list[dict[str, Any]] = []


class _Data(msgspec.Struct):
    mixture: str = ""
    folder: str = ""
    rates: dict[str, float] = {}
    task_set: dict[str, Any] = {}


class _Restore(msgspec.Struct):
    path: str = ""


class _Train(msgspec.Struct):
    steps: int = 0
    data: _Data = msgspec.field(default_factory=_Data)
    save: dict[str, Any] = {}
    initialise_from: dict[str, str] | None = None
    restore: _Restore | None = None


class _Config(msgspec.Struct):
    """Types of what readers take apart, or take as it is."""

    format_version: user_json.Natural
    model: _Model | msgspec.UnsetType = msgspec.UNSET
    lengths: dict[str, Annotated[int, msgspec.Meta(ge=1, lt=2**31)]] = {}
    train: _Train | msgspec.UnsetType = msgspec.UNSET
    source: dict[str, Any] = {}


def require(config: Mapping[str, Any], run_dir: str | AnyPath, *fields: str) -> None:
    """Raise UserError unless ``config``, from `read_config`, has the fields."""
    for field in fields:
        if field not in config:
            raise UserError(f"{str(as_path(run_dir) / 'config.json')!r}: {field} is missing; {_FIX}")


def part_of(config: Mapping[str, Any], kind: type[T], run_dir: str | AnyPath, *path: str) -> T:
    """The part of a ``config`` from `read_config` at ``path``, as a dataclass; a part that is missing has the defaults.

    Raises:
        UserError: It is not of that kind; the message names config.json.
    """
    part: Any = config
    for name in path:
        part = part.get(name, {})
    part = used_fields(part) if kind is ZipperConfig else part
    try:
        return from_dict(kind, part)
    except UserError as error:
        raise UserError(f"{str(as_path(run_dir) / 'config.json')!r}: {error}") from error


def read_model(run_dir: str | AnyPath) -> tuple[dict[str, Any], ZipperConfig]:
    """`read_config`, and the model it describes; raises UserError, which names the file."""
    config = read_config(run_dir)
    require(config, run_dir, "model")
    return config, part_of(config, ZipperConfig, run_dir, "model")


def read_config(run_dir: str | AnyPath) -> dict[str, Any]:
    """The run's ``config.json``, converted to the current format; ``format_version`` is unchanged.

    Raises:
        UserError: No such folder, not a run folder, damaged, or of a newer format.
    """
    path = as_path(run_dir) / "config.json"
    if is_partial(path.parent):
        raise UserError(f"{str(run_dir)!r} is incomplete: its writer was stopped; write it again")
    if not path.parent.is_dir():
        raise UserError(f"run folder {str(run_dir)!r} does not exist; give a folder that `zipper train` wrote")
    if not path.is_file():
        raise UserError(
            f"{str(run_dir)!r} has no config.json, so it is not a run folder; give one that `zipper train` wrote"
        )
    config = user_json.read_object(path, _FIX)
    version = user_json.convert(config, _Config, repr(str(path)), _FIX).format_version
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version {version} is newer than the {FORMAT_VERSION} this zipper_jax reads; upgrade it"
        )
    config = _from_1(config) if version == 1 else config
    return {**config, "model": renamed_model(config["model"])} if version < 3 and "model" in config else config


def renamed_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a `ZipperConfig` with field names of format 2 and older replaced by the current ones."""

    def renamed(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {RENAMED[kind].get(name, name): value for name, value in fields.items()}

    found = dict(model)
    if "towers" in model:
        found["towers"] = {name: renamed("TowerConfig", tower) for name, tower in model["towers"].items()}
    if "input_projections" in model:
        projections = model["input_projections"]
        found["input_projections"] = {name: renamed("ProjectionConfig", p) for name, p in projections.items()}
    if "zips" in model:
        found["zips"] = [renamed("ZipConfig", z) for z in model["zips"]]
        for z in found["zips"]:
            if "projection" in z:
                z["projection"] = renamed("ProjectionConfig", z["projection"])
    return found


def used_fields(model: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a stored `ZipperConfig` without fields of its zips that their fusions do not use.

    Today such a field is refused (`Fusion.check_fields`). It was accepted once and had no effect, so a stored one is
    omitted, also where a fusion of the user's uses fewer fields than it did.
    """

    def used(z: dict[str, Any]) -> dict[str, Any]:
        name = z.get("fusion", ZipConfig.fusion)
        try:
            fields = fusion_class(name).fields if isinstance(name, str) else FUSION_FIELDS
        except UserError:  # what the fusion is called is for `ZipperConfig` to report
            fields = FUSION_FIELDS
        return {field: value for field, value in z.items() if field not in FUSION_FIELDS or field in fields}

    return {**model, "zips": [used(z) for z in model["zips"]]} if "zips" in model else dict(model)


def write_config(run_dir: str | AnyPath, config: Mapping[str, Any]) -> None:
    """Write ``config.json`` with the current ``format_version``."""
    text = json.dumps({**config, "format_version": FORMAT_VERSION}, indent=2, sort_keys=True)
    write_text(as_path(run_dir) / "config.json", text + "\n")


def _from_1(config: dict[str, Any]) -> dict[str, Any]:
    train = dict(config.get("train", {}))
    save = {new: train.pop(old) for old, new in _SAVE_FIELDS_OF_1.items() if old in train}
    return {**config, "train": {**train, "save": save}}

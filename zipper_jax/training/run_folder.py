"""Opens a run folder: creates a new one, or checks that an existing one holds the same run."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from zipper_jax.checkpoint import checkpoints
from zipper_jax.checkpoint.run_format import part_of, read_config, require, used_fields, write_config
from zipper_jax.data.text_forms import read_text_form
from zipper_jax.training.config import RESUME_MAY_CHANGE, TrainConfig
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import copy_folder, write_text
from zipper_jax.utils.storage import AnyPath, as_path, is_partial
from zipper_jax.vocabularies import load_vocabulary

logger = logging.getLogger(__name__)


def resolved(config: TrainConfig) -> dict[str, Any]:
    """The content of ``config.json``: ``model``, ``lengths``, and the rest under ``train``."""
    data = to_dict(config)
    model = data.pop("model")
    return {"model": model, "lengths": dict(config.data.lengths), "train": data}


def check_run(config: TrainConfig) -> str:
    """See whether a run can begin or go on in its folder; writes nothing.

    Args:
        config: The run.

    Returns:
        The changes to the stored configuration that are allowed, for people; mostly "".

    Raises:
        UserError: The folder holds another run (the message lists the differences), or is neither empty nor a run
            folder; or a vocabulary differs from the data's.
    """
    run_dir, note = as_path(config.model_dir), ""
    new = resolved(config)
    if (run_dir / "config.json").is_file():
        found = differences(resolved(stored_config(run_dir)), new)
        if found and checkpoints.steps(run_dir):
            listed = found[:8] + ([f"and {len(found) - 8} more"] if len(found) > 8 else [])
            if not config.allow_changes:
                raise UserError(
                    f"{config.model_dir!r} holds another run: choose another MODEL_DIR, restore that configuration, "
                    "remove the folder, or accept the change (--gin.TrainConfig.allow_changes=True); what differs:",
                    listed,
                )
            joined = "\n  ".join(listed)
            note = f"resuming with another configuration (allow_changes):\n  {joined}"
    elif run_dir.is_dir() and any(not path.name.startswith(".") for path in run_dir.iterdir()):
        raise UserError(f"MODEL_DIR {config.model_dir!r} is neither empty nor a run folder; choose another one")
    _check_vocabularies(config, as_path(config.data.folder) / "vocabularies", run_dir)
    return note


def open_run(config: TrainConfig, provenance: str = "") -> AnyPath:
    """Check the run folder, then write its ``config.json`` and ``vocabularies``; hold the lock meanwhile.

    Args:
        config: The run.
        provenance: gin text that led to it, kept as ``config.gin``; nothing reads it.

    Returns:
        The run folder.

    Raises:
        UserError: See :func:`check_run`.
    """
    if note := check_run(config):
        logger.info(note)
    run_dir, source = as_path(config.model_dir), as_path(config.data.folder) / "vocabularies"
    form = read_text_form(config.data.folder)
    texts = {} if form is None else {"text_form": asdict(form)}
    write_config(run_dir, resolved(config) | texts)  # first, so that a rerun after a kill finds a run folder
    for modality in config.model.modalities:
        if (source / modality).is_dir():
            copy_folder(source / modality, run_dir / "vocabularies" / modality)
    if provenance:
        write_text(run_dir / "config.gin", provenance)
    return run_dir


def stored_config(run_dir: str | AnyPath) -> TrainConfig:
    """Read the TrainConfig of a run folder; missing fields get their defaults, ``model_dir`` becomes ``run_dir``."""
    stored = read_config(run_dir)
    require(stored, run_dir, "train", "model")
    whole = {"run": {**stored["train"], "model": used_fields(stored["model"])}}
    return replace(part_of(whole, TrainConfig, run_dir, "run"), model_dir=str(run_dir))


def _check_vocabularies(config: TrainConfig, source: AnyPath, run_dir: AnyPath) -> None:
    """Raise UserError when the data's vocabularies differ from those of the run folder or of a source tower."""
    for modality, place in config.model.modalities.items():
        here = source / modality
        runs = {"MODEL_DIR": str(run_dir)}
        if place.tower in config.initialise_from:
            runs[f"initialise_from {place.tower!r}"] = config.initialise_from[place.tower]
        if config.restore is not None:
            runs["RestoreCheckpointConfig.path"] = config.restore.path
        for name, run in runs.items():
            there = as_path(run) / "vocabularies" / modality
            if not here.is_dir() or not there.is_dir() or is_partial(there):  # `open_run` writes the last again
                continue
            if load_vocabulary(here).digest != load_vocabulary(there).digest:
                raise UserError(
                    f"{name} = {run!r} was trained with another {modality} vocabulary than that of the data in "
                    f"{config.data.folder!r}; train it again on this data, or give the data it was trained on"
                )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List ``path: old -> new`` for each changed value that a rerun may not change."""
    found: list[str] = []
    _compare("", old, new, found)
    return found


def _compare(path: str, old: Any, new: Any, found: list[str]) -> None:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(set(old) | set(new)):
            inner = f"{path}.{key}" if path else key
            if inner != "format_version" and inner.removeprefix("train.") not in RESUME_MAY_CHANGE:
                _compare(inner, old.get(key), new.get(key), found)
    elif old != new and inner_list(old) != inner_list(new):
        found.append(f"{path}: {old!r} -> {new!r}")


def inner_list(value: Any) -> Any:
    """Tuples as lists, as in JSON."""
    return [inner_list(v) for v in value] if isinstance(value, list | tuple) else value

"""The run folder: what is in it, how it is written, how it is read back.

    config.json                  {"format_version", "model", "train", "lengths"}: all that is needed to read the rest
    vocabularies/MODALITY/       the vocabularies the model was trained with
    checkpoints/STEP/trainable/  Orbax; nested dicts, slices of split leaves keyed NAME@START:STOP
    checkpoints/STEP/optimizer/  Orbax; not needed for inference
    checkpoints/STEP/progress/   JSON: step, seed, the digest of the frozen part, time spent
    frozen/DIGEST/               Orbax; the leaves that never change, written once and shared by all steps

Everything is restored leaf by leaf from the shapes stored beside it, onto any mesh. TensorFlow is never imported
(``flax.training.checkpoints`` would).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from zipper_jax.errors import UserError
from zipper_jax.training.partition_tree import Flat, flatten, join_flat, unflatten
from zipper_jax.training.state import TrainState

FORMAT_VERSION = 1


def write_atomically(path: Path, text: str) -> None:
    """Write aside, then rename: readers see the old text or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """The run's ``config.json``.

    Raises:
        UserError: No such folder, not a run folder, damaged, or written by a newer format.
    """
    path = Path(run_dir) / "config.json"
    if not Path(run_dir).is_dir():
        raise UserError(f"run folder {str(run_dir)!r} does not exist; give a folder that `zipper train` wrote")
    if not path.is_file():
        raise UserError(f"{str(run_dir)!r} has no config.json: it is no run folder; give one `zipper train` wrote")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = config["format_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged (not JSON with a format_version); restore it from a copy") from None
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version {version} is newer than the {FORMAT_VERSION} this zipper_jax reads; upgrade it"
        )
    return config


def write_config(run_dir: str | Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json`` with this format's version."""
    text = json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2, sort_keys=True)
    write_atomically(Path(run_dir) / "config.json", text + "\n")


def digest(flat: Mapping[str, Any]) -> str:
    """sha256 over paths, shapes, dtypes and bytes, as 64 hex digits."""
    total = hashlib.sha256()
    for key in sorted(flat):
        array = _to_host(flat[key])
        total.update(f"{key} {array.shape} {array.dtype}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _to_host(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _optimizer_tree(opt_state: Any) -> Flat:
    """An optax state as a flat dict with readable names, so that reading it needs no optax classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(opt_state)
    return {"/".join(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in p): v for p, v in leaves}


class Checkpoints:
    """The checkpoints of one run being trained. Use as a context manager: leaving it waits for pending writes.

    Args:
        run_dir: The run folder.
        keep: How many of the newest steps stay.
        asynchronous: Write in the background; a failure surfaces at the next call.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2, asynchronous: bool = True) -> None:
        self.run_dir = Path(run_dir).absolute()
        self._keep = keep
        self._asynchronous = asynchronous
        self._manager = _manager(self.run_dir, keep, asynchronous)
        self._frozen: str | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for pending writes and release the threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def wait(self) -> None:
        """Return once everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Save one step; the frozen part is written by the first call only.

        Args:
            state: May be donated afterwards: its arrays are copied to the host before this returns.
            progress: JSON values that are kept with the step.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if self._frozen is None:
            self._frozen = write_frozen(self.run_dir, state.frozen)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                trainable=ocp.args.PyTreeSave(unflatten(state.trainable)),
                optimizer=ocp.args.PyTreeSave(_optimizer_tree(state.opt_state)),
                progress=ocp.args.JsonSave({**progress, "step": step, "frozen": self._frozen}),
            ),
        )

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The state at a step (None: the newest) and its progress, placed as ``like`` is.

        Args:
            like: Arrays or ``ShapeDtypeStruct`` with shardings: shapes are checked, shardings decide placement.
            step: Which.

        Raises:
            UserError: There is no such checkpoint, or its leaves are not those of ``like``.
        """
        step = _require_step(self._manager, self.run_dir, step)
        progress = _read_progress(self._manager, step)
        optimizer = _optimizer_tree(like.opt_state)
        stored = self._manager.item_metadata(step)
        _check_same(flatten(_shapes(stored["trainable"])), like.trainable, f"checkpoint {step} of {self.run_dir}")
        _check_same(_shapes(stored["optimizer"]), optimizer, f"optimizer state of checkpoint {step} of {self.run_dir}")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                trainable=_restore_like(unflatten(like.trainable)), optimizer=_restore_like(optimizer)
            ),
        )
        frozen = read_frozen(self.run_dir, progress["frozen"], like.frozen)
        leaves = [restored["optimizer"][name] for name in optimizer]
        opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), leaves)
        self._frozen = progress["frozen"]
        number = jax.device_put(np.int32(step), getattr(like.step, "sharding", None))
        return TrainState(number, flatten(restored["trainable"]), frozen, opt_state), progress


def write_frozen(run_dir: Path, frozen: Flat) -> str:
    """Write the frozen leaves under their digest, unless they are there already; returns the digest ("" if none)."""
    if not frozen:
        return ""
    name = digest(frozen)
    folder = run_dir / "frozen" / name
    if not folder.is_dir():  # Orbax writes aside and renames: a folder that exists is complete
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder, args=ocp.args.PyTreeSave(unflatten(frozen)))
    return name


def read_frozen(run_dir: Path, name: str, like: Mapping[str, Any] | None = None) -> Flat:
    """The frozen leaves of that digest; placed as ``like`` is, or on the host as numpy arrays."""
    if not name:
        return {}
    folder = Path(run_dir).absolute() / "frozen" / name
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: the checkpoints of this run need it; restore it from a copy")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(folder).item_metadata.tree
        if like is not None:
            _check_same(flatten(_shapes(stored)), like, str(folder))
        args = _restore_like(unflatten(like)) if like is not None else _restore_host(stored)
        return flatten(checkpointer.restore(folder, args=args))


def steps(run_dir: str | Path) -> list[int]:
    """Complete checkpoints of a run, oldest first."""
    folder = Path(run_dir) / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()) if folder.is_dir() else []


def load_params(run_dir: str | Path, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(config, params)`` of a run for inference: nested dict of numpy arrays; the optimizer is not read.

    Args:
        run_dir: The run folder.
        step: Which checkpoint; None: the newest.

    Raises:
        UserError: Not a run folder, or no such checkpoint.
    """
    config = read_config(run_dir)
    manager = _manager(Path(run_dir).absolute(), None, False, read_only=True)
    try:
        step = _require_step(manager, run_dir, step)
        progress = _read_progress(manager, step)
        stored = manager.item_metadata(step)["trainable"]
        restored = manager.restore(step, args=ocp.args.Composite(trainable=_restore_host(stored)))
    finally:
        manager.close()
    frozen = read_frozen(Path(run_dir), progress["frozen"])
    return config, unflatten(join_flat({**flatten(restored["trainable"]), **frozen}))


def load_tower(run_dir: str | Path, tower: str | None = None, step: int | None = None) -> dict[str, Any]:
    """One tower's nested parameters, for fusing: what lies under ``towers/NAME`` of that run.

    Args:
        run_dir: The run folder.
        tower: Its name there; None, or a name that run does not have when it has only one: that one.
        step: Which checkpoint; None: the newest.

    Raises:
        UserError: The run has several towers and none of that name.
    """
    _, params = load_params(run_dir, step)
    towers = params["towers"]
    if tower in towers:
        return towers[tower]
    if len(towers) == 1:
        return next(iter(towers.values()))
    raise UserError(f"{str(run_dir)!r} has no tower {tower!r} (towers: {', '.join(sorted(towers))}); name one of these")


def load_progress(run_dir: str | Path, step: int | None = None) -> dict[str, Any]:
    """The JSON values saved with a step (None: the newest)."""
    manager = _manager(Path(run_dir).absolute(), None, False, read_only=True)
    try:
        return _read_progress(manager, _require_step(manager, run_dir, step))
    finally:
        manager.close()


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder aside, then rename it into place; nothing happens when the target exists."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copytree(source, aside)
    aside.replace(target)


def _manager(run_dir: Path, keep: int | None, asynchronous: bool, read_only: bool = False) -> ocp.CheckpointManager:
    folder = run_dir / "checkpoints"
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else keep,
        enable_async_checkpointing=asynchronous,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
    )
    if read_only and not folder.is_dir():
        raise UserError(f"{str(run_dir)!r} has no checkpoints yet; train it first, or give another run folder")
    items = {
        "trainable": ocp.PyTreeCheckpointHandler(),
        "optimizer": ocp.PyTreeCheckpointHandler(),
        "progress": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=items)


def _require_step(manager: ocp.CheckpointManager, run_dir: str | Path, step: int | None) -> int:
    known = sorted(manager.all_steps())
    if not known:
        raise UserError(f"{str(run_dir)!r} has no complete checkpoint yet; train it first, or give another run folder")
    if step is None:
        return int(known[-1])
    if step not in known:
        raise UserError(f"{str(run_dir)!r} has no checkpoint of step {step}; there are {', '.join(map(str, known))}")
    return step


def _read_progress(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    restored = manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
    progress: dict[str, Any] = restored["progress"]
    return progress


def _shapes(metadata: Any) -> Any:
    return metadata.tree if hasattr(metadata, "tree") else metadata


def _restore_like(tree: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))


def _restore_host(metadata: Any) -> ocp.args.PyTreeRestore:
    tree = _shapes(metadata)
    return ocp.args.PyTreeRestore(
        tree, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    )


def _check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """UserError naming the first difference between two flat trees' paths and shapes."""
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or extra:
        lacks = f"lacks {missing[0]} and {len(missing) - 1} more" if missing else ""
        has = f"has {extra[0]} and {len(extra) - 1} more that the model does not want" if extra else ""
        raise UserError(f"{what} {' and '.join(filter(None, (lacks, has)))}; model or freeze rules changed since")
    for key in wanted:
        if tuple(stored[key].shape) != tuple(wanted[key].shape):
            raise UserError(
                f"{what}: {key} has shape {tuple(stored[key].shape)}, the model wants {tuple(wanted[key].shape)}"
            )

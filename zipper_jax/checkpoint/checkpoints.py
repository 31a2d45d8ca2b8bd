"""Checkpoints of a run folder: saving, verifying, restoring.

    config.json                  see ``run_format``
    vocabularies/MODALITY/       vocabularies of the model
    checkpoints/STEP/trainable/  Orbax; nested dicts, slices of split leaves keyed NAME@START:STOP
    checkpoints/STEP/optimizer/  Orbax; not needed for inference
    checkpoints/STEP/guard/      Orbax; loss statistics
    checkpoints/STEP/manifest/   JSON: step, a digest per array, the frozen part's digest, and ``progress``
    checkpoints/STEP/files.json  size and sha256 of each file above, written once they are all on disk
    frozen/DIGEST/               Orbax; the frozen leaves, written once and shared by all steps
    damaged/STEP/                steps that were found damaged

A step is complete when Orbax has renamed it into place; in a bucket, when it has its marker (`utils.storage`). A step
is good when its restored arrays match the digests of its manifest: every restore checks that, and a run resumes from
the newest good step.
"""

import logging
import math
import shutil
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from zipper_jax.checkpoint import manifest, orbax_trees
from zipper_jax.checkpoint.bucket_steps import BucketSteps, complete_steps
from zipper_jax.checkpoint.config import SaveCheckpointConfig
from zipper_jax.checkpoint.frozen import (
    FrozenDamagedError,
    check_frozen_files,
    has_digests,
    open_frozen,
    read_frozen,
    write_frozen,
)
from zipper_jax.checkpoint.model_folder import is_model_folder, read_model_folder
from zipper_jax.checkpoint.orbax_trees import Leaf, join_leaves, open_folder, proven
from zipper_jax.checkpoint.run_format import read_config
from zipper_jax.checkpoint.state import TrainState
from zipper_jax.utils import distributed, storage, user_json
from zipper_jax.utils.errors import DamagedError, ServiceError, UserError
from zipper_jax.utils.files import is_no_room
from zipper_jax.utils.storage import AnyPath, as_path
from zipper_jax.utils.trees import Flat, join_flat, unflatten

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRASH = ".trash-"
ARRAYS = ("trainable", "optimizer", "guard")
"""The items of a step that hold arrays."""


def _named(tree: Any) -> Flat:
    """A pytree as a flat dict with readable names, so that restoring it needs no optax classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in p): v for p, v in leaves}


def _items(state: TrainState) -> dict[str, Flat]:
    return {"trainable": state.trainable, "optimizer": _named(state.opt_state), "guard": _named(state.guard)}


class Checkpoints:
    """The checkpoints of one run being trained. Use as a context manager: leaving it waits for pending writes.

    Args:
        run_dir: The run folder.
        config: When to save and what to keep.
    """

    def __init__(
        self,
        run_dir: str | AnyPath,
        config: SaveCheckpointConfig = SaveCheckpointConfig(),
    ) -> None:
        self.run_dir = storage.absolute(run_dir)
        self._config = config
        self._folder = self.run_dir / "checkpoints"
        in_bucket = storage.is_bucket(self.run_dir)
        if in_bucket and jax.process_index() == 0:  # steps that a killed process was writing or deleting
            for partial in set(storage.subfolders(self._folder)) - set(storage.complete_subfolders(self._folder)):
                storage.delete_tree(self._folder / partial)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None,  # deleting is ours: see _tidy
            enable_async_checkpointing=config.asynchronous,
            cleanup_tmp_directories=not in_bucket,
            step_name_format=BucketSteps() if in_bucket else None,
        )
        handlers: dict[str, Any] = {item: ocp.PyTreeCheckpointHandler() for item in ARRAYS}
        handlers["manifest"] = ocp.JsonCheckpointHandler()
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
        self._untidy = False  # a step was saved since the last tidying
        self._tidying: threading.Thread | None = None
        self._frozen = ""
        self._last: int | None = None  # the step that was saved or restored last
        if isinstance(self._folder, Path) and jax.process_index() == 0:
            for left_over in self._folder.glob(f"{TRASH}*"):
                shutil.rmtree(left_over)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A process of a group that fails alone must exit: waiting for the others would hide its failure from them.
        if kind is None or issubclass(kind, UserError) or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Wait for pending writes and release the threads."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Return once everything saved so far is on disk."""
        with self._room():
            self._manager.wait_until_finished()
        self._join()  # of an earlier step, perhaps
        self.poll()
        self._join()
        distributed.barrier("checkpoints are on disk")

    def _join(self) -> None:
        if self._tidying is not None:
            self._tidying.join()

    def poll(self) -> None:
        """Start tidying up in the background once the pending step is on disk; cheap, call it often."""
        if not self._untidy or self._manager.is_saving_in_progress():
            return
        if self._tidying is not None and self._tidying.is_alive():
            return
        self._untidy = False
        if jax.process_index() == 0:
            self._tidying = threading.Thread(target=self._tidy, name="tidy checkpoints")
            self._tidying.start()

    def steps(self) -> list[int]:
        """Complete steps, oldest first, as process 0 sees them, so that all processes agree."""
        return distributed.from_first(steps(self.run_dir))

    def periodic_steps(self) -> list[int]:
        """The steps saved periodically, not on a signal."""
        return distributed.from_first([step for step in steps(self.run_dir) if _is_periodic(self.run_dir, step)])

    def latest(self) -> int | None:
        """The newest complete step."""
        return next(reversed(self.steps()), None)

    def discard_after(self, step: int) -> None:
        """Delete the steps after ``step``, to which the run was rolled back: it will reach them on other batches."""
        if jax.process_index() == 0:
            for later in steps(self.run_dir):
                if later > step:
                    delete_step(self.run_dir, later)
        distributed.barrier(f"discard after {step}")
        self._manager.reload()
        self._last = step

    def keep_frozen(self, frozen: Flat) -> None:
        """Write the frozen leaves of a new run, in the dtypes in which they are stored; `save` refers to them."""
        self._frozen = write_frozen(self.run_dir, frozen)

    def save(self, state: TrainState, progress: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Save one step; `keep_frozen` or `restore` comes before where leaves are frozen.

        Args:
            state: May be donated afterwards: its arrays are copied to the host before this returns.
            progress: JSON values stored with the step.
            metrics: Metric -> value, for ``SaveCheckpointConfig.best_metric``.
        """
        step = int(state.step)
        if step == self._last:
            return
        self._last = step
        assert self._frozen or not state.frozen, "call keep_frozen first"
        items = _items(state)
        content = {
            "step": step,
            "frozen": self._frozen,
            "periodic": step % self._config.period == 0,
            "progress": dict(progress),
            "metrics": dict(metrics or {}),
            "arrays": {item: manifest.table(flat) for item, flat in items.items()},
        }
        with self._room():  # asynchronous writing tells of an earlier step's failure here
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    manifest=ocp.args.JsonSave(manifest.sealed(content)),
                    **{item: ocp.args.PyTreeSave(unflatten(flat)) for item, flat in items.items()},
                ),
            )
        self._untidy = True

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Turn the error of a full disk into a UserError that names the newest complete step."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not is_no_room(error):
                raise
            last = max(steps(self.run_dir), default=None)
            good = "there is none yet" if last is None else f"step {last} is complete"
            raise UserError(
                f"{str(self.run_dir)!r}: no disk space left to write a checkpoint ({good}); free some, then run the "
                "same command again"
            ) from error

    def restore(self, like: TrainState, only: Sequence[int] | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Restore the newest good step; damaged newer ones are reported and moved to ``damaged/``.

        Args:
            like: Arrays or ``ShapeDtypeStruct`` with shardings: shapes are checked, shardings are applied.
            only: The steps to consider; None: all.

        Returns:
            The state and the step's progress.

        Raises:
            DamagedError: No step is good; then nothing is moved.
            UserError: There is no checkpoint, or its leaves are not those of ``like``.
        """
        problems, damaged = [], []
        for candidate in reversed(distributed.from_first(require_steps(self.run_dir)) if only is None else only):
            try:
                state, content = restore_step(self.run_dir, like, candidate)
            except FrozenDamagedError:
                raise  # not this step's fault
            except DamagedError as damage:
                problems.append(f"step {candidate}: {damage.problems[0]}")
                damaged.append((candidate, str(damage)))
                continue
            for bad, told in damaged:  # only now: if none is good, nothing is moved and nothing starts over
                logger.info(f"step {bad}: {told}; it is moved to {self._set_aside(bad)}")
            if problems:
                logger.info(f"resuming from step {candidate}, the newest good checkpoint")
            self._frozen = content["frozen"]
            if not has_digests(self.run_dir, self._frozen):  # of format 1, or its table is lost
                stored = read_frozen(self.run_dir, self._frozen, like.frozen, verify=not _is_format_1(content))
                self._frozen = write_frozen(self.run_dir, stored)
            self._last = candidate
            return state, content["progress"]
        raise DamagedError(f"every checkpoint of {self.run_dir}", problems)

    def _set_aside(self, step: int) -> AnyPath:
        """Move a damaged step to ``damaged/``; every process of a group must call this."""
        target = self.run_dir / "damaged" / str(step)
        if jax.process_index() == 0:
            source = self._folder / str(step)
            if isinstance(source, Path):
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                source.replace(target)
            else:
                storage.delete_tree(target)
                storage.copy_tree(source, target)
                storage.delete_tree(source)
        distributed.barrier(f"set aside {step}")
        self._manager.reload()
        return target

    def _tidy(self) -> None:
        """Write missing ``files.json``, then delete the steps that are not kept."""
        try:
            self._seal_and_delete()
        except ServiceError as error:
            logger.warning(f"checkpoints are not tidied up now, but after the next one: {error}")

    def _seal_and_delete(self) -> None:
        known = steps(self.run_dir)
        for step in known:
            folder = self._folder / str(step)
            if (folder / "manifest").is_dir() and not manifest.is_sealed(folder):
                manifest.seal_files(folder)
        for step in set(known) - self._kept(known):
            delete_step(self.run_dir, step)

    def _kept(self, known: list[int]) -> set[int]:
        """The newest ``keep`` steps, the ``keep_best`` best, and the newest periodic one."""
        config = self._config
        kept = set(known if config.keep is None else known[-config.keep :])
        # A rollback after bad losses needs a step that an uninterrupted run has too: not one saved on a signal.
        kept |= set([step for step in known if _is_periodic(self.run_dir, step)][-1:])
        if config.keep_best:
            kept |= set(best_steps(self.run_dir, config)[: config.keep_best])
        return kept


def delete_step(run_dir: str | AnyPath, step: int) -> None:
    """Rename, then delete: a kill in between must not leave a partial step that looks complete."""
    folder = as_path(run_dir) / "checkpoints"
    if not isinstance(folder, Path):  # the marker goes first
        storage.delete_tree(folder / str(step))
        return
    aside = folder / f"{TRASH}{step}"
    shutil.rmtree(aside, ignore_errors=True)
    (folder / str(step)).replace(aside)
    shutil.rmtree(aside)


def _is_periodic(run_dir: str | AnyPath, step: int) -> bool:
    try:
        return bool(read_manifest(run_dir, step).get("periodic", True))
    except DamagedError:
        return False


def best_steps(run_dir: str | AnyPath, config: SaveCheckpointConfig) -> list[int]:
    """Steps that have the best metric, best first; ties: the earlier step first."""
    found = []
    for step in steps(run_dir):
        try:
            value = read_manifest(run_dir, step).get("metrics", {}).get(config.best_metric)
        except DamagedError:
            continue
        if value is not None and math.isfinite(value):
            found.append((value if config.best_mode == "min" else -value, step))
    return [step for _, step in sorted(found)]


def _read_item(folder: AnyPath, item: str, content: Mapping[str, Any], like: Mapping[str, Any] | None) -> Flat:
    """Read one item of a step and verify its digests, if the format has any."""
    what = f"checkpoint {folder.name} of {folder.parent.parent}"
    if not (folder / item).is_dir():
        raise DamagedError(what, [f"{item} is missing"])
    found = distributed.together(orbax_trees.read_folder, folder / item, like, f"{item} of {what}")
    stored = content["arrays"][item]
    if stored is not None:
        manifest.check_arrays(found, stored, what)
    return found


def _unnamed(named: Flat, like: Any) -> Any:
    """Inverse of :func:`_named`."""
    leaves = [jax.device_put(named[key], getattr(leaf, "sharding", None)) for key, leaf in _named(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def steps(run_dir: str | AnyPath) -> list[int]:
    """Complete checkpoints of a run, oldest first."""
    return complete_steps(as_path(run_dir) / "checkpoints")


def read_manifest(run_dir: str | AnyPath, step: int) -> dict[str, Any]:
    """The manifest of a step: ``step``, ``frozen``, ``progress``, ``metrics``, ``arrays`` (item -> path -> digest).

    A step of format 1 has no digests: its ``arrays`` have None for each item.

    Raises:
        DamagedError: It cannot be read or is not what was saved.
    """
    folder = storage.absolute(run_dir) / "checkpoints" / str(step)
    what = f"checkpoint {step} of {run_dir}"
    old = folder / "progress" / "metadata"
    try:
        if old.is_file():
            progress = user_json.read_object(old, "")
            return {"frozen": "", **progress, "progress": progress, "arrays": {"trainable": None, "optimizer": None}}
        stored = user_json.read_object(folder / "manifest" / "metadata", "")
    except (OSError, UserError) as error:
        raise DamagedError(what, [f"its manifest cannot be read ({type(error).__name__})"]) from error
    return manifest.unsealed(stored, what)


def verify(run_dir: str | AnyPath, step: int, arrays: bool = True) -> list[str]:
    """The problems of a checkpoint, one line each; empty if it is good.

    Args:
        run_dir: The run folder.
        step: The checkpoint.
        arrays: Also read each array and compare its digest; else only files are checked. A step that a kill left
            without ``files.json`` is good if its arrays are.
    """
    run_dir = storage.absolute(run_dir)
    folder = run_dir / "checkpoints" / str(step)
    old = (folder / "progress").is_dir()
    problems = [] if old or (arrays and not manifest.is_sealed(folder)) else manifest.check_files(folder)
    try:
        content = read_manifest(run_dir, step)
    except DamagedError as damage:
        return problems + damage.problems
    if content["frozen"] and not old:
        problems += check_frozen_files(run_dir, content["frozen"])
    if arrays:
        for item in content["arrays"]:
            try:
                _read_item(folder, item, content, None)
            except DamagedError as damage:
                problems += [problem for problem in damage.problems if problem not in problems]
        try:
            read_frozen(run_dir, content["frozen"], verify=not _is_format_1(content))
        except DamagedError as damage:
            problems += damage.problems
    return problems


def _is_format_1(content: Mapping[str, Any]) -> bool:
    """Whether a step's manifest is of format 1: without digests, and with another kind of name for the frozen part."""
    return content["arrays"].get("trainable") is None


def restore_step(run_dir: str | AnyPath, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
    """The state at a step, sharded like ``like``, and the step's manifest; see :meth:`Checkpoints.restore`."""
    run_dir = storage.absolute(run_dir)
    content = distributed.together(read_manifest, run_dir, require_step(run_dir, step))
    stored = read_frozen(run_dir, content["frozen"], like.frozen, verify=not _is_format_1(content))
    orbax_trees.check_same(stored, like.frozen, f"the frozen part of {run_dir}")
    frozen = {key: orbax_trees.cast(stored.pop(key), leaf) for key, leaf in like.frozen.items()}  # one by one
    restored: dict[str, Flat] = {}
    for item, wanted in _items(like).items():
        if item not in content["arrays"]:
            if item == "optimizer":
                raise UserError(
                    f"checkpoint {step} of {run_dir} was exported without its optimizer and cannot be resumed; start "
                    "another run from it with TrainConfig.initialise_from or RestoreCheckpointConfig.path"
                )
            restored[item] = {key: np.zeros(leaf.shape, leaf.dtype) for key, leaf in wanted.items()}
            continue
        found = _read_item(run_dir / "checkpoints" / str(step), item, content, wanted)
        restored[item] = {key: orbax_trees.cast(found[key], leaf) for key, leaf in wanted.items()}
    state = TrainState(
        jax.device_put(np.int32(step), getattr(like.step, "sharding", None)),
        restored["trainable"],
        frozen,
        _unnamed(restored["optimizer"], like.opt_state),
        _unnamed(restored["guard"], like.guard),
    )
    return state, content


def load_params(run_dir: str | AnyPath, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a run or model folder for inference, without the optimizer.

    Args:
        run_dir: The folder.
        step: Which checkpoint; None: the newest good one, with a warning if that is not the newest.

    Returns:
        The config, and the parameters as nested dicts of NumPy arrays.

    Raises:
        DamagedError: The given checkpoint is damaged, or all are.
        UserError: Not a run folder, or no such checkpoint.
    """
    if is_model_folder(run_dir):
        if step is not None:
            raise UserError(f"{str(run_dir)!r} is a model folder: it has one state, no step {step}")
        return read_model_folder(run_dir)
    config = read_config(run_dir)

    def read(folder: AnyPath, content: Mapping[str, Any], what: str) -> Flat:
        return _read_item(folder, "trainable", content, None)

    trainable, content = _newest_good(run_dir, step, read)
    frozen = read_frozen(as_path(run_dir), content["frozen"], verify=not _is_format_1(content))
    return config, unflatten(join_flat({**trainable, **frozen}))


def open_params(run_dir: str | AnyPath, step: int | None = None) -> dict[str, Leaf]:
    """The parameters of a run's checkpoint, each read and verified lazily (`Leaf.make`).

    Args:
        run_dir: The run folder.
        step: Which checkpoint; None: the newest whose files are intact, with a warning if that is not the newest.

    Raises:
        DamagedError: The given checkpoint is damaged, or all are; also raised by `Leaf.make`.
        UserError: Not a run folder, or no such checkpoint.
    """

    def read(folder: AnyPath, content: Mapping[str, Any], what: str) -> dict[str, Leaf]:
        # A step that a kill left unsealed has its arrays' digests only.
        if manifest.is_sealed(folder) and (wrong := manifest.check_files(folder, ("trainable",))):
            raise DamagedError(what, wrong)
        return proven(open_folder(folder / "trainable", what), content["arrays"]["trainable"], what)

    leaves, content = _newest_good(run_dir, step, read)
    return join_leaves(leaves | open_frozen(as_path(run_dir), content["frozen"]))


def _newest_good(
    run_dir: str | AnyPath, step: int | None, read: Callable[[AnyPath, Mapping[str, Any], str], T]
) -> tuple[T, dict[str, Any]]:
    """What ``read(folder, manifest, name)`` gives of ``step``, or of the newest step where it raises no DamagedError,
    with a warning when that is not the newest; and the step's manifest."""
    problems: list[str] = []
    for candidate in [require_step(run_dir, step)] if step is not None else reversed(require_steps(run_dir)):
        folder, what = (
            storage.absolute(run_dir) / "checkpoints" / str(candidate),
            f"checkpoint {candidate} of {run_dir}",
        )
        try:
            content = read_manifest(run_dir, candidate)
            found = read(folder, content, what)
        except DamagedError as damage:
            if step is not None:
                raise
            problems.append(f"step {candidate}: {damage.problems[0]}")
            continue
        if problems:
            warnings.warn(f"{run_dir}: damaged: {'; '.join(problems)}; loading step {candidate}", stacklevel=3)
        return found, content
    raise DamagedError(f"every checkpoint of {run_dir}", problems)


def tower_name(run_dir: str | AnyPath, towers: Collection[str], wanted: str | None) -> str:
    """The tower of a run that is meant: ``wanted``, or its only one; else UserError."""
    name = wanted if wanted in towers else next(iter(towers)) if len(towers) == 1 else None
    if name is None:
        known = ", ".join(sorted(towers))
        raise UserError(f"{str(run_dir)!r} has no tower {wanted!r} (towers: {known}); name one of these")
    return name


def require_steps(run_dir: str | AnyPath) -> list[int]:
    """Like :func:`steps`, but UserError if there is none."""
    known = steps(run_dir)
    if is_model_folder(run_dir):
        raise UserError(f"{str(run_dir)!r} is a model folder: it has no checkpoints, only one file of weights")
    if not known:
        raise UserError(f"{str(run_dir)!r} has no complete checkpoint yet; train it first, or give another run folder")
    return known


def require_step(run_dir: str | AnyPath, step: int) -> int:
    """``step``; UserError, naming the existing ones, if there is no such checkpoint."""
    known = require_steps(run_dir)
    if step not in known:
        raise UserError(f"{str(run_dir)!r} has no checkpoint of step {step}; there are: {', '.join(map(str, known))}")
    return step

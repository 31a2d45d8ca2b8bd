"""Functions of ``zipper ckpt``: listing, verifying, exporting and pruning checkpoints."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from zipper_jax.checkpoint import checkpoints, manifest
from zipper_jax.checkpoint.config import SaveCheckpointConfig
from zipper_jax.checkpoint.frozen import TABLE
from zipper_jax.checkpoint.run_format import part_of, read_config, write_config
from zipper_jax.utils import storage
from zipper_jax.utils.errors import DamagedError, UserError
from zipper_jax.utils.files import copy_folder, copy_tree, new_folder, require_new
from zipper_jax.utils.locks import locked
from zipper_jax.utils.readable import size as readable_size
from zipper_jax.utils.storage import AnyPath, as_path


def listing(run_dir: str) -> list[str]:
    """A line per checkpoint, oldest first, and one for each frozen part and each damaged step."""
    read_config(run_dir)
    known, root = checkpoints.steps(run_dir), as_path(run_dir)
    config = _save_config(run_dir)
    best = checkpoints.best_steps(run_dir, config)[:1]
    lines = []
    for step in known:
        try:
            content = checkpoints.read_manifest(run_dir, step)
        except DamagedError as damage:
            lines.append(f"step {step:>8}  DAMAGED: {damage.problems[0]}")
            continue
        folder = root / "checkpoints" / str(step)
        value = content.get("metrics", {}).get(config.best_metric)
        notes = [f"{config.best_metric} {value:.4f}{' (best)' if step in best else ''}"] if value is not None else []
        skipped = content["progress"].get("skipped", [])
        notes += [f"{sum(stop - start for start, stop in skipped)} batches skipped"] if skipped else []
        notes += [f"frozen {content['frozen'][:12]}"] if content["frozen"] else []
        notes += ["no digests (format 1)"] if (folder / "progress").is_dir() else []
        lines.append(f"step {step:>8}  {_size(folder):>10}  {', '.join(notes)}".rstrip())
    for kind in ("frozen", "damaged"):
        for folder in _folders(root / kind):
            lines.append(f"{kind} {folder.name[:12]}  {_size(folder):>10}")
    return lines or [f"{run_dir}: no checkpoint yet"]


def verify_run(run_dir: str, step: int | None, arrays: bool) -> Iterator[tuple[int, list[str], str]]:
    """Yield (step, its problems, a note) for one step or all.

    Raises:
        UserError: Not a run folder, or no such checkpoint.
    """
    read_config(run_dir)
    for one in checkpoints.require_steps(run_dir) if step is None else [checkpoints.require_step(run_dir, step)]:
        old = (as_path(run_dir) / "checkpoints" / str(one) / "progress").is_dir()
        unsealed = not old and not manifest.is_sealed(as_path(run_dir) / "checkpoints" / str(one))
        note = "format 1 has no digests, only read" if old else "its files are not sealed yet" if unsealed else ""
        yield one, checkpoints.verify(run_dir, one, arrays), note


def export(run_dir: str, out: str, step: int | None = None, best: bool = False) -> int:
    """Copy one step into a self-contained run folder: configuration, vocabularies, parameters, no optimizer.

    ``zipper_jax.load`` and ``initialise_from`` read it.

    Args:
        run_dir: The run folder.
        out: The new folder.
        step: Which step; None: the newest.
        best: The best step instead.

    Returns:
        The step.

    Raises:
        UserError: No such step, it is damaged, or ``out`` exists.
    """
    config = read_config(run_dir)
    require_new(out)
    if best and step is not None:
        raise UserError("give --step or --best, not both")
    if best:
        ranked = checkpoints.best_steps(run_dir, _save_config(run_dir))
        if not ranked:
            raise UserError(f"{run_dir!r} has no checkpoint with {_save_config(run_dir).best_metric!r}; give --step")
        step = ranked[0]
    step = checkpoints.require_steps(run_dir)[-1] if step is None else checkpoints.require_step(run_dir, step)
    problems = checkpoints.verify(run_dir, step)
    if problems:
        raise DamagedError(f"checkpoint {step} of {run_dir}", problems)
    root, content = as_path(run_dir), checkpoints.read_manifest(run_dir, step)
    with new_folder(out) as folder:
        copied = folder / "checkpoints" / str(step)
        copy_tree(root / "checkpoints" / str(step), copied, left_out=("optimizer", "guard", manifest.FILES))
        if (copied / "manifest").is_dir():
            lighter = {**content, "arrays": {"trainable": content["arrays"]["trainable"]}}
            (copied / "manifest" / "metadata").write_text(json.dumps(manifest.sealed(lighter)), encoding="utf-8")
            manifest.seal_files(copied)
        if content["frozen"]:
            copy_tree(root / "frozen" / content["frozen"], folder / "frozen" / content["frozen"])
            table = root / "frozen" / TABLE.format(content["frozen"])
            if table.is_file():
                (folder / "frozen" / table.name).write_bytes(table.read_bytes())
        copy_folder(root / "vocabularies", folder / "vocabularies")
        write_config(folder, config)
        # In a bucket, to which the folder may be copied, a step and the frozen part are complete with their markers.
        for complete in filter(None, (copied, content["frozen"] and folder / "frozen" / content["frozen"])):
            if not (complete / storage.MARKER).exists():  # Orbax's own has a content, whose digest is kept
                (complete / storage.MARKER).write_bytes(b"")
    return step


def prune(run_dir: str, keep: int, keep_best: int = 0, dry_run: bool = False) -> list[str]:
    """Delete all but the newest ``keep`` and best ``keep_best`` steps, unused frozen parts, damaged steps and remains
    of interrupted writes.

    Args:
        run_dir: The run folder.
        keep: How many of the newest good steps to keep, at least 1.
        keep_best: How many of the best to keep in addition.
        dry_run: Delete nothing.

    Returns:
        A line per deleted item.

    Raises:
        UserError: The run is being trained, or ``keep`` is below 1.
    """
    if keep < 1:
        raise UserError(f"--keep={keep}: give 1 or more (to delete a whole run, delete its folder)")
    read_config(run_dir)
    root = as_path(run_dir)
    with locked(root):
        known = checkpoints.steps(run_dir)
        good = [step for step in known if not checkpoints.verify(run_dir, step)]
        if not good:
            raise DamagedError(f"every checkpoint of {run_dir}", ["nothing is deleted; see `zipper ckpt verify`"])
        best = [step for step in checkpoints.best_steps(run_dir, _save_config(run_dir)) if step in good]
        kept = {*good[-keep:], *best[:keep_best]}
        needed = {checkpoints.read_manifest(run_dir, step)["frozen"] for step in kept}
        doomed = [root / "checkpoints" / str(step) for step in known if step not in kept]
        complete = storage.complete_subfolders(root / "checkpoints")
        doomed += [
            path for path in _folders(root / "checkpoints") if not path.name.isdecimal() or path.name not in complete
        ]
        doomed += [path for path in _folders(root / "frozen") if path.name not in needed]
        doomed += [root / "damaged"] if (root / "damaged").is_dir() else []
        lines = [
            f"{'would delete' if dry_run else 'deleted'} {path.relative_to(root)} ({_size(path)})" for path in doomed
        ]
        for path in [] if dry_run else doomed:
            if path.parent.name == "checkpoints" and path.name.isdecimal():
                checkpoints.delete_step(root, int(path.name))
            elif isinstance(path, Path):
                shutil.rmtree(path)
            else:
                storage.delete_tree(path)
            path.with_name(TABLE.format(path.name)).unlink(missing_ok=True)
    return lines or ["nothing to delete"]


def _save_config(run_dir: str) -> SaveCheckpointConfig:
    return part_of(read_config(run_dir), SaveCheckpointConfig, run_dir, "train", "save")


def _folders(parent: AnyPath) -> list[AnyPath]:
    return [parent / name for name in storage.subfolders(parent)]


def _size(folder: AnyPath) -> str:
    if isinstance(folder, Path):
        return readable_size(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    return readable_size(manifest.sealed_bytes(folder)) if manifest.is_sealed(folder) else "?"

"""The frozen leaves of a run: written once under ``frozen/DIGEST/``, shared by all its checkpoints.

DIGEST covers every path, shape, dtype and array digest, so the folder's name verifies its content. (Runs of format 1
used another digest; theirs are not verified.) Our own, because Orbax's CheckpointManager writes every item of a step
again, or loses it to later steps.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from zipper_jax.checkpoint import manifest, orbax_trees
from zipper_jax.checkpoint.orbax_trees import Leaf, open_folder, proven
from zipper_jax.utils import distributed, storage, user_json
from zipper_jax.utils.errors import DamagedError, UserError
from zipper_jax.utils.files import write_text
from zipper_jax.utils.storage import AnyPath
from zipper_jax.utils.trees import Flat, unflatten

TABLE = "{}.json"


class FrozenDamagedError(DamagedError):
    """The frozen part, which every checkpoint of the run needs, is damaged."""


def write_frozen(run_dir: AnyPath, frozen: Flat) -> str:
    """Write the frozen leaves under their digest, unless they exist; returns the digest ("" if there are none)."""
    if not frozen:
        return ""
    arrays = manifest.table(frozen)
    name = manifest.name_of(arrays)
    folder = run_dir / "frozen" / name
    if not distributed.from_first(storage.is_complete(folder)):  # Orbax renames it, or writes its marker last
        if storage.is_bucket(folder):
            if jax.process_index() == 0:
                storage.delete_tree(folder)  # of a killed process
            distributed.barrier("the frozen part can be written")
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder, args=ocp.args.PyTreeSave(unflatten(frozen)))
    if jax.process_index() == 0 and not (has_digests(run_dir, name) and manifest.is_sealed(folder)):
        write_text(folder.parent / TABLE.format(name), json.dumps(arrays, indent=1, sort_keys=True))
        manifest.seal_files(folder)
    return name


def read_frozen(run_dir: AnyPath, name: str, like: Mapping[str, Any] | None = None, verify: bool = True) -> Flat:
    """The frozen leaves of a digest as they are stored, sharded like ``like``, or as NumPy arrays on the host.

    ``verify``: their digests are compared with their name, which is no digest of them in runs of format 1.

    Raises:
        DamagedError: They are missing, cannot be read, or are not what was written.
        UserError: They are not the leaves of ``like``.
    """
    if not name:
        return {}
    folder = storage.absolute(run_dir) / "frozen" / name
    what = f"frozen part {folder}"
    if not storage.is_complete(folder):
        raise FrozenDamagedError(what, ["the folder is missing; restore it from a copy"])
    try:
        frozen = distributed.together(orbax_trees.read_folder, folder, like, what)
        table = folder.parent / TABLE.format(name)
        if verify and manifest.name_of(manifest.table(frozen)) != name:
            if table.is_file():
                manifest.check_arrays(frozen, user_json.read_object(table, ""), what)
                raise DamagedError(what, [f"{table.name} is not what was saved"])
            raise DamagedError(what, ["its arrays are not what was saved"])
    except DamagedError as damage:
        raise FrozenDamagedError(
            what, [*damage.problems, "restore it from a copy, or start again from the towers"]
        ) from None
    except user_json.JsonError:
        raise FrozenDamagedError(what, [f"{table.name} is not what was saved; restore it from a copy"]) from None
    return frozen


def open_frozen(run_dir: AnyPath, name: str) -> dict[str, Leaf]:
    """The same leaves, each read and verified lazily (`Leaf.make`).

    Raises:
        DamagedError: They are missing or cannot be read; by `Leaf.make`: the leaf is not what was written.
    """
    if not name:
        return {}
    folder = storage.absolute(run_dir) / "frozen" / name
    what, table = f"frozen part {folder}", folder.parent / TABLE.format(name)
    if not storage.is_complete(folder):
        raise FrozenDamagedError(what, ["the folder is missing; restore it from a copy"])
    stored = None
    if table.is_file():
        try:
            stored = user_json.read_object(table, "")
        except UserError:
            stored = {}
        if manifest.name_of(stored) != name:
            raise FrozenDamagedError(what, [f"{table.name} is not what was saved; restore it from a copy"])
    return proven(open_folder(folder, what), stored, what)


def check_frozen_files(run_dir: AnyPath, name: str) -> list[str]:
    """The problems of the frozen part's files, one line each."""
    folder = run_dir / "frozen" / name
    table = folder.parent / TABLE.format(name)
    if not storage.is_complete(folder):
        return [f"folder frozen/{name} is missing"]
    problems = [f"frozen/{name}: {problem}" for problem in manifest.check_files(folder)]
    try:
        if manifest.name_of(user_json.read_object(table, "")) != name:
            problems.append(f"file frozen/{table.name} is not what was saved")
    except FileNotFoundError:
        problems.append(f"file frozen/{table.name} is missing")
    except UserError:
        problems.append(f"file frozen/{table.name} is not what was saved")
    return problems


def has_digests(run_dir: AnyPath, name: str) -> bool:
    """Whether the frozen part can be verified (one of format 1 cannot)."""
    return not name or (run_dir / "frozen" / TABLE.format(name)).is_file()

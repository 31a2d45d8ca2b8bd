"""Atomic writes of files and folders: written to a temporary name, then renamed; in a bucket see `utils.storage`."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zipper_jax.utils import storage
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import LOCK, locked
from zipper_jax.utils.storage import AnyPath, as_path


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write ``path`` atomically; missing folders are created."""
    if storage.is_bucket(path):
        storage.write(path, data)
    else:
        write_with(path, lambda aside: aside.write_bytes(data))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``path`` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_with(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Call ``write(aside)`` and rename ``aside`` to ``path``; after an error or Ctrl-C it is removed."""
    path = as_path(path)
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="zipper-") as folder:
            aside = Path(folder) / path.name
            write(aside)
            storage.write(path, aside.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def is_no_room(error: OSError | ValueError) -> bool:
    """Whether the error means a full disk or quota."""
    full, text = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), str(error)
    if isinstance(error, OSError):
        # NumPy's error lacks the errno: "1024 requested and 12 written".
        return error.errno in full or "requested and" in text
    return any(f"os_error_code='{number}'" in text for number in full)  # tensorstore's way to say it


def require_new(out: str | AnyPath) -> None:
    """Raise UserError if ``out`` exists; call before the work begins. A folder whose writer was killed does not."""
    path = as_path(out)
    if path.exists() and not storage.is_partial(path):
        raise UserError(f"--out {str(out)!r} exists; give a folder that does not")


@contextmanager
def new_folder(out: str | AnyPath) -> Iterator[Path]:
    """A temporary folder beside ``out``, renamed to ``out`` when the block succeeds, else removed.

    Where ``out`` is in a bucket, the folder is on this machine, and its files are then copied to the bucket.

    Raises:
        UserError: ``out`` exists, or another process is writing it.
    """
    require_new(out)
    target = storage.absolute(out)
    if not isinstance(target, Path):
        with locked(target.with_name(f".{target.name}.partial")), tempfile.TemporaryDirectory(prefix="zipper-") as made:
            require_new(target)
            yield Path(made)
            storage.upload(Path(made), target)
        return
    aside = target.with_name(f".{target.name}.partial")
    with locked(aside):
        require_new(out)  # another process may have finished it meanwhile
        for leftover in aside.iterdir():  # of a killed process
            if leftover.name != LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        try:
            yield aside
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        (aside / LOCK).unlink()
        aside.replace(target)


def copy_folder(source: AnyPath, target: AnyPath) -> None:
    """Copy a folder atomically; does nothing if the target exists."""
    if not target.exists() or storage.is_partial(target):
        if isinstance(target, Path):
            target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as aside:
            copy_tree(source, aside, exist_ok=True)


def copy_tree(source: AnyPath, target: Path, left_out: tuple[str, ...] = (), exist_ok: bool = False) -> None:
    """`shutil.copytree` that stops at the first error; shutil's own continues and returns all errors as text.

    Raises:
        UserError: A file cannot be read or written, for example on a full disk.
    """

    def copy(one: str, other: str) -> None:
        try:
            shutil.copy2(one, other)
        except OSError as error:
            raise UserError(
                f"{one!r} cannot be copied to {other!r} ({error.strerror}); fix that or free disk space, then run the "
                "same command again"
            ) from error

    if not isinstance(source, Path):
        storage.copy_tree(source, target, without=(storage.MARKER, LOCK, *left_out))
        return
    ignore = shutil.ignore_patterns(*left_out)
    shutil.copytree(source, target, copy_function=copy, ignore=ignore, dirs_exist_ok=exist_ok)

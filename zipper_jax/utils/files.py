"""Files that are either whole or not there: written aside, then renamed."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zipper_jax.utils.errors import UserError


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes ``path`` atomically; folders are made."""
    write_with(path, lambda aside: aside.write_bytes(data))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``path`` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` as readable JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_with(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Calls ``write(aside)`` and renames ``aside`` to ``path``; after an error or Ctrl-C nothing of it stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def is_no_room(error: OSError | ValueError) -> bool:
    """Whether a disk or a quota was full."""
    full, text = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), str(error)
    if isinstance(error, OSError):
        # numpy counts what it wrote and forgets why: "1024 requested and 12 written".
        return error.errno in full or "requested and" in text
    return any(f"os_error_code='{number}'" in text for number in full)  # tensorstore's way to say it


def require_new(out: str | Path) -> None:
    """UserError when ``out`` exists: ask before the work begins."""
    if Path(out).exists():
        raise UserError(f"--out {str(out)!r} exists; give a folder that does not")


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder beside ``out`` to write into; it becomes ``out`` when the block ends well, else nothing is left.

    Raises:
        UserError: ``out`` exists.
    """
    require_new(out)
    target = Path(out).absolute()
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.replace(target)


def copy_folder(source: Path, target: Path) -> None:
    """Copies a folder aside, then renames it into place; nothing happens when the target exists."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as aside:
            copy_tree(source, aside, dirs_exist_ok=True)


def copy_tree(source: Path, target: Path, **options: Any) -> None:
    """`shutil.copytree` that ends at the first file that fails; shutil's own tries them all, and lists them as text.

    Raises:
        UserError: a file cannot be read or written, for example on a full disk.
    """

    def copy(one: str, other: str) -> None:
        try:
            shutil.copy2(one, other)
        except OSError as error:
            raise UserError(
                f"{one!r} cannot be copied to {other!r} ({error.strerror}): mend that, or make room, then run the "
                "same command again"
            ) from error

    shutil.copytree(source, target, copy_function=copy, **options)

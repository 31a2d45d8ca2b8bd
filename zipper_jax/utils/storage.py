"""Folders on this machine and in buckets (``gs://``, ``s3://``) behind one type of path.

On a bucket one object is written by one request (`utils.objects`); a folder is complete once its last object, a marker,
is there (`MARKER`, Orbax's name of it); and a lock is an object with a lease (`utils.leases`). Orbax and `etils.epath`
reach objects through `utils.bucket_files`.

Every function raises `ServiceError` where the service fails.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from zipper_jax.utils.objects import (
    ABSENT,
    MARKER,
    RETRIES,
    delete_tree,
    is_bucket,
    keys,
    read,
    read_spans,
    read_version,
    url,
    write,
)

__all__ = [
    "ABSENT",
    "MARKER",
    "PARTIAL",
    "RETRIES",
    "AnyPath",
    "absolute",
    "as_path",
    "complete_subfolders",
    "copy_tree",
    "delete_folder",
    "delete_tree",
    "files",
    "is_bucket",
    "is_complete",
    "is_partial",
    "keys",
    "on_this_machine",
    "read",
    "read_spans",
    "read_version",
    "sha256",
    "subfolders",
    "upload",
    "write",
]

try:
    from etils import epath

    AnyPath: TypeAlias = Path | epath.Path
    """A path on this machine, or in a bucket."""
except ImportError:  # `zipper doctor` reports it
    AnyPath = Path  # type: ignore[assignment, misc]

PARTIAL = ".partial"
"""Name of the object that is written first into a folder of a bucket, and deleted after the marker was written."""


def as_path(path: str | os.PathLike) -> AnyPath:
    """The path as an object: `pathlib.Path`, or `epath.Path` of a bucket."""
    text = os.fspath(path)
    if not is_bucket(text):
        return Path(text)
    from zipper_jax.utils import bucket_files

    bucket_files.register()
    return epath.Path(url(text))


def absolute(path: str | os.PathLike) -> AnyPath:
    """`as_path`, a path on this machine made absolute."""
    found = as_path(path)
    return found.absolute() if isinstance(found, Path) else found


def copy_tree(source: AnyPath, target: str | os.PathLike, without: tuple[str, ...] = ()) -> None:
    """Copy the files below ``source``, of this machine or of a bucket, into a folder of either; its marker last.

    Files and folders whose name is in ``without`` are left out.

    One file is in memory at a time: TensorStore writes an object at once, and does not tell its size.
    """
    for name in sorted(files(source), key=lambda name: (name == MARKER, name)):
        if not set(name.split("/")).isdisjoint(without):
            continue
        there = as_path(target) / name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes((source / name).read_bytes())


def upload(source: Path, target: AnyPath) -> None:
    """Copy a folder of this machine to a new folder of a bucket, which is complete when its marker is there."""
    write(target / PARTIAL, b"")
    for left_over in keys(target):
        if left_over != PARTIAL:
            write(target / left_over, None)
    copy_tree(source, target)
    write(target / MARKER, b"")
    write(target / PARTIAL, None)


def is_partial(folder: AnyPath) -> bool:
    """Whether a folder of a bucket was left by a process that was stopped while it wrote it."""
    return is_bucket(folder) and (folder / PARTIAL).is_file() and not (folder / MARKER).is_file()


def is_complete(folder: AnyPath) -> bool:
    """Whether a folder is complete: on this machine it exists, for it was renamed; in a bucket it has its marker."""
    return (folder / MARKER).is_file() if is_bucket(folder) else folder.is_dir()


def complete_subfolders(folder: AnyPath) -> list[str]:
    """Names of the complete folders in a folder, which may be missing."""
    if is_bucket(folder):
        found = [name.split("/") for name in keys(folder)]
        return [parts[0] for parts in found if len(parts) == 2 and parts[1] == MARKER]
    return subfolders(folder)


def subfolders(folder: AnyPath) -> list[str]:
    """Names of the folders in a folder, which may be missing; of a bucket, those of which an object is left too.

    In a bucket not those that begin with a point: the locks of folders that are written.
    """
    if is_bucket(folder):
        return sorted({name.split("/", 1)[0] for name in keys(folder) if "/" in name and name[0] != "."})
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def delete_folder(folder: AnyPath) -> None:
    """Delete a folder of this machine or of a bucket, which may be missing, with all it holds."""
    if not isinstance(folder, Path):
        delete_tree(folder)
    elif folder.exists():
        shutil.rmtree(folder)


def files(folder: AnyPath) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted."""
    return keys(folder) if is_bucket(folder) else _files(Path(folder))


def sha256(path: AnyPath) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex) of a file."""
    if isinstance(path, Path):
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    data = read(path)
    return len(data), hashlib.sha256(data).hexdigest()


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def on_this_machine(folder: AnyPath) -> Iterator[Path]:
    """The folder itself, or a copy of one in a bucket, which is removed afterwards."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="zipper-") as aside:
        copy_tree(folder, Path(aside))
        yield Path(aside)

"""Exclusive locks of output folders and files: two processes never write the same one. Of buckets: `utils.leases`."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from zipper_jax.utils.errors import UserError
from zipper_jax.utils.leases import leased
from zipper_jax.utils.storage import as_path

LOCK = ".lock"


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Lock an output folder, created if missing, while the block runs.

    The system releases the lock when the process ends, however it ends, so a crashed process's successor gets it; in a
    bucket the successor takes it over.

    Raises:
        UserError: Another process holds the lock.
    """
    folder = as_path(folder)
    if not isinstance(folder, Path):
        with leased(folder, folder / LOCK):
            yield
        return
    is_new = not folder.exists()
    with contextlib.ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                file = (folder / LOCK).open("a+")
            except FileNotFoundError:  # its holder removed the folder
                continue
            _acquire(file, folder)
            if _is(file, folder / LOCK):
                stack.enter_context(file)
                break
            file.close()  # its holder finished in between
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):  # removes it if nothing was written
                    folder.rmdir()


@contextmanager
def locked_file(path: str | os.PathLike) -> Iterator[None]:
    """Lock an output file that is appended to while the block runs; on this machine it is created if missing.

    Raises:
        UserError: Another process holds the lock.
    """
    path = as_path(path)
    if not isinstance(path, Path):
        with leased(path, path.with_name(f".{path.name}{LOCK}")):
            yield
        return
    with path.open("a", encoding="utf-8") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device or a pipe
            yield
            return
        _acquire(file, path)
        try:
            yield
        finally:
            if not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)


def _acquire(file: IO[str], path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = ""
        if path.is_dir():
            file.seek(0)
            holder = file.read().strip()
        file.close()
        raise UserError(
            f"{str(path)!r} is being written by {holder or 'another process'}; wait for it or choose another "
            f"{'folder' if path.is_dir() else 'file'}"
        ) from None
    except OSError as error:
        file.close()
        raise UserError(
            f"{str(path)!r} cannot be locked ({error.strerror}): give a path on a file system with flock"
        ) from None


def _is(file: IO[str], path: Path) -> bool:
    """Return whether ``path`` is still the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

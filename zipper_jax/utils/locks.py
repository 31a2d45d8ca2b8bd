"""Exclusive lock of a run folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zipper_jax.utils.errors import UserError


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock the run folder, so that two processes never write to it; released when the process exits.

    Raises:
        UserError: Another process holds the lock.
    """
    import fcntl

    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"run folder {str(run_dir)!r} is in use by {holder}; wait for it, stop it, or give another MODEL_DIR"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield

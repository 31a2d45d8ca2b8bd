"""Files that grow: appended to on this machine, and copied to a bucket from time to time.

An object cannot be appended to. So where a run folder is in a bucket, metrics, logs, goodput, TensorBoard's events
and traces are written to a temporary folder, and every file that changed is written to the bucket as a whole: every
`PERIOD` seconds, at the end, and before each checkpoint, so that a restored step never lacks the lines before it.
The examples of a shard, and JSON lines of transcripts, are written in the same way.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from zipper_jax.utils import storage
from zipper_jax.utils.errors import ServiceError
from zipper_jax.utils.locks import locked_file
from zipper_jax.utils.storage import AnyPath

logger = logging.getLogger(__name__)

PERIOD = 30.0
"""Seconds between two copies; a kill loses at most so much of what no checkpoint follows."""


_ASIDE = re.compile(r"\.\d+\.partial$")
"""End of the name of a file that `utils.files` is about to rename."""


class Staging:
    """Where a process writes the growing files of a folder.

    Attributes:
        folder: On this machine: the folder itself, or a temporary one.
    """

    def __init__(self, run_dir: AnyPath, folder: Path) -> None:
        self.folder, self._run_dir = folder, run_dir
        self._copied: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def fetch(self, *names: str) -> None:
        """Continue these files, as far as they exist."""
        if self.folder == self._run_dir:
            return
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).write_bytes(storage.read(self._run_dir / name))
                self._copied[name] = _state(self.folder / name)

    def copy(self) -> None:
        """Write every file that changed to the bucket, then delete there those that were continued and are gone."""
        if self.folder == self._run_dir:
            return
        with self._lock:
            for name in storage.files(self.folder):
                path = self.folder / name
                with contextlib.suppress(FileNotFoundError):  # replaced at this moment
                    state = _state(path)
                    if not _ASIDE.search(name) and self._copied.get(name) != state:
                        storage.write(self._run_dir / name, path.read_bytes())
                        self._copied[name] = state
            for name in [name for name in self._copied if not (self.folder / name).exists()]:
                storage.write(self._run_dir / name, None)
                del self._copied[name]


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


@contextlib.contextmanager
def staged(run_dir: AnyPath) -> Iterator[Staging]:
    """A `Staging` of the folder, copied periodically while the block runs and at its end."""
    if isinstance(run_dir, Path):
        yield Staging(run_dir, run_dir)
        return
    with TemporaryDirectory(prefix="zipper-run-") as folder:
        staging, ended = Staging(run_dir, Path(folder)), threading.Event()

        def try_copy() -> None:
            try:
                staging.copy()
            except ServiceError as error:
                logger.warning(f"metrics and logs are not copied now: {error}")

        def copy() -> None:
            while not ended.wait(PERIOD):
                try_copy()

        thread = threading.Thread(target=copy, name="copy metrics and logs", daemon=True)
        thread.start()
        try:
            yield staging
        finally:
            ended.set()
            thread.join()
            try_copy()  # an error of the block must not be replaced by one of this


@contextlib.contextmanager
def growing(path: AnyPath) -> Iterator[Path]:
    """Where to append to a file, locked while the block runs: the file itself, or a copy of the object.

    Raises:
        UserError: Another process holds the lock.
    """
    with locked_file(path):
        if isinstance(path, Path):
            yield path
            return
        with staged(path.parent) as staging:
            staging.fetch(path.name)
            here = staging.folder / path.name
            try:
                yield here
            finally:
                if here.exists() and not here.stat().st_size:  # as `locked_file` does
                    here.unlink()
            staging.copy()

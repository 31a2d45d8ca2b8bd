"""Arrays of packed rows in a bucket, read in blocks as they are needed.

A block is read once and then kept in a temporary file without a name, mapped into memory (and written as a file: a full
disk is then an error, not the end of the process): the disk holds at most what
was read (never more than the arrays), and the process's own memory the blocks in flight, at most `IN_FLIGHT` of
`BLOCK` bytes. Blocks that several rows need are asked for together, so a batch waits for one round trip or two.
"""

import errno
import io
import os
import tempfile
import threading
import weakref
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

from zipper_jax.utils import storage
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import cache_home
from zipper_jax.utils.storage import AnyPath

BLOCK = 1 << 18
"""Bytes that are read at once: small, because rows are read in random order."""
IN_FLIGHT = 64
"""Requests at a time."""


class BucketArray:
    """A one-dimensional array in a .npy file of a bucket, indexed by integers and by slices without steps.
    Thread-safe.

    Raises:
        UserError: The file is damaged, or was replaced while it was read.
    """

    def __init__(self, path: AnyPath, fix: str):
        self._path, self._fix = path, fix
        self._lock = threading.Lock()
        try:
            head, self._generation = storage.read_version(path, 0, 10)
            if np.lib.format.read_magic(io.BytesIO(head)) != (1, 0):
                raise ValueError("another version of the format")
            self._begin = 10 + int.from_bytes(head[8:], "little")
            header = io.BytesIO(storage.read(path, 8, self._begin))
            self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(header)
            if len(self.shape) != 1 or self.dtype.hasobject:
                raise ValueError("another form of array")
        except (ValueError, OSError, EOFError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{str(path)!r} cannot be read (damaged, or no array: {why}); {fix}") from error
        self.ndim, self._bytes = 1, self.shape[0] * self.dtype.itemsize
        count = -(-self._bytes // BLOCK)
        self._there = np.zeros(count, np.bool_)
        self._raw = np.zeros(0, np.uint8)
        if count:
            with _temporary() as file:
                file.truncate(self._bytes)  # sparse: blocks take space once they are written
                self._raw = np.memmap(file, np.uint8, "r", shape=(self._bytes,))
                self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
        self._kept = self._raw.view(self.dtype)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, at: Any) -> Any:
        wanted = range(len(self))[at]
        self.fetch([(wanted.start, wanted.stop)] if isinstance(wanted, range) else [(wanted, wanted + 1)])
        return self._kept[at]

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Read the blocks of these ranges of elements ``[start, stop)`` that were not read yet, many at a time."""
        size, wanted = self.dtype.itemsize, set()
        for start, stop in ranges:
            if 0 <= start < stop <= len(self):  # others are found damaged by whoever uses them
                wanted |= set(range(start * size // BLOCK, (stop * size - 1) // BLOCK + 1))
        with self._lock:
            missing = [block for block in sorted(wanted) if not self._there[block]]
            for first in range(0, len(missing), IN_FLIGHT):
                some = missing[first : first + IN_FLIGHT]
                spans = [(self._begin + b * BLOCK, self._begin + min((b + 1) * BLOCK, self._bytes)) for b in some]
                try:
                    found = storage.read_spans(self._path, spans)
                except (ValueError, FileNotFoundError) as error:
                    raise UserError(f"{str(self._path)!r} cannot be read (damaged: {error}); {self._fix}") from error
                for block, (content, generation) in zip(some, found, strict=True):
                    if generation != self._generation:
                        raise UserError(f"{str(self._path)!r} was replaced while it was read; start again")
                    written = os.pwrite(self._file, content, block * BLOCK)
                    if written != len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "temporary file of rows")
                    self._there[block] = True


def _temporary() -> IO[bytes]:
    """A file without a name, in the cache folder where one can be made there."""
    try:
        cache_home().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=cache_home(), prefix="rows-", buffering=0)
    except (OSError, RuntimeError):
        return tempfile.TemporaryFile(prefix="rows-", buffering=0)

"""Packing: which examples share a row. First fit over a few open rows; an example is never cut. Our own, because
other packers know one sequence per example, and here an example takes positions in several towers at once.

Axis letters: E examples, W towers.
"""

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from zipper_jax.utils.errors import UserError

T = TypeVar("T")


class Packing(NamedTuple):
    """Every example's index is in exactly one row, or in ``dropped`` if it is longer than a row.

    Attributes:
        rows: In order of opening; the indices within a row ascend.
        dropped: Ascending.
    """

    rows: list[list[int]]
    dropped: list[int]


class Packer(Generic[T]):
    """Assigns examples, in order, to the first open row with enough capacity left in every tower. Deterministic.

    Holds the examples of the open rows only.

    Args:
        capacity: Row length in each tower.
        open_rows: Most rows open at a time (the oldest is closed for a new one): bounds the work per example and keeps
            examples near their neighbours.

    Raises:
        UserError: A capacity or ``open_rows`` below 1.
    """

    def __init__(self, capacity: Int[np.ndarray, " W"], open_rows: int = 64):
        self._capacity, self._most = np.asarray(capacity, np.int64), open_rows
        if (self._capacity < 1).any():
            raise UserError(f"row lengths {self._capacity.tolist()}: every tower needs at least 1 position")
        if open_rows < 1:
            raise UserError(f"open_rows is {open_rows}: give at least 1")
        self._rows: list[list[T]] = []  # open, oldest first
        self._room = np.zeros((0, len(self._capacity)), np.int64)  # of each

    def fits(self, need: Int[np.ndarray, " W"] | Sequence[int]) -> bool:
        """Whether an example fits a row of its own. Raises UserError for a negative length."""
        need = np.asarray(need, np.int64)
        if (need < 0).any():
            raise UserError(f"example lengths hold {need.min()}: lengths cannot be negative")
        return bool((need <= self._capacity).all())

    def add(self, example: T, need: Int[np.ndarray, " W"] | Sequence[int]) -> Iterator[list[T]]:
        """Add an example that `fits`; yield the row that is closed for it, if one is."""
        fits = (np.asarray(need) <= self._room).all(axis=1)
        if fits.any():
            place = int(fits.argmax())
        else:
            if len(self._rows) == self._most:
                yield self._rows.pop(0)
                self._room = self._room[1:]
            self._rows.append([])
            self._room = np.concatenate([self._room, self._capacity[None]])
            place = len(self._rows) - 1
        self._room[place] -= np.asarray(need)
        self._rows[place].append(example)

    def close(self) -> Iterator[list[T]]:
        """Yield the rows that are still open."""
        while self._rows:
            yield self._rows.pop(0)


def pack(lengths: Int[np.ndarray, "E W"], capacity: Int[np.ndarray, " W"], open_rows: int = 64) -> Packing:
    """Pack examples of known lengths; see `Packer`.

    Args:
        lengths: Tokens of each example in each tower, begin and end tokens included.
        capacity: Row length in each tower.
        open_rows: Most rows open at a time.

    Raises:
        UserError: A capacity or ``open_rows`` below 1, or a negative length.
    """
    packer, packing = Packer[int](capacity, open_rows), Packing([], [])
    for index, need in enumerate(np.asarray(lengths, np.int64)):
        if packer.fits(need):
            packing.rows.extend(packer.add(index, need))
        else:
            packing.dropped.append(index)
    packing.rows.extend(packer.close())
    return packing

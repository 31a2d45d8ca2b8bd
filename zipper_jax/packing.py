"""Packing: which examples share a row. First fit over a few open rows; an example is never cut. Our own, because
other packers know one sequence per example, and here an example takes positions in several towers at once.

Axis letters: E examples, W towers.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from zipper_jax.utils.errors import UserError


class Packing(NamedTuple):
    """Every example's index is in exactly one row, or in ``dropped`` if it is longer than a row.

    Attributes:
        rows: In order of opening; the indices within a row ascend.
        dropped: Ascending.
    """

    rows: list[list[int]]
    dropped: list[int]


def pack(lengths: Int[np.ndarray, "E W"], capacity: Int[np.ndarray, " W"], open_rows: int = 64) -> Packing:
    """Assign each example, in order, to the first open row with enough capacity left in every tower.

    Deterministic.

    Args:
        lengths: Tokens of each example in each tower, begin and end tokens included.
        capacity: Row length in each tower.
        open_rows: Most rows open at a time (the oldest is closed for a new one): bounds the work per example and keeps
            examples near their neighbours.

    Raises:
        UserError: A capacity or ``open_rows`` below 1, or a negative length.
    """
    lengths, capacity = np.asarray(lengths, np.int64), np.asarray(capacity, np.int64)
    if (capacity < 1).any():
        raise UserError(f"row lengths {capacity.tolist()}: every tower needs at least 1 position")
    if open_rows < 1:
        raise UserError(f"open_rows is {open_rows}: give at least 1")
    if (lengths < 0).any():
        raise UserError(f"example lengths hold {lengths.min()}: lengths cannot be negative")
    rows: list[list[int]] = []
    dropped: list[int] = []
    room = np.zeros((0, len(capacity)), np.int64)  # of the open rows, oldest first: those at the end of `rows`
    for index, need in enumerate(lengths):
        if (need > capacity).any():
            dropped.append(index)
            continue
        fits = (need <= room).all(axis=1)
        if fits.any():
            place = int(fits.argmax())
        else:
            room = np.concatenate([room[-(open_rows - 1) :] if open_rows > 1 else room[:0], capacity[None]])
            rows.append([])
            place = len(room) - 1
        room[place] -= need
        rows[len(rows) - len(room) + place].append(index)
    return Packing(rows, dropped)

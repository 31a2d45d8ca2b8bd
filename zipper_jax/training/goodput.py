"""Goodput: the share of a run's wall time spent on useful updates, and the categories of the rest.

Accumulated in ``goodput.json`` over all attempts of a run. An update that repeats one of an earlier attempt, lost
because the newest checkpoint was older, counts as recovery. Time in which no process runs is not counted.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_text
from zipper_jax.utils.readable import duration

logger = logging.getLogger(__name__)

PARTS = ("steps", "compile", "data", "checkpoint", "evaluation", "restore", "recovery", "start", "other")
"""Categories. start: imports, opening the data, initialising the parameters. restore: reading a checkpoint. recovery:
repeated updates. other: the remainder."""

WRITE_SECONDS = 5.0
"""Shortest interval between two writes of the file, in seconds; a kill loses at most that."""


class Goodput:
    """Wall time of one attempt by category, added to that of earlier attempts.

    Args:
        path: ``goodput.json``; None: nothing is written (every process but the first).
        began: ``time.perf_counter()`` at process start, in seconds.
        furthest: Updates done by earlier attempts; repeating them is recovery.
    """

    def __init__(self, path: Path | None, began: float, furthest: int = 0) -> None:
        self._path, self._began, self._written = path, began, began
        before = _read(path)
        self._before = {part: before.seconds.get(part, 0.0) for part in PARTS}
        self._now = dict.fromkeys(PARTS, 0.0)
        self._inner = 0.0
        self.furthest = max(furthest, before.furthest)
        self.attempts = before.attempts + 1
        self._now["start"] = time.perf_counter() - began
        self.write()

    @contextmanager
    def spend(self, part: str) -> Iterator[None]:
        """Context manager: count its time as ``part``; nested time counts once, for the inner part."""
        began, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self._now[part] += spent - self._inner
            self._inner = outer + spent

    def reached(self, step: int) -> None:
        """Record that ``step`` updates are done."""
        self.furthest = max(self.furthest, step)
        if time.perf_counter() - self._written >= WRITE_SECONDS:
            self.write()

    def seconds(self) -> dict[str, float]:
        """Seconds per category over all attempts; their sum is the wall time."""
        total = {part: self._before[part] + self._now[part] for part in PARTS}
        total["other"] += max(time.perf_counter() - self._began - sum(self._now.values()), 0.0)
        return total

    def share(self) -> float:
        """Goodput, from 0 to 1."""
        seconds = self.seconds()
        return seconds["steps"] / max(sum(seconds.values()), 1e-9)

    def write(self) -> None:
        """Write ``goodput.json``."""
        self._written = time.perf_counter()
        if self._path is not None:
            content = {"seconds": self.seconds(), "furthest": self.furthest, "attempts": self.attempts}
            write_text(self._path, json.dumps(content, indent=1))

    def summary(self) -> str:
        """``goodput 91.3 % of 2:03 in 2 attempts (compile 5.0 %, ...)``."""
        seconds = self.seconds()
        wall = max(sum(seconds.values()), 1e-9)
        rest = sorted(((v, k) for k, v in seconds.items() if k != "steps" and v / wall >= 0.001), reverse=True)
        where = ", ".join(f"{part} {100 * value / wall:.1f} %" for value, part in rest)
        attempts = f" in {self.attempts} attempts" if self.attempts > 1 else ""
        return f"goodput {100 * self.share():.1f} % of {duration(wall)}{attempts}" + (f" ({where})" if where else "")


class _Stored(msgspec.Struct):
    seconds: dict[str, user_json.Number] = {}
    furthest: user_json.Natural = 0
    attempts: user_json.Natural = 0


def _read(path: Path | None) -> _Stored:
    if path is None or not path.is_file():
        return _Stored()
    try:
        return user_json.read_file(path, _Stored, "the times of earlier attempts are lost")
    except UserError as error:  # times are no reason not to train
        logger.warning(str(error))
        return _Stored()

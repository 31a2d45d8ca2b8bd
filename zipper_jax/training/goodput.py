"""Goodput: the share of a run's wall time that went into updates that count, and where the rest went.

Kept in ``goodput.json`` over all attempts of a run. An update that an earlier attempt had done before is recovery: it
is done again only because a checkpoint was older than the kill. The time in which no process ran is not counted.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zipper_jax.utils.files import write_text
from zipper_jax.utils.readable import duration

PARTS = ("steps", "compile", "data", "checkpoint", "evaluation", "recovery", "start", "other")
"""start: imports, opening the data, drawing or loading the first parameters. other: what nobody claimed."""

WRITE_SECONDS = 5.0
"""At least so much time lies between two writes of the file; a kill loses at most that."""


class Goodput:
    """Accounts of one attempt, on top of those of earlier ones.

    Args:
        path: ``goodput.json``; None: nothing is kept (all but one process of a group).
        began: ``time.perf_counter()`` when the process began its work.
        furthest: Updates that earlier attempts are known to have done; doing them again is recovery.
    """

    def __init__(self, path: Path | None, began: float, furthest: int = 0) -> None:
        self._path, self._began, self._written = path, began, began
        before = _read(path)
        self._before = {part: float(before.get("seconds", {}).get(part, 0.0)) for part in PARTS}
        self._now = dict.fromkeys(PARTS, 0.0)
        self._inner = 0.0
        self.furthest = max(furthest, int(before.get("furthest", 0)))
        self.attempts = int(before.get("attempts", 0)) + 1
        self._now["start"] = time.perf_counter() - began
        self.write()

    @contextmanager
    def spend(self, part: str) -> Iterator[None]:
        """What happens inside is spent on ``part``; parts inside parts count once, for the inner one."""
        began, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self._now[part] += spent - self._inner
            self._inner = outer + spent

    def reached(self, step: int) -> None:
        """So many updates are done."""
        self.furthest = max(self.furthest, step)
        if time.perf_counter() - self._written >= WRITE_SECONDS:
            self.write()

    def seconds(self) -> dict[str, float]:
        """Seconds per part, all attempts together; their sum is the wall time."""
        total = {part: self._before[part] + self._now[part] for part in PARTS}
        total["other"] += max(time.perf_counter() - self._began - sum(self._now.values()), 0.0)
        return total

    def share(self) -> float:
        """Goodput, from 0 to 1."""
        seconds = self.seconds()
        return seconds["steps"] / max(sum(seconds.values()), 1e-9)

    def write(self) -> None:
        """Keep the accounts."""
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


def _read(path: Path | None) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    except ValueError:
        return {}

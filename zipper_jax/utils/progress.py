"""Progress lines: items done, rate, remaining time."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Say = Callable[[str], None]
T = TypeVar("T")
SECONDS_BETWEEN_LINES = 2.0


def telling(items: Iterable[T], total: int, say: Say, done: str) -> Iterator[T]:
    """Yields ``items``; every two seconds, and after the last of ``total``, says "<done> 7/20, 3/s, 4 s left".

    ``done`` has a place for the counts: "spoken {} utterances".
    """
    begun = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or count == total:
            last, per_second = now, count / max(now - begun, 1e-9)
            say(f"{done.format(f'{count}/{total}')}, {per_second:.0f}/s, {(total - count) / per_second:.0f} s left")

"""A progress bar with rate and time left: `tqdm` with one set of settings."""

import sys
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

from tqdm import tqdm

_BARS: WeakSet[Any] = WeakSet()


def progress(items: Iterable[Any] | None = None, *, total: int, what: str, unit: str) -> Any:
    """``items`` behind a bar on standard error; on a terminal it is redrawn, elsewhere it is a line every ten seconds.

    Args:
        items: What is iterated over; None: call ``.update(count)`` of what is returned.
        total: How many there are.
        what: In front of the bar: "synthesising".
        unit: What is counted: "utterances".
    """
    live = sys.stderr.isatty()
    bar = tqdm(
        items,
        total=total,
        desc=what,
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=0.1 if live else 10.0,
        dynamic_ncols=live,
        disable=total == 0,
    )
    _BARS.add(bar)
    return bar


def close_bars() -> None:
    """Draw open bars a last time, so that what is printed next stands below them."""
    for bar in list(_BARS):
        bar.close()

"""A progress bar with rate and time left: `tqdm` with one set of settings."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, *, total: int, what: str, unit: str) -> Any:
    """``items`` behind a bar on standard error; on a terminal it is redrawn, elsewhere it is a line every ten seconds.

    Args:
        items: What is iterated over; None: call ``.update(count)`` of what is returned.
        total: How many there are.
        what: In front of the bar: "synthesising".
        unit: What is counted: "utterances".
    """
    live = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        desc=what,
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=0.1 if live else 10.0,
        dynamic_ncols=live,
        disable=total == 0,
    )

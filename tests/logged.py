"""What the package logs, for tests."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zipper_jax.utils.logs import PACKAGE


class _Calling(logging.Handler):
    def __init__(self, call: Callable[[str], object]):
        super().__init__()
        self.call = call

    def emit(self, record: logging.LogRecord) -> None:
        self.call(self.format(record))


@contextmanager
def logged(call: Callable[[str], object] | None = None) -> Iterator[list[str]]:
    """The messages while the block runs, in a list that grows; ``call`` gets each instead."""
    lines: list[str] = []
    handler, level = _Calling(lines.append if call is None else call), PACKAGE.level
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        PACKAGE.removeHandler(handler)
        PACKAGE.setLevel(level)

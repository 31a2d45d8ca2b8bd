"""Progress messages: standard `logging` below the logger "zipper_jax", one per module.

A library user sees nothing until they configure logging. The command line calls `to_console`, a training run adds a
file.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = logging.getLogger("zipper_jax")


class Console(logging.Handler):
    """Writes messages to standard error, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; what is ``sys.stderr`` now is used, not what it was when the handler was made."""
        try:
            if "tqdm" in sys.modules:  # not where there is no bar, nor on machines without it
                sys.modules["tqdm"].tqdm.write(self.format(record), file=sys.stderr)
            else:
                print(self.format(record), file=sys.stderr)
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def to_console(process: int = 0) -> None:
    """Show messages of level INFO on standard error; those of other processes than the first from WARNING on, with
    the process number in front. A second call replaces the first."""
    for handler in [h for h in PACKAGE.handlers if isinstance(h, Console)]:
        PACKAGE.removeHandler(handler)
    console = Console(logging.WARNING if process else logging.INFO)
    console.setFormatter(logging.Formatter(f"[{process}] %(message)s" if process else "%(message)s"))
    PACKAGE.addHandler(console)
    PACKAGE.setLevel(logging.INFO)
    PACKAGE.propagate = False  # libraries put handlers on the root logger, which would show each message again


@contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Append messages to ``path``, with the time, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = PACKAGE.level
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    try:
        yield
    finally:
        PACKAGE.removeHandler(handler)
        PACKAGE.setLevel(level)
        handler.close()

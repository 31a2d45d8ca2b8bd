"""Loading libraries that write to standard error from C, and in which Ctrl-C gets lost."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """What is written to file descriptor 2 inside is dropped; Python exceptions pass as ever."""
    saved = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside ends the block, at its end at the latest.

    While TensorFlow loads, the exception is often dropped: where it meets a callback of the garbage collector, or an
    ``except:``. Who has a handler of his own (training) keeps it.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    met: list[int] = []

    def hear(number: int, frame: Any) -> None:
        met.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if met:
            raise KeyboardInterrupt

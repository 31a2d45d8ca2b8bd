"""Reliable Ctrl-C.

Python raises KeyboardInterrupt in whatever code the main thread runs. While libraries load, that is often a callback of
the garbage collector (jax has one), an ``except:`` or an extension's initialisation, where it is dropped or becomes
another error, and the command continues.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_AGAIN = 0.05  # seconds after which a KeyboardInterrupt is raised anew that could not be raised where it came
_pressed: list[int] = []


@contextlib.contextmanager
def interruptible(at_end: bool = True) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C inside the block, or instead of the exception that the block raises.

    Does nothing outside the main thread, or if another handler is installed (as in training).

    Args:
        at_end: Also raise at the end of a block that succeeded; else the block is assumed to have handled it.
    """
    theirs = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or theirs not in (signal.default_int_handler, _hear):
        yield
        return
    before, well, hook = len(_pressed), False, sys.unraisablehook

    def unraisable(what: Any) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            hook(what)
            return
        again = threading.Timer(_AGAIN, _press_again)
        again.daemon = True
        again.start()

    signal.signal(signal.SIGINT, _hear)
    sys.unraisablehook = unraisable
    try:
        yield
        well = True
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, theirs)
        if len(_pressed) > before and (at_end or not well):
            raise KeyboardInterrupt


def _press_again() -> None:
    if signal.getsignal(signal.SIGINT) is _hear:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # this one ends its sleep, too


def _hear(number: int, frame: Any) -> None:
    _pressed.append(number)
    raise KeyboardInterrupt

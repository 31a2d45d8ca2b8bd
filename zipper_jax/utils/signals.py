"""Graceful shutdown: the first SIGINT or SIGTERM requests a stop, the second one ends the process."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Context manager; inside it ``requested`` is the first signal received, or None.

    Outside the main thread, where Python cannot catch signals, no handler is installed.

    Args:
        grace_seconds: Exit the process so many seconds after the first signal; 0: never.
    """

    def __init__(self, grace_seconds: float = 0.0) -> None:
        self._grace = grace_seconds
        self._timer: threading.Timer | None = None
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.requested is not None:
            os._exit(128 + number)
        self.requested = signal.Signals(number)
        # os.write: a signal may arrive inside a print, and buffered output is not reentrant.
        os.write(sys.__stderr__.fileno(), b"\nstopping: saving a checkpoint first (once more: stop at once)\n")
        if self._grace:
            self._timer = threading.Timer(self._grace, self._out_of_time, [number])
            self._timer.daemon = True
            self._timer.start()

    def _out_of_time(self, number: int) -> None:
        text = f"\nnot saved within {self._grace:g} s (grace_seconds): exiting; the previous checkpoint is complete\n"
        os.write(sys.__stderr__.fileno(), text.encode())
        os._exit(128 + number)

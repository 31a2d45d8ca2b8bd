"""Stopping a run politely: the first SIGINT or SIGTERM asks, the second one ends the process."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Context manager; inside it ``requested`` holds the first signal that came, or None.

    Outside the main thread Python cannot catch signals: then nothing is installed.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.requested is not None:
            os._exit(128 + number)
        self.requested = signal.Signals(number)
        # os.write: a signal may arrive inside a print, and buffered output is not reentrant.
        os.write(sys.__stderr__.fileno(), b"\nstopping: saving a checkpoint first (once more: stop at once)\n")

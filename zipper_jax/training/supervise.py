"""A group of processes on this machine, started, watched and started again as one.

When one process of a group ends, the others can only wait for it in vain: so the whole group is killed and started
anew, and goes on from its newest checkpoint. Errors that a restart would only repeat (exit status 2) end it.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, TextIO

from zipper_jax.utils.signals import SIGNALS

LAUNCHED = "ZIPPER_LAUNCHED"
USER_ERROR = 2
POLL_SECONDS = 0.05
QUICK_SECONDS = 5.0
"""A group that ends so soon did no work: from the second time on there is a pause before the next attempt."""
LINGER_SECONDS = 5.0
"""After one process has ended with an error or on a signal, the others have so long to do the same."""


def supervise(
    arguments: Sequence[str],
    processes: int,
    restarts: int,
    heartbeat_seconds: int = 10,
    stream: TextIO | None = None,
) -> int:
    """Run ``zipper ARGUMENTS`` as a group until it has finished; returns the exit status.

    SIGINT and SIGTERM are passed on to every process, and the group is not started again.

    Args:
        arguments: A ``zipper`` command that takes ``--coordinator``, ``--process_count``, ``--process_index``.
        processes: How many.
        restarts: How often the group is started again at most.
        heartbeat_seconds: A process that is silent for so long is taken for dead.
        stream: Where restarts, and what processes but the first say, are shown; None: standard error.
    """
    out = stream or sys.stderr
    attempt = quick = 0
    while True:
        began = time.monotonic()
        status, asked = _attempt(arguments, processes, heartbeat_seconds, out)
        if status in (0, USER_ERROR) or asked:
            return status
        if attempt == restarts:
            print(f"the group ended with status {status} and was restarted {restarts} times: giving up", file=out)
            return status
        attempt += 1
        quick = quick + 1 if time.monotonic() - began < QUICK_SECONDS else 0
        time.sleep(min(2.0**quick, 60.0) if quick > 1 else 0.0)
        print(
            f"the group ended with status {status}: starting it again ({attempt} of {restarts})", file=out, flush=True
        )


class _Forwarded:
    """Context manager: SIGINT and SIGTERM go on to the processes; a second one kills them."""

    def __init__(self, group: list[subprocess.Popen]) -> None:
        self.group, self.asked = group, False
        self._previous: dict[Any, Any] = {}

    def __enter__(self) -> "_Forwarded":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        for process in self.group:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if self.asked else number)
        self.asked = True


def _attempt(arguments: Sequence[str], processes: int, heartbeat: int, out: TextIO) -> tuple[int, bool]:
    """One life of the group: its status, and whether it was asked to stop."""
    common = [
        sys.executable, "-m", "zipper_jax.cli.main", *arguments, f"--coordinator=127.0.0.1:{_free_port()}",
        f"--process_count={processes}", f"--heartbeat_seconds={heartbeat}",
    ]  # fmt: skip
    group: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    with _Forwarded(group) as signals:
        for index in range(processes):
            quiet = subprocess.PIPE if index else None
            process = subprocess.Popen(
                [*common, f"--process_index={index}"],
                stdout=quiet,
                stderr=subprocess.STDOUT if index else None,
                start_new_session=True,  # Ctrl-C comes to us alone, and is passed on once
                env={**os.environ, LAUNCHED: str(os.getpid())},
                encoding="utf-8",
                errors="replace",
            )
            group.append(process)
            if index:
                readers.append(threading.Thread(target=_prefix, args=(process.stdout, index, out), daemon=True))
                readers[-1].start()
        status = _wait(group, out)
        for reader in readers:
            reader.join(timeout=1.0)
        return status, signals.asked


def _wait(group: list[subprocess.Popen], out: TextIO) -> int:
    """Until all have ended; when one ends badly the others are killed. Returns 0 or the first bad status."""
    while all(process.poll() is None for process in group):
        time.sleep(POLL_SECONDS)
    killed = any((process.poll() or 0) < 0 for process in group)
    deadline = time.monotonic() + (0.0 if killed else LINGER_SECONDS)
    while any(process.poll() is None for process in group):
        if all(process.poll() in (0, None) for process in group):
            deadline = time.monotonic() + LINGER_SECONDS  # the first to finish well waits for the rest
        elif time.monotonic() > deadline:
            for index, process in enumerate(group):
                if process.poll() is None:
                    print(f"killing process {index}: another one of its group has ended", file=out, flush=True)
                    process.kill()
        time.sleep(POLL_SECONDS)
    statuses = [process.returncode for process in group]
    shell = [128 - status if status < 0 else status for status in statuses if status]
    return USER_ERROR if USER_ERROR in shell else (shell[0] if shell else 0)


def _prefix(lines: Any, index: int, out: TextIO) -> None:
    for line in lines:
        print(f"[{index}] {line}", end="", file=out, flush=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_with_launcher() -> None:
    """In a process that the launcher started: be killed when it is, or the group would go on unwatched (Linux only)."""
    launcher = os.environ.get(LAUNCHED)
    if launcher and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(launcher):  # it died before this line
            os._exit(1)

"""Runs a group of processes on this machine and restarts them as one.

When one process of a group ends, the others would wait for it forever. The whole group is therefore killed and
restarted, and resumes from its newest checkpoint. Errors that a restart would repeat (exit status 2) end the group.
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
"""A group that ends sooner did no work; from the second such attempt on, restarts are delayed."""
LINGER_SECONDS = 5.0
"""Time that the others have to end after one process has ended with an error, in seconds."""


def supervise(
    arguments: Sequence[str],
    processes: int,
    restarts: int,
    heartbeat_seconds: int = 10,
    stream: TextIO | None = None,
) -> int:
    """Run ``zipper ARGUMENTS`` as a group until it has finished.

    SIGINT and SIGTERM are forwarded to every process, and the group is then not restarted.

    Args:
        arguments: A ``zipper`` command that takes ``--coordinator``, ``--process_count``, ``--process_index``.
        processes: Number of processes.
        restarts: Maximum number of restarts.
        heartbeat_seconds: A process without a heartbeat for this long is considered dead.
        stream: Where restarts and the output of all processes but the first are printed; None: standard error.

    Returns:
        The exit status.
    """
    out = stream or sys.stderr
    attempt = quick = 0
    while True:
        began = time.monotonic()
        status, asked = _attempt(arguments, processes, heartbeat_seconds, out)
        if status in (0, USER_ERROR) or asked:
            return status
        if attempt == restarts:
            print(f"the group ended with status {status} after {restarts} restarts: giving up", file=out)
            return status
        attempt += 1
        quick = quick + 1 if time.monotonic() - began < QUICK_SECONDS else 0
        time.sleep(min(2.0**quick, 60.0) if quick > 1 else 0.0)
        print(f"the group ended with status {status}: restarting it ({attempt} of {restarts})", file=out, flush=True)


class _Forwarded:
    """Context manager: forwards SIGINT and SIGTERM to the processes; a second signal kills them."""

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
    """Run the group once; returns its exit status and whether a signal was received."""
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
                start_new_session=True,  # so that Ctrl-C reaches only this process, which forwards it
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
    """Wait until all have ended, killing the others when one fails; returns 0 or the first non-zero status."""
    while all(process.poll() is None for process in group):
        time.sleep(POLL_SECONDS)
    killed = any((process.poll() or 0) < 0 for process in group)
    deadline = time.monotonic() + (0.0 if killed else LINGER_SECONDS)
    while any(process.poll() is None for process in group):
        if all(process.poll() in (0, None) for process in group):
            deadline = time.monotonic() + LINGER_SECONDS  # no failure so far: wait for the rest
        elif time.monotonic() > deadline:
            for index, process in enumerate(group):
                if process.poll() is None:
                    print(f"killing process {index}: another process of its group has ended", file=out, flush=True)
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
    """Make the kernel kill this process when its launcher dies, so that no group runs unsupervised (Linux only)."""
    launcher = os.environ.get(LAUNCHED)
    if launcher and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(launcher):  # it died before this line
            os._exit(1)

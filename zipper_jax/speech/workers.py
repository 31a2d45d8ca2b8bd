"""Ordered parallel map over fresh Python processes.

`multiprocessing` would either fork (unsafe once JAX has started its threads) or import the user's main script again, so
workers are plain subprocesses that import only what their target needs and exchange pickles over pipes.
Run as a module, this file is such a worker.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import is_no_room

_AHEAD = 8
"""Jobs per worker that may wait, or be done before an earlier one."""
_PARENT_SECONDS = 0.5
"""How often a worker checks that its parent still runs."""


def parallel_map(
    target: str, setup: dict[str, Any], jobs: Iterable[Any], processes: int | None = None
) -> Generator[Any, None, None]:
    """Yield ``function(job)`` for every job, in order; each process calls ``function = target(**setup)`` once.

    Jobs are read a few ahead of the results, so memory does not grow with their number. A caller that may stop early
    closes the generator (``contextlib.closing``), which ends the workers.

    Args:
        target: ``"package.module:name"`` of a callable that returns the function.
        setup: Keyword arguments of the target; picklable.
        jobs: Arguments of the function; picklable.
        processes: None: one per core this process may use; never more than there are jobs.

    Raises:
        UserError: As raised by the target or the function.
        OSError: A worker ran out of disk space.
        RuntimeError: Any other failure, with the worker's traceback.
    """
    if processes is not None and processes < 1:
        raise UserError(f"processes = {processes}: give at least 1, or omit it for one per core")
    most = processes or usable_cores()
    workers: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def call(job: Any) -> Any:
        worker = idle.get()
        try:
            return worker.call(job)
        finally:
            idle.put(worker)

    executor, pending = ThreadPoolExecutor(most), deque[Future[Any]]()
    try:
        for job in jobs:
            if len(workers) < most:
                workers.append(_Worker(target, setup))
                idle.put(workers[-1])
            pending.append(executor.submit(call, job))
            while pending and (pending[0].done() or len(pending) > _AHEAD * most):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Also on an error or Ctrl-C: cancel pending jobs, then kill the workers so that no thread waits for one.
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        executor.shutdown()
        for worker in workers:
            worker.close()


def package_environment() -> dict[str, str]:
    """Return the environment for a child Python, with this package on its path."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # One thread each: the parallelism is in the processes.
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    def __init__(self, target: str, setup: dict[str, Any]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=package_environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._setup: dict[str, Any] | None = setup  # sent with the first job, so that workers start in parallel

    def call(self, job: Any) -> Any:
        try:
            if self._setup is not None:
                self._send(self._setup)
                self._setup = None
            self._send(job)
            kind, value = pickle.load(self._stdout)
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"a speech worker ended unexpectedly (exit status {self._process.wait()})") from error
        if kind == "user_error":
            raise UserError(value)
        if kind == "no_room":
            raise value
        if kind == "failure":
            raise RuntimeError(f"a speech worker failed:\n{value}")
        return value

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close the pipes of a killed worker, once no thread uses them."""
        with contextlib.suppress(BrokenPipeError):  # a job was being written when the worker ended
            self._stdin.close()
        self._stdout.close()

    def _send(self, item: Any) -> None:
        pickle.dump(item, self._stdin)
        self._stdin.flush()


def _serve(target: str) -> None:
    """Run the worker loop: setup, then one answer per job, until the parent closes the pipe or exits."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a C library that prints must not break the pickles
    function = None
    try:
        setup = pickle.load(sys.stdin.buffer)
        while True:
            job = pickle.load(sys.stdin.buffer)
            try:
                if function is None:
                    module, name = target.split(":")
                    function = getattr(importlib.import_module(module), name)(**setup)
                answer = ("ok", function(job))
            except UserError as error:
                answer = ("user_error", str(error))
            except OSError as error:  # a full disk is reported to the user without a traceback
                answer = ("no_room", error) if is_no_room(error) else ("failure", traceback.format_exc())
            except Exception:
                answer = ("failure", traceback.format_exc())
            pickle.dump(answer, answers)
            answers.flush()
    except (EOFError, BrokenPipeError):
        return


def _end_with(parent: int) -> None:
    """End this process once its parent was killed: the pipes tell it only behind a job, which may be a whole shard."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _serve(sys.argv[1])

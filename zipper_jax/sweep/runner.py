"""Runs rows, each in a process of its own, several at once.

Finished rows are skipped; interrupted ones resume from their checkpoints. Ctrl-C or SIGTERM makes running rows save and
stop.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from zipper_jax.sweep.plan import Places, Row
from zipper_jax.training.supervise import LAUNCHED
from zipper_jax.utils.distributed import count, gather, index
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.readable import duration

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_LAST_LINES = 12


class _Running(NamedTuple):
    row: Row
    process: subprocess.Popen
    log: Path
    began: float
    slot: int


def run_rows(rows: Sequence[Row], command: Sequence[str], places: Places, jobs: int) -> int:
    """Runs ``command --row NAME`` for every row, ``jobs`` at once, each only after the rows that its arm needs.

    When a row fails, the other rows continue; the message names its log. In a group every process calls it and runs its
    share of the rows, first of those that need no other, then of those that need only these, and so on.

    Returns:
        The exit code: 0, or 130 when interrupted.

    Raises:
        UserError: Rows failed; raised at the end.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least 1")
    stopped, failed = False, set[str]()
    for wave in _waves(rows) if count() > 1 else [list(rows)]:
        able = [row for row in wave if not any(f"{name}-0" in failed for name in row.arm.needs)]
        failed |= {row.name for row in wave if row not in able}
        mine = _run_some(able[index() :: count()], command, places, jobs)
        with _noted_signals() as noted:
            found = gather(json.dumps([mine[0], sorted(mine[1])]))
        for text in found:
            stopped, failed = stopped or json.loads(text)[0], failed | set(json.loads(text)[1])
        if stopped:
            return 130
        if noted:
            raise KeyboardInterrupt
    if failed:
        raise UserError(
            f"{len(failed)} of {len(rows)} rows failed: {', '.join(sorted(failed))}; see {places.root / 'logs'}, fix "
            "the cause, and run the same command again"
        )
    return 0


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Add signals to the list while the block waits for the others, whose rows save: without the block, SIGTERM would
    end this process and with it the group.
    """
    noted: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: noted.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield noted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _waves(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows in parts, each of which needs rows of earlier parts only."""
    left = list(rows)
    while left:
        names = {row.name for row in left}
        yield [row for row in left if not any(f"{name}-0" in names for name in row.arm.needs)]
        left = [row for row in left if any(f"{name}-0" in names for name in row.arm.needs)]


def _run_some(rows: Sequence[Row], command: Sequence[str], places: Places, jobs: int) -> tuple[bool, set[str]]:
    """Runs the rows of one process; returns whether it was interrupted, and the names of rows that failed."""
    waiting, running, done, failed = list(rows), list[_Running](), set[str](), set[str]()
    total, began, stopped = len(rows), time.monotonic(), False
    planned = {row.name for row in rows}

    def ready(row: Row) -> bool:
        return all(f"{name}-0" in done or f"{name}-0" not in planned for name in row.arm.needs)

    def hopeless(row: Row) -> bool:
        return any(f"{name}-0" in failed for name in row.arm.needs)

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        for one in running:
            one.process.send_signal(signal.SIGTERM)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while (waiting and not stopped) or running:
            for row in [row for row in waiting if hopeless(row)]:
                waiting.remove(row)
                failed.add(row.name)
                logger.info(f"{row.name}: skipped, what it needs has failed")
            for row in [row for row in waiting if ready(row)][: jobs - len(running)]:
                if not stopped:
                    waiting.remove(row)
                    slot = min(set(range(jobs)) - {one.slot for one in running})
                    running.append(_start(row, command, places, slot, jobs))
            time.sleep(_POLL_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                seconds = time.monotonic() - one.began
                if one.process.returncode == 0:
                    done.add(one.row.name)
                    left = (time.monotonic() - began) / len(done) * (total - len(done) - len(failed))
                    logger.info(f"{one.row.name}: {duration(seconds)}  {len(done)}/{total} rows, left {duration(left)}")
                elif not stopped:
                    failed.add(one.row.name)
                    logger.info(f"{one.row.name}: FAILED with status {one.process.returncode}; {one.log} ends with")
                    logger.info("\n".join(one.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]))
    finally:
        for one in running:
            one.process.terminate()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped:
        logger.info(f"interrupted after {len(done)} of {total} rows; the same command resumes")
    return stopped, failed


def _start(row: Row, command: Sequence[str], places: Places, slot: int, jobs: int) -> _Running:
    log = places.log(row.arm.name, row.seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "--row", row.name, "--slot", f"{slot}/{jobs}"],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(os.environ, jobs),
            process_group=0,  # so that Ctrl-C reaches only this process, which sends SIGTERM to the rows
        )
    return _Running(row, process, log, time.monotonic(), slot)


def _environment(given: Mapping[str, str], jobs: int) -> dict[str, str]:
    """Environment of a row: it ends with this process, and rows on one GPU share its memory evenly."""
    given = {**given, LAUNCHED: str(os.getpid())}
    if jobs == 1 or "XLA_PYTHON_CLIENT_MEM_FRACTION" in given:
        return given
    return {**given, "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.3f}"}


def own_cores(slot: str) -> None:
    """Pin a row's process to its share of the CPU cores, so that rows do not compete for cores.

    Args:
        slot: The ``--slot`` argument, ``NUMBER/JOBS``.
    """
    number, jobs = (int(part) for part in slot.split("/"))
    if sys.platform == "linux" and jobs > 1:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= jobs:
            os.sched_setaffinity(0, cores[number::jobs])

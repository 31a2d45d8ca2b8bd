"""Groups of processes that train or evaluate one model: initialisation, error handling, exchange of small values.

In training, everything that may fail in one process alone (a folder that one host lacks, a different configuration)
runs in ``together``: all processes then raise the same error, instead of one that exits and others that hang. In
evaluation the processes work alone between two exchanges; there `fail` ends the group.

Values are exchanged through the group's coordinator (process 0), not through devices: a process may wait for as long as
another one works, and a process that uses no device starts none.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from zipper_jax.utils.errors import DamagedError, ServiceError, UserError

S = TypeVar("S")
T = TypeVar("T")

_PATIENCE = 30 * 24 * 3600 * 1000
"""Longest wait for the others, in milliseconds: a month. The coordinator finds dead processes by their heartbeats."""

_FAILED = "zipper/failed"
_LEAVE_SECONDS = 5.0
"""Time that the others have to read why the group fails, before process 0 and with it the coordinator ends."""

_exchanges = itertools.count(1)
_failing = threading.Event()


def _group() -> Any:
    """jax's state of the group; has no public name."""
    from jax._src import distributed

    return distributed.global_state


def count() -> int:
    """Number of processes of the group; unlike `jax.process_count`, starts no device."""
    return int(_group().num_processes or 1) if "jax" in sys.modules else 1


def index() -> int:
    """This process's index in the group, from 0."""
    return int(_group().process_id or 0) if "jax" in sys.modules else 0


def is_first() -> bool:
    """Whether this is the process that writes: the first of its group, or the only one."""
    return index() == 0


class FailedAloneError(Exception):
    """A user error that this process alone has: it must end at once, since the others wait for it."""


@dataclass(frozen=True)
class Group:
    """A process's position in its group.

    Attributes:
        coordinator: ``HOST:PORT`` of process 0; ``auto``: from the cluster's environment (TPU pods, SLURM).
        count: Number of processes; not for ``auto``.
        index: This process's index, from 0; not for ``auto``.
        heartbeat_seconds: A process without a heartbeat for so long counts as dead, and the others exit.
        join_seconds: How long to wait for all processes.
    """

    coordinator: str
    count: int | None = None
    index: int | None = None
    heartbeat_seconds: int = 100
    join_seconds: int = 300

    def __post_init__(self) -> None:
        if self.coordinator == "auto":
            return
        if self.count is None or self.index is None:
            raise UserError("--coordinator HOST:PORT needs --process_count and --process_index")
        if not 0 <= self.index < self.count:
            raise UserError(f"--process_index={self.index} of --process_count={self.count}: give 0 to {self.count - 1}")
        if ":" not in self.coordinator:
            raise UserError(f"--coordinator={self.coordinator!r}: give HOST:PORT, or auto")


def join(group: Group) -> None:
    """Join the group; call before any use of a device.

    On failure, or when not every process joins in time, print an error and exit with status 1.
    """
    import jax

    which: dict[str, Any] = {} if group.coordinator == "auto" else {
        "coordinator_address": group.coordinator, "num_processes": group.count, "process_id": group.index,
    }  # fmt: skip
    # JAX's own SIGTERM handler only notifies Orbax; the training loop handles the signal instead.
    jax.config.update("jax_enable_preemption_service", False)
    # At its own timeout JAX aborts the process with a stack trace; this timer fires first.
    late = threading.Timer(group.join_seconds, _too_late, [group])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **which,
            heartbeat_timeout_seconds=group.heartbeat_seconds,
            initialization_timeout=group.join_seconds + 60,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # Not a user error: another port, or a restarted peer, may fix it, so launchers retry.
        print(f"error: cannot join the group at {group.coordinator}: {reason}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        late.cancel()


def _too_late(group: Group) -> None:
    text = (
        f"error: process {group.index} of {group.count} waited {group.join_seconds} s for the others at "
        f"{group.coordinator}; start every process with the same --coordinator and --process_count, each with its own "
        "--process_index (--join_seconds waits longer)\n"
    )
    os.write(sys.__stderr__.fileno(), text.encode())
    os._exit(1)


@contextmanager
def watched() -> Iterator[None]:
    """While the block runs, end this process, with the same status, as soon as another one of its group calls `fail`.

    The block ends when that of every process has.
    """
    client = _group().client

    def wait() -> None:
        try:
            status = int(client.blocking_key_value_get(_FAILED, _PATIENCE))
        except Exception:  # the coordinator has ended
            return
        if status >= 0 and not _failing.is_set():
            _leave(status)

    # Waiting in C++, it would not survive the end of Python: it ends first.
    thread = threading.Thread(target=wait, name="watch the group", daemon=True)
    thread.start()
    yield
    gather("")
    if is_first():
        client.key_value_set(_FAILED, "-1")
    thread.join()


def fail(status: int, message: str) -> None:
    """End this process and with it the group, see `watched`; the message of the first one that fails is printed."""
    _failing.set()
    try:
        _group().client.key_value_set(_FAILED, str(status))
    except Exception as error:
        if "ALREADY_EXISTS" not in str(error):  # the coordinator has ended
            print(message, file=sys.stderr)
    else:
        print(message, file=sys.stderr)
    _leave(status)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(_LEAVE_SECONDS * is_first())
    os._exit(status)  # a regular exit would wait for the other processes


def together(task: Callable[..., T], *args: Any) -> T:
    """Run ``task(*args)`` in every process; if it fails in one, all raise (DamagedError if something is damaged,
    ServiceError if a bucket's server failed).

    Every process must call it at the same point.
    """
    if count() == 1:
        return task(*args)
    mine: Exception | None = None
    result: Any = None
    try:
        result = task(*args)
    except Exception as error:
        mine = error
    told = mine and {
        "error": str(mine) or type(mine).__name__,
        "problems": getattr(mine, "problems", None),
        "service": isinstance(mine, ServiceError),
    }
    said = [json.loads(text) for text in gather(json.dumps(told))]
    failed = [index for index, one in enumerate(said) if one]
    if failed:
        if mine is not None and not isinstance(mine, UserError):
            raise mine  # its traceback is worth more
        if served := [index for index in failed if said[index]["service"]]:  # a later attempt may find no other error
            raise ServiceError(f"process {served[0]}: {said[served[0]]['error']}")
        first = said[failed[0]]
        which = "every process" if len(failed) == len(said) else f"process {', '.join(map(str, failed))}"
        if any(said[index]["problems"] for index in failed):
            raise DamagedError(f"what {which} reads", next(said[i]["problems"] for i in failed if said[i]["problems"]))
        raise UserError(f"{which}: {first['error']}")
    return result


def from_first(value: Any) -> Any:
    """Broadcast process 0's ``value``, a JSON value."""
    return value if count() == 1 else json.loads(gather(json.dumps(value))[0])


def require_same(content: dict[str, Any], what: str) -> None:
    """Raise UserError naming the first value in which a process differs from process 0."""
    if count() == 1:
        return
    said = [json.loads(text) for text in gather(json.dumps(content, sort_keys=True))]
    for index, other in enumerate(said):
        found = _difference("", said[0], other)
        if found:
            raise UserError(
                f"process {index} has another {what} than process 0: {found}; use the same in all processes"
            )


def share(items: Sequence[S], work: Callable[[S], T]) -> Iterator[tuple[S, T]]:
    """Yield ``(item, work(item))`` in order, each computed by one process of the group: item i by process i modulo n.

    What is yielded is the same in every process. Results are exchanged after every n items, so whoever stores them
    loses at most one item per process to a kill.

    Args:
        items: The same in every process; all of them must call it at the same point and read it to its end.
        work: Returns a JSON value (no tuples).
    """
    processes, own = count(), index()
    if processes == 1:
        yield from ((item, work(item)) for item in items)
        return
    for first in range(0, len(items), processes):
        some = items[first : first + processes]
        mine = work(some[own]) if own < len(some) else None
        for item, found in zip(some, gather(json.dumps(mine)), strict=False):
            yield item, json.loads(found)


def gather(text: str) -> list[str]:
    """All-gather strings of any length, in order of the processes."""
    if count() == 1:
        return [text]
    group, number = _group(), next(_exchanges)
    group.client.key_value_set(f"zipper/{number}/{group.process_id}", text)
    group.client.wait_at_barrier(f"zipper/{number}", _PATIENCE)
    # All have read the exchange before this one, since they have come here.
    group.client.key_value_delete(f"zipper/{number - 1}/{group.process_id}")
    found = group.client.key_value_dir_get(f"zipper/{number}/")
    return [value for _, value in sorted(found, key=lambda one: int(one[0].rpartition("/")[2]))]


def barrier(name: str) -> None:
    """Block until every process has called it."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _difference(path: str, a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            found = _difference(f"{path}.{key}" if path else key, a.get(key), b.get(key))
            if found:
                return found
        return ""
    return "" if a == b else f"{path}: {b!r}, not {a!r}"

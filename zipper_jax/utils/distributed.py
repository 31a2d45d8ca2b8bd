"""Groups of processes that train one model: initialisation, error handling, small collectives.

Everything that may fail in one process alone (a folder that one host lacks, a different configuration) runs in
``together``: all processes then raise the same error, instead of one that exits and others that hang.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from zipper_jax.utils.errors import DamagedError, ServiceError, UserError

T = TypeVar("T")


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


def together(task: Callable[..., T], *args: Any) -> T:
    """Run ``task(*args)`` in every process; if it fails in one, all raise (DamagedError if something is damaged,
    ServiceError if a bucket's server failed).

    Every process must call it at the same point.
    """
    if jax.process_count() == 1:
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
    return value if jax.process_count() == 1 else json.loads(gather(json.dumps(value))[0])


def require_same(content: dict[str, Any], what: str) -> None:
    """Raise UserError naming the first value in which a process differs from process 0."""
    if jax.process_count() == 1:
        return
    said = [json.loads(text) for text in gather(json.dumps(content, sort_keys=True))]
    for index, other in enumerate(said):
        found = _difference("", said[0], other)
        if found:
            raise UserError(
                f"process {index} has another {what} than process 0: {found}; use the same in all processes"
            )


def gather(text: str) -> list[str]:
    """All-gather strings of any length, in order of the processes."""
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def barrier(name: str) -> None:
    """Block until every process has called it."""
    if jax.process_count() > 1:
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

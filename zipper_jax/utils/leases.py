"""Exclusive locks of folders and files in buckets: an object that its holder renews and a successor may take over.

The lock is an object (of a folder: ``.lock``), created only if it is absent, renewed every `RENEWAL` seconds and
deleted at the end, each under the condition that it still has the generation that the holder wrote. So two processes
never both hold it.

A holder that was killed leaves its object behind. Its successor takes it over at once where it can see that the holder
is dead (the same machine and process namespace, no such process), else after it has watched the object for
`LEASE` seconds without a renewal: no two clocks are compared. A holder that could not renew for `LEASE - RENEWAL`
seconds (a thread of its own watches that, for a request may take longer), or that finds another's object, ends its
process at once, without another write.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from zipper_jax.utils import storage
from zipper_jax.utils.errors import ServiceError, UserError
from zipper_jax.utils.storage import AnyPath

logger = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds without a renewal after which a lock may be taken over."""
RENEWAL = 10.0
"""Seconds between two renewals."""


@contextlib.contextmanager
def leased(path: AnyPath, lock: AnyPath) -> Iterator[None]:
    """Hold the object ``lock``, the lock of the folder or file ``path``, while the block runs.

    Raises:
        UserError: Another process holds it.
    """
    lease = _Lease(path, lock)
    lease.acquire()
    try:
        yield
    finally:
        lease.release()


class _Lease:
    def __init__(self, of: AnyPath, path: AnyPath) -> None:
        self._of, self._path = of, path
        self._generation = storage.ABSENT
        self._content = {**_self(), "token": uuid.uuid4().hex}
        self._count = 0
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="renew the lock", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="watch the lock", daemon=True)

    def acquire(self) -> None:
        seen, since, waiting = b"", 0.0, False
        while not self._write(self._generation):
            try:
                content, found = storage.read_version(self._path)
            except FileNotFoundError:  # released in between
                self._generation = storage.ABSENT
                continue
            holder = _decoded(content)
            if holder.get("token") == self._content["token"]:  # it was written, and the answer lost
                self._generation, self._renewed = found, self._begun
                break
            if found != seen:
                if waiting:  # it was renewed: its holder lives
                    raise self._held(holder)
                seen, since = found, time.monotonic()
            if _is_dead(holder) or time.monotonic() - since >= LEASE:
                logger.info(f"{self._path}: taking over the lock of {holder.get('holder')}, which has ended")
                self._generation = found
                continue
            if _is_near(holder):  # and it lives
                raise self._held(holder)
            if not waiting:
                waiting = True
                logger.info(f"{self._of}: waiting up to {LEASE:.0f} s for the lock of {holder.get('holder')}")
            time.sleep(min(1.0, LEASE / 10))
            self._generation = storage.ABSENT
        self._renewer.start()
        self._watcher.start()

    def release(self) -> None:
        self._ended.set()
        try:
            self._renewer.join(RENEWAL)  # it may be waiting for a server that does not answer
        finally:  # Ctrl-C
            self._delete()

    def _delete(self) -> None:
        try:
            if storage.write(self._path, None, only_if=self._generation) is None and self._is_mine():
                storage.write(self._path, None, only_if=self._generation)
        except ServiceError as error:  # an error of the block must not be replaced by this one
            logger.warning(f"the lock stays, and is taken over after {LEASE:.0f} s: {error}")

    def _write(self, only_if: bytes) -> bool:
        self._count += 1  # so that a renewal is another object
        content = {**self._content, "renewals": self._count}
        self._begun = time.monotonic()  # others count from when the object appears, which may be long before the answer
        written = storage.write(self._path, json.dumps(content).encode(), only_if=only_if)
        if written is not None:
            self._generation, self._renewed = written, self._begun
        return written is not None

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            try:
                kept = self._write(self._generation) or self._is_mine()
            except Exception as error:  # whatever it is, `_watch` sees how long it lasts
                logger.warning(f"the lock cannot be renewed: {error}")
                continue
            if not kept:
                self._die()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, RENEWAL)):
            if time.monotonic() - self._renewed > LEASE - RENEWAL:
                self._die()

    def _die(self) -> None:
        os.write(
            sys.__stderr__.fileno(),
            f"error: {str(self._of)!r}: another process has taken over the lock, or soon may, because it was not "
            f"renewed for {LEASE - RENEWAL:.0f} s; this process ends, and writes nothing more\n".encode(),
        )
        os._exit(1)

    def _is_mine(self) -> bool:
        """Whether the object is of this process after all: a renewal was written, and its answer lost."""
        try:
            content, generation = storage.read_version(self._path)
        except FileNotFoundError:
            return False
        if _decoded(content).get("token") != self._content["token"]:
            return False
        self._generation = generation  # when it appeared is not known: the next renewal counts
        return True

    def _held(self, holder: dict[str, object]) -> UserError:
        return UserError(
            f"{str(self._of)!r} is being written by {holder.get('holder') or 'another process'}; wait for it or "
            "choose another path"
        )


def _self() -> dict[str, object]:
    return {
        "holder": f"process {os.getpid()} on {socket.gethostname()}",
        "process": os.getpid(),
        "began": _began(os.getpid()),
        "machine": _machine(),
    }


def _machine() -> str:
    """What two processes have in common that see each other's process numbers; "" where that cannot be known."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _decoded(content: bytes) -> dict[str, object]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _began(process: object) -> str:
    """When a process of this machine began, in clock ticks since the start; "" where there is none."""
    try:
        with open(f"/proc/{process}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # killed, but its parent has not noticed


def _is_near(holder: dict[str, object]) -> bool:
    """Whether the holder's process, if it lives, is seen on this machine."""
    return bool(_machine()) and holder.get("machine") == _machine()


def _is_dead(holder: dict[str, object]) -> bool:
    """Whether the holder was a process of this machine that has ended; its number may be another's by now."""
    process = holder.get("process")
    if not _is_near(holder) or not isinstance(process, int) or _began(process) == holder.get("began"):
        return False
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's process, whose /proc entry may be hidden
        return bool(_began(process))
    except OSError:
        pass
    return True

"""Row order of a mixture and the batch of a step, as pure functions of (seed, n): resuming is exact and instant.

No TensorFlow. The order is independent of the number of reading processes; memory use is independent of n.
Random orders use raw PCG64 bits, which numpy keeps stable between versions; its ``permutation`` is not.
"""

import threading
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from zipper_jax.sequences import Example, Layout, rows_to_towers
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError

BLOCK = 1024
"""Draws per block; every block holds the exact share of each task."""


@runtime_checkable
class Rows(Protocol):
    """Rows of one task: a `RowStore`, or an object with the same interface."""

    meta: dict[str, Any]

    def __len__(self) -> int: ...

    def row(self, index: int) -> list[Example]: ...

    def fetch(self, indices: Sequence[int]) -> None: ...


class RowMixture:
    """Infinite sequence of rows from several tasks.

    Each block of 1024 draws holds an exact number of rows of each task (its share, rounded by largest remainder),
    shuffled per block; within a task, each epoch visits every row once, shuffled per epoch.

    Attributes:
        tasks: Sorted task names; a draw refers to a task by its index here.
        stores: Task -> rows.
        counts: Task -> draws per block.
    """

    def __init__(self, stores: Mapping[str, Rows], rates: Mapping[str, float], seed: int):
        """Create a mixture.

        Args:
            stores: Task -> rows; the same keys as ``rates``.
            rates: Task -> sampling rate, relative to the other rates.
            seed: Seed of every shuffle.

        Raises:
            UserError: No task, a task without rows, or a rate that is not positive or gives no draw in 1024.
        """
        if not rates:
            raise UserError("a mixture needs at least one task with a rate")
        for task in rates:
            if task not in stores:
                raise UserError(f"the mixture names task {task!r}, which has no rows{closest(task, stores)}")
        for task, store in stores.items():
            if task not in rates:
                raise UserError(f"task {task!r} has rows but no rate{closest(task, rates)}")
            if len(store) == 0:
                raise UserError(f"task {task!r} has no rows: were all examples too long? See its meta.json")
        self.tasks = tuple(sorted(rates))
        self.stores = {task: stores[task] for task in self.tasks}
        self.seed = int(seed)
        self.counts = dict(zip(self.tasks, _shares(self.tasks, rates), strict=True))
        # A batch that crosses a boundary uses two blocks, and two epochs per task.
        self._block = lru_cache(maxsize=4)(self._make_block)
        self._epoch = lru_cache(maxsize=2 * len(self.tasks) + 2)(self._make_epoch)

    def row(self, n: int) -> tuple[int, int]:
        """Return (task index, row index) of draw ``n`` >= 0."""
        if n < 0:
            raise IndexError(f"draw {n}: draws count from 0")
        block, place = divmod(int(n), BLOCK)
        tasks, earlier = self._block(block)
        task = int(tasks[place])
        name = self.tasks[task]
        epoch, within = divmod(block * self.counts[name] + int(earlier[place]), len(self.stores[name]))
        return task, int(self._epoch(task, epoch)[within])

    def examples(self, draws: Sequence[int]) -> tuple[list[int], list[list[Example]]]:
        """Return (task index of each draw, examples of its row)."""
        found = [self.row(n) for n in draws]
        for task, name in enumerate(self.tasks):  # rows in a bucket are read at the same time
            self.stores[name].fetch([index for of, index in found if of == task])
        return [task for task, _ in found], [self.stores[self.tasks[task]].row(index) for task, index in found]

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return two arrays [1024]: the task of each draw, and how many draws of that task precede it in the block."""
        tasks = np.repeat(np.arange(len(self.tasks)), list(self.counts.values()))
        tasks = tasks[permutation(BLOCK, self.seed, 0, block)]
        earlier = np.zeros(BLOCK, np.int64)
        for task in range(len(self.tasks)):
            mine = tasks == task
            earlier[mine] = np.arange(mine.sum())
        return tasks, earlier

    def _make_epoch(self, task: int, epoch: int) -> np.ndarray:
        name = self.tasks[task]
        # Keyed by the task's name, so that adding a task to a mixture does not change the order of the other tasks.
        return permutation(len(self.stores[name]), self.seed, 1, zlib.crc32(name.encode()), epoch)


def permutation(size: int, seed: int, *key: int) -> Int[np.ndarray, " size"]:
    """Return a permutation of ``range(size)`` that depends only on the arguments, on any machine and numpy version."""
    # SeedSequence takes unsigned 32-bit words; a seed may be negative. Two words keep it separate from the key.
    words = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, *key]
    return np.argsort(np.random.PCG64(np.random.SeedSequence(words)).random_raw(size), kind="stable")


def _shares(tasks: tuple[str, ...], rates: Mapping[str, float]) -> list[int]:
    """Return draws per block of each task: its share rounded down, the rest by largest remainder (ties: first name)."""
    for task in tasks:
        if not (np.isfinite(rates[task]) and rates[task] > 0):
            raise UserError(f"rate of task {task!r} = {rates[task]}: give a positive number, or remove the task")
    exact = np.array([rates[task] for task in tasks], np.float64)
    exact = exact / exact.sum() * BLOCK
    counts = np.floor(exact).astype(int)
    for place in np.argsort(-(exact - counts), kind="stable")[: BLOCK - counts.sum()]:
        counts[place] += 1
    for task, count in zip(tasks, counts, strict=True):
        if count == 0:
            raise UserError(
                f"rate of task {task!r} = {rates[task]}: less than one row in {BLOCK}; raise it or remove the task"
            )
    return counts.tolist()


class RowBatches:
    """Batches by step: ``get(step)`` is a pure function of the step. A thread prefetches the next ones.

    The global batch is the same whatever `only` says: a process of a group makes the rows of its own devices, and the
    rows of all processes together are the batch.
    """

    def __init__(
        self,
        mixture: RowMixture,
        layout: Layout,
        lengths: Mapping[str, int],
        batch_size: int,
        weights: Mapping[str, float],
        ahead: int = 2,
        rows: Sequence[int] | None = None,
    ):
        self.mixture = mixture
        self._layout = layout
        self._lengths = dict(lengths)
        self._batch_size = batch_size
        self._weights = np.array([weights.get(task, 1.0) for task in mixture.tasks], np.float32)
        self._ahead = ahead
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows)
        self._pending: dict[int, Future] = {}
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead else None

    def only(self, rows: Sequence[int] | np.ndarray) -> "RowBatches":
        """Return the same batches with these rows alone, in increasing order: B in `get` is their number."""
        rest = dict(zip(self.mixture.tasks, self._weights.tolist(), strict=True))
        return RowBatches(
            self.mixture, self._layout, self._lengths, self._batch_size, rest, self._ahead, [int(row) for row in rows]
        )

    def whole(self, step: int) -> dict[str, Any]:
        """Return the global batch of ``step`` >= 0, with all rows, as `get` does."""
        return self._make(step, np.arange(self._batch_size))

    def get(self, step: int) -> dict[str, Any]:
        """Return the batch of ``step`` >= 0.

        Returns:
            {"towers": tower -> TowerBatch [B, T], "task": int32 [B], indices into ``mixture.tasks``}.
        """
        if self._executor is None:
            return self._make(step, self._rows)
        with self._lock:
            wanted = range(step, step + self._ahead + 1)
            for other in [s for s in self._pending if s not in wanted]:  # the step jumped: drop prefetched batches
                self._pending.pop(other).cancel()
            for s in wanted:
                if s not in self._pending:
                    self._pending[s] = self._executor.submit(self._make, s, self._rows)
            future = self._pending.pop(step)
        return future.result()

    def close(self) -> None:
        """Stop the thread; `get` then builds each batch in the calling thread."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)
            self._pending.clear()

    def __enter__(self) -> "RowBatches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self, step: int, numbers: np.ndarray) -> dict[str, Any]:
        tasks, rows = self.mixture.examples([step * self._batch_size + int(number) for number in numbers])
        towers = rows_to_towers(rows, self._layout, self._lengths)
        for batch in towers.values():  # freshly allocated, so an update in place is safe
            batch.weights[...] *= self._weights[tasks][:, None]
        return {"towers": towers, "task": np.array(tasks, np.int32)}


def batches(
    mixture: RowMixture,
    layout: Layout,
    lengths: Mapping[str, int],
    batch_size: int,
    weights: Mapping[str, float] = MappingProxyType({}),
    ahead: int = 2,
) -> RowBatches:
    """Return batches of ``batch_size`` rows of ``mixture``; step s starts at draw s * batch_size.

    Args:
        mixture: Rows to draw from.
        layout: Modality -> its slice of a tower's vocabulary.
        lengths: Tower -> positions per row; every tower of ``layout`` needs one.
        batch_size: Rows per batch.
        weights: Task -> factor on the loss weights of its tokens; default 1.
        ahead: Number of batches that a thread prefetches; 0: no thread.

    Raises:
        UserError: A batch size below 1, rows of a modality the model lacks, or rows longer than ``lengths``.
    """
    if batch_size < 1:
        raise UserError(f"BATCH_SIZE = {batch_size}: give at least 1")
    for task, store in mixture.stores.items():
        for modality, longest in store.meta["longest"].items():
            if modality not in layout:
                raise UserError(f"rows of task {task!r} hold modality {modality!r}, which the model lacks")
            tower = layout[modality].tower
            if tower not in lengths:
                raise UserError(f"TASK_FEATURE_LENGTHS gives no length for tower {tower!r}{closest(tower, lengths)}")
            if longest > lengths[tower]:
                raise UserError(
                    f"TASK_FEATURE_LENGTHS[{tower!r}] = {lengths[tower]}: rows of task {task!r} take up to {longest} "
                    f"positions; give at least {longest}, or prepare shorter rows"
                )
    return RowBatches(mixture, layout, lengths, batch_size, weights, ahead)

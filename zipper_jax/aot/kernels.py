"""Seconds of our kernels on TPUs: bundles of their schedules times the blocks that run, and exposed transfers.

A count, not a measurement, see `aot.bundles`. A block costs at least what its matrix products take at the chip's peak.

Axis letters of the vocabulary's kernels: N tokens, D embed_dim, V vocabulary of one table.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from zipper_jax.aot.bundles import Schedule
from zipper_jax.ops.interval_attention.pallas_tpu import Blocks, block_ranges, in_order
from zipper_jax.ops.tpu_kernels import LANES
from zipper_jax.ops.vocab_loss_tpu import Sizes
from zipper_jax.sharding.chips import Chip

NAMES = ("interval_attention", "interval_attention_gradients")
"""The forward and the backward kernel."""

_CALL = re.compile(
    r"^\s+%?(interval_attention(_gradients)?_(\d+)x(\d+)x(\d+)(?:\.\d+)?) = .*operand_layout_constraints=\{(.*)$"
)
_VOCAB = re.compile(r"^\s+%?(vocab_(sums|top)_(\d+)x(\d+)x(\d+)(?:\.\d+)?) = .*operand_layout_constraints=\{(.*)$")
_MATRIX = re.compile(r"([a-z]+\d+)\[(\d+),(\d+)\]")
_ARRAY = re.compile(r"([a-z]+\d+)\[(\d+),(\d+),(\d+),(\d+)\]")


class Kernel(NamedTuple):
    """One call of a kernel, on one device.

    Attributes:
        rows, heads, kv_heads: B, N, K.
        queries, keys: T and S, padded to blocks.
        head_dim: H.
        itemsize: Bytes of an element.
        backward: Whether it is the kernel of the gradients.
        causal: Whether it is self-attention; else each query sees its document's whole source.
        blocks: Its block sizes.
        together: Query heads of a grid step.
    """

    rows: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    itemsize: int
    backward: bool
    causal: bool
    blocks: Blocks
    together: int


def kernel_calls(hlo: str) -> dict[str, Kernel]:
    """Instruction -> the call, of all attention kernels of an optimised program."""
    found = {}
    for line in hlo.splitlines():
        if call := _CALL.match(line):
            # Query and value are the first and the last of the four-dimensional arrays that are not statistics.
            name, gradients, bq, bk, together, rest = call.groups()
            arrays = [a for a in _ARRAY.findall(rest.partition("}}")[0]) if a[3] != "1"]
            value = arrays[-1]
            dtype, heads, rows, queries, size = next(a for a in arrays if (a[0], a[4]) == (value[0], value[4]))
            kv_heads, keys = value[1], value[3]
            found[name] = Kernel(
                int(rows), int(heads), int(kv_heads), int(queries), int(keys), int(size), 2 if dtype == "bf16" else 4,
                gradients is not None, "cross_attention" not in rest, Blocks(int(bq), int(bk)), int(together),
            )  # fmt: skip
    return found


def packed_ranges(kernel: Kernel, documents: int) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]:
    """Attention ranges of rows with equal documents: causal, or (cross-attention) all keys of the document."""
    at = np.arange(kernel.queries) * documents // kernel.queries
    cuts = np.arange(documents + 1) * kernel.keys // documents
    start = cuts[at]
    end = np.minimum(np.arange(kernel.queries) + 1, kernel.keys) if kernel.causal else cuts[at + 1]
    rows = (kernel.rows, kernel.queries)
    return np.broadcast_to(start.astype(np.int32), rows), np.broadcast_to(end.astype(np.int32), rows)


def kernel_seconds(
    kernel: Kernel,
    schedule: Schedule,
    start: Int[np.ndarray, "B T"],
    end: Int[np.ndarray, "B T"],
    chip: Chip,
) -> float:
    """Seconds of one call: per grid step the longer of its arithmetic and the transfers that overlap it.

    Args:
        kernel: The call.
        schedule: Its bundles.
        start, end: Attention ranges.
        chip: Rates of the device.
    """
    assert chip.bandwidth is not None
    assert chip.clock is not None
    loops, blocks = schedule.loops, kernel.blocks
    per_cycle = chip.flops / 2 / chip.clock / chip.cores  # multiply-adds
    products = (5 if kernel.backward else 2) * kernel.together
    least = products * blocks.queries * blocks.keys * kernel.head_dim / per_cycle
    if len(loops) != (4 if kernel.backward else 2):  # with one block of keys the compiler merges loops
        once = sum(loops)
        loops = (0, once, once, 0) if kernel.backward else (once, once)
    border, full = (max(least, bundles) for bundles in loops[1 if kernel.backward else 0 :][:2])
    ranges = in_order(block_ranges(jnp.asarray(start), jnp.asarray(end), blocks))
    first, last, run, run_end, _ = np.moveaxis(np.asarray(ranges), -1, 0)
    arithmetic = schedule.step + (run_end - run) * full + (last - first - run_end + run) * border  # [rows, blocks]
    heads, kv_heads = kernel.heads // kernel.together, kernel.together if kernel.heads == kernel.kv_heads else 1
    cycles = np.repeat(arithmetic[:, None], heads, axis=1)  # [rows, heads, blocks]
    group, lanes = heads // (kernel.kv_heads // kv_heads), max(kernel.head_dim, LANES)
    block = kernel.together * blocks.queries * lanes * kernel.itemsize
    keys = 2 * kv_heads * kernel.keys * lanes * kernel.itemsize
    columns = blocks.queries * LANES * 4
    reads = np.full(cycles.shape, 3 * block if kernel.backward else block + columns, float)
    reads[:, ::group, 0] += keys
    writes = np.full(cycles.shape, block, float)
    if kernel.backward:
        key_blocks = kernel.keys // blocks.keys
        cycles[:, ::group, 0] += loops[0] * key_blocks
        cycles[:, group - 1 :: group, -1] += loops[3] * key_blocks
        writes[:, group - 1 :: group, -1] += keys
    read, written = reads.ravel(), writes.ravel()
    transfers = (np.append(read[1:], 0) + np.append(0, written[:-1])) / chip.bandwidth * chip.cores
    total = np.maximum(cycles.ravel() / chip.clock, transfers).sum() + (read[0] + written[-1]) / chip.bandwidth
    return float(total) / chip.cores + schedule.once / chip.clock


class VocabKernel(NamedTuple):
    """One call of a kernel of the vocabulary loss, on one device.

    Attributes:
        tokens: N, padded to blocks.
        vocabulary, embed_dim: V, D.
        itemsize: Bytes of a value of the table.
        top: Whether it looks for the largest logit only.
        sizes: Its block sizes.
    """

    tokens: int
    vocabulary: int
    embed_dim: int
    itemsize: int
    top: bool
    sizes: Sizes

    @property
    def flops(self) -> float:
        return (2 if self.top else 4) * float(self.tokens) * self.vocabulary * self.embed_dim

    @property
    def bytes_moved(self) -> float:
        """States and sums once, the table once for every part of the tokens."""
        parts = self.tokens // self.sizes.resident
        lanes = 4 * self.tokens * LANES * 4  # references, ids, totals, maxima
        return self.tokens * self.embed_dim * (2 + 4) + lanes + parts * self.vocabulary * self.embed_dim * self.itemsize


def vocab_calls(hlo: str) -> dict[str, VocabKernel]:
    """Instruction -> the call, of all kernels of the vocabulary loss in an optimised program."""
    found = {}
    for line in hlo.splitlines():
        if call := _VOCAB.match(line):
            name, kind, rows, block, resident, rest = call.groups()
            (_, tokens, _), (dtype, vocabulary, d) = _MATRIX.findall(rest)[:2]
            sizes = Sizes(int(rows), int(block), int(resident))
            item = 2 if dtype == "bf16" else 4
            found[name] = VocabKernel(int(tokens), int(vocabulary), int(d), item, kind == "top", sizes)
    return found


def vocab_seconds(kernel: VocabKernel, schedule: Schedule, chip: Chip) -> float:
    """Seconds of one call: per block of the table the longer of its arithmetic and the transfer of the next."""
    assert chip.bandwidth is not None
    assert chip.clock is not None
    rows, block, resident = kernel.sizes
    blocks, parts = resident // block, kernel.tokens // resident
    least = (1 if kernel.top else 2) * block * rows * kernel.embed_dim * 2 * chip.clock * chip.cores / chip.flops
    if blocks > 1:
        body = max(schedule.loops)
        clear, cycles = sum(schedule.loops) - body, schedule.step + blocks * max(body, least)
    else:  # one block of tokens is no loop, but part of a step; what is left of loops is small
        clear, cycles = 0, max(schedule.step + sum(schedule.loops), least)
    arithmetic = cycles / chip.clock
    transfer = rows * kernel.embed_dim * kernel.itemsize / chip.bandwidth * chip.cores
    shown = resident * kernel.embed_dim * (2 + 4) / chip.bandwidth * chip.cores  # states come in, sums go out
    part = kernel.vocabulary // rows * max(arithmetic, transfer) + blocks * clear / chip.clock + shown
    return -(-parts // chip.cores) * part + schedule.once / chip.clock


class Cost(NamedTuple):
    """Of one call of a kernel: cycles, and FLOPs (of attention, of the visible pairs)."""

    cycles: int
    flops: float


def kernel_costs(hlo: str, schedules: Mapping[str, Schedule], chip: Chip, documents: int) -> dict[str, Cost]:
    """Instruction -> cost of one call, of our kernels whose schedule is known.

    Args:
        hlo: The optimised program.
        schedules: Instruction -> bundles (`bundles.schedules`).
        chip: Rates of the device.
        documents: Per row, of equal length. In cross-attention every query sees its document's whole source, which is
            the most there can be.
    """
    assert chip.clock is not None
    calls: dict[str, Kernel | VocabKernel] = {**kernel_calls(hlo), **vocab_calls(hlo)}
    found = {}
    for instruction, kernel in calls.items():
        # The compiler schedules equal kernels once, under the name of one of them.
        equal = [name for name in (instruction, *calls) if name in schedules and calls[name] == kernel]
        if not equal:
            continue
        if isinstance(kernel, VocabKernel):
            seconds, flops = vocab_seconds(kernel, schedules[equal[0]], chip), kernel.flops
        else:
            start, end = packed_ranges(kernel, documents)
            seconds = kernel_seconds(kernel, schedules[equal[0]], start, end, chip)
            pairs = float((end - start).sum()) * kernel.heads * kernel.head_dim
            flops = (10 if kernel.backward else 4) * pairs
        found[instruction] = Cost(round(seconds * chip.clock), flops)
    return found

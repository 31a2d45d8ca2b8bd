"""Where a compiled TPU program spends its time, by the compiler's own estimate: a model, not a measurement.

The optimised program states the estimated cycles of every operation; each is counted as often as its loop runs, and
assigned to a part of the model by the `jax.named_scope` that it came from. Asynchronous copies between memory and chip
state no cycles: they take the memory's bandwidth that the operations beside them leave, and what is not done when the
copy is needed counts as waiting. Other contention, stalls and changes of the clock are not in it, nor is a branch that
its scope declares to be taken `RARELY`. Custom kernels state no estimate; a profile with a kernel of unknown cycles is
refused, so that no time can hide there.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from zipper_jax.aot.hlo import WHILE, called, read_computations, size_of, split_opcode, trip_count
from zipper_jax.aot.kernels import Cost
from zipper_jax.sharding.chips import CHIPS, Chip, chip
from zipper_jax.utils.errors import UserError

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_OPERANDS = re.compile(r"%([\w.\-]+)")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-")
_MOVES = {
    "copy", "convert_element_type", "broadcast_in_dim", "slice", "dynamic_slice", "dynamic_update_slice", "squeeze",
    "reshape", "transpose", "concatenate", "pad", "gather", "dynamic_index_in_dim", "while", "body",
}  # fmt: skip

_SCOPES = {
    "optimizer": "optimizer",
    "loss": "logits and loss",
    "logits": "logits and loss",
    "self_attention": "self-attention",
    "cross_attention": "cross-attention",
    "rope": "RoPE",
    "norm": "norms",
}  # whichever comes first here


WAITS = "waiting for copies"
"""The part of asynchronous copies: the time that the operations beside them do not hide."""

_WORK = ("fusion", "convolution", "dot", "scatter", "gather", "sort")
_CONTEXT = 64  # bytes at most of an asynchronous copy's state

RARELY = "rarely"
"""Scope of a branch that repairs what hardly ever happens, such as sums that overflow."""


class Operation(NamedTuple):
    """One operation of a program, or one custom kernel.

    Attributes:
        source: Path of scopes and primitive that it came from.
        part: See `part_of`.
        times: Executions per call of the program.
        cycles: Of all executions.
        flops: Of the matrix products of all executions.
        moved: Bytes in main memory of results, and of what is read of operands, of all executions.
    """

    source: str
    part: str
    times: float
    cycles: float
    flops: float
    moved: float

    def per(self, runs: int) -> "Operation":
        """A share of it, one of ``runs``."""
        times, cycles, flops, moved = (value / runs for value in self[2:])
        return Operation(self.source, self.part, times, cycles, flops, moved)


def _copies(times: float = 0.0, cycles: float = 0.0, moved: float = 0.0) -> Operation:
    """Asynchronous copies: how many are started, the cycles in which they are waited for, and what they move."""
    return Operation("asynchronous copies", WAITS, times, cycles, 0.0, float(moved))


class Part(NamedTuple):
    """Time of one part of the model.

    Attributes:
        name: Of the part.
        seconds: By the compiler's cycles.
        ideal: At the chip's peak rates: of each operation the longer of products and memory, never more than it takes.
    """

    name: str
    seconds: float
    ideal: float


class Profile(NamedTuple):
    """A program's operations.

    Attributes:
        device: jax's ``device_kind``.
        clock: Cycles per second.
        operations: Most cycles first.
        unestimated: Source -> executions of operations that do work and whose cycles the compiler does not state.
    """

    device: str
    clock: float
    operations: list[Operation]
    unestimated: Mapping[str, float] = {}

    @property
    def seconds(self) -> float:
        """Of one run of the program."""
        return sum(o.cycles for o in self.operations) / self.clock

    def ideal(self, operation: Operation, peak: Chip) -> float:
        """Seconds of an operation at the chip's peak rates, at most what it takes."""
        memory = operation.moved / peak.bandwidth if peak.bandwidth else 0.0
        return min(max(operation.flops / peak.flops, memory), operation.cycles / self.clock)

    def parts(self, peak: Chip) -> list[Part]:
        """The parts, longest first."""
        found: dict[str, list[float]] = {}
        for o in self.operations:
            sums = found.setdefault(o.part, [0.0, 0.0])
            sums[0] += o.cycles / self.clock
            sums[1] += self.ideal(o, peak)
        return sorted((Part(name, *sums) for name, sums in found.items()), key=lambda part: -part.seconds)


def profile(text: str, device: str, kernels: Mapping[str, Cost] | None = None, turns: int | None = None) -> Profile:
    """Profile ``compiled.as_text()``.

    Args:
        text: Optimised HLO for a TPU.
        device: jax's ``device_kind``.
        kernels: Instruction of a custom kernel -> its cost (`aot.kernels`).
        turns: Iterations of the loop whose trip count depends on data, the one over tokens: figures are per iteration,
            what is done once is spread over all; None: there is none.

    Raises:
        UserError: No clock is known for the device, a custom kernel's cycles are not known, or nothing is estimated.
    """
    known = chip(device)
    if known is None or known.clock is None:
        raise UserError(f"no clock is known for {device!r}; known: {', '.join(k for k, c in CHIPS.items() if c.clock)}")
    computations, entry = read_computations(text)
    reader = _Reader(computations, dict(kernels or {}), turns, known)
    found = [o.per(turns or 1) for o in reader.walk(entry, 1)]
    operations = sorted(found, key=lambda o: -o.cycles)
    if not operations:
        raise UserError("the program states no cycles: it was not compiled for a TPU, or libtpu has changed its format")
    return Profile(device, known.clock, operations, {s: n / (turns or 1) for s, n in reader.unestimated.items()})


def part_of(source: str, opcode: str, flops: float) -> str:
    """The part of the model that an operation belongs to, from its path of scopes: ``jit(step)/.../towers/a/norm/...``.

    Args:
        source: The path; transformations wrap components: ``transpose(jvp(norm))``.
        opcode: HLO's, or the kind of the collective inside.
        flops: Of matrix products; operations without any may only move data.
    """
    names = _scopes(source)
    if opcode.startswith(_COLLECTIVES):
        return "collectives"
    for scope, part in _SCOPES.items():
        if scope in names:
            return part
    if not flops and names[-1] in _MOVES:
        return "casts and copies"
    for scope in ("embedding", "input_projection"):
        if scope in names:
            return scope.replace("_", " ")
    for top, label in (("zips", "zip"), ("towers", "tower")):
        if top in names[:-1]:
            return f"{label} {names[names.index(top) + 1]}"
    return "casts and copies" if not flops else "other products"


def _scopes(source: str) -> list[str]:
    """The components of a path, without the transformations that wrap them."""
    return [re.sub(r"^(?:\w+\()*|\)*$", "", name) for name in source.split("/")]


def lines(found: Profile, peak: Chip, model_flops: float | None, per: str) -> list[str]:
    """The table that ``zipper compile --profile`` prints.

    Args:
        found: The profile.
        peak: The device's peak rates.
        model_flops: Of one step on one device, without recomputation; None: no MFU.
        per: The unit of one run of the program, step or token.
    """
    total = found.seconds
    mfu = f", MFU {model_flops / peak.flops / total:.1%}" if model_flops else ""
    out = [f"{per:<12} {total * 1e3:.2f} ms by the compiler's cycles (its model, not a measurement){mfu}"]
    out.append(f"{'part':<28} {'ms':>9} {'share':>7} {'ideal ms':>9}")
    for part in found.parts(peak):
        share = part.seconds / total
        out.append(f"{part.name:<28} {part.seconds * 1e3:9.3f} {share:7.1%} {part.ideal * 1e3:9.3f}")
    out.append("costliest operations: ms, ideal ms, executions, source")
    for o in _by_source(found.operations)[:10]:
        ideal = found.ideal(o, peak) * 1e3
        out.append(f"  {o.cycles / found.clock * 1e3:9.3f} {ideal:9.3f} {o.times:6.4g} {o.source[-100:]}")
    if found.unestimated:
        out.append("not in these figures, the compiler states no cycles: executions, source")
        out += [f"  {times:27.4g} {source[-100:]}" for source, times in found.unestimated.items()]
    return out


def as_json(found: Profile, peak: Chip) -> dict[str, Any]:
    """For result files and ``--against``: seconds of the program and of its parts."""
    return {
        "device": found.device,
        "seconds": found.seconds,
        "parts": {p.name: {"seconds": p.seconds, "ideal": p.ideal} for p in found.parts(peak)},
    }


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Lines that compare two profiles of `as_json`.

    Raises:
        UserError: They are of different devices.
    """
    if now["device"] != before["device"]:
        raise UserError(f"--against: a profile of {before['device']!r}, this one is of {now['device']!r}")
    out = [f"{'part':<28} {'before':>9} {'now ms':>9} {'ratio':>6}"]
    names = list(dict.fromkeys([*now["parts"], *before["parts"]]))
    rows = [(n, *(p["parts"].get(n, {"seconds": 0.0})["seconds"] for p in (before, now))) for n in names]
    for name, old, new in [*rows, ("all", before["seconds"], now["seconds"])]:
        out.append(f"{name:<28} {old * 1e3:9.3f} {new * 1e3:9.3f} {f'{new / old:6.2f}' if old else '   new'}")
    return out


def _by_source(operations: Iterable[Operation]) -> list[Operation]:
    found: dict[str, Operation] = {}
    for o in operations:
        if same := found.get(o.source):
            o = same._replace(cycles=same.cycles + o.cycles, flops=same.flops + o.flops, moved=same.moved + o.moved)
        found[o.source] = o
    return sorted(found.values(), key=lambda o: -o.cycles)


class _Reader:
    def __init__(
        self, computations: dict[str, list[tuple[str, str]]], kernels: dict[str, Cost], turns: int | None, peak: Chip
    ):
        self.computations, self.kernels, self.turns, self.peak = computations, kernels, turns, peak
        self.unestimated: dict[str, float] = {}

    def walk(self, name: str, times: int) -> list[Operation]:
        """The operations of ``times`` runs of a computation; of a branch, those of the costliest side that is usual."""
        found: list[Operation] = []
        shapes = {instruction: split_opcode(what)[0] for instruction, what in self.computations[name]}
        copies: dict[str, float] = {}  # under way, in order -> cycles that they still need of the memory
        for instruction, what in self.computations[name]:
            opcode = split_opcode(what)[1]
            here: list[Operation] = []
            if opcode == "while" and (loop := WHILE.search(what)):
                turns = trip_count(self.computations, loop[1], what, self.turns)
                here = self.walk(loop[2], times * turns)
            elif opcode == "conditional":
                sides = [self.walk(place, times) for place in called(what)]
                usual = [side for side in sides if not any(RARELY in _scopes(o.source) for o in side)]
                here = max(usual or sides, key=lambda side: sum(o.cycles for o in side), default=[])
            elif opcode == "call":
                here = [o for place in called(what) for o in self.walk(place, times)]
            elif size := self._copied(opcode, what):
                copies[instruction] = self._memory_cycles(size)
                found.append(_copies(times, moved=times * size))
            elif opcode.endswith("-done") and (started := _operands(what)[0]) in copies:
                waited = _wait(copies, until=started)
                found.append(_copies(cycles=times * waited))
            else:
                here = self._operation(instruction, opcode, what, shapes, times)
            _proceed(copies, sum(o.cycles - self._memory_cycles(o.moved) for o in here) / times)
            found += here
        found.append(_copies(cycles=times * sum(copies.values())))
        return [o for o in found if o.cycles or o.moved]

    def _memory_cycles(self, size: float) -> float:
        """Cycles that bytes take at the memory's peak bandwidth."""
        assert self.peak.clock is not None
        return size / self.peak.bandwidth * self.peak.clock if self.peak.bandwidth else 0.0

    def _copied(self, opcode: str, what: str) -> int:
        """Bytes of main memory that an asynchronous copy moves, at the instruction that starts it; 0: it is none."""
        inside = [split_opcode(w)[1] for place in called(what) for _, w in self.computations[place]]
        if not opcode.endswith("-start") or any(kind.startswith(_COLLECTIVES) for kind in [opcode, *inside]):
            return 0
        shape = split_opcode(what)[0]  # of operands, result and context; of an operand only a slice may be copied
        memory = size_of(shape, on_chip=False)
        chip = size_of(shape) - memory
        return chip if memory and chip > _CONTEXT else memory

    def _operation(
        self, instruction: str, opcode: str, what: str, shapes: Mapping[str, str], times: int
    ) -> list[Operation]:
        cycles, source = _CYCLES.search(what), _SOURCE.search(what)
        path = source[1] if source else instruction
        if opcode == "custom-call" and "tpu_custom_call" in what:
            if instruction not in self.kernels:
                raise UserError(
                    f"custom kernel {instruction!r} ({path}): its cycles are not known, only those of the kernels for "
                    "attention and for the vocabulary loss"
                )
            count, flops = self.kernels[instruction]
        elif cycles:
            count, fused = int(cycles[1]), called(what) if opcode == "fusion" else []
            flops = sum(self._flops(place) for place in fused) if fused else self._product(what, shapes)
        else:
            if opcode in _WORK:
                self.unestimated[path] = self.unestimated.get(path, 0) + times
            return []
        moved = size_of(split_opcode(what)[0], on_chip=False) + self._read(opcode, what, shapes)
        part = part_of(path, self._kind(opcode, what), flops)
        return [Operation(path, part, times, times * count, times * flops, float(times * moved))]

    def _read(self, opcode: str, what: str, shapes: Mapping[str, str]) -> float:
        """Bytes read of the operands; of one that is only sliced, as stacked kernels are in a scan, of the slices."""
        total = 0.0
        for number, name in enumerate(_operands(what)):
            if not size_of(shapes.get(name, ""), on_chip=False):
                continue
            slices = self._slices(called(what)[0], number) if opcode == "fusion" else None
            total += size_of(shapes.get(name, ""), on_chip=False) if slices is None else slices
        return total

    def _slices(self, name: str, number: int) -> float | None:
        """Bytes of the slices that a fused computation takes of a parameter; None: it also uses all of it."""
        inside = self.computations.get(name, [])
        given = next((i for i, w in inside if re.search(rf"\bparameter\({number}\)", w)), None)
        uses = [w for _, w in inside if given in _operands(w)]
        found: list[float | None] = []
        for use in uses:
            opcode = split_opcode(use)[1]
            if opcode == "fusion":
                places = [place for place, operand in enumerate(_operands(use)) if operand == given]
                found += [self._slices(called(use)[0], place) for place in places]
            else:
                sliced = opcode in ("slice", "dynamic-slice") and _operands(use)[0] == given  # else it may be the index
                found.append(size_of(split_opcode(use)[0]) if sliced else None)
        known = [size for size in found if size is not None]
        return sum(known) if known and len(known) == len(found) else None

    def _kind(self, opcode: str, what: str) -> str:
        """The opcode; of a fusion around a collective, the collective's."""
        if opcode != "fusion":
            return opcode
        inside = (split_opcode(w)[1] for place in called(what) for _, w in self.computations.get(place, ()))
        return next((kind for kind in inside if kind.startswith(_COLLECTIVES)), opcode)

    def _flops(self, name: str) -> float:
        """FLOPs of the matrix products in a fused computation."""
        shapes = {instruction: split_opcode(what)[0] for instruction, what in self.computations.get(name, ())}
        total = 0.0
        for _, what in self.computations.get(name, ()):
            total += self._product(what, shapes)
            if split_opcode(what)[1] == "fusion":
                total += sum(self._flops(place) for place in called(what))
        return total

    def _product(self, what: str, shapes: Mapping[str, str]) -> float:
        """2 * elements of the result * elements summed over; TPU programs have convolutions in place of dots."""
        shape, opcode = split_opcode(what)
        if opcode not in ("convolution", "dot"):
            return 0.0
        left, right = (_dims(shapes.get(name, "")) for name in _operands(what)[:2])
        result = 1.0
        for size in _dims(shape):
            result *= size
        if opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", what)
            axes = [int(a) for a in contracted[1].split(",") if a] if contracted else []
            return 2 * result * _product_of(left[a] for a in axes)
        labels = re.search(r"dim_labels=\w+_(\w+)->", what)
        if labels is None:
            return 0.0
        # A batch axis is written as a window that is dilated, so that each result sums one element of it.
        dilated = re.search(r"window=\{[^}]*lhs_dilate=([\dx]+)", what)
        batch = [int(d) > 1 for d in dilated[1].split("x")] if dilated else []
        summed = 1.0
        for label, size in zip(labels[1], right, strict=False):
            spatial = label.isdigit()
            if label == "i" or (spatial and not (int(label) < len(batch) and batch[int(label)])):
                summed *= size
        return 2 * result * summed


def _proceed(copies: dict[str, float], cycles: float) -> None:
    """Let copies proceed, in order, for some cycles."""
    for name, needed in copies.items():
        copies[name] = max(needed - max(cycles, 0.0), 0.0)
        cycles -= needed


def _wait(copies: dict[str, float], until: str) -> float:
    """Remove the copies up to one of them; return the cycles that they still need."""
    waited = 0.0
    for name in list(copies):
        waited += copies.pop(name)
        if name == until:
            break
    return waited


def _operands(what: str) -> list[str]:
    """Names of an instruction's operands."""
    shape, opcode = split_opcode(what)
    return _OPERANDS.findall(what[len(shape) + 1 + len(opcode) :].partition(")")[0])


def _dims(shape: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", shape)
    return [int(d) for d in found[1].split(",") if d] if found else []


def _product_of(sizes: Iterable[int]) -> float:
    total = 1.0
    for size in sizes:
        total *= size
    return total

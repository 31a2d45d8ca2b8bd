"""The collectives of a compiled program, read from its HLO text.

XLA's own counters count the body of a loop once; here each collective is multiplied by the loop's trip count, from the
constant in the loop's condition.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from zipper_jax.utils.errors import UserError

_BITS = {
    "pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32,
    "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d+(?:e\d+m\d+\w*)?|pred)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|called_computations|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
WHILE = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r"known_trip_count[^\d]*(\d+)")
_MIDDLE = "async_collective_fusion"  # computations in which libtpu continues a collective
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
        kind: ``all-gather``, ``all-reduce``, ``reduce-scatter``, ``all-to-all``, ``collective-permute``.
        size: Bytes of the full array, the larger of input and output on a device.
        devices: In a group.
        times: Executions per call of the program.
        place: The operation that it came from.
    """

    kind: str
    size: int
    devices: int
    times: int
    place: str

    @property
    def moved(self) -> float:
        """Bytes that each device sends per call of the program, by the ring algorithm."""
        share = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * self.size * factor


class UnknownLoopError(UserError):
    """A loop whose trip count cannot be read."""


def collectives(text: str, num_devices: int, turns: int | None = None) -> list[Collective]:
    """Every collective of ``compiled.as_text()`` whose group has more than one device.

    Args:
        text: Optimised HLO.
        num_devices: Devices of the program, the group of collectives without explicit groups.
        turns: Iterations to assume for loops with a data-dependent trip count; None: there are none.

    Raises:
        UnknownLoopError: A loop with collectives has an unknown trip count.
    """
    computations, entry = read_computations(text)
    whole, rest = _walk(computations, entry, turns, num_devices)
    found = [*whole, *(c for each in rest.values() for c in each)]
    return sorted((c for c in found if c.devices > 1), key=lambda c: -c.moved)


def size_of(shape: str, on_chip: bool = True) -> int:
    """Bytes of an HLO type; of a tuple, the sum.

    Args:
        shape: The type.
        on_chip: Whether arrays count whose layout places them outside of the main memory: ``{1,0:T(8,128)S(1)}``.
    """
    total = 0
    for dtype, dims, layout in _ARRAY.findall(shape):
        if not on_chip and "S(" in layout:
            continue
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += count * _BITS.get(dtype, 8 if dtype.startswith("f8") else 32) // 8
    return total


def read_computations(text: str) -> tuple[dict[str, list[tuple[str, str]]], str]:
    """Computation -> pairs of (instruction name, its right-hand side); and the entry's name."""
    computations: dict[str, list[tuple[str, str]]] = {}
    entry = name = ""
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            name = begins[2]
            computations[name] = []
            entry = name if begins[1] else entry
        elif name and (instruction := _INSTRUCTION.match(line)):
            computations[name].append((instruction[1], instruction[2]))
    return computations, entry


class _Found(NamedTuple):
    """The collectives of one run of a computation.

    Attributes:
        whole: Those that begin and end in it.
        open: Channel -> those that are under way in it, and begin and end where it is called.
    """

    whole: list[Collective]
    open: dict[str, list[Collective]]

    def repeated(self, turns: int) -> "_Found":
        """Those of that many runs."""

        def each(found: list[Collective]) -> list[Collective]:
            return [c._replace(times=c.times * turns) for c in found]

        return _Found(each(self.whole), {channel: each(found) for channel, found in self.open.items()})


def _walk(computations: dict[str, list[tuple[str, str]]], name: str, unknown: int | None, num_devices: int) -> _Found:
    """The collectives of one run of a computation.

    An asynchronous collective appears several times with one channel (start, middle, end), in fusions of the same
    computation: the computation with the most instructions of that channel counts. Only its middle may be in a loop
    between its start and its end. In other computations the same channel is another collective: identical loops share
    channels.
    """
    here: dict[str, dict[str, list[Collective]]] = {}
    inside: list[_Found] = []
    complete: set[str] = set()
    for channel, collective in _own(computations, name, num_devices):
        here.setdefault(channel, {}).setdefault(name, []).append(collective)
        complete.add(channel)
    for _, what in computations[name]:
        opcode = split_opcode(what)[1]
        if opcode == "while" and (loop := WHILE.search(what)):
            body = _walk(computations, loop[2], unknown, num_devices)
            inside.append(body.repeated(trip_count(computations, loop[1], what, unknown) if any(body) else 0))
        else:
            for place in called(what):
                if opcode != "fusion":
                    inside.append(_walk(computations, place, unknown, num_devices))
                    continue
                for channel, collective in _fused(computations, place, num_devices):
                    here.setdefault(channel, {}).setdefault(place, []).append(collective)
                    complete |= set() if place.startswith(_MIDDLE) else {channel}
    most = {channel: max(copies.values(), key=len) for channel, copies in here.items()}
    under_way = {channel: found for channel, found in most.items() if channel not in complete}
    whole = [collective for channel in complete for collective in most[channel]]
    for each in inside:
        whole += each.whole
        under_way |= {channel: found for channel, found in each.open.items() if channel not in here}
    return _Found(whole, under_way)


def _fused(
    computations: dict[str, list[tuple[str, str]]], name: str, num_devices: int
) -> Iterator[tuple[str, Collective]]:
    """(channel, collective) of the collectives in a fusion and its nested fusions."""
    yield from _own(computations, name, num_devices)
    for _, what in computations[name]:
        if split_opcode(what)[1] == "fusion":
            for place in called(what):
                yield from _fused(computations, place, num_devices)


def _own(
    computations: dict[str, list[tuple[str, str]]], name: str, num_devices: int
) -> Iterator[tuple[str, Collective]]:
    """(channel, or the instruction's name without one; collective) of a computation's own instructions."""
    for instruction, what in computations[name]:
        shape, opcode = split_opcode(what)
        kind = opcode.removesuffix("-start")
        if kind in _KINDS:
            channel = re.search(r"channel_id=(\d+)", what)
            yield channel[1] if channel else instruction, _collective(kind, shape, opcode != kind, what, num_devices)


def called(what: str) -> list[str]:
    """Names of the computations that an instruction calls, in order."""
    return [name.strip().lstrip("%") for several, one in _CALLED.findall(what) for name in (several or one).split(",")]


def split_opcode(what: str) -> tuple[str, str]:
    """(type, opcode) of ``f32[2]{0} add(...)``; a tuple's type has parentheses of its own."""
    depth = 0
    for at, letter in enumerate(what):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            return what[:at], what[at + 1 :].partition("(")[0]
    return what, ""


def _collective(kind: str, shape: str, started: bool, what: str, num_devices: int) -> Collective:
    devices = _group(what, num_devices)
    size = size_of(shape)
    if started and kind != "all-reduce":  # (operands, results, ...), one of which is as large as the whole
        arrays = [size_of(f"{d}[{n}]") for d, n, _ in _ARRAY.findall(shape)]
        size = sum(arrays) * devices // (devices + 1) if kind in ("all-gather", "reduce-scatter") else sum(arrays) // 2
    elif kind == "reduce-scatter":
        size *= devices
    place = re.search(r'op_name="([^"]*)"', what)
    return Collective(kind, size, devices, 1, place[1] if place else "")


def _group(what: str, num_devices: int) -> int:
    """Devices of one group: ``{{0,1},{2,3}}``, ``[2,2]<=[4]`` or ``mesh['a'=2,'b'=2] {'b'}``."""
    groups = re.search(r"replica_groups=(mesh\[[^{]*\{[^}]*\}|\{\{[^}]*\}|\[[\d,]+\]|\{\})", what)
    if groups is None or groups[1] == "{}":
        return 2 if "source_target_pairs" in what else num_devices
    if groups[1].startswith("mesh"):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", groups[1]))
        devices = 1
        for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", groups[1].rpartition("{")[2]):
            devices *= int(part or sizes[axis])
        return devices
    if groups[1].startswith("["):
        return int(groups[1].strip("[]").split(",")[-1])
    return groups[1].count(",") + 1


def trip_count(computations: dict[str, list[tuple[str, str]]], condition: str, what: str, unknown: int | None) -> int:
    """Trip count of a loop: XLA's annotation, or the constant that its counter (from 0, by 1) is compared with."""
    if known := _TRIPS.search(what):
        return int(known[1])
    constants = [int(c) for _, w in computations[condition] for c in re.findall(r"\bs32\[\]\S* constant\((\d+)\)", w)]
    less = any("direction=LT" in w for _, w in computations[condition])
    if len(constants) != 1 or not less:
        if unknown is not None:
            return unknown
        raise UnknownLoopError(f"the trip count of the loop with condition {condition} cannot be read")
    return constants[0]

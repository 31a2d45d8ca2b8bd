"""Cycles of a Pallas kernel on TPUs from the compiler's schedule: the compiler's count, not a measurement.

libtpu gives no estimate of a custom kernel's time, but writes its schedule: instructions packed into bundles, one per
cycle when nothing stalls. Loops inside a kernel are marked by depth, so bundles are counted per loop body and
multiplied by how often it runs. Contention for memory, clock changes and stalls are not in it.
"""

import re
from pathlib import Path
from typing import NamedTuple

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s*(LB)?\s*[A-Z]*\s*:\s*(>*)\s*\{(\})?")


def dump_flags(folder: str) -> str:
    """Value of LIBTPU_INIT_ARGS with which libtpu writes schedules; it is read when libtpu is loaded."""
    only = "--xla_jf_dump_llo_pass_label_regex=final_bundles"  # all passes of a step would be tens of gigabytes
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true {only}"


class Schedule(NamedTuple):
    """Bundles of one kernel.

    Attributes:
        once: Outside of the grid's loop.
        step: In every grid step, outside of inner loops; those of predicated regions count as executed.
        loops: The body of each inner loop, in program order.
    """

    once: int
    step: int
    loops: tuple[int, ...]


def schedules(folder: str | Path) -> dict[str, Schedule]:
    """Instruction (``NAME`` or ``NAME.NUMBER``) -> its schedule, of everything dumped into a folder."""
    found = {}
    for path in sorted(Path(folder).glob("*-final_bundles.txt")):
        name = re.match(r"\d+-(.+?)-\d+-", path.name)
        if name and "schedule-analysis" not in path.name:
            found[name[1]] = parse(path.read_text())
    return found


def parse(text: str) -> Schedule:
    """The schedule of one listing (``*-final_bundles.txt``)."""
    outside, loops, depth = [0, 0], [0], 0
    for line in text.splitlines():
        if not (match := _BUNDLE.match(line)):
            continue
        label, marks, empty = match.groups()
        depth = depth if empty else len(marks)  # empty bundles have no mark
        if depth < 2:
            outside[depth] += 1
        elif label:
            loops.append(1)
        else:
            loops[-1] += 1
    return Schedule(outside[0], outside[1], tuple(loops[1:]))

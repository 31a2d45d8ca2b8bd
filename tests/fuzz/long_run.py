"""The long form of test_fuzz.py: one entry point for some minutes.

    PYTHONPATH=. python tests/fuzz/long_run.py --minutes 10 manifest

Prints the examples run, the different error messages, and the lines of functions reached in the modules that are
fuzzed. Each fault found is shrunk and saved in corpus/ENTRY, where test_fuzz.py runs it from then on; the run then
continues, and reports no further one from the same place. Status 1 if there was a fault.
"""

import argparse
import hashlib
import random
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import conftest  # noqa: F401 (devices, and shapes checked on every call, as in the tests)
from entry_points import ENTRIES
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from property import CORPUS, check

import zipper_jax

PACKAGE = Path(zipper_jax.__file__).parent
PART = settings(
    max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False,
    phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False, derandomize=False,
)  # fmt: skip


class Lines:
    """The lines of functions of some source files, and those that were run."""

    def __init__(self, modules: tuple[str, ...]):
        self.paths = {str(PACKAGE / module) for module in modules}
        self.run: set[tuple[str, int]] = set()
        self.all = {(path, line) for path in self.paths for line in _function_lines(path)}

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self.paths:
            return None
        if event == "line":
            self.run.add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace


def _function_lines(path: str) -> set[int]:
    found: set[int] = set()

    def visit(code: CodeType, inside: bool) -> None:
        # CO_NEWLOCALS and CO_OPTIMIZED: a function, not a module or class body.
        inside = inside or code.co_flags & 3 == 3
        if inside:
            found.update(line for _, _, line in code.co_lines() if line and line != code.co_firstlineno)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                visit(constant, inside)

    visit(compile(Path(path).read_text(encoding="utf-8"), path, "exec"), False)
    return found


def place_of(error: BaseException) -> str:
    """The last line of the package in the traceback, and the type of the error; for a message, its form."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(PACKAGE) in f.filename]
    where = f"{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno}" if frames else ""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", str(error))[:80] if not frames else ""
    return f"{type(error).__name__} {where}{text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", choices=ENTRIES)
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args()
    entry = ENTRIES[args.entry]()
    lines, messages, faults = Lines(entry.modules), set[str](), dict[str, tuple[str, bytes]]()
    count, began = 0, time.monotonic()
    end = began + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:

        def run(example: tuple[str, bytes]) -> None:
            nonlocal count
            if time.monotonic() > end:
                return
            count += 1
            sys.settrace(lines.trace)
            try:
                message = check(entry, Path(folder), *example)
                messages.add(re.sub(r"\d+|'[^']*'|\"[^\"]*\"", "…", message))
            except Exception as error:
                if place_of(error) not in known:
                    faults[place_of(error)] = example
                    raise
            finally:
                sys.settrace(None)

        known: set[str] = set()  # faults of earlier parts
        while time.monotonic() < end:
            try:
                seed(random.randrange(2**32))(PART(given(entry.examples())(run)))()
            except Flaky:  # the time ended while an input was shrunk
                pass
            except Exception as error:
                print(f"fault: {place_of(error)}: {' '.join(str(error).split())[:300]}", flush=True)
            known |= faults.keys()
    for file, content in faults.values():
        (CORPUS / entry.name).mkdir(parents=True, exist_ok=True)
        name = f"{file.replace('/', '+')}@{hashlib.sha256(content).hexdigest()[:8]}"
        (CORPUS / entry.name / name).write_bytes(content)
    messages.discard("")
    print(
        f"{entry.name}: {count:,} examples in {time.monotonic() - began:.0f} s, {len(messages)} different messages, "
        f"{len(lines.run & lines.all)} of {len(lines.all)} lines of functions in {', '.join(entry.modules)}, "
        f"{len(faults)} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

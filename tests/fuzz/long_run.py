"""The long form of test_fuzz.py: entry points for some minutes of CPU time each.

    PYTHONPATH=. python tests/fuzz/long_run.py --minutes 10 --out benchmarks/results/fuzz.json manifest table
    PYTHONPATH=. python benchmarks/fuzz.py --out benchmarks/results/fuzz.json --table

Prints the examples run, the different error messages, and the branches taken in the modules that are fuzzed. Each
fault found is shrunk and saved in corpus/ENTRY, where test_fuzz.py runs it from then on; the run then continues, and
reports no further one from the same place. Status 1 if there was a fault.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import coverage

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported

# ruff: noqa: E402
import conftest  # noqa: F401 (devices, and shapes checked on every call, as in the tests)
from entry_points import ENTRIES
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from property import CORPUS, Entry, check

import zipper_jax

PACKAGE = Path(zipper_jax.__file__).parent
PART = settings(
    max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False,
    phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False, derandomize=False,
)  # fmt: skip


def place_of(error: BaseException) -> str:
    """The last line of the package in the traceback, and the type of the error; for a message, its form."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(PACKAGE) in f.filename]
    where = f"{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno}" if frames else ""
    text = form_of(str(error))[:80] if not frames else ""
    return f"{type(error).__name__} {where}{text}"


def form_of(message: str) -> str:
    """The message without its values."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", message)


def branches(measured: coverage.Coverage, entry: Entry) -> tuple[int, int]:
    """The branches taken in the entry's modules, and all."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        measured.json_report(morfs=[str(PACKAGE / module) for module in entry.modules], outfile=file.name)
        totals = json.loads(Path(file.name).read_bytes())["totals"]
    return totals["covered_branches"], totals["num_branches"]


def keep(entry: Entry, file: str, content: bytes) -> None:
    """Add an example to the corpus."""
    (CORPUS / entry.name).mkdir(parents=True, exist_ok=True)
    name = f"{file.replace('/', '+')}@{hashlib.sha256(content).hexdigest()[:8]}"
    (CORPUS / entry.name / name).write_bytes(content)


def fuzz(entry: Entry, minutes: float) -> dict[str, Any]:
    """Run examples for some minutes, or until SIGTERM, and save the faults; return the result for the table."""
    measured = coverage.Coverage(
        data_file=None, config_file=False, branch=True, include=[str(PACKAGE / module) for module in entry.modules]
    )
    settings(PART, max_examples=1)(given(entry.examples())(lambda example: None))()  # Hypothesis prepares once, slowly
    messages, faults, known = set[str](), dict[str, tuple[str, bytes]](), set[str]()  # known: of earlier parts
    count, began, began_at = 0, time.process_time(), time.monotonic()
    end, stopped = began + 60 * minutes, list[int]()
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))

    def is_over() -> bool:
        return bool(stopped) or time.process_time() > end

    with tempfile.TemporaryDirectory() as folder:

        def run(example: tuple[str, bytes]) -> None:
            nonlocal count
            if is_over():
                return
            count += 1
            try:
                messages.add(form_of(check(entry, Path(folder), *example)))
            except Exception as error:
                if place_of(error) not in known:
                    faults[place_of(error)] = example
                    raise

        measured.start()
        while not is_over():
            try:
                seed(random.randrange(2**32))(PART(given(entry.examples())(run)))()
            except Flaky:  # the time ended while an input was shrunk
                pass
            except Exception as error:
                print(f"{entry.name}: fault: {place_of(error)}: {' '.join(str(error).split())[:300]}", flush=True)
            for place in faults.keys() - known:
                keep(entry, *faults[place])
            known |= faults.keys()
        measured.stop()
    taken, of = branches(measured, entry)
    return {
        "cpu_seconds": round(time.process_time() - began),
        "wall_seconds": round(time.monotonic() - began_at),
        "examples": count,
        "messages": len(messages - {""}),
        "branches": taken,
        "branches_of": of,
        "faults": len(faults),
        "modules": list(entry.modules),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help=f"all by default: {', '.join(ENTRIES)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes of each (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file, entry -> result; other entries in it are kept")
    args = parser.parse_args()
    if unknown := set(args.entries) - ENTRIES.keys():
        parser.error(f"no entry points: {', '.join(unknown)}")
    logging.disable(logging.WARNING)
    faults = 0
    for name in args.entries or ENTRIES:
        result = fuzz(ENTRIES[name](), args.minutes)
        faults += result["faults"]
        print(json.dumps({name: result}), flush=True)
        if args.out:
            results = json.loads(args.out.read_bytes()) if args.out.exists() else {}
            args.out.write_text(json.dumps(dict(sorted((results | {name: result}).items())), indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

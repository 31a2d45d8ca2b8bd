"""Batches for a group of processes: what one process of 1, 4 and 16 spends on its rows of a global batch.

    python benchmarks/own_rows.py --out benchmarks/results/own_rows.json           measure
    python benchmarks/own_rows.py --out benchmarks/results/own_rows.json --table   print the table

The global batch has 512 rows of 256 text and 1,024 speech positions, of two tasks, in random order. Each measurement is
a process of its own that makes the rows of the first process of the group, as training does (`RowBatches.only`); on a
pod every process has a host to itself, so they run one after another here. CPU time is of the thread that makes batches
(the machine may be shared); memory is the peak above what the process has before the first batch.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from packed_rows import LAYOUT, LENGTHS, TASKS, write

from zipper_jax.data.mixtures import RowMixture, batches
from zipper_jax.data.packed_rows import RowStore

ROWS, STEPS, COUNTS = 512, 12, (1, 4, 16)


def peak_mib() -> float:
    """The peak memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(folder: Path, count: int) -> dict[str, float]:
    """Make batches as the first of ``count`` processes does."""
    mixture = RowMixture({task: RowStore(folder / task) for task in TASKS}, {"asr": 1.0, "tts": 1.26}, 0)
    source = batches(mixture, LAYOUT, LENGTHS, ROWS, ahead=0).only(range(ROWS // count))
    before, seconds, size = peak_mib(), [], 0
    for step in range(STEPS + 2):
        began = time.thread_time()
        batch = source.get(step)
        seconds.append(time.thread_time() - began)
        size = sum(np.asarray(field).nbytes for tower in batch["towers"].values() for field in tower)
    return {
        "cpu_ms_per_step": 1e3 * statistics.median(seconds[2:]),
        "batch_mib": size / 2**20,
        "peak_above_start_mib": peak_mib() - before,
    }


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| processes | rows of each | CPU per step, ms | batch, MiB | peak above start, MiB |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count, row in found["processes"].items():
        lines.append(
            f"| {count} | {ROWS // int(count)} | {row['cpu_ms_per_step']:.0f} | {row['batch_mib']:.1f} "
            f"| {row['peak_above_start_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="the results, JSON")
    parser.add_argument("--table", action="store_true", help="only print the results as a table")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Path(args.one[0]), int(args.one[1]))))
        return 0
    if not args.table:
        found: dict[str, Any] = {"machine": platform.machine(), "rows": ROWS, "steps": STEPS, "processes": {}}
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), "long")
            for count in COUNTS:
                command = [sys.executable, __file__, "--out", str(args.out), "--one", folder, str(count)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found["processes"][str(count)] = json.loads(done.stdout)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

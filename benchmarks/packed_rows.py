"""Packed rows to batches: tokens per second of the reader that training uses, and its memory.

    python benchmarks/packed_rows.py --out benchmarks/results/packed_rows.json           measure
    python benchmarks/packed_rows.py --out benchmarks/results/packed_rows.json --table   print the table

Rows of pairs are written to a temporary folder, then read as a mixture of two tasks in batches, in random order, by the
thread that prefetches for training. Tokens are those that stand in the batches, padding not counted. "short" has the
sentences of the smoke run (7 text tokens, 34 units), "long" those of LibriSpeech (50 and 300). Medians over repeats;
memory is the peak of the reading process.
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

from zipper_jax.data.mixtures import RowMixture, batches
from zipper_jax.data.packed_rows import RowStore, write_rows
from zipper_jax.sequences import Place, Span

CASES = {"short": (7, 34, 25, 8_000), "long": (50, 300, 3, 20_000)}
"""Text tokens and units of a sentence, sentences per row, rows per task."""
LAYOUT = {"text": Place("text", 0, 254, 255, 256), "speech": Place("speech", 0, 1024, 1025, 1026)}
LENGTHS = {"text": 256, "speech": 1024}
ROWS, BATCHES = 64, 40
TASKS = ("asr", "tts")


def write(folder: Path, case: str) -> None:
    """Write the rows of a case, one folder a task."""
    words, units, sentences, count = CASES[case]
    rng = np.random.default_rng(0)

    def pair(task: str) -> tuple[Span, Span]:
        text = Span("text", rng.integers(0, 254, words).astype(np.int32), float(task == "asr"))
        speech = Span("speech", rng.integers(0, 1024, units).astype(np.int32), float(task == "tts"))
        return (speech, text) if task == "asr" else (text, speech)

    for task in TASKS:
        write_rows(folder / task, [[pair(task) for _ in range(sentences)] for _ in range(count)], {})


def read(folder: Path, repeats: int) -> dict[str, float]:
    """Read batches; return tokens per second and the peak of memory."""
    mixture = RowMixture({task: RowStore(folder / task) for task in TASKS}, {"asr": 1.0, "tts": 1.26}, 0)
    rates = []
    with batches(mixture, LAYOUT, LENGTHS, ROWS) as source:
        for turn in range(repeats + 1):
            tokens, began = 0, time.perf_counter()
            for step in range(turn * BATCHES, (turn + 1) * BATCHES):
                towers = source.get(step)["towers"]
                tokens += sum(int(np.count_nonzero(batch.segment_ids)) for batch in towers.values())
            rates.append(tokens / (time.perf_counter() - began))
    # Not getrusage, whose peak contains that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {"million_tokens_per_s": statistics.median(rates[1:]) / 1e6, "peak_mib": peak}  # the first is the warm-up


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| sentences | M tokens/s | peak memory, MiB | rows on disk, MiB |", "|---|---|---|---|"]
    for case, row in found["cases"].items():
        words, units, sentences, _ = CASES[case]
        named = f"{case}: {sentences} × ({words} + {units}) a row"
        lines.append(f"| {named} | {row['million_tokens_per_s']:.2f} | {row['peak_mib']:.0f} | {row['disk_mib']:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(args.read, args.repeats)))
        return 0
    if args.out is None:
        parser.error("give --out")
    if not args.table:
        cases = {}
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), case)
                # A process of its own, so that writing does not count as memory of reading.
                command = [sys.executable, __file__, "--read", folder, "--repeats", str(args.repeats)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                disk = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 2**20
                cases[case] = json.loads(done.stdout) | {"disk_mib": disk}
        found = {"cases": cases, "repeats": args.repeats, "machine": platform.machine()}
        args.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

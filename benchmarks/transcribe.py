"""Transcription of one 3 s clip on CPU by a trained run: audio to units to text, warm, and the first call.

    python benchmarks/transcribe.py --run runs/smoke/zipper --out benchmarks/results/transcribe.json           measure
    python benchmarks/transcribe.py --run runs/smoke/zipper --out benchmarks/results/transcribe.json --table   the table

The clip is 3 s of the corpus's test recordings, one behind another. Medians of calls after a warm-up.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import zipper_jax
from zipper_jax.speech.audio import SAMPLE_RATE, load_audio

SECONDS = 3


def clip(corpus: Path) -> np.ndarray:
    """Float32 [3 s] of test recordings."""
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    files = [corpus / row["audio"] for row in rows if row["split"] == "test"][:10]
    return np.concatenate([load_audio(file) for file in files])[: SECONDS * SAMPLE_RATE]


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| clip, s | warm, s (fastest to slowest) | first call, s | cores |", "|---|---|---|---|"]
    warm = f"{found['median_s']:.3f} ({found['fastest_s']:.3f} to {found['slowest_s']:.3f})"
    lines.append(f"| {SECONDS} | {warm} | {found['first_s']:.1f} | {found['cores']} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/smoke/zipper"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=21)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        model, waveform = zipper_jax.load(args.run), clip(args.run.parent / "corpus")
        seconds = []
        for _ in range(args.calls + 1):
            began = time.perf_counter()
            text = model.transcribe(waveform, SAMPLE_RATE)
            seconds.append(time.perf_counter() - began)
        first, *warm = seconds
        found = {
            "median_s": statistics.median(warm), "fastest_s": min(warm), "slowest_s": max(warm), "first_s": first,
            "calls": args.calls, "text": text, "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(),
            "jax": jax.__version__,
        }  # fmt: skip
        args.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Peak memory of commands against the size of their input: rows of a manifest, test sentences, length of a recording.

    python benchmarks/memory.py --run runs/smoke/zipper --out benchmarks/results/memory.json           measure
    python benchmarks/memory.py --run runs/smoke/zipper --out benchmarks/results/memory.json --table   the table

Each command runs in a process of its own, once with a small and once with a large input; its peak is the largest
resident memory of it and its workers. What is in it whatever the input (libraries, the model) is in both figures.
The test sentences are those of the smoke run's data, again and again; the recording is its corpus's, end to end.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import zipper_jax
from zipper_jax.speech.audio import SAMPLE_RATE, load_audio

ROWS, SENTENCES, MINUTES = (1_000, 100_000), (200, 5_000), (4, 120)
_WORDS = ("open", "close", "paint", "the", "door", "window", "box", "red", "blue", "now", "lamp", "light", "off", "on")


def peak(arguments: list[Any], log: Path) -> tuple[float, float]:
    """Run ``zipper ARGUMENTS``; return its peak memory in MB and its seconds.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", "zipper_jax.cli.main", *map(str, arguments)]
    began = time.monotonic()
    with log.open("wb") as out:
        child = os.posix_spawn(
            sys.executable,
            command,
            {**os.environ, "JAX_PLATFORMS": "cpu"},
            file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)],
        )
        _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: a recording was longer than the model's rows
        raise RuntimeError(f"{' '.join(command)}: status {status}\n{log.read_text(errors='replace')[-2000:]}")
    return usage.ru_maxrss / 1024, time.monotonic() - began  # Linux counts in KiB


def texts(path: Path, count: int) -> None:
    """Write rows of eight words, all different."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(count):
            words = [_WORDS[i] for i in rng.integers(len(_WORDS), size=7)]
            file.write(json.dumps({"text": " ".join([*words, str(number)])}) + "\n")


def recording(path: Path, corpus: Path, minutes: int) -> None:
    """Write the corpus's recordings, one behind another, as one file."""
    files = sorted((corpus / "audio").glob("*.flac"))
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as out:
        number = 0
        while out.frames < minutes * 60 * SAMPLE_RATE:
            out.write(load_audio(files[number % len(files)]))
            number += 1


def sentences(data: Path, out: Path, count: int) -> None:
    """Copy a prepared folder, with ``count`` test sentences."""
    shutil.copytree(data, out, ignore=shutil.ignore_patterns("rows", "*.jsonl"))
    (out / "examples").mkdir(exist_ok=True)
    lines = (data / "examples" / "test.jsonl").read_text().splitlines()
    with (out / "examples" / "test.jsonl").open("w") as file:
        for number in range(count):
            row = json.loads(lines[number % len(lines)])
            file.write(json.dumps(row | {"id": f"{row['id']}-{number}"}) + "\n")


CASES = (
    ("data import text", "rows", "data import text {home}/{n}.jsonl --out {home}/c{n}"),
    ("data prepare (text)", "rows", "data prepare --corpus {home}/c{n} --out {home}/p{n} --tasks text_lm"),
    ("data inspect (corpus)", "rows", "data inspect {home}/c{n}"),
    ("data inspect (prepared)", "rows", "data inspect {home}/p{n}"),
    ("data import audio", "minutes", "data import audio {home}/{n} --out {home}/a{n} --validation=0 --test=0"),
    (
        "data prepare (audio, given units)",
        "minutes",
        "data prepare --corpus {home}/a{n} --out {home}/u{n} --tokenizer {data} --tasks speech_lm",
    ),
    (
        "data prepare (audio, units fitted)",
        "minutes",
        "data prepare --corpus {home}/a{n} --out {home}/f{n} --tasks speech_lm --unit_features log-mel",
    ),
    ("transcribe", "minutes", "transcribe {home}/{n} --model {run} --out {home}/{n}.transcripts.jsonl"),
    (
        "eval --split",
        "sentences",
        "eval --run {run} --data {home}/test{n} --split test --sentences=0 --out {home}/e{n}",
    ),
)
"""(command, what grows, its arguments); later cases read what earlier ones wrote."""
SIZES = {"rows": ROWS, "sentences": SENTENCES, "minutes": MINUTES}


def make_inputs(run: Path, home: Path) -> None:
    """Write what the cases read."""
    for size in ROWS:
        texts(home / f"{size}.jsonl", size)
    for minutes in MINUTES:
        (home / f"{minutes}").mkdir()
        recording(home / f"{minutes}" / "long.wav", run.parent / "corpus", minutes)
    for count in SENTENCES:
        sentences(run.parent / "prepared", home / f"test{count}", count)


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| command | input, small and large | peak, MB | more per 1,000 |", "|---|---|---|---|"]
    for row in found["rows"]:
        small, large = row["sizes"]
        first, last = row["peak_mb"]
        more = max(0.0, last - first) / (large - small) * 1000
        per = "" if row["grows"] == "minutes" else f"{more:.1f} MB"
        each = f"{max(0.0, last - first) / (large - small):.1f} MB a minute" if row["grows"] == "minutes" else per
        lines.append(
            f"| `{row['command']}` | {small:,} and {large:,} {row['grows']} | {first:,.0f}, {last:,.0f} | {each} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/smoke/zipper"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="commands whose name has this; keeps the others of --out")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        before = json.loads(args.out.read_text())["rows"] if args.only and args.out.is_file() else []
        rows = [row for row in before if args.only not in row["command"]]
        with tempfile.TemporaryDirectory() as folder:
            make_inputs(args.run, Path(folder))
            places = {"home": folder, "run": args.run, "data": args.run.parent / "prepared"}
            for command, grows, arguments in CASES:
                if args.only not in command:
                    continue
                sizes = SIZES[grows]
                given = [[part.format(n=size, **places) for part in arguments.split()] for size in sizes]
                measured = [peak(one, Path(folder) / "log") for one in given]
                row = {"command": command, "grows": grows, "sizes": sizes}
                rows.append(row | {"peak_mb": [m for m, _ in measured], "seconds": [s for _, s in measured]})
                print(json.dumps(rows[-1]), flush=True)
        about = {"version": zipper_jax.__version__, "python": platform.python_version(), "machine": platform.machine()}
        args.out.write_text(json.dumps({**about, "cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

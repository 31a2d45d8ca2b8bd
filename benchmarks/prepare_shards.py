"""`zipper data prepare` in 1, 2 and 4 shards: equal bytes, hours of audio per core hour, memory of each step.

    python benchmarks/prepare_shards.py --out benchmarks/results/prepare_shards.json
    python benchmarks/prepare_shards.py --out benchmarks/results/prepare_shards.json --table

The corpus: recordings of 20 s at 16 kHz, FLAC, each joined from sentences of flite at speeds of their own. CPU seconds,
not seconds, are compared: shards run at the same time on whatever cores there are.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import zipper_jax
from zipper_jax.speech.audio import SAMPLE_RATE, load_audio, save_audio
from zipper_jax.speech.corpus import CorpusSettings, synthesise_corpus
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.speech.workers import parallel_map

SECONDS, SENTENCES = 20, 300
SMALL = 10  # the part of the corpus that memory is compared with
PAPER_HOURS = 60_000


def make_recording(sentences: str) -> Any:
    """Return the function that a worker runs: write recording (path, seed)."""
    files = sorted(Path(sentences).glob("*.flac"))
    spoken: dict[Path, np.ndarray] = {}

    def write(job: tuple[str, int]) -> None:
        rng, parts, size = np.random.default_rng(job[1]), [], 0
        while size < SECONDS * SAMPLE_RATE:
            file = files[rng.integers(len(files))]
            wave = spoken.setdefault(file, load_audio(file))
            places = np.arange(0, len(wave) - 1, rng.uniform(0.85, 1.15))
            parts.append(np.interp(places, np.arange(len(wave)), wave).astype(np.float32))
            size += len(parts[-1])
        save_audio(Path(job[0]), np.concatenate(parts)[: SECONDS * SAMPLE_RATE])

    return write


def make_corpus(root: Path, hours: float) -> dict[int, Path]:
    """Write the corpus and a smaller one; return part -> folder."""
    sentences = synthesise_corpus(
        root / "sentences",
        CorpusSettings(train=SENTENCES, validation=0, test=0, test_other=0, engine="flite", grammar="wide"),
    )
    (root / "audio").mkdir()
    names = [f"{number:06d}" for number in range(round(hours * 3600 / SECONDS))]
    jobs = [(str(root / "audio" / f"{name}.flac"), number) for number, name in enumerate(names)]
    target = f"{Path(__file__).stem}:make_recording"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    for _ in parallel_map(target, {"sentences": str(sentences / "audio")}, jobs):
        pass
    rows = [
        {"id": name, "split": "validation" if number % 100 == 99 else "train", "seconds": float(SECONDS)}
        | {"audio": str(root / "audio" / f"{name}.flac")}
        for number, name in enumerate(names)
    ]
    folders = {part: root / f"corpus{part}" for part in (1, SMALL)}
    for part, folder in folders.items():
        folder.mkdir()
        kept = rows[: len(rows) // part]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        assert len(read_manifest(folder)) == len(kept)
    return folders


def steps(corpus: Path, out: Path, shards: int) -> dict[str, Any]:
    """Run the three steps; return the CPU seconds, seconds and peak MB (of one process) of each."""
    command = [sys.executable, "-m", "zipper_jax.cli.main", "data", "prepare", "--corpus", str(corpus)]
    command += ["--out", str(out), "--tasks=speech_lm", "--speech_length=512", "--processes=1"]
    command += ["--unit_features=log-mel"]
    found = {}
    each = [f"--shard={index}/{shards}" for index in range(shards)]
    for name, options in (("fit", ["--fit"]), ("encode", each), ("finish", ["--finish"])):
        began, cpu, peak = time.monotonic(), 0.0, 0.0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        running = [
            subprocess.Popen([*command, option], env=environment, stderr=subprocess.PIPE, text=True)
            for option in options
        ]
        for process in running:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                assert process.stderr is not None
                raise RuntimeError(process.stderr.read()[-2000:])
            cpu, peak = cpu + usage.ru_utime + usage.ru_stime, max(peak, usage.ru_maxrss / 1024)
        found[name] = {"cpu_s": round(cpu, 1), "s": round(time.monotonic() - began, 1), "peak_mb": round(peak)}
    return found


def digest(folder: Path) -> str:
    """SHA-256 of all files of a folder, with their names."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def measure(root: Path, hours: float) -> dict[str, Any]:
    """Return what each number of shards took, and whether the bytes are equal."""
    corpora = make_corpus(root, hours)
    runs, digests = [], set()
    for shards in (1, 2, 4):
        runs.append({"shards": shards, **steps(corpora[1], root / f"p{shards}", shards)})
        digests.add(digest(root / f"p{shards}"))
        print(runs[-1], flush=True)
    sizes = {
        name: sum(path.stat().st_size for path in (root / "p1" / name).rglob("*") if path.is_file())
        for name in ("examples", "rows")
    }
    return {
        "hours": hours,
        "runs": runs,
        "small": {"hours": hours / SMALL, **steps(corpora[SMALL], root / "small", 1)},
        "identical": len(digests) == 1,
        "sizes": sizes,
        "version": zipper_jax.__version__,
        "cores": os.cpu_count(),
    }


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    hours = found["hours"]
    lines = [
        "| shards | fit, CPU s | encode, CPU s | hours per core hour | finish, CPU s | peak of a process, MB |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for run in found["runs"]:
        speed = hours / (run["encode"]["cpu_s"] / 3600)
        peaks = ", ".join(f"{name} {run[name]['peak_mb']}" for name in ("fit", "encode", "finish"))
        lines.append(
            f"| {run['shards']} | {run['fit']['cpu_s']:.0f} | {run['encode']['cpu_s']:.0f} | {speed:.0f} "
            f"| {run['finish']['cpu_s']:.0f} | {peaks} |"
        )
    small = found["small"]
    peaks = ", ".join(f"{name} {small[name]['peak_mb']}" for name in ("fit", "encode", "finish"))
    lines.append(f"| 1, of {small['hours']:g} hours | {small['fit']['cpu_s']:.0f} | {small['encode']['cpu_s']:.0f} | | "
                 f"{small['finish']['cpu_s']:.0f} | {peaks} |")  # fmt: skip
    slowest = max(run["encode"]["cpu_s"] for run in found["runs"]) / hours
    finish = max(run["finish"]["cpu_s"] for run in found["runs"]) / hours
    lines += [
        "",
        f"{hours:g} hours of audio, bytes {'equal' if found['identical'] else 'NOT EQUAL'}. {PAPER_HOURS:,} hours: "
        f"{slowest * PAPER_HOURS / 3600:.0f} core hours in the shards, {finish * PAPER_HOURS / 3600:.1f} hours of one "
        f"core in the finish, {sum(found['sizes'].values()) / hours * PAPER_HOURS / 1e9:.0f} GB.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=20.0)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), args.hours)
        args.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

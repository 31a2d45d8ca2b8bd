"""What a training step and a token spend their time on, on one TPU v5e, by the compiler's cycles; needs libtpu, no TPU.

    python benchmarks/profiles_tpu.py --out benchmarks/results/profiles_tpu.json            hours of compiling
    python benchmarks/profiles_tpu.py --out benchmarks/results/profiles_tpu.json --only decode
    python benchmarks/profiles_tpu.py --out benchmarks/results/profiles_tpu.json --table    stored results as Markdown

Each case is `zipper compile --profile` of a gin file beside this one: a step of the paper's Gecko/1B cut to four blocks
(four documents a row; under scan with `remat = "dots"`, unrolled with "none" or what the name says), a step of a plain
decoder of MaxText's default shape (one document a row), and a token of a tower of Gemma 2's 2 B shape, of 1 and 32
rows, in a span of the longest length. The floor of a token is the time to read the weights, in the dtype in which
inference holds them, and the caches once, at the memory's peak bandwidth.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from zipper_jax.sharding.chips import CHIPS

ROOT = Path(__file__).resolve().parents[1]
_CUT = ["--gin_file=benchmarks/gecko_1b_cut.gin", "--documents=4"]
_LONG = ["--gin.BATCH_SIZE=1", '--gin.TASK_FEATURE_LENGTHS={"text": 1024, "speech": 4096}']
_UNROLLED = "--gin.ZipperConfig.scan=False"
_NONE, _DOTS, _FULL = (f"--gin.ZipperConfig.remat='{policy}'" for policy in ("none", "dots", "full"))
_DENSE = ["--gin_file=benchmarks/dense_decoder.gin", "--documents=1"]
_DECODE = ["--gin_file=benchmarks/gemma2_2b_decode.gin", "--what=decode", "--output=text"]
CASES = {
    "gecko, scan": _CUT,
    "gecko, unrolled": [*_CUT, _UNROLLED, _NONE],
    "gecko, unrolled, dots": [*_CUT, _UNROLLED, _DOTS],
    "gecko, unrolled, full": [*_CUT, _UNROLLED, _FULL],
    "gecko, long rows, unrolled": [*_CUT, *_LONG, _UNROLLED, _NONE],
    "dense decoder, scan": _DENSE,
    "dense decoder, unrolled": [*_DENSE, _UNROLLED],
    "decode 1": [*_DECODE, "--gin.BATCH_SIZE=1"],
    "decode 32": [*_DECODE, "--gin.BATCH_SIZE=32"],
}


def compiled(arguments: list[str]) -> dict[str, Any]:
    """What `zipper compile --profile` writes as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        paths = [str(ROOT), str(ROOT / ".cache" / "libtpu"), os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, "-m", "zipper_jax.cli.main", "compile", *arguments]
        command += ["--topology=v5e:1x1", "--profile", f"--json={path}"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):  # 1: little memory is left
            sys.exit(done.stderr[-2000:])
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| | rows | ms | floor, ms | ratio | memory, GiB |", "|---|---|---|---|---|---|"]
    for name in (name for name in found if name.startswith("decode")):
        case = found[name]
        bandwidth = CHIPS[case["device"]].bandwidth
        assert bandwidth is not None
        floor, seconds = case["bounds"]["memory"] / bandwidth, case["profile"]["seconds"]
        cells = f"{seconds * 1e3:.1f} | {floor * 1e3:.1f} | {seconds / floor:.2f} | {case['peak'] / 2**30:.1f}"
        lines.append(f"| token | {name.split()[1]} | {cells} |")
    steps = {name: step for name, step in found.items() if not name.startswith("decode")}
    lines += ["", "| the step | ms | MFU | memory, GiB | compiled in, s |", "|---|---|---|---|---|"]
    for name, step in steps.items():
        seconds, chip = step["profile"]["seconds"], CHIPS[step["device"]]
        mfu = step["model_flops"] / chip.flops / seconds
        cells = f"{seconds * 1e3:.0f} | {mfu:.1%} | {step['peak'] / 2**30:.1f} | {step['compile_seconds']:.0f}"
        lines.append(f"| {name} | {cells} |")
    names = dict.fromkeys(part for step in steps.values() for part in step["profile"]["parts"])
    lines += ["", f"| part of the step, ms | {' | '.join(steps)} |", "|---" * (len(steps) + 1) + "|"]
    for part in names:
        times = [step["profile"]["parts"].get(part) for step in steps.values()]
        values = [f"{1e3 * t['seconds']:.1f} ({1e3 * t['ideal']:.1f})" if t else "" for t in times]
        lines.append(f"| {part} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> int:
    """Compile the cases, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="cases whose name has this; keeps the others of --out")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        found = json.loads(args.out.read_text()) if args.only and args.out.is_file() else {}
        for name in (name for name in CASES if args.only in name):
            found[name] = compiled(CASES[name])
            in_order = {name: found[name] for name in CASES if name in found}
            args.out.write_text(json.dumps(in_order, indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

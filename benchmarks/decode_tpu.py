"""Generating a token on one TPU v5e by the compiler's cycles: a tower of Gemma 2's 2 B shape; needs libtpu, no TPU.

    python benchmarks/decode_tpu.py --out benchmarks/results/decode_tpu.json           minutes of compiling
    python benchmarks/decode_tpu.py --out benchmarks/results/decode_tpu.json --table   stored results as Markdown

Each row is `zipper compile --what decode --profile` of benchmarks/gemma2_2b_decode.gin: time per token of a span of the
longest length, what is done once per span spread over it. The floor is the time to read the weights, in the dtype in
which inference holds them, and the caches once, at the memory's peak bandwidth.
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
ROWS = (1, 32)


def compiled(rows: int) -> dict[str, Any]:
    """What `zipper compile` writes as JSON, for a batch of ``rows``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        paths = [str(ROOT), str(ROOT / ".cache" / "libtpu"), os.environ.get("PYTHONPATH", "")]
        command = [
            sys.executable, "-m", "zipper_jax.cli.main", "compile", "--gin_file=benchmarks/gemma2_2b_decode.gin",
            f"--gin.BATCH_SIZE={rows}", "--what=decode", "--output=text", "--topology=v5e:1x1", "--profile",
            f"--json={path}",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):  # 1: little memory is left
            sys.exit(done.stderr[-2000:])
        return {"rows": rows, **json.loads(path.read_text())}


def table(found: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| rows | ms a token | floor, ms | ratio | memory, GiB |", "|---|---|---|---|---|"]
    for row in found:
        bandwidth = CHIPS[row["device"]].bandwidth
        assert bandwidth is not None
        floor, seconds = row["bounds"]["memory"] / bandwidth, row["profile"]["seconds"]
        cells = f"{seconds * 1e3:.1f} | {floor * 1e3:.1f} | {seconds / floor:.2f} | {row['peak'] / 2**30:.1f}"
        lines.append(f"| {row['rows']} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Compile all cases, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        args.out.write_text(json.dumps([compiled(rows) for rows in ROWS], indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

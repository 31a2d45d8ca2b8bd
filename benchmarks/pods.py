"""The shipped fusion runs compiled for TPU slices: memory, communication, time of a step, compile time; needs libtpu.

    python benchmarks/pods.py --out benchmarks/results/pods.json              all cases, one process each; takes hours
    python benchmarks/pods.py --out benchmarks/results/pods.json --only gecko
    python benchmarks/pods.py --out benchmarks/results/pods.json --table      print stored results as Markdown

Cases that the file already holds are skipped (--again compiles them again). Rows have four documents of equal length
where times are counted by the compiler's cycles (`zipper compile --profile`; not for TPU7x, whose clock is not known).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from zipper_jax.aot.bounds import Bounds, seconds
from zipper_jax.sharding.chips import GIB, chip


class Case(NamedTuple):
    """A training step of 512 rows on a slice, or with ``output`` generation of that modality.

    Attributes:
        run: Name of the gin file.
        topology: TPU slice.
        fsdp: Devices that parameters are sharded over in training.
        microbatches: Number of microbatches per step in training.
        output: Modality to generate; "": training.
        tensor: Devices of tensor parallelism in generation.
        rows: Sequences generated together.
    """

    run: str
    topology: str
    fsdp: int = 1
    microbatches: int = 1
    output: str = ""
    tensor: int = 1
    rows: int = 512

    @property
    def name(self) -> str:
        return f"{self.run} {self.topology}{f' decode {self.output}' if self.output else ''}"

    @property
    def arguments(self) -> list[str]:
        """Of `zipper`; where the clock is known, with the profile, in training for rows of four documents."""
        profile = [] if self.topology.startswith("tpu7x") else ["--profile"]
        if profile and not self.output:
            profile.append("--documents=4")
        return [
            "compile", "--topology", self.topology, f"--gin_file=runs/paper/{self.run}.gin", "--gin_file=xla/tpu.gin",
            *self._cut, *profile,
        ]  # fmt: skip

    @property
    def _cut(self) -> list[str]:
        if not self.output:
            return [f"--gin.FSDP={self.fsdp}", f"--gin.MICROBATCHES={self.microbatches}"]
        return [
            "--what=decode", f"--output={self.output}", f"--gin.TENSOR={self.tensor}", f"--gin.BATCH_SIZE={self.rows}",
            "--gin.MeshConfig.strategy=tensor",
        ]  # fmt: skip

    @property
    def how(self) -> str:
        """Sharding, for the table."""
        if self.output:
            return f"{self.output} for {self.rows} rows, tensor {self.tensor}"
        parts = f", {self.microbatches} microbatches" if self.microbatches > 1 else ""
        return f"training, fsdp {self.fsdp}{parts}"


CASES = (
    Case("gemma2_9b_1b", "v5e:16x16", 256, 1),
    Case("gecko_1b", "v5e:16x16", 256, 1),
    Case("tiny_128m", "v5e:4x4", 16, 8),
    Case("gecko_128m", "v5e:8x8", 64, 2),
    Case("gemma2_9b_1b", "v5p:4x4x4", 64, 2),
    Case("gecko_1b", "v6e:8x8", 64, 2),
    Case("tiny_128m", "v6e:4x4", 16, 8),
    Case("gecko_1b", "v5p:4x4x4", 64, 2),
    Case("tiny_128m", "v5p:2x2x1", 4, 16),
    Case("tiny_128m", "tpu7x:2x2x1", 8, 8),
    Case("gecko_128m", "v6e:8x8", 64, 2),
    Case("gecko_128m", "v5p:4x4x4", 64, 2),
    Case("gecko_1b", "v6e:2x2", output="speech", tensor=4, rows=64),
    Case("gemma2_9b_1b", "v5p:2x2x1", output="text", tensor=4, rows=64),
)


def main() -> int:
    """Compile missing cases, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if args.table:
        print(table(found))
        return 0
    failed = False
    for case in CASES:
        if args.only not in case.name or (case.name in found and not args.again):
            continue
        print(f"zipper {' '.join(case.arguments)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "found.json"
            command = [sys.executable, "-m", "zipper_jax.cli.main", *case.arguments, "--json", str(path)]
            failed |= subprocess.run(command, check=False).returncode != 0
            if path.is_file():
                result = {"command": f"zipper {' '.join(case.arguments)}", **json.loads(path.read_text())}
                if "profile" in result:
                    result["profile"] = {name: result["profile"][name] for name in ("seconds", "parts")}
                found = json.loads(args.out.read_text()) if args.out.is_file() else {}
                args.out.write_text(json.dumps({**found, case.name: result}, indent=2, sort_keys=True) + "\n")
    return int(failed)


def table(found: dict) -> str:
    """Return the results as Markdown."""
    lines = [
        "| run | slice | program | peak / limit, GiB | sent / asked for, GB "
        "| a step or token, ms (all overlaps – nothing does) | by cycles, ms | bound by | compiled in, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in sorted(CASES, key=lambda c: (c.run, c.topology)):
        if case.name in found:
            r = found[case.name]
            known = chip(r["device"])
            assert known is not None
            cycles = _figures(r["profile"]["seconds"] * 1e3) if "profile" in r else ""
            each = seconds(Bounds(**r["bounds"]), known, r["sent"])
            lines.append(
                f"| {case.run} | {case.topology} | {case.how} "
                f"| {r['peak'] / GIB:.1f} / {r['limit'] / GIB:.1f} ({r['peak'] / r['limit']:.0%}) "
                f"| {_figures(r['sent'] / 1e9)} / {_figures(r['bounds']['network'] / 1e9)} "
                f"| {_figures(max(each.values()) * 1e3)} – {_figures(sum(each.values()) * 1e3)} "
                f"| {cycles} | {max(each, key=lambda name: each[name])} "
                f"| {r['compile_seconds']:.0f} |"
            )
    return "\n".join(lines)


def _figures(value: float) -> str:
    """Format with at least two significant digits and, from 1 on, at most one decimal."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


if __name__ == "__main__":
    sys.exit(main())

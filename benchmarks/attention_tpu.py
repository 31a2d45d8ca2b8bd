"""Interval attention on TPUs by the compiler's cycles: their bundles x the blocks that run; needs libtpu, no TPU.

    python benchmarks/attention_tpu.py --out benchmarks/results/attention_tpu.json           all cases, minutes
    python benchmarks/attention_tpu.py --out benchmarks/results/attention_tpu.json --sweep   block sizes too
    python benchmarks/attention_tpu.py --out benchmarks/results/attention_tpu.json --table   stored results as Markdown

A figure is a count, not a measurement: scheduled bundles of each loop body (at least the cycles its matrix products
take at the chip's peak) times the key blocks that run for packed rows, plus bundles per grid step, plus transfers that
a step's arithmetic does not hide at the memory's peak bandwidth. Three packings of four documents per row:

    uneven   55, 25, 15 and 5 % of the row
    even     a quarter each
    random   cut at uniformly random places; the mean over 32 draws
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zipper_jax.aot.bundles import dump_flags, schedules
from zipper_jax.aot.kernels import NAMES, Kernel, kernel_seconds
from zipper_jax.ops.interval_attention.pallas_tpu import Blocks, Sizes, block_sizes
from zipper_jax.sharding.chips import CHIPS, Chip

ROOT = Path(__file__).resolve().parents[1]
POSITIONS = 8192  # rows x T
PACKINGS = ("uneven", "even", "random")


class Generation(NamedTuple):
    """A TPU: its rates, and a topology of one device."""

    chip: Chip
    topology: str


GENERATIONS = {
    "v5e": Generation(CHIPS["TPU v5 lite"], "v5e:1x1"),
    "v5p": Generation(CHIPS["TPU v5"], "v5p:1x1x1"),
    "v6e": Generation(CHIPS["TPU v6 lite"], "v6e:1x1"),
}


class Case(NamedTuple):
    """8,192 positions of one attention, in rows of ``t``."""

    tpu: str
    t: int
    n: int = 16
    k: int = 16
    h: int = 128
    softcap: float | None = None
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        cap = f" softcap {self.softcap:g}" if self.softcap else ""
        return f"{self.tpu} T{self.t} N{self.n} K{self.k} H{self.h} {self.dtype}{cap}"

    @property
    def sizes(self) -> Sizes:
        rows = POSITIONS // self.t
        return block_sizes((rows, self.t, self.n, self.h), (rows, self.t, self.k, self.h), self.dtype)

    def kernel(self, backward: bool, sizes: Sizes) -> Kernel:
        item, rows, blocks = 2 if self.dtype == "bfloat16" else 4, POSITIONS // self.t, sizes[backward]
        return Kernel(rows, self.n, self.k, self.t, self.t, self.h, item, backward, True, blocks, sizes.heads)


CASES = [
    *(Case("v5e", t) for t in (2048, 4096, 8192)),
    *(Case(tpu, t) for tpu in ("v5p", "v6e") for t in (2048, 8192)),
    Case("v5e", 2048, n=8, k=4, h=256, softcap=50.0),
    Case("v5e", 2048, n=16, k=4, h=64),
    Case("v5e", 2048, dtype="float32"),
]
SWEPT = [
    Case("v5e", 2048),
    Case("v5e", 2048, softcap=50.0),
    Case("v5e", 2048, n=8, k=8, h=256),
    Case("v5e", 2048, n=8, k=8, h=256, softcap=50.0),
]


# ---- compiling, in a process of its own: libtpu reads its flags once -------------------------------------------------


def compile_case(case: Case, sizes: Sizes) -> dict[str, Any]:
    """The kernels' schedules, and the compiler's estimate of everything around them."""
    with tempfile.TemporaryDirectory() as folder:
        libtpu = ROOT / ".cache" / "libtpu"
        paths = [str(ROOT), str(libtpu), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "LIBTPU_INIT_ARGS": dump_flags(folder),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        command = [sys.executable, __file__, "--child", json.dumps([case, sizes])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{case.name}: {done.stderr[-2000:]}")
        return {**json.loads(done.stdout.splitlines()[-1]), "schedules": schedules(folder)}


def child(case: Case, sizes: Sizes) -> None:
    """Compile forward and backward for one chip; prints JSON."""
    import jax
    from jax.experimental.layout import Format, Layout
    from jax.sharding import SingleDeviceSharding

    from zipper_jax.aot.topology import devices
    from zipper_jax.ops.interval_attention.pallas_tpu import attention

    sharding = SingleDeviceSharding(devices(GENERATIONS[case.tpu].topology)[0])
    b = POSITIONS // case.t

    def like(*shape: int, dtype: str = case.dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def both(q: Any, k: Any, v: Any, start: Any, end: Any, g: Any) -> Any:
        def call(q: Any, k: Any, v: Any) -> Any:
            return attention(q, k, v, start, end, scale=case.h**-0.5, softcap=case.softcap, sizes=sizes)[0]

        out, pull = jax.vjp(call, q, k, v)
        return out, pull(g)

    # As the kernels read them, heads first: in a model the projections around write and read this layout.
    by_head = Format(Layout((2, 0, 1, 3)), sharding)
    q, kv = like(b, case.t, case.n, case.h), like(b, case.t, case.k, case.h)
    ranges = [like(b, case.t, dtype="int32")] * 2
    placed = (by_head, by_head, by_head, sharding, sharding, by_head)
    program = jax.jit(both, in_shardings=placed, out_shardings=(by_head, (by_head,) * 3))
    text = program.lower(q, kv, kv, *ranges, q).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    around = sum(int(cycles) for cycles in re.findall(r'"estimated_cycles":"(\d+)"', entry))
    print(json.dumps({"around": around, "libtpu": version("libtpu"), "jax": version("jax")}))


# ---- counting --------------------------------------------------------------------------------------------------------


def documents(packing: str, t: int) -> Iterator[list[np.ndarray]]:
    """Draws of a packing: per row the boundaries of its documents."""
    rng, rows = np.random.default_rng(0), POSITIONS // t
    shares = {"uneven": [0.55, 0.25, 0.15, 0.05], "even": [0.25] * 4}
    if packing in shares:
        yield [np.round(np.cumsum([0, *shares[packing]]) * t).astype(int)] * rows
        return
    for _ in range(32):
        yield [np.concatenate([[0], np.sort(rng.integers(1, t, 3)), [t]]) for _ in range(rows)]


def ranges(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Causal ranges of packed documents, [rows, T] each."""
    start = np.stack([np.repeat(cuts[:-1], np.diff(cuts)) for cuts in rows]).astype(np.int32)
    return start, np.broadcast_to(np.arange(1, start.shape[1] + 1, dtype=np.int32), start.shape)


def ideal_seconds(case: Case, start: np.ndarray, end: np.ndarray) -> float:
    """Visible pairs at the peak of the matrix units, forward and backward."""
    return 14 * float((end - start).sum()) * case.n * case.h / GENERATIONS[case.tpu].chip.flops


def figures(case: Case, sizes: Sizes, compiled: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a case by packing."""
    found = {re.sub(r"_\d+x\d+x\d+(\.\d+)?$", "", name): schedule for name, schedule in compiled["schedules"].items()}
    known = GENERATIONS[case.tpu].chip
    assert known.clock is not None
    out: dict[str, Any] = {
        "sizes": sizes._asdict(),
        "schedules": {name: found[name]._asdict() for name in NAMES},
        "around_ms": compiled["around"] / known.clock * 1e3,
        "libtpu": compiled["libtpu"],
        "jax": compiled["jax"],
        "by": "the compiler's cycles, not measured",
    }
    for packing in PACKINGS:
        parts = []
        for rows in documents(packing, case.t):
            x = ranges(rows)
            each = [kernel_seconds(case.kernel(name == NAMES[1], sizes), found[name], *x, known) for name in NAMES]
            parts.append([*each, ideal_seconds(case, *x)])
        forward, backward, ideal = (float(1e3 * x) for x in np.mean(parts, axis=0))
        out[packing] = {
            "forward_ms": forward, "backward_ms": backward, "total_ms": forward + backward, "ideal_ms": ideal,
        }  # fmt: skip
    return out


def table(results: dict[str, Any]) -> Iterator[str]:
    """Stored results as Markdown."""
    yield "| case | forward + backward, ms (uneven) | even | random | ideal (uneven) | around, ms |"
    yield "|---|---|---|---|---|---|"
    for name, r in results["cases"].items():
        parts = f"{r['uneven']['forward_ms']:.2f} + {r['uneven']['backward_ms']:.2f} = {r['uneven']['total_ms']:.2f}"
        others = " | ".join(f"{r[packing]['total_ms']:.2f}" for packing in ("even", "random"))
        yield f"| {name} | {parts} | {others} | {r['uneven']['ideal_ms']:.2f} | {r['around_ms']:.2f} |"
    for name, each in results.get("sweep", {}).items():
        yield f"\n{name}, T 2048 and blocks of queries x keys, random documents, ms:\n"
        yield "| blocks | forward | backward |"
        yield "|---|---|---|"
        for blocks, r in each.items():
            yield f"| {blocks} | {r['forward_ms']:.2f} | {r['backward_ms']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "attention_tpu.json")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--sweep", action="store_true", help="also compare block sizes")
    parser.add_argument("--table", action="store_true", help="print stored results as Markdown")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        case, sizes = json.loads(args.child)
        forward, backward, heads = sizes
        child(Case(*case), Sizes(Blocks(*forward), Blocks(*backward), heads))
        return
    results = json.loads(args.out.read_text()) if args.out.is_file() else {"cases": {}}
    if not args.table:
        for case in CASES:
            if args.only in case.name:
                results["cases"][case.name] = figures(case, case.sizes, compile_case(case, case.sizes))
                write(args.out, results)
        for case in SWEPT if args.sweep else []:
            each = results.setdefault("sweep", {}).setdefault(case.name, {})
            for blocks in (Blocks(*x) for x in product((128, 256, 512), (256, 512))):
                sizes = Sizes(blocks, blocks)
                each["x".join(map(str, blocks))] = figures(case, sizes, compile_case(case, sizes))["random"]
                write(args.out, results)
    print("\n".join(table(results)))


def write(path: Path, results: dict[str, Any]) -> None:
    """Store the results."""
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

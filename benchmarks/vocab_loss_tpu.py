"""The vocabulary loss on one TPU v5e by the compiler's cycles: from all logits, and in chunks; needs libtpu.

    python benchmarks/vocab_loss_tpu.py --out benchmarks/results/vocab_loss_tpu.json      a minute of compiling
    python benchmarks/vocab_loss_tpu.py --out benchmarks/results/vocab_loss_tpu.json --table

Loss, accuracy and gradients of 4,096 tokens. Nothing runs: times are the sum of ``estimated_cycles`` in the optimised
program, and of the kernel's bundles times its blocks (at least what their products take at the chip's peak), loops
counted as often as they run, a branch taken only for extreme logits not counted, at 1.5 GHz. Bytes are those of
products and passes over logits and tables: the shapes of operands and results of the operations of at least a million
cycles, in the same count; of the kernel, what it moves between memory and chip.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from zipper_jax.aot import topology
from zipper_jax.aot.bundles import dump_flags, schedules
from zipper_jax.aot.hlo import size_of
from zipper_jax.aot.kernels import kernel_costs, vocab_calls

TOKENS, VOCABULARY, EMBED_DIM = 4096, 256_000, 2304
CLOCK = 1.5e9
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_WHILE = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")


class Case(NamedTuple):
    """One program.

    Attributes:
        loss: "logits"; "chunks": `ops.vocab_loss` without its kernel; "kernel".
        trained: Whether the table gets a gradient.
        table: Dtype of the stored table; products are bfloat16.
        softcap: Of the logits.
    """

    loss: str
    trained: bool
    table: str
    softcap: float | None = None

    @property
    def name(self) -> str:
        cap = f", capped at {self.softcap:g}" if self.softcap else ""
        return f"{'trained' if self.trained else 'frozen'} {self.table} table{cap}, {self.loss}"


CASES = [
    Case(loss, trained, table, softcap)
    for trained, table, softcap in (
        (False, "bfloat16", None),
        (False, "bfloat16", 30.0),
        (False, "float32", None),
        (True, "float32", None),
    )
    for loss in ("logits", "chunks", "kernel")[: 2 if trained else 3]
]


def main() -> int:
    """Compile all cases, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported, so that libtpu does not search for a TPU
        os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
        dumped = tempfile.mkdtemp()
        os.environ["LIBTPU_INIT_ARGS"] = dump_flags(dumped)
        device = topology.devices("v5e:2x2")[0]
        found = {
            "command": f"python benchmarks/vocab_loss_tpu.py --out {args.out}",
            "jax": version("jax"),
            "libtpu": version("libtpu"),
            "device": "v5e",
            "tokens": TOKENS,
            "vocabulary": VOCABULARY,
            "embed_dim": EMBED_DIM,
            "cases": {case.name: measure(case, device, Path(dumped)) for case in CASES},
        }
        shutil.rmtree(dumped)
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(json.loads(args.out.read_text(encoding="utf-8"))))
    return 0


def measure(case: Case, device: Any, dumped: Path) -> dict[str, float]:
    """Milliseconds by cycles, GB moved, GB of temporary memory, and milliseconds of the products at the chip's peak."""
    for path in dumped.iterdir():  # of the case before
        path.unlink()
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from zipper_jax.ops.losses import cross_entropy
    from zipper_jax.ops.vocab_loss import OutputHead, vocab_loss
    from zipper_jax.sharding.chips import chip

    head = OutputHead(softcap=case.softcap, implementation="auto" if case.loss == "kernel" else "xla")

    def loss(hidden: Any, table: Any, targets: Any, weights: Any) -> Any:
        if case.loss != "logits":
            found = vocab_loss(hidden, [table], targets, weights, head)
        else:
            products = jnp.einsum("BTD,VD->BTV", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
            found = cross_entropy(head.logits(products)[0], targets, weights)
        return found.total, (found.nll, found.correct)

    def array(shape: tuple[int, ...], dtype: str) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    tokens = (4, TOKENS // 4)
    arrays = (
        array((*tokens, EMBED_DIM), "bfloat16"),
        array((VOCABULARY, EMBED_DIM), case.table),
        array(tokens, "int32"),
        array(tokens, "float32"),
    )
    step = jax.value_and_grad(loss, argnums=(0, 1) if case.trained else 0, has_aux=True)
    compiled = jax.jit(step).lower(*arrays).compile()
    known, text = chip(device.device_kind), compiled.as_text()
    assert known is not None
    calls, costs = vocab_calls(text), kernel_costs(text, schedules(dumped), known, documents=1)
    kernels = {name: (costs[name].cycles, round(call.bytes_moved)) for name, call in calls.items()}
    assert bool(kernels) == (case.loss == "kernel")
    cycles, moved = counted(text, kernels)
    products = (3 if case.trained else 2) * 2 * TOKENS * VOCABULARY * EMBED_DIM
    return {
        "milliseconds": round(1e3 * cycles / CLOCK, 2),
        "gigabytes_moved": round(moved / 1e9, 2),
        "gigabytes_temporary": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 2),
        "milliseconds_of_products_at_peak": round(1e3 * products / known.flops, 2),
    }


def counted(text: str, kernels: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Cycles, and bytes of operands and results of the costly operations, of one run of an optimised program.

    ``kernels``: instruction -> cycles and bytes of one call.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            name = begins[2]
            computations[name] = []
            entry = name if begins[1] else entry
        elif name and " = " in line:
            computations[name].append(line)

    def walk(name: str, times: int) -> Iterator[tuple[int, int]]:
        types = dict(re.findall(r"%?([\w.\-]+) = (\([^=]*?\)|\S+) [\w\-]+\(", "\n".join(computations[name])))
        for line in computations[name]:
            if loop := _WHILE.search(line):
                constants = re.findall(r"constant\((\d+)\)", "\n".join(computations[loop[1]]))
                yield from walk(loop[2], times * int(max(constants, key=int)))
            elif (kernel := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)) and kernel[1] in kernels:
                cycles, size = kernels[kernel[1]]
                yield times * cycles, times * size
            elif found := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles = int(found[1])
                result, operands = re.findall(r" = (\([^=]*?\)|\S+) [\w\-]+\(([^)]*)\)", line)[0]
                size = size_of(result) + sum(size_of(types.get(o, "")) for o in re.findall(r"%([\w.\-]+)", operands))
                yield times * cycles, times * size * (cycles >= 1_000_000)

    totals = list(walk(entry, 1))
    return sum(cycles for cycles, _ in totals), sum(size for _, size in totals)


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| case | ms by cycles | products at peak, ms | moved, GB | temporary, GB |", "|---|---|---|---|---|"]
    for name, case in found["cases"].items():
        lines.append(
            f"| {name} | {case['milliseconds']:.1f} | {case['milliseconds_of_products_at_peak']:.1f} "
            f"| {case['gigabytes_moved']:.1f} | {case['gigabytes_temporary']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

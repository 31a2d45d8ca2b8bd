"""MaxText's training step of its default dense decoder, on one TPU v5e, by the compiler's cycles; needs libtpu, no TPU.

    python benchmarks/maxtext_step.py --python PYTHON --out benchmarks/results/maxtext_step.json    PYTHON has MaxText
    python benchmarks/maxtext_step.py --out benchmarks/results/maxtext_step.json --table            beside ours

4 blocks, 2,048 wide, 16 heads of 128, feed-forward 5,632, vocabulary 32,768, 8 rows of 2,048 in bfloat16, Adam, scanned
blocks, each recomputed in the backward pass: the shape of benchmarks/dense_decoder.gin, the rest as MaxText has it,
splash attention too. The optimised program and the schedules of its kernels are read by the code that profiles ours
(`zipper_jax.aot.profile`). A call of a splash kernel takes the bundles of a block times the blocks up to the diagonal,
or what its products take at the chip's peak if that is longer; blocks beyond, which its grid also visits, are free.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from zipper_jax.aot import bundles, profile
from zipper_jax.aot.kernels import Cost
from zipper_jax.sharding.chips import CHIPS

ROOT = Path(__file__).resolve().parents[1]
OURS = ROOT / "benchmarks" / "results" / "profiles_tpu.json"
DEVICE = "TPU v5 lite"
CHIP = CHIPS[DEVICE]
ROWS, LENGTH, HEADS, HEAD_DIM, BLOCK = 8, 2048, 16, 128, 512
OPTIONS = {
    "run_name": "x",
    "enable_checkpointing": False,
    "dataset_type": "synthetic",
    "skip_jax_distributed_system": True,
    "internal_compile": True,
    "internal_compile_num_devices": 1,
    "compile_topology": "v5e:2x2",
    "compile_topology_num_slices": 1,
    "base_num_decoder_layers": 4,
    "base_mlp_dim": 5632,
    "vocab_size": 32768,
    "per_device_batch_size": ROWS,
    "max_target_length": LENGTH,
    "attention": "flash",
}
CHILD = """
import sys
from types import SimpleNamespace
from jax.experimental import topologies, xla_metadata
if not hasattr(xla_metadata, "must_fuse_call"):  # of later jax; a hint to the compiler
    xla_metadata.must_fuse_call = lambda function, *_, **__: function
from maxtext.trainers.pre_train import train_compile
compile_step, described = train_compile.jit_and_compile, topologies.get_topology_desc
def one(platform, topology_name, **_):
    devices = described(platform=platform, topology_name=topology_name).devices
    return SimpleNamespace(devices=list(devices)[:1])
def kept(*args, **kwargs):
    compiled = compile_step(*args, **kwargs)
    open(sys.argv[1], "w").write(compiled.as_text())
    sys.exit(0)
train_compile.get_topology_desc, train_compile.jit_and_compile = one, kept
train_compile.main(["train_compile", *sys.argv[2:]])
"""
"""MaxText's own tool for one device, which then writes the program."""


def compiled(python: Path, folder: Path) -> str:
    """MaxText's optimised program; the schedules of its kernels are dumped into ``folder``."""
    hlo = folder / "step.hlo"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / ".cache" / "libtpu"),
        "JAX_PLATFORMS": "cpu",
        "DECOUPLE_GCLOUD": "TRUE",
        "TPU_SKIP_MDS_QUERY": "1",
        "LIBTPU_INIT_ARGS": bundles.dump_flags(str(folder)),
    }
    options = [f"{name}={value}" for name, value in OPTIONS.items()] + [f"base_output_directory={folder}"]
    done = subprocess.run(
        [python, "-c", CHILD, hlo, *options], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if not hlo.is_file():
        sys.exit(done.stderr[-4000:])
    return hlo.read_text()


def splash(hlo: str, dumped: Path) -> dict[str, Cost]:
    """Instruction -> cost of one call, of the program's custom kernels; each has all rows and heads of a block."""
    known, found = bundles.schedules(dumped), {}
    assert CHIP.clock is not None
    side = LENGTH // BLOCK
    blocks = ROWS * HEADS * side * (side + 1) // 2
    for match in re.finditer(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*custom_call_target=\"tpu_custom_call\".*$", hlo, re.M):
        name = match[1]
        products = 2 if "fwd" in match[0] else 4 if "dkv" in match[0] else 3  # of the gradients: dK and dV, dQ
        least = products * BLOCK * BLOCK * HEAD_DIM * 2 / (CHIP.flops / CHIP.clock)
        scheduled = known.get(name) or known[name.partition(".")[0]]
        step = scheduled.step + sum(scheduled.loops)
        pairs = ROWS * HEADS * LENGTH * (LENGTH + 1) / 2
        found[name] = Cost(round(blocks * max(step, least)), 2 * products * pairs * HEAD_DIM)
        print(f"{name}: {step} bundles a block, {blocks} blocks")
    return found


def table(found: dict[str, Any]) -> str:
    """The results as Markdown, beside our own."""
    ours = json.loads(OURS.read_text())
    rows = {"MaxText": found["profile"]} | {
        f"ours, {how}": ours[f"dense decoder, {how}"]["profile"] for how in ("scan", "unrolled")
    }
    lines = ["| the step | ms | over MaxText's |", "|---|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['seconds'] * 1e3:.0f} | {row['seconds'] / found['profile']['seconds']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Compile, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="of an environment with MaxText 0.2.5 and jax 0.10.2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        with tempfile.TemporaryDirectory() as folder:
            hlo = compiled(args.python, Path(folder))
            kernels = splash(hlo, Path(folder))
        read = profile.profile(hlo, DEVICE, kernels)
        print("\n".join(profile.lines(read, CHIP, None, "step")))
        seconds = sum(cost.cycles for cost in kernels.values()) / read.clock
        found = {"maxtext": "0.2.5", "options": OPTIONS, "splash_seconds_once": seconds}
        args.out.write_text(json.dumps(found | {"profile": profile.as_json(read, CHIP)}, indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()

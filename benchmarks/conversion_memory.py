"""Peak memory and time of `zipper convert from-hf` on a random checkpoint of about 2 GB (bfloat16, Llama architecture).

    python benchmarks/conversion_memory.py --out benchmarks/results/conversion_memory.json

The conversion runs in a separate process, which reports its peak resident memory (Linux).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from zipper_jax.checkpoint.safetensors_files import FILE, Writer
from zipper_jax.conversion.hugging_face import read_tower
from zipper_jax.conversion.to_hf import HuggingFacePlan
from zipper_jax.conversion.to_hf import plan as plan_to_hf

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 20,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
# The process reads its own VmHWM, because the kernel's peak of a child includes memory of the parent.
CHILD = """
import re, sys
from zipper_jax.cli.main import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(status)
"""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Shapes:
    """Weights with shapes and dtypes, but without content."""

    def __init__(self, shapes):
        self._shapes = shapes
        self.names = sorted(shapes)

    def shape(self, name):
        return self._shapes[name]

    def dtype(self, name):
        return BFLOAT16

    def read(self, name):
        raise NotImplementedError


def made_checkpoint(folder: Path) -> int:
    """Write config.json and random bfloat16 weights; return their size in bytes."""
    from zipper_jax.conversion.from_hf import tower_shapes

    tower = read_tower(CONFIG, "config.json")[1]
    shapes = {f"towers/text/{leaf}": shape for leaf, shape in tower_shapes(tower).items()}
    plan: HuggingFacePlan = plan_to_hf(Shapes(shapes), "text", tower)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    with Writer(folder / FILE, {name: (BFLOAT16, shape) for name, shape in plan.tensors.items()}, {}) as writer:
        for name, shape in plan.tensors.items():
            bits = rng.integers(0x3C00, 0x3D00, shape, dtype=np.uint16)  # bfloat16 near 0.01
            writer.write(name, bits.view(BFLOAT16))
    return (folder / FILE).stat().st_size


def measure(folder: Path) -> dict[str, float]:
    """Return the size of the checkpoint, and peak resident bytes and seconds of the conversion."""
    source = folder / "hf"
    source.mkdir()
    size = made_checkpoint(source)
    command = [sys.executable, "-c", CHILD, "convert", "from-hf", str(source), "--units", "31998"]
    begun = time.monotonic()
    done = subprocess.run([*command, "--out", str(folder / "tower")], check=True, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    peak = int(done.stderr.split()[-1]) * 1024
    return {"checkpoint_bytes": size, "peak_bytes": peak, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        found = measure(folder)
    finally:
        shutil.rmtree(folder)
    text = json.dumps(found, indent=2)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()

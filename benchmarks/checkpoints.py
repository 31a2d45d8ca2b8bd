"""Cost of a checkpoint when most of the model is frozen, in seconds and bytes, compared with training all parameters.

    python benchmarks/checkpoints.py [--width 512] [--out benchmarks/results/checkpoints.json]

The frozen tower has about nine times the parameters of the rest. Each figure is the median of five synchronous saves to
local disk after a warm-up; the first save, which also writes the frozen part, is reported separately.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax

from zipper_jax.checkpoint.checkpoints import Checkpoints, restore_step
from zipper_jax.models import zipper
from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.sharding.rules import MeshConfig
from zipper_jax.training import program
from zipper_jax.training.config import DataConfig, SaveCheckpointConfig, TrainConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.utils.trees import flatten


def model(width: int) -> ZipperConfig:
    def tower(layers: int, width: int) -> TowerConfig:
        return TowerConfig(1024, layers, width, num_heads=8, num_kv_heads=8, head_dim=width // 8, mlp_dim=4 * width)

    return ZipperConfig(
        towers={"text": tower(12, width), "speech": tower(3, width // 2)},
        modalities={"text": ModalityConfig("text", 1024), "speech": ModalityConfig("speech", 1024)},
        zips=(ZipConfig(("speech", "text"), {"speech": 1, "text": 5}, into=("speech",)),),
        input_projections={"speech": ProjectionConfig()},
    )


def measure(config: TrainConfig, folder: Path, repeats: int) -> dict:
    built = program.build(config, 1)
    state = built.start(zipper.init_params(config.model, 0))
    first, later, steps = 0.0, [], range(1, repeats + 2)
    with Checkpoints(folder, config.save) as checkpoints:
        checkpoints.keep_frozen(state.frozen)
        for step in steps:
            state = state._replace(step=jax.device_put(jax.numpy.int32(step), state.step.sharding))
            jax.block_until_ready(state)
            began = time.perf_counter()
            checkpoints.save(state, {})
            checkpoints.wait()
            later.append(time.perf_counter() - began)
            first = first or later[-1]
    began = time.perf_counter()
    jax.block_until_ready(restore_step(folder, built.like, steps[-1])[0])

    def size(path: Path) -> int:
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())

    return {
        "trained_parameters": sum(leaf.size for leaf in state.trainable.values()),
        "frozen_parameters": sum(leaf.size for leaf in state.frozen.values()),
        "first_save_seconds": first,
        "save_seconds": statistics.median(later[1:]),
        "restore_seconds": time.perf_counter() - began,
        "bytes_per_step": size(folder / "checkpoints" / str(steps[-1])),
        "bytes_frozen_once": size(folder / "frozen"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/checkpoints.json")
    args = parser.parse_args()
    results = {"width": args.width, "repeats": args.repeats, "device": jax.devices()[0].device_kind}
    for name, freeze in (("frozen", FreezeConfig(towers=("text",))), ("whole", FreezeConfig())):
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                model=model(args.width),
                data=DataConfig("unused", "asr", {"text": 8, "speech": 8}),
                model_dir=folder,
                steps=10,
                batch_size=1,
                mesh=MeshConfig(data=1),
                freeze=freeze,
                save=SaveCheckpointConfig(asynchronous=False),
            )
            results[name] = measure(config, Path(folder), args.repeats)
    total = sum(leaf.size for leaf in flatten(zipper.abstract_params(model(args.width))).values())
    results["parameters"] = total
    results["save_seconds_ratio"] = results["frozen"]["save_seconds"] / results["whole"]["save_seconds"]
    results["bytes_per_step_ratio"] = results["frozen"]["bytes_per_step"] / results["whole"]["bytes_per_step"]
    Path(args.out).write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

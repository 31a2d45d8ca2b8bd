"""Zipper and Single Decoder at equal tower sizes: FLOP and measured time per example, training and decoding.

    python benchmarks/compute.py --out benchmarks/results/compute.json            measure the cpu size of the findings
    python benchmarks/compute.py --out benchmarks/results/compute.json --table    print stored results as Markdown

Weights are random, because time does not depend on them (decoding always generates the maximum length). The models
alternate in one process after a warm-up; figures are medians and ratios of medians. One Single Decoder has the size of
the text tower (as in the paper), another that of the speech tower.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zipper_jax.decoding.generate import Generator
from zipper_jax.models import zipper
from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.sequences import Place, fill_template, rows_to_towers
from zipper_jax.tasks import TASKS
from zipper_jax.training.config import DataConfig, TrainConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.training.program import build

SIZES = {"text": (256, 4, 64, 2), "speech": (130, 4, 96, 3)}  # vocab_size, num_layers, embed_dim, num_heads
CONTENT = {"text": 7, "speech": 34}  # tokens of a mean sentence of the findings
LENGTHS = {"text": 32, "speech": 128}
PER_ROW, ROWS, GENERATED = 3, 8, 32
"""Examples per row, rows per step, rows generated per batch."""


def tower(name: str, ids: int | None = None) -> TowerConfig:
    vocabulary, layers, width, heads = SIZES[name]
    return TowerConfig(ids or vocabulary, layers, width, heads, heads, 32, 2 * width)


def models() -> dict[str, tuple[ZipperConfig, dict[str, int], tuple[str, ...]]]:
    """Return name -> (model, positions of a row, frozen towers)."""
    towers = {name: tower(name) for name in SIZES}
    own = {name: ModalityConfig(name, SIZES[name][0]) for name in SIZES}
    compute: dict[str, Any] = {"scan": False}
    pairs = tuple((n, n) for n in range(1, 5))
    joined = ZipperConfig(
        towers, own, (ZipConfig(("text", "speech"), pairs=pairs),),
        {name: ProjectionConfig() for name in SIZES}, **compute,
    )  # fmt: skip
    ids = sum(SIZES[name][0] for name in SIZES)
    shared = {
        "text": ModalityConfig("decoder", SIZES["text"][0]),
        "speech": ModalityConfig("decoder", SIZES["speech"][0], offset=SIZES["text"][0]),
    }
    slots = {"decoder": sum(LENGTHS.values())}
    found: dict[str, tuple[ZipperConfig, dict[str, int], tuple[str, ...]]] = {
        "zipper": (joined, LENGTHS, ("text",)),
        "zipper, both towers frozen": (joined, LENGTHS, ("text", "speech")),
    }
    for name in SIZES:
        single = ZipperConfig({"decoder": tower(name, ids)}, shared, **compute)
        found[f"single decoder, {name} tower's size"] = (single, slots, ())
    return found


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return 0
    found = measure(args.repeats)
    args.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(table(found))
    return 0


def measure(repeats: int) -> dict[str, Any]:
    """Measure every model, alternating between them; return counts and medians."""
    jobs: dict[str, dict[str, Callable[[], Any]]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, (config, lengths, frozen) in models().items():
        jobs[name], rows[name] = _jobs(config, lengths, frozen)
    seconds: dict[str, dict[str, list[float]]] = {name: {what: [] for what in own} for name, own in jobs.items()}
    for repeat in range(repeats + 1):
        for name, own in jobs.items():
            for what, job in own.items():
                began = time.perf_counter()
                jax.block_until_ready(job())
                if repeat:  # the first is the warm-up
                    seconds[name][what].append(time.perf_counter() - began)
    examples = {"training": PER_ROW * ROWS, "text": GENERATED, "speech": GENERATED}
    for name, own_seconds in seconds.items():
        for what, times in own_seconds.items():
            rows[name][f"{what}_ms"] = 1e3 * statistics.median(times) / examples[what]
    device = jax.devices()[0].device_kind
    return {"rows": rows, "device": device, "machine": platform.machine(), "repeats": repeats, "jax": jax.__version__}


def _jobs(
    config: ZipperConfig, lengths: dict[str, int], frozen: tuple[str, ...]
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Return the timed functions and the counts of one model."""
    train = TrainConfig(
        config, DataConfig("-", "asr_tts", lengths, {"asr": 1.0, "tts": 1.0}), "-", 100, ROWS,
        freeze=FreezeConfig(frozen),
    )  # fmt: skip
    built = build(train, 2)
    params = zipper.init_params(config, 0)
    layout = {m: Place(c.tower, c.offset, c.size - 2, c.size - 1, c.size) for m, c in config.modalities.items()}
    rng = np.random.default_rng(0)
    contents = {m: rng.integers(0, config.modalities[m].size - 2, n).astype(np.int32) for m, n in CONTENT.items()}
    tasks = np.arange(ROWS) % 2
    examples = [[fill_template(TASKS[("asr", "tts")[t]], contents)] * PER_ROW for t in tasks]
    batch = {"towers": rows_to_towers(examples, layout, lengths), "task": tasks.astype(np.int32)}
    states = [built.start(params)]

    def step() -> Any:
        states[0], metrics = built.train_step(states[0], batch, np.zeros((), np.bool_))
        return metrics

    generator = Generator(replace(config, remat="none"), params, layout, lengths)

    def generate(given: str, output: str) -> Callable[[], Any]:
        prompts = [[(given, contents[given])]] * GENERATED
        return lambda: generator(prompts, (output,), {output: CONTENT[output]})

    jobs = {"training": step, "text": generate("speech", "text"), "speech": generate("text", "speech")}
    flops = built.flops_per_step / (ROWS * PER_ROW)
    return jobs, {"training_mflop": flops / 1e6, "parameters": sum(x.size for x in jax.tree.leaves(params))}


def table(found: dict[str, Any]) -> str:
    """Return figures per example as Markdown, with ratios to the Single Decoder of the text tower's size."""
    rows = found["rows"]
    base = rows["single decoder, text tower's size"]
    columns = {
        "training_mflop": "training, MFLOP",
        "training_ms": "training, ms",
        "text_ms": "speech to text, ms",
        "speech_ms": "text to speech, ms",
    }
    lines = [f"| per example | parameters | {' | '.join(columns.values())} |", f"|---|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        cells = [f"{row[c]:.2f} ({row[c] / base[c]:.1f} ×)" for c in columns]
        lines.append(f"| {name} | {row['parameters'] / 1e3:,.0f} k | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

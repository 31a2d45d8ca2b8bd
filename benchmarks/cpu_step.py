"""A small decoder's training step on CPU: ours beside PyTorch eager and t5x, alternating, on one core and on two.

    python benchmarks/cpu_step.py --out benchmarks/results/cpu_step.json --t5x FOLDER    measure (needs torch)
    python benchmarks/cpu_step.py --out benchmarks/results/cpu_step.json --table         stored results as Markdown

4 blocks of width 128, 4 heads on 2 key/value heads of 32, gated MLP of 256, RMSNorm, RoPE, float32; 16 rows of 128
tokens, vocabulary 1,026; Adam, gradients clipped at norm 1. Ours is the step that `zipper train` runs (packed ranges,
metrics, the guard against bad updates); PyTorch's has causal attention by `scaled_dot_product_attention`, loss,
clipping and `Adam(foreach=True)`, no metrics; t5x's is its `trainer.train_with_lr` of its own decoder-only network (4
key/value heads, relative positions in place of RoPE, no clipping, Adam). FOLDER has t5x and what it needs beside our
own packages (airio, jestimator, ... of GitHub: it is in no registry). Each side is a process of its own that waits
while the others compute; figures are medians over rounds of medians of steps, ratios are medians of a round's ratios.
The first step contains compilation, without a cache.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY, LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN = 1026, 4, 128, 4, 2, 32, 256
ROWS, LENGTH, STEPS = 16, 128, 5
SIDES = ("torch", "t5x", "ours")


def ours() -> Callable[[], Any]:
    """The training step, as a function that waits for its end."""
    from zipper_jax.utils.heap import keep_freed_memory

    keep_freed_memory()  # as the command does

    import jax
    import numpy as np

    from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipperConfig
    from zipper_jax.models.zipper import init_params
    from zipper_jax.sequences import TowerBatch
    from zipper_jax.training.config import DataConfig, TrainConfig
    from zipper_jax.training.program import build

    tower = TowerConfig(VOCABULARY, LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN)
    model = ZipperConfig({"speech": tower}, {"speech": ModalityConfig("speech", VOCABULARY)}, scan=False)
    data = DataConfig("-", "speech_lm", {"speech": LENGTH})
    built = build(TrainConfig(model, data, "-", 1000, ROWS), 1)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    ones = np.ones((ROWS, LENGTH), np.float32)
    towers = TowerBatch(tokens[:, :-1], tokens[:, 1:], ones, positions, positions, ones.astype(np.int32))
    batch = {"towers": {"speech": towers}, "task": np.zeros(ROWS, np.int32)}
    states = [built.start(init_params(model, 0))]

    def step() -> Any:
        states[0], metrics = built.train_step(states[0], batch, np.zeros((), np.bool_))
        return jax.block_until_ready((states[0], metrics))

    return step


def torch() -> Callable[[], Any]:
    """The same decoder in PyTorch, eager."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))
            self.query = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
            self.key = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
            self.value = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
            self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
            self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
            self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
            self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

        def forward(self, x: Any, sin: Any, cos: Any) -> Any:
            b, t, _ = x.shape
            y = self.norms[0](x)
            query, key, value = (f(y).view(b, t, -1, HEAD).transpose(1, 2) for f in (self.query, self.key, self.value))
            query, key = (_rotate(z, sin, cos) for z in (query, key))
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(b, t, -1))
            y = self.norms[1](x)
            return x + self.down(functional.silu(self.gate(y)) * self.up(y))

    def _rotate(x: Any, sin: Any, cos: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.RMSNorm(WIDTH, eps=1e-6)

        def forward(self, tokens: Any) -> Any:
            angles = torch.arange(tokens.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
            x, sin, cos = self.embedding(tokens), angles.sin(), angles.cos()
            for block in self.blocks:
                x = block(x, sin, cos)
            return self.norm(x) @ self.embedding.weight.T

    model = Decoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, betas=(0.9, 0.99), foreach=True)
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1))

    def step() -> Any:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def t5x() -> Callable[[], Any]:
    """The training step of t5x's trainer, with its decoder-only network at the same size."""
    import jax
    import numpy as np
    import seqio
    from t5x import models, optimizers, train_state, trainer
    from t5x.examples.decoder_only import network

    module = network.DecoderWrapper(
        network.TransformerConfig(
            VOCABULARY, emb_dim=WIDTH, num_heads=HEADS, num_layers=LAYERS, head_dim=HEAD, mlp_dim=HIDDEN,
            mlp_activations=("silu", "linear"), dropout_rate=0.0, logits_via_embedding=True,
        )
    )  # fmt: skip
    vocabulary = seqio.PassThroughVocabulary(VOCABULARY)
    model = models.DecoderOnlyModel(module, vocabulary, optimizers.adam(5e-4, b1=0.9, b2=0.99))
    start = model.get_initial_variables(jax.random.key(0), {"decoder_input_tokens": (ROWS, LENGTH)})
    states = [train_state.FlaxOptimTrainState.create(model.optimizer_def, start)]
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    ones = np.ones((ROWS, LENGTH), np.int32)
    batch = {
        "decoder_input_tokens": tokens[:, :-1],
        "decoder_target_tokens": tokens[:, 1:],
        "decoder_loss_weights": ones,
        "decoder_segment_ids": ones,
        "decoder_positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH)),
    }

    def run(state: Any, batch: Any, rng: Any) -> Any:
        return trainer.train_with_lr(state, batch, 5e-4, rng, model, None)

    compiled, rng = jax.jit(run, donate_argnums=0), jax.random.key(1)

    def step() -> Any:
        states[0], metrics = compiled(states[0], batch, rng)
        return jax.block_until_ready((states[0], metrics))

    return step


def serve(side: str) -> None:
    """Print the first step's seconds; then the median seconds of a step for every line read."""
    began = time.perf_counter()
    step = {"ours": ours, "t5x": t5x, "torch": torch}[side]()
    step()
    print(time.perf_counter() - began, flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(STEPS):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        print(statistics.median(seconds), flush=True)


def start(side: str, cores: int, folder: Path | None) -> subprocess.Popen:
    """A process of one side on that many cores; ``folder``: of t5x."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    variables = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if side == "t5x":
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(folder))))
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", side, "--allowed", *map(str, allowed)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | variables,
    )  # fmt: skip


def ask(process: subprocess.Popen) -> float:
    """The next figure that the process prints."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise SystemExit("error: one side ended; its message is above")
    return float(line)


def measure(rounds: int, folder: Path | None) -> dict[str, Any]:
    """Medians and ratios for one core and two; ``folder``: of t5x, None: without it."""
    found = {}
    compared = [side for side in SIDES if side != "t5x" or folder]
    for cores in (1, 2):
        first, sides = {}, {}
        for side in compared:
            sides[side] = start(side, cores, folder)
            first[side] = ask(sides[side])
        times: dict[str, list[float]] = {side: [] for side in compared}
        for turn in range(rounds + 1):
            for side in compared if turn % 2 else reversed(compared):
                sides[side].stdin.write("\n")
                sides[side].stdin.flush()
                seconds = ask(sides[side])
                if turn:  # the first is the warm-up
                    times[side].append(seconds)
        for process in sides.values():
            process.stdin.close()
            process.wait()
        found[str(cores)] = {
            side: {
                "ms": 1e3 * statistics.median(values),
                "first_step_s": first[side],
                "ours_times_as_fast": [theirs / own for theirs, own in zip(values, times["ours"], strict=True)],
            }
            for side, values in times.items()
        }
    import jax
    import torch

    versions = {"jax": jax.__version__, "torch": torch.__version__}
    return {"cores": found, "rounds": rounds, "machine": platform.machine(), **versions}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| cores | | a step, ms | ours is times as fast (lowest to highest round) | first step, s |"]
    lines.append("|---|---|---|---|---|")
    names = {"torch": "PyTorch, eager", "t5x": "t5x", "ours": "ours"}
    for cores, sides in found["cores"].items():
        for side in (side for side in SIDES if side in sides):
            row, ratios = sides[side], sides[side]["ours_times_as_fast"]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" * (side != "ours")
            lines.append(f"| {cores} | {names[side]} | {row['ms']:.0f} | {ratio} | {row['first_step_s']:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--t5x", type=Path, help="folder of packages with t5x")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--allowed", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        os.sched_setaffinity(0, args.allowed)  # before jax or torch start their threads
        serve(args.serve)
        return 0
    if args.out is None:
        parser.error("give --out")
    if not args.table:
        args.out.write_text(json.dumps(measure(args.rounds, args.t5x), indent=2, sort_keys=True) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Proof that the tests can fail: small faults put into a copy of the package, one by one, each of which must turn red.

    python tests/mutations.py [words of a mutation's name]

Each copy lives in a temporary folder; the working tree is never touched. Prints a table and keeps
benchmarks/results/mutations.json up to date. Takes about half a minute per mutation.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    """rule: the rule of the project (or "-") that the fault breaks; old must occur exactly once in file."""

    rule: str
    name: str
    file: str
    old: str
    new: str
    tests: str


ZIPPER, CACHE, GENERATE = "models/zipper.py", "decoding/cache.py", "decoding/generate.py"
BLOCK, VISIBLE, ATTEND = "models/zip_block.py", "models/visibility.py", "ops/interval_attention.py"
FORWARD, DECODING = "tests/models/test_zipper.py", "tests/decoding/test_generate.py"
EQUATIONS = f"{FORWARD} -k equations"
LOOP, STEP, CHECKPOINTS = "training/loop.py", "training/step.py", "training/checkpoints.py"
GUARD = "tests/training/test_guard.py"
CAUSAL = f"{FORWARD} -k changes_nothing_before"

MUTATIONS = (
    # rule 1: causality
    Mutation("1", "self-attention sees the next token", VISIBLE, "slots + 1, length", "slots + 2, length", CAUSAL),
    Mutation(
        "1",
        "cross-attention sees the next token of the other tower",
        VISIBLE,
        "query_segments * longest + query_positions, side",
        "query_segments * longest + query_positions + 2, side",
        CAUSAL,
    ),
    Mutation(
        "1",
        "cross-attention sees the whole example",
        VISIBLE,
        "query_segments * longest + query_positions, side",
        "(query_segments + 1) * longest, side",
        CAUSAL,
    ),
    Mutation(
        "1",
        "decoding sees slots behind its own",
        CACHE,
        "end = jnp.where(fed, positions + 1, capacity)",
        "end = jnp.where(fed, positions + 2, capacity)",
        f"{DECODING} -k changes_no_earlier",
    ),
    Mutation(
        "1",
        "global positions restart at each span",
        "sequences.py",
        "        position += n\n",
        "",
        "tests/test_sequences.py",
    ),
    # rule 2: caches equal the full pass
    Mutation(
        "2",
        "cache written one slot off",
        CACHE,
        "jnp.where(fed, positions, capacity)",
        "jnp.where(fed, positions + 1, capacity)",
        f"{DECODING} -k chunks",
    ),
    Mutation(
        "2",
        "end token not fed at the switch",
        GENERATE,
        "return step + 1, cache, chosen, predicting, out",
        "return step + 1, cache, chosen, predicting & (chosen != end), out",
        f"{DECODING} -k replayed",
    ),
    Mutation(
        "2",
        "decoding misses the other tower's last token",
        CACHE,
        "jnp.where(fed, length[:, None], capacity)",
        "jnp.where(fed, length[:, None] - 1, capacity)",
        f"{DECODING} -k chunks",
    ),
    Mutation(
        "2",
        "decoding rotates by the slot in the chunk",
        CACHE,
        "positions = cache.lengths[tower][:, None] + offsets",
        "positions = cache.lengths[tower][:, None] * 0 + offsets",
        f"{DECODING} -k chunks",
    ),
    Mutation(
        "2",
        "rows that stand still grow all the same",
        CACHE,
        "cache.lengths[tower] + counts}",
        "cache.lengths[tower] + counts.max()}",
        f"{DECODING} -k chunks",
    ),
    Mutation(
        "2",
        "zips read another state than the block left, in decoding",
        CACHE,
        "        m = x\n",
        "        m = x * 1.01\n",
        f"{DECODING} -k chunks",
    ),
    Mutation(
        "2",
        "several zips at one block chained in decoding",
        CACHE,
        "x = x + direction.effect(m,",
        "x = x + direction.effect(x,",
        f"{DECODING} -k chunks",
    ),
    Mutation(
        "2",
        "begin token may be generated",
        "decoding/sampling.py",
        " & (ids != place.begin)",
        "",
        f"{DECODING} -k replayed",
    ),
    Mutation(
        "2",
        "truncated not set",
        GENERATE,
        "cut_off |= predicting & forced & (chosen != end)",
        "cut_off |= False",
        DECODING,
    ),
    Mutation(
        "2",
        "beams keep each other's caches",
        "decoding/beam.py",
        "_take_rows(cache, (jnp.arange(rows)[:, None] * width + parent).reshape(-1))",
        "cache",
        f"{DECODING} -k beams",
    ),
    Mutation(
        "2",
        "the best beam leaves with another's cache",
        "decoding/beam.py",
        "jnp.arange(rows) * width + best",
        "jnp.arange(rows) * width + (best + 1) % width",
        f"{DECODING} -k beams",
    ),
    Mutation(
        "2",
        "length penalty ignored",
        "decoding/beam.py",
        "total / tokens.astype(jnp.float32) ** length_penalty",
        "total",
        f"{DECODING} -k wide_beams",
    ),
    Mutation(
        "2",
        "all rows draw the same",
        GENERATE,
        "(jnp.arange(rows))",
        "(jnp.zeros(rows, jnp.int32))",
        f"{DECODING} -k sampling",
    ),
    Mutation(
        "2",
        "top-p keeps one token too few",
        "decoding/sampling.py",
        "jnp.cumsum(probabilities, axis=-1) - probabilities < top_p",
        "jnp.cumsum(probabilities, axis=-1) < top_p",
        f"{DECODING} -k definition",
    ),
    Mutation(
        "2",
        "learned positions of queries forgotten in decoding",
        CACHE,
        "*visible, positions)",
        "*visible, positions * 0)",
        f"{DECODING} -k 'chunks and positions'",
    ),
    # rule 3: the unimodal path
    Mutation(
        "3",
        "unimodal path goes through the input projection",
        ZIPPER,
        'x = bind(makers.embedding(tower), own["embedding"])(batch.tokens)',
        "x = embed(makers, tower, params, batch.tokens)",
        f"{FORWARD} -k unimodal_path_is",
    ),
    Mutation(
        "3",
        "fusion changes the head",
        ZIPPER,
        "tied = makers.config.towers[tower].tied_head",
        "tied = makers.config.towers[tower].tied_head\n    x = x * (1 + 1e-6 * len(makers.zips))",
        f"{FORWARD} -k unimodal_path_is",
    ),
    # rule 4: gates and empty visibility
    Mutation(
        "4",
        "gate not applied to the mlp",
        BLOCK,
        "_gate(self.mlp_gate, m) * self.mlp",
        "self.mlp",
        f"{FORWARD} -k gate",
    ),
    Mutation(
        "4",
        "gate not applied to attention",
        BLOCK,
        "_gate(self.attention_gate, m) * attended",
        "attended",
        f"{FORWARD} -k gate",
    ),
    Mutation(
        "4",
        "exponential not masked",
        ATTEND,
        "jnp.where(visible, jnp.exp(scores - largest), 0.0)",
        "jnp.exp(scores - largest)",
        "tests/ops/test_interval_attention.py -k zero",
    ),
    Mutation(
        "4",
        "empty rows divide by zero",
        ATTEND,
        "jnp.where(total == 0.0, 1.0, total)",
        "total",
        "tests/ops/test_interval_attention.py -k zero",
    ),
    Mutation(
        "4",
        "masked scores beat very small ones",
        ATTEND,
        "jnp.where(visible, scores, jnp.finfo(jnp.float32).min)",
        "jnp.where(visible, scores, -1e4)",
        "tests/ops/test_interval_attention.py -k far_apart",
    ),
    Mutation(
        "4",
        "feed-forward fires where nothing is visible",
        BLOCK,
        'if self.config.feed_forward == "where_visible":',
        "if False:",
        f"{FORWARD} -k where_visible",
    ),
    Mutation("4", "bias leaks into rows that see nothing", BLOCK, "if self.config.bias:", "if False:", EQUATIONS),
    # rule 5: packed equals unpacked
    Mutation(
        "5",
        "cross-attention sees earlier examples of the row",
        VISIBLE,
        'start = jnp.searchsorted(key_segments, query_segments, side="left")',
        "start = jnp.zeros_like(query_segments)",
        f"{FORWARD} -k packed",
    ),
    Mutation(
        "5",
        "self-attention sees earlier examples of the row",
        VISIBLE,
        "jnp.where(real, first, length)",
        "jnp.where(real, 0, length)",
        f"{FORWARD} -k packed",
    ),
    Mutation(
        "5",
        "local positions not restarted",
        "sequences.py",
        "np.arange(start, start + n) - first[place.tower]",
        "np.arange(start, start + n)",
        f"{FORWARD} -k 'equations and positions'",  # RoPE is relative: only learned positions show it
    ),
    Mutation(
        "5",
        "padding numbered below the examples (found and mended)",
        VISIBLE,
        "jnp.iinfo(jnp.int32).max",
        "length + 1",
        "tests/models/test_visibility.py -k chosen",
    ),
    # rule 6: a run that was disturbed
    Mutation(
        "6",
        "a run forgets on resuming which batches it left out",
        LOOP,
        'Skips(self.config.data.skip_batches).plus(*progress.get("skipped", ()))',
        "Skips(self.config.data.skip_batches)",
        f"{GUARD} -k stopped_among",
    ),
    Mutation(
        "6", "a run returns to a step saved on a signal", LOOP, ", periodic=True)", ")", f"{GUARD} -k stopped_among"
    ),
    Mutation(
        "6",
        "a run counts a skipped batch as an update",
        STEP,
        "state.step + good.astype(jnp.int32)",
        "state.step + 1",
        f"{GUARD} -k bad_batch_is_left_out",
    ),
    Mutation(
        "6", "a run applies a bad update", STEP, "jnp.where(good, n, o)", "n", f"{GUARD} -k bad_batch_is_left_out"
    ),
    Mutation(
        "6",
        "a run forgets on resuming how its losses were spread",
        CHECKPOINTS,
        'if item not in content["arrays"]:',
        'if item not in content["arrays"] or item == "guard":',
        f"{GUARD} -k resumed_run_tells_spikes",
    ),
    Mutation(
        "6",
        "a run resumes one batch late",
        LOOP,
        "        self.next = self.skips.batch(step)\n        self.streak, self.rollbacks = int(",
        "        self.next = self.skips.batch(step + 1)\n        self.streak, self.rollbacks = int(",
        "tests/training/test_kill.py -k three",
    ),
    Mutation(
        "6",
        "a run starts a fresh optimizer on resuming",
        CHECKPOINTS,
        'if item not in content["arrays"]:',
        'if item not in content["arrays"] or item == "optimizer":',
        "tests/training/test_kill.py -k three",
    ),
    Mutation(
        "6",
        "a restored array is believed",
        CHECKPOINTS,
        "    if stored is not None:\n",
        "    if stored is None:\n",
        "tests/training/test_checkpoints.py -k named_though",
    ),
    Mutation(
        "6",
        "a digest does not see where an element lies",
        "training/manifest.py",
        "_mix(bits ^ _mix(index + jnp.uint32(lane)))",
        "_mix(bits ^ jnp.uint32(lane))",
        "tests/training/test_checkpoints.py -k digest_tells",
    ),
    # rule 3: what is frozen
    Mutation(
        "3",
        "a frozen tower's embedding is trained",
        "training/partition_tree.py",
        'path.startswith(f"towers/{t}/")',
        'path.startswith(f"towers/{t}/blocks/")',
        "tests/training/test_loop.py -k fusion",
    ),
    # the paper's equations, the record, arithmetic
    Mutation(
        "-",
        "keys and values from the fused state",
        ZIPPER,
        "states[fusion.tower] = self.fuse(fusion, directions, pre)",
        "states[fusion.tower] = pre[fusion.tower, fusion.block] = self.fuse(fusion, directions, pre)",
        EQUATIONS,
    ),
    Mutation(
        "-",
        "several zips at one block chained",
        ZIPPER,
        "direction.effect(m, key",
        "direction.effect(fused, key",
        EQUATIONS,
    ),
    Mutation(
        "-",
        "members of one zip share weights (found and mended)",
        ZIPPER,
        "lambda x, i=s.member: x[i]",
        "lambda x, i=s.member: x[-1]",
        EQUATIONS,
    ),
    Mutation(
        "-",
        "keys not rotated",
        "models/tower.py",
        "rotate(self.attention.key(y), local_positions, self.rope_base)",
        "self.attention.key(y)",
        EQUATIONS,
    ),
    Mutation(
        "-",
        "end token's prediction has weight",
        "sequences.py",
        "batch.weights[b, start : start + n - 1]",
        "batch.weights[b, slots]",
        "tests/test_sequences.py",
    ),
    Mutation(
        "-",
        "heads grouped the other way",
        ATTEND,
        "query.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)",
        "query.reshape(b, t, n // k, k, h).transpose(0, 3, 2, 1, 4)",
        "tests/ops/test_interval_attention.py -k definition",
    ),
    Mutation(
        "-",
        "blockwise keeps its scores",
        ATTEND,
        "    @jax.checkpoint\n",
        "",
        "tests/ops/test_interval_attention.py -k holds",
    ),
    Mutation(
        "-",
        "norms in bfloat16",
        "models/layers.py",
        "        y = x.astype(jnp.float32)\n",
        "        y = x\n",
        "tests/models/test_arithmetic.py -k multiplies",
    ),
    Mutation(
        "-",
        "a cycle is let through",
        "models/schedule.py",
        "if not runs and not fusions:",
        "if not runs and not fusions and (passed.update(done) or False):",
        "tests/models/test_schedule.py -k cycle",
    ),
)


def apply(mutation: Mutation, root: Path) -> None:
    path = root / "zipper_jax" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(
            f"{mutation.name}: {mutation.old!r} occurs {text.count(mutation.old)} times in {mutation.file}"
        )
    path.write_text(text.replace(mutation.old, mutation.new))


def run(mutation: Mutation) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("zipper_jax", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        shutil.copy(ROOT / "pyproject.toml", root)
        apply(mutation, root)
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
        environment = {**os.environ, "PYTHONPATH": str(root), "JAX_COMPILATION_CACHE_DIR": cache}
        command = f"{sys.executable} -m pytest -n0 -x -q --tb=line -p no:cacheprovider {mutation.tests}"
        start = time.monotonic()
        done = subprocess.run(command, shell=True, cwd=root, env=environment, capture_output=True, text=True)
        failed = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]
        # 1 is "tests ran and some failed"; 2 to 5 (no tests, usage errors) prove nothing.
        result = {0: "green", 1: "red"}.get(done.returncode, f"broken ({done.returncode})")
        return {
            "rule": mutation.rule, "mutation": mutation.name, "file": mutation.file, "result": result,
            "by": failed[0].removeprefix("FAILED ") if failed else "", "seconds": round(time.monotonic() - start),
        }  # fmt: skip


def record(results: list[dict]) -> None:
    """Puts ``results`` into the file, in the order of MUTATIONS; earlier results of mutations not run now stay."""
    target = ROOT / "benchmarks" / "results" / "mutations.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(target.read_text()) if target.exists() else []
    by_name = {r["mutation"]: r for r in [*known, *results]}
    aside = target.with_suffix(".aside")
    aside.write_text(json.dumps([by_name[m.name] for m in MUTATIONS if m.name in by_name], indent=1) + "\n")
    aside.rename(target)


def main() -> int:
    words = " ".join(sys.argv[1:])
    chosen = [m for m in MUTATIONS if words in m.name]
    if not chosen:
        raise SystemExit(f"no mutation is called {words!r}")
    results = []
    for mutation in chosen:
        results.append(run(mutation))
        record(results)
        r = results[-1]
        print(f"{r['rule']:>2}  {r['result']:<7} {r['seconds']:>4} s  {r['mutation']:<60} {r['by']}", flush=True)
    red = sum(r["result"] == "red" for r in results)
    print(f"{red} of {len(results)} red")
    return int(red < len(results))


if __name__ == "__main__":
    sys.exit(main())

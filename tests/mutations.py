"""Proof that the tests can fail: small faults put into a copy of the package, one by one, each of which must turn red.

    python tests/mutations.py [--jobs 2] [words of a mutation's name]

Each copy is in a temporary folder of its own; the working tree is never touched. Prints a table; a run of all mutations
writes it to benchmarks/results/mutations.json. Takes about half a minute per mutation.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NO_CODE = ("NameError", "UnboundLocalError", "AttributeError", "ImportError", "ModuleNotFoundError", "SyntaxError")
"""Errors of a fault that is not valid code: they prove nothing about the tests."""


class Mutation(NamedTuple):
    """rule: the rule of the project (or "-") that the fault breaks; old must occur exactly once in file."""

    rule: str
    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def command(self) -> list[str]:
        """Arguments of pytest: a test file, then options."""
        return shlex.split(self.tests)


ZIPPER, TOWER, MODULE, CACHE = "models/zipper.py", "models/tower.py", "models/module.py", "models/cache.py"
PASS, PLACES, STACKING = "models/forward.py", "models/places.py", "models/stacking.py"
MASKS, FUSION, SCHEDULE = "models/masks.py", "models/fusion/gated_cross_attention.py", "models/schedule.py"
OPS = "ops/interval_attention"
DENSE, MERGING, KERNEL = f"{OPS}/dense.py", f"{OPS}/merging.py", f"{OPS}/pallas_tpu.py"
GENERATE, BEAM, SAMPLING, AUTO = (
    "decoding/generate.py", "decoding/beam.py", "decoding/sampling.py", "decoding/auto.py",
)  # fmt: skip
LOOP, STEP, CHECKPOINTS = "training/loop.py", "training/step.py", "checkpoint/checkpoints.py"
SEQUENCES, MIXTURES = "sequences.py", "data/mixtures.py"

FORWARD, DECODING, RANGES = (
    "tests/models/test_zipper.py",
    "tests/decoding/test_generate.py",
    "tests/models/test_masks.py",
)
DECLARED, CACHED = "tests/models/test_module.py", "tests/models/test_cache.py"
OBJECT = "tests/models/test_model_object.py"
CHOOSING, INTERLEAVING = "tests/decoding/test_auto.py", "tests/data/test_interleave.py"
DROPOUT = "tests/training/test_dropout.py"
KERNELS = "tests/ops/test_pallas_tpu.py"
OPERATION, GUARD = "tests/ops/test_interval_attention.py", "tests/training/test_guard.py"
EQUATIONS, CAUSAL = f"{FORWARD} -k equations", f"{FORWARD} -k 'changes_nothing_before and paper'"
CHUNKS = f"{DECODING} -k 'chunks and pair'"

FIELDS = "tests/models/test_config.py -k field"

MUTATIONS = (
    # rule 1: causality
    Mutation(
        "1",
        "self-attention sees the next token",
        MASKS,
        "segments + queries.global_positions, side=side",
        "segments + queries.global_positions + inclusive, side=side",
        CAUSAL,
    ),
    Mutation(
        "1",
        "cross-attention sees the next token of the other tower",
        MASKS,
        "segments + queries.global_positions, side=side",
        "segments + queries.global_positions + 2 * (not inclusive), side=side",
        CAUSAL,
    ),
    Mutation(
        "1",
        "cross-attention sees the whole example",
        MASKS,
        "segments + queries.global_positions, side=side",
        "segments + (queries.global_positions if inclusive else longest), side=side",
        CAUSAL,
    ),
    Mutation(
        "1",
        "decoding sees positions behind its own",
        PLACES,
        "return attention_range(self.tokens(tower).queries, self.tokens(other).keys, inclusive=tower == other)\n",
        "keys = self.tokens(other).keys\n"
        "        start, end = attention_range(self.tokens(tower).queries, keys, inclusive=tower == other)\n"
        "        return start, end + (self.cache is not None and tower == other)\n",
        f"{DECODING} -k changes_no_earlier",
    ),
    Mutation(
        "1",
        "global positions restart at each span",
        SEQUENCES,
        "        position += n\n",
        "",
        "tests/test_sequences.py",
    ),
    Mutation(
        "1",
        "inclusive and exclusive ranges exchanged",
        MASKS,
        'side = "right" if inclusive else "left"',
        'side = "left" if inclusive else "right"',
        f"{RANGES} -k chosen",
    ),
    # rule 2: caches equal the full pass
    Mutation("2", "cache written one position off", TOWER, "layer, slots, (", "layer, slots + 1, (", CHUNKS),
    Mutation(
        "2",
        "cache read before it is written",
        TOWER,
        "                cache = cache._replace(key=key, value=value)\n"
        "                key, value = key[layer].swapaxes(1, 2), value[layer].swapaxes(1, 2)\n",
        "                old, cache = cache, cache._replace(key=key, value=value)\n"
        "                key, value = old.key[layer].swapaxes(1, 2), old.value[layer].swapaxes(1, 2)\n",
        CHUNKS,
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
        PLACES,
        "self.visible = {pair: self.range(*pair) for pair in pairs}",
        "ranges = {pair: self.range(*pair) for pair in pairs}\n"
        "        self.visible = {p: (a, jnp.maximum(a, b - (cache is not None))) for p, (a, b) in ranges.items()}",
        CHUNKS,
    ),
    Mutation(
        "2",
        "decoding rotates by the position in the chunk",
        CACHE,
        "jnp.where(fed, cache.lengths[tower][:, None] + offsets, 0)",
        "jnp.where(fed, 0 * cache.lengths[tower][:, None] + offsets, 0)",
        CHUNKS,
    ),
    Mutation(
        "2",
        "rows that receive nothing grow all the same",
        CACHE,
        "cache.lengths + jnp.sum(real, axis=1, dtype=jnp.int32)",
        "cache.lengths + jnp.sum(real, axis=1, dtype=jnp.int32).max()",
        CHUNKS,
    ),
    Mutation(
        "2",
        "places of tokens not recorded in the cache",
        CACHE,
        "cache._replace(order=order, lengths=",
        "cache._replace(lengths=",
        f"{CACHED} -k places",
    ),
    Mutation(
        "2",
        "global positions off by one in the cache",
        CACHE,
        "new = Order(batch.segment_ids, batch.global_positions)",
        "new = Order(batch.segment_ids, batch.global_positions + 1)",
        CHUNKS,
    ),
    Mutation(
        "2",
        "global positions of decoded tokens off by one",
        CACHE,
        "jnp.where(fed, before[:, None] + offsets, 0)",
        "jnp.where(fed, before[:, None] + offsets - 1, 0)",
        f"{DECODING} -k replayed",
    ),
    Mutation(
        "2",
        "global positions of decoded tokens count one tower alone",
        CACHE,
        "before = sum(cache.lengths.values(), jnp.zeros_like(counts))",
        "before = cache.lengths[tower]",
        f"{CACHED} -k places",
    ),
    Mutation(
        "2",
        "padding written into the cache's last position",
        CACHE,
        '.set(x.astype(old.dtype), mode="drop")',
        '.set(x.astype(old.dtype), mode="clip")',
        f"{CACHED} -k padding",
    ),
    Mutation(
        "2",
        "last logits of the token before the last",
        ZIPPER,
        "last = jnp.maximum(count - 1, 0)",
        "last = jnp.maximum(count - 2, 0)",
        f"{OBJECT} -k last_logits",
    ),
    Mutation(
        "2",
        "last logits of the chunk's last position, padding or not",
        ZIPPER,
        "last = jnp.maximum(count - 1, 0)",
        "last = jnp.full_like(count, x.shape[1] - 1)",
        f"{OBJECT} -k last_logits",
    ),
    Mutation(
        "2",
        "zips read another state than the block left, in decoding",
        PASS,
        "kept_of(fusion, self.at(read, read.inside, saved))",
        "kept_of(fusion, (at := self.at(read, read.inside, saved))._replace(state=1.01 * at.state))",
        CHUNKS,
    ),
    Mutation(
        "2",
        "what a zip keeps is written at another member",
        PASS,
        "write(cache.zips[key], index, self.slots",
        "write(cache.zips[key], index - 1, self.slots",
        CHUNKS,
    ),
    Mutation(
        "2",
        "members of a scan of zips keep one further on",
        PASS,
        "np.arange(index, index + stages, dtype=np.int32)",
        "np.arange(index + 1, index + stages + 1, dtype=np.int32)",
        CHUNKS,
    ),
    Mutation(
        "2",
        "the cache of a tower without a batch is not read",
        PLACES,
        "for name, tower in cache.towers.items()}\n",
        "for name, tower in cache.towers.items() if name in self._queries}\n",
        CHUNKS,
    ),
    Mutation(
        "2",
        "nothing is kept for a tower without a batch",
        PASS,
        "for read in stage.reads if cache is not None else ():",
        "for read in [r for r in stage.reads if r.into in states] if cache is not None else ():",
        CHUNKS,
    ),
    Mutation(
        "2",
        "blocks numbered from the start of their run",
        PASS,
        "layers = np.arange(first - 1, end, dtype=np.int32)",
        "layers = np.arange(0, end - first + 1, dtype=np.int32)",
        CHUNKS,
    ),
    Mutation(
        "2",
        "several zips at one block chained in decoding",
        PASS,
        "execution.recompute(effect))(fusion, m, at)",
        "execution.recompute(effect))(fusion, m if cache is None else total, at)",
        f"{DECODING} -k 'chunks and trio'",
    ),
    Mutation(
        "2",
        "begin token may be generated",
        SAMPLING,
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
        f"{DECODING} -k greedy_takes",
    ),
    Mutation(
        "2",
        "beams keep each other's caches",
        BEAM,
        "cache.take_rows((jnp.arange(rows)[:, None] * width + parent).reshape(-1))",
        "cache",
        f"{DECODING} -k beams",
    ),
    Mutation(
        "2",
        "beams keep what each other's zips read",
        CACHE,
        "return Cache(towers, take(1, self.zips), ",
        "return Cache(towers, jax.tree.map(lambda x: x[:, : len(rows)], self.zips), ",
        f"{CACHED} -k rows",
    ),
    Mutation(
        "2",
        "the best beam leaves with another's cache",
        BEAM,
        "jnp.arange(rows) * width + best",
        "jnp.arange(rows) * width + (best + 1) % width",
        f"{DECODING} -k beams",
    ),
    Mutation(
        "2",
        "a beam keeps the state that another beam ended in",
        BEAM,
        "at_end = inherit(at_end) if choosing",
        "at_end = at_end if choosing",
        f"{CHOOSING} -k beams_that_end_early",
    ),
    Mutation(
        "2",
        "a choice is read from the state of the last content token",
        GENERATE,
        "at_end = jnp.where(active[:, None, None], ",
        "at_end = jnp.where((active & (token != end))[:, None, None], ",
        f"{CHOOSING} -k training_path_chooses",
    ),
    Mutation(
        "2",
        "rows that chose another modality decode this one too",
        AUTO,
        "active = np.isin(np.arange(len(given)), rows)",
        "active = np.ones(len(given), bool)",
        f"{CHOOSING} -k training_path_chooses",
    ),
    Mutation(
        "2",
        "the cache does not grow with the rounds",
        AUTO,
        "2 * n if needed[tower] > n else n",
        "n",
        f"{CHOOSING} -k max_spans",
    ),
    Mutation(
        "2",
        "a row that max_spans ends is not truncated",
        AUTO,
        "truncated |= number + 1 == max_spans and chosen[row] is not None",
        "truncated |= False",
        f"{CHOOSING} -k max_spans",
    ),
    Mutation(
        "5",
        "a choice counts once per example, in the tower of its last span",
        SEQUENCES,
        "[numbers[p.following] if p.following else after for p in pieces]",
        "[0 if p.following else after for p in pieces]",
        "tests/test_sequences.py -k every_slot",
    ),
    Mutation(
        "5",
        "only the first example of a row is trained to choose",
        "models/choice.py",
        "jnp.asarray(batch.next_modality > 0, jnp.float32)",
        "jnp.asarray((batch.next_modality > 0) & (batch.segment_ids == 1), jnp.float32)",
        "tests/training/test_next_modality.py -k any_mesh",
    ),
    Mutation(
        "-",
        "a unit at each cut is in both spans",
        "data/interleave.py",
        "contents[SPEECH][bounds[first] : bounds[last]]",
        "contents[SPEECH][bounds[first] : bounds[last] + 1]",
        f"{INTERLEAVING} -k every_word",
    ),
    Mutation(
        "-",
        "units before the first word are in no span",
        "data/interleave.py",
        "np.concatenate([[0], inner, [count]])",
        "np.concatenate([[int(times[0, 0] * rate_hz)], inner, [count]])",
        f"{INTERLEAVING} -k every_word",
    ),
    Mutation(
        "-",
        "a span may have no unit",
        "data/interleave.py",
        "long_enough and bounds[first] < bounds[word] < bounds[words] and",
        "long_enough and",
        f"{INTERLEAVING} -k every_word",
    ),
    Mutation(
        "-",
        "spans end inside of phrases",
        "data/interleave.py",
        " and pause >= settings.pause",
        "",
        f"{INTERLEAVING} -k partition",
    ),
    Mutation(
        "-",
        "units are cut as if shifted audio began where the audio does",
        "data/interleave.py",
        'row["shift"] / shifts / rate_hz if rate_hz else 0.0',
        "0.0",
        f"{INTERLEAVING} -k shifted",
    ),
    Mutation(
        "-",
        "all copies of an utterance are cut alike",
        "data/interleave.py",
        'uniforms(settings.seed, row["id"], row["shift"], copy)',
        'uniforms(settings.seed, row["id"], row["shift"], 0)',
        f"{INTERLEAVING} -k copies",
    ),
    Mutation(
        "-",
        "word times of synthesised audio count from before it was trimmed",
        "speech/word_times.py",
        "min(max(time, first), last) - first",
        "min(max(time, first), last)",
        "tests/speech/test_word_times.py -k becomes",
    ),
    Mutation(
        "8",
        "times of another utterance's words are used",
        "data/alignments.py",
        "if word is None or form.key(word.word) != form.key(own):",
        "if word is None:",
        f"{INTERLEAVING} -k fit_the_text",
    ),
    Mutation(
        "-",
        "losses of choices are counted in tasks",
        "training/monitor.py",
        "per_task += parts if chooser is None else 0",
        "per_task += parts",
        "tests/training/test_next_modality.py -k trains_heads",
    ),
    Mutation(
        "2",
        "length penalty ignored",
        BEAM,
        "total / tokens.astype(jnp.float32) ** length_penalty",
        "total",
        f"{DECODING} -k wide_beams",
    ),
    Mutation(
        "2",
        "all rows draw the same",
        GENERATE,
        "(jnp.asarray(numbers))",
        "(jnp.zeros(len(numbers), jnp.int32))",
        f"{DECODING} -k sampling",
    ),
    Mutation(
        "2",
        "top-p keeps one token too few",
        SAMPLING,
        "jnp.cumsum(probabilities, axis=-1) - probabilities < top_p",
        "jnp.cumsum(probabilities, axis=-1) < top_p",
        f"{DECODING} -k definition",
    ),
    Mutation(
        "2",
        "learned positions of queries forgotten in decoding",
        PASS,
        "positions, total = self.positions(fused.tower), m",
        "positions, total = self.positions(fused.tower) * (cache is None), m",
        f"{DECODING} -k 'chunks and positions'",
    ),
    Mutation(
        "-",
        "zips turn keys by the receiver's scale",
        "models/fusion/gated_cross_attention.py",
        "return of(into), of(config.other(into))",
        "return of(into), of(into)",
        f"{FORWARD} -k 'equations and heads'",
    ),
    Mutation(
        "2",
        "zips' turned keys forget where a chunk begins",
        "models/fusion/gated_cross_attention.py",
        "return self.attention.keys_and_values(h, source.positions)",
        "return self.attention.keys_and_values(h, source.positions - source.positions[:, :1])",
        f"{DECODING} -k 'chunks and rotary'",
    ),
    # rule 3: the unimodal path
    Mutation(
        "3",
        "unimodal path goes through the input projection",
        "inference/perplexity.py",
        "model.losses(towers)[tower] if fused else own.losses(own.hidden(batch), batch)",
        "model.losses(towers)[tower]",
        "tests/test_api.py -k lone_tower",
    ),
    Mutation(
        "3",
        "fusion changes the head",
        ZIPPER,
        "{n: Tower(t, rngs",
        '{n: Tower(__import__("dataclasses").replace(t, logit_scale=1 + 1e-6 * len(config.zips)), rngs',
        f"{FORWARD} -k unimodal_path_is",
    ),
    # rule 4: gates and empty ranges
    Mutation(
        "4",
        "gate not applied to the mlp",
        FUSION,
        "_gate(self.mlp_gate, m) * self.mlp",
        "self.mlp",
        f"{FORWARD} -k 'gate and paper'",
    ),
    Mutation(
        "4",
        "gate not applied to attention",
        FUSION,
        "_gate(self.attention_gate, m) * self.attention",
        "self.attention",
        f"{FORWARD} -k 'gate and paper'",
    ),
    Mutation(
        "4",
        "the largest score of an empty range is the fill value",
        DENSE,
        "initial=EMPTY)",
        "initial=jnp.finfo(jnp.float32).min)",
        f"{OPERATION} -k zero",
    ),
    Mutation(
        "4",
        "empty rows divide by zero",
        DENSE,
        "return unnormalised, largest, jnp.where(total == 0.0, 1.0, total)",
        "return unnormalised, largest, total",
        f"{OPERATION} -k zero",
    ),
    Mutation(
        "4",
        "masked scores beat very small ones",
        DENSE,
        "jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)",
        "jnp.where(visible[:, None, None], scores, -1e4)",
        f"{OPERATION} -k far_apart",
    ),
    Mutation(
        "4",
        "a closed gate still takes the other tower's share from the tower's own keys",
        MERGING,
        "(1.0 - jnp.sum(weights, axis=0))",
        "(1.0 - jnp.sum(shares[1:], axis=0))",
        f"{FORWARD} -k 'equations and shared and attention'",
    ),
    Mutation(
        "4",
        "shared attention without its gate",
        "models/fusion/shared_attention.py",
        "else jnp.tanh(self.attention_gate[...])",
        "else jnp.cos(self.attention_gate[...])",
        f"{FORWARD} -k 'gates_at_zero and shared'",
    ),
    Mutation(
        "4",
        "empty rows divide by zero where several calls are merged",
        MERGING,
        "shares / known",
        "shares / total",
        f"{OPERATION} -k merging",
    ),
    Mutation(
        "4",
        "feed-forward fires where nothing is visible",
        FUSION,
        'if self.config.feed_forward == "where_visible":',
        "if False:",
        f"{FORWARD} -k where_visible",
    ),
    Mutation(
        "4",
        "bias leaks into rows that see nothing",
        FUSION,
        "return y if self.output.bias is None else jnp.where((end > start)[..., None], y, 0)",
        "return y",
        f"{FORWARD} -k 'equations and one'",
    ),
    # rule 5: packed equals unpacked
    Mutation(
        "5",
        "cross-attention sees earlier examples of the row",
        MASKS,
        'start = jnp.searchsorted(key_order, segments, side="left")',
        'start = jnp.searchsorted(key_order, segments, side="left") * inclusive',
        f"{FORWARD} -k 'packed and paper'",
    ),
    Mutation(
        "5",
        "self-attention sees earlier examples of the row",
        MASKS,
        'start = jnp.searchsorted(key_order, segments, side="left")',
        'start = jnp.searchsorted(key_order, segments, side="left") * (not inclusive)',
        f"{FORWARD} -k 'packed and paper'",
    ),
    Mutation(
        "5",
        "a range begins in the example before",
        MASKS,
        'jnp.searchsorted(key_order, segments, side="left")',
        'jnp.searchsorted(key_order, segments - 1, side="left")',
        f"{RANGES} -k chosen",
    ),
    Mutation(
        "5",
        "a range begins behind the example's first token",
        MASKS,
        'segments, side="left")',
        'segments, side="right")',
        f"{RANGES} -k chosen",
    ),
    Mutation(
        "5",
        "local positions not restarted",
        SEQUENCES,
        "start, n, start - first[tower], position",
        "start, n, start, position",
        f"{FORWARD} -k 'equations and positions'",  # RoPE is relative: only learned positions show it
    ),
    Mutation(
        "5",
        "padding numbered below the examples (found and mended)",
        MASKS,
        "jnp.where(segment_ids > 0, segment_ids, padding)",
        "jnp.where(segment_ids > 0, segment_ids, len(segment_ids) + 1)",
        f"{RANGES} -k chosen",
    ),
    Mutation(
        "5",
        "padding sorted in front of the examples",
        MASKS,
        "jnp.where(segment_ids > 0, segment_ids, padding)",
        "segment_ids",
        f"{RANGES} -k chosen",
    ),
    Mutation(
        "5",
        "a mesh's table gradient is that of one device's rows",
        "ops/vocab_loss.py",
        "if head.sharding is not None and head.sharding.row_axes:",
        "if False:",
        "tests/ops/test_vocab_loss.py -k sharded",
    ),
    Mutation(
        "5",
        "exponentials of a large vocabulary overflow",
        "ops/vocab_loss.py",
        "jax.lax.cond(_everywhere(found.others < _LARGEST, head), lambda first: first, again, found)",
        "found",
        "tests/ops/test_vocab_loss.py -k values",
    ),
    Mutation(
        "5",
        "the target's gradient lacks the z-loss",
        "ops/vocab_loss.py",
        "own_slope * (z * own_exp - others) / (1 + z)",
        "own_slope * -others / (1 + z)",
        "tests/ops/test_vocab_loss.py -k values",
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
        "6",
        "a run returns to a step saved on a signal",
        LOOP,
        "self.checkpoints.periodic_steps()",
        "self.checkpoints.steps()",
        f"{GUARD} -k stopped_among",
    ),
    Mutation(
        "6",
        "a run counts a skipped batch as an update",
        STEP,
        "TrainState(number, trainable,",
        "TrainState(state.step + 1, trainable,",
        f"{GUARD} -k bad_batch_is_left_out",
    ),
    Mutation(
        "6",
        "a run applies a bad update",
        STEP,
        "jax.lax.cond(good, update, lambda old: old, old)",
        "update(old)",
        f"{GUARD} -k bad_batch_is_left_out",
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
        "checkpoint/manifest.py",
        "_mix(bits[None] ^ _mix(index[None] + lanes))",
        "_mix(bits[None] ^ lanes)",
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
        PASS,
        "fused[fusion.tower] = {**states[fusion.tower], OWN: self.fuse(fusion, parts, saved, cache)}\n",
        "fused[fusion.tower] = {**states[fusion.tower], OWN: (x := self.fuse(fusion, parts, saved, cache))}\n"
        "                saved[key] = saved[key := (fusion.tower, fusion.block, False)]._replace(state=x)\n",
        f"{FORWARD} -k 'equations and paper'",
    ),
    Mutation(
        "-",
        "several zips at one block chained",
        PASS,
        "execution.recompute(effect))(fusion, m, at)",
        "execution.recompute(effect))(fusion, total, at)",
        f"{FORWARD} -k 'equations and trio'",
    ),
    Mutation(
        "-",
        "members of one zip share weights (found and mended)",
        PASS,
        "member(stacked, index), index",
        "member(stacked, -1), index",
        f"{FORWARD} -k 'equations and residual'",
    ),
    Mutation(
        "2",
        "a pass with a cache picks another zip of a scan",
        PASS,
        'return (member(self.model.zips[zip_][f"into_{into}"], number) if own is None else own), number',
        'return (member(self.model.zips[zip_][f"into_{into}"], 0 * number) if own is None else own), number',
        CHUNKS,
    ),
    Mutation(
        "2",
        "unrolled decoding runs the first block at every depth",
        "models/module.py",
        "return nnx.List([member(tree, i) for i in range(count)])",
        "return nnx.List([member(tree, 0 * i) for i in range(count)])",
        f"{DECODING} -k replayed",
    ),
    Mutation(
        "-",
        "zips of a scan have their neighbour's weights",
        PASS,
        "else cut(stacked, index + 1, index + stages)",
        "else jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), cut(stacked, index + 1, index + stages))",
        f"{FORWARD} -k 'equations and paper'",
    ),
    Mutation(
        "-",
        "a fusion inside a block reads the block's output",
        PASS,
        "at = _At(states[read.tower][OWN], self.positions(read.tower), block, layer)",
        "x = block(states[read.tower][OWN], places=self.streams[read.tower][OWN], layer=layer)[0]\n"
        "                at = _At(x, self.positions(read.tower), block, layer)",
        f"{FORWARD} -k 'equations and shared'",
    ),
    Mutation(
        "-",
        "keys not rotated",
        TOWER,
        "rotary.rotate(key, by)",
        "key",
        f"{FORWARD} -k 'equations and paper'",
    ),
    Mutation(
        "-",
        "end token's prediction has weight",
        SEQUENCES,
        "np.flatnonzero(within + 1 < np.repeat(sizes, sizes))",
        "np.arange(len(within) - 1)",
        "tests/test_sequences.py",
    ),
    Mutation(
        "-",
        "heads grouped the other way",
        DENSE,
        "query.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)",
        "query.reshape(b, t, n // k, k, h).transpose(0, 3, 2, 1, 4)",
        f"{OPERATION} -k definition",
    ),
    Mutation(
        "-",
        "merged attention leaves out its last call",
        MERGING,
        "jnp.sum(outs * shares[..., None], axis=0)",
        "jnp.sum((outs * shares[..., None])[:-1], axis=0)",
        f"{OPERATION} -k merging",
    ),
    Mutation(
        "-",
        "merged attention weighs its calls alike",
        MERGING,
        "jnp.exp(jnp.where(seen, lses - jnp.where(seen, largest, 0.0), 0.0))",
        "1.0",
        f"{OPERATION} -k merging",
    ),
    Mutation(
        "-",
        "a tower that is read alone goes through its input projection",
        PASS,
        "x = tower.embed(batch=batch, added=self.model.added_embeddings.get(name))",
        "x = tower.embed(batch, self.model.added_embeddings.get(name), self.model.input_projections.get(name))",
        f"{FORWARD} -k 'equations and projector'",
    ),
    Mutation(
        "2",
        "keys of a tower that is read alone are forgotten",
        PASS,
        "alone={**self.cache.alone, name: cast(KeyValue, kept)}",
        "alone={**self.cache.alone}",
        f"{OBJECT} -k 'chunks_of_both and projector'",
    ),
    Mutation(
        "-",
        "groups of stacked tokens go on over the tokens of other towers",
        STACKING,
        " & (positions[:, 1:] == positions[:, :-1] + 1)",
        "",
        "tests/models/test_stacking.py -k within_runs",
    ),
    Mutation(
        "2",
        "the states of an open group are forgotten",
        PASS,
        "open_groups={**cache.open_groups, key: left}",
        "open_groups={**cache.open_groups}",
        f"{DECODING} -k 'replayed and stacked'",
    ),
    Mutation(
        "2",
        "groups of a row are numbered as those of the first row",
        STACKING,
        "number = known[:, None] +",
        "number = known[:1, None] +",
        "tests/models/test_stacking.py -k passes",
    ),
    Mutation(
        "-",
        "insulation passes the gradient of keys and values",
        PASS,
        "map(passed, tower.execution.in_use(block).heads(at.state, at.positions, layer))",
        "tower.execution.in_use(block).heads(passed(at.state), at.positions, layer)",
        f"{FORWARD} -k 'insulated and shared'",
    ),
    Mutation(
        "-",
        "insulation passes the gradient of states",
        PASS,
        "SourceState(passed(at.state), ",
        "SourceState(at.state, ",
        f"{FORWARD} -k 'insulated and projector'",
    ),
    Mutation(
        "-",
        "dropout drops the same in every row",
        "models/dropout.py",
        "(jnp.arange(rows))",
        "(0 * jnp.arange(rows))",
        f"{DROPOUT} -k masks",
    ),
    Mutation(
        "-",
        "dropout drops the same in every update",
        STEP,
        "row_keys(dropout_seed, state.step, ",
        "row_keys(dropout_seed, 0, ",
        f"{DROPOUT} -k each_update",
    ),
    Mutation(
        "-",
        "token noise replaces conditions and begin tokens",
        "models/dropout.py",
        "generated & replaced",
        "replaced",
        f"{DROPOUT} -k noise_replaces",
    ),
    Mutation(
        "5",
        "microbatches share the rows' keys of dropout",
        STEP,
        "value_and_grad(trainable, *microbatch)",
        "value_and_grad(trainable, microbatch[0], first[1])",
        f"{DROPOUT} -k 'accumulation and paper'",
    ),
    Mutation(
        "-",
        "a gate scales the other tower's values without its share",
        MERGING,
        "jnp.stack([g * share for (_, g), share in zip(gated, shares[1:], strict=True)])",
        "jnp.stack([g * jnp.ones_like(share) for (_, g), share in zip(gated, shares[1:], strict=True)])",
        f"{OPERATION} -k gated",
    ),
    Mutation(
        "-",
        "log-sum-exp without the largest score",
        DENSE,
        "largest + jnp.log(total)",
        "jnp.log(total)",
        f"{OPERATION} -k merging",
    ),
    Mutation(
        "-",
        "blockwise keeps its scores",
        f"{OPS}/blockwise.py",
        "    @jax.checkpoint\n",
        "",
        f"{OPERATION} -k holds",
    ),
    Mutation(
        "4",
        "the TPU kernel's exponential of invisible keys is not 0",
        KERNEL,
        "_LOWEST = 0.5 * _HIDDEN",
        "_LOWEST = _HIDDEN",
        f"{KERNELS} -k packed_rows",
    ),
    Mutation(
        "1",
        "the TPU kernel takes border blocks for full ones",
        KERNEL,
        "full = jnp.clip(-(-jnp.max(start, axis=-1) // blocks.keys), first, last)",
        "full = jnp.clip(jnp.max(start, axis=-1) // blocks.keys, first, last)",
        f"{KERNELS} -k block_ranges",
    ),
    Mutation(
        "-",
        "both heads of a grid step read the first one's keys",
        KERNEL,
        "k[j % kv_heads, keys, :], _RIGHT), static)[0] for j in heads]",
        "k[0, keys, :], _RIGHT), static)[0] for j in heads]",
        f"{KERNELS} -k packed_rows",
    ),
    Mutation(
        "-",
        "a block of queries has the ranges of another",
        KERNEL,
        "jnp.take_along_axis(ranges, order[..., None], axis=1), order",
        "ranges, order",
        f"{KERNELS} -k packed_rows",
    ),
    Mutation(
        "-",
        "the vocabulary's kernel counts the target among the others",
        "ops/vocab_loss_tpu.py",
        "- number * rows, wide), 0.0, e)",
        "- number * rows, wide), e, e)",
        "tests/ops/test_vocab_loss.py -k kernel",
    ),
    Mutation(
        "-",
        "the vocabulary's kernel adds up one block of the table",
        "ops/vocab_loss_tpu.py",
        "        total[at, :] = _by_lane(jnp.add, total[at, :], e)",
        "        total[at, :] = _by_lane(jnp.add, 0 * total[at, :], e)",
        "tests/ops/test_vocab_loss.py -k kernel",
    ),
    Mutation(
        "-",
        "a collective is counted in a loop between its start and its end",
        "aot/hlo.py",
        "if channel not in here}",
        "}",
        "tests/aot/test_hlo.py -k goes_on",
    ),
    Mutation(
        "-",
        "freed memory is given back",
        "cli/main.py",
        "if name in COMPUTING:",
        "if False:",
        "tests/test_heap.py",
    ),
    Mutation(
        "-",
        "narrow kernels are held as they are",
        "models/layers.py",
        "if b * t >= _MANY and inputs_first",
        "if False and inputs_first",
        "tests/models/test_layers.py -k another_order",
    ),
    Mutation(
        "-",
        "a kernel is copied for few tokens",
        "models/layers.py",
        "if b * t >= _MANY and inputs_first",
        "if inputs_first",
        "tests/models/test_layers.py -k another_order",
    ),
    Mutation(
        "-",
        "axes are summed in the order of their letters",
        "models/layers.py",
        "if count > 1:",
        "if False:",
        "tests/models/test_layers.py -k summed",
    ),
    Mutation(
        "-",
        "maps of one input stay apart",
        "models/layers.py",
        "if b * t < _MANY or not alike or not on_one_cpu():",
        "if True:",
        "tests/models/test_layers.py -k each_map",
    ),
    Mutation(
        "-",
        "kernels of a mesh are put side by side",
        "models/layers.py",
        "if b * t < _MANY or not alike or not on_one_cpu():",
        "if b * t < _MANY or not alike:",
        "tests/models/test_layers.py -k apart",
    ),
    Mutation(
        "-",
        "a layer of the user's is passed by",
        "models/layers.py",
        "if type(layer) is not Linear:",
        "if False:",
        "tests/models/test_layers.py -k ones_own",
    ),
    Mutation(
        "-",
        "causal attention computes all scores",
        "ops/interval_attention/registry.py",
        "if causal and on_cpu",
        "if False and on_cpu",
        "tests/ops/test_registry.py -k fewer",
    ),
    Mutation(
        "-",
        "a half of causal attention lacks its last key",
        "ops/interval_attention/registry.py",
        "key[:, :last], value[:, :last]",
        "key[:, : last - 1], value[:, : last - 1]",
        "tests/ops/test_registry.py -k in_halves",
    ),
    Mutation(
        "-",
        "towers do not say that they are causal",
        "models/tower.py",
        "causal = name == OWN and kept[name] is None",
        "causal = False",
        "tests/models/test_arithmetic.py -k later_halves",
    ),
    Mutation(
        "-",
        "an equation's own letters are taken",
        "models/layers.py",
        "string.ascii_lowercase if letter not in equation",
        "string.ascii_lowercase",
        "tests/models/test_layers.py -k einsum",
    ),
    Mutation(
        "-",
        "addresses are taken under a limit",
        "utils/heap.py",
        "if written or limits != [resource.RLIM_INFINITY] * 2 or not",
        "if not",
        "tests/test_heap.py -k no_limit",
    ),
    Mutation(
        "-",
        "the heap is in small pages",
        "utils/heap.py",
        "if all(done):",
        "if False:",
        "tests/test_heap.py",
    ),
    Mutation(
        "-",
        "sines are computed in every operation that reads them",
        "models/rotary.py",
        "cpu=branch, default=plain",
        "cpu=plain, default=plain",
        "tests/models/test_arithmetic.py -k sines",
    ),
    Mutation(
        "-",
        "the TPU kernel's gradients leave out that of the log-sum-exp",
        KERNEL,
        "- dlse[j]  #",
        "- 0 * dlse[j]  #",
        f"{KERNELS} -k packed_rows",
    ),
    Mutation(
        "-",
        "key gradients of grouped heads are cleared for each head",
        KERNEL,
        "@pl.when((group == 0) & (number == 0))",
        "@pl.when(number == 0)",
        f"{KERNELS} -k 'packed_rows and grouped'",
    ),
    Mutation(
        "-",
        "the TPU kernel drops the soft cap's slope",
        KERNEL,
        "ds = ds * (1.0 - capped * capped)",
        "ds = ds * 1.0",
        f"{KERNELS} -k 'packed_rows and parts'",
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
        SCHEDULE,
        "if (reached, passed) == before:",
        "if (reached, passed) == before and (passed.update(reached) or False):",
        "tests/models/test_schedule.py -k cycle",
    ),
    # parameters and what is known of them
    Mutation(
        "-",
        "parameters are drawn from another path",
        ZIPPER,
        "return lambda: module.draw(seed, path, variable)",
        'return lambda: module.draw(seed, path.removeprefix("towers/"), variable)',
        "tests/models/test_golden_parameters.py -k 'recorded and paper'",
    ),
    Mutation(
        "-",
        "a model object draws from another seed than a run",
        MODULE,
        '.tobytes(), "big")',
        '.tobytes(), "little")',
        f"{OBJECT} -k starts",
    ),
    Mutation(
        "-",
        "two models of the same rngs are alike",
        MODULE,
        "    stream()  # the next",
        "    # the next",
        f"{OBJECT} -k by_itself",
    ),
    Mutation(
        "-",
        "stacked axes named behind",
        MODULE,
        "variable.set_metadata(axes=(axis, *axes), stacked=True)",
        "variable.set_metadata(axes=(*axes, axis), stacked=True)",
        "tests/models/test_golden_parameters.py -k 'recorded and paper'",
    ),
    Mutation(
        "-",
        "a gate is declared a scale",
        FUSION,
        'self.mlp_gate = param((), (), use="gate"',
        'self.mlp_gate = param((), (), use="scale"',
        f"{DECLARED} -k declared",
    ),
    Mutation(
        "-",
        "a source's parameters counted by the receiver's tokens",
        ZIPPER,
        'reads = fusion.reads_source("/".join(rest[1:]))',
        "reads = False",
        f"{DECLARED} -k products",
    ),
    Mutation(
        "-",
        "the projection counted by the receiver's tokens",
        FUSION,
        '        "projection",\n        "source_position_table",',
        '        "source_position_table",',
        f"{DECLARED} -k products",
    ),
    Mutation(
        "-",
        "parameters not gathered for their use",
        MODULE,
        "self.gather(x.astype(self.dtype) if",
        "self.shard(x.astype(self.dtype) if",
        f"{DECLARED} -k gathered",
    ),
    Mutation(
        "-",
        "tables gathered whole, though some rows are read",
        MODULE,
        'if use == "lookup":',
        "if False:",
        f"{DECLARED} -k gathered",
    ),
    # held and stored weights
    Mutation(
        "3",
        "the frozen part is stored as training holds it",
        "training/program.py",
        "dtype = like.dtype if keep is None or key in self.like.trainable else leaf.dtype",
        "dtype = like.dtype",
        "tests/training/test_loop.py -k frozen_kernels",
    ),
    Mutation(
        "3",
        "a frozen part without its table is not verified",
        "checkpoint/frozen.py",
        "if verify and manifest",
        "if table.is_file() and manifest",
        "tests/training/test_checkpoints.py -k by_its_name",
    ),
    Mutation(
        "-",
        "the loss's target row is not rounded as products see it",
        "ops/vocab_loss.py",
        "row = jax.lax.reduce_precision(row, bits.nexp, bits.nmant)",
        "pass",
        "tests/ops/test_vocab_loss.py -k rounded",
    ),
    # groups of processes
    Mutation(
        "-",
        "a process of a group works on another one's items",
        "utils/distributed.py",
        "work(some[own]) if own",
        "work(some[0]) if own",
        "tests/test_groups.py -k shared_and",
    ),
    Mutation(
        "-",
        "the rest of a group stays when a process fails",
        "utils/distributed.py",
        "        if status >= 0 and not _failing.is_set():\n            _leave(status)\n",
        "",
        "tests/test_groups.py -k fails",
    ),
    Mutation(
        "-",
        "every process of a group prints that one has failed",
        "utils/distributed.py",
        'if "ALREADY_EXISTS" not in str(error):',
        "if error:",
        "tests/test_groups.py -k all_fail",
    ),
    Mutation(
        "-",
        "all processes of a group write",
        "utils/distributed.py",
        "    return index() == 0\n",
        "    return True\n",
        "tests/evaluation/test_in_groups.py -k writes",
    ),
    Mutation(
        "8",
        "the noise for the judge depends on the batch",
        "evaluation/controls.py",
        "noise(first + number, ",
        "noise(number, ",
        "tests/evaluation/test_controls.py -k noise",
    ),
    Mutation(
        "6",
        "a row that the full disk cut counts as read",
        "data/bucket_arrays.py",
        "if written != len(content):",
        "if False:",
        "tests/data/test_bucket_rows.py -k full_disk",
    ),
    # judges, pairs, units
    Mutation(
        "8",
        "a looping transcript is believed",
        "speech/whisper.py",
        "        and len(content) <= MOST_COMPRESSION * len(zlib.compress(content))\n",
        "",
        "tests/speech/test_judges.py -k doubts",
    ),
    Mutation(
        "8",
        "the best sample is chosen without its control",
        "evaluation/evaluator.py",
        "best(texts, exchanged, policy)",
        "best(texts, samples, policy)",
        "tests/evaluation/test_evaluator.py -k other_sentences",
    ),
    Mutation(
        "8",
        "a pair's prompt counts in its score",
        "evaluation/pairs.py",
        "(Span(m, tokens, 0.0) for m, tokens in prompt)",
        "(Span(m, tokens, 1.0) for m, tokens in prompt)",
        "tests/evaluation/test_pairs.py -k definition",
    ),
    Mutation(
        "-",
        "keys of a GGUF file stay interleaved",
        "conversion/gguf.py",
        '"k_proj": "num_key_value_heads"',
        '"no_proj": "num_key_value_heads"',
        "tests/conversion/test_gguf.py -k becomes",
    ),
    Mutation(
        "-",
        "windows of long audio overlap in the features",
        "speech/whisper_encoder.py",
        "_window(weights, layers, part)[skipped : skipped + wanted]",
        "_window(weights, layers, part)[:wanted]",
        "tests/speech/test_whisper_units.py -k windows",
    ),
    Mutation(
        "8",
        "text for training keeps lines that hold a held-out sentence",
        "speech/sentences.py",
        "runs = (tuple(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1))",
        "runs = (tuple(words) for n in lengths)",
        "tests/speech/test_sentences.py -k held_out",
    ),
    Mutation(
        "8",
        "a sentence of a file is in training and held out",
        "speech/sentences.py",
        "for sentence in sentences[place : place + counts[split]]:",
        "for sentence in sentences[-counts[split] :]:",
        "tests/speech/test_sentences.py -k held_out",
    ),
    Mutation(
        "-",
        "a window of units is decoded without its context",
        "speech/mel_decoder.py",
        "first = max(0, start - self.reach)",
        "first = start",
        "tests/speech/test_mel_decoder.py -k reach",
    ),
    Mutation(
        "-",
        "streamed audio reads further ahead than it says",
        "speech/streaming_vocoder.py",
        "len(known) < done + WINDOW + ahead:",
        "len(known) < done + WINDOW + ahead + 1:",
        "tests/speech/test_mel_decoder.py -k lookahead",
    ),
    Mutation(
        "-",
        "windows of streamed audio shift",
        "speech/streaming_vocoder.py",
        "            done -= WINDOW\n",
        "            done -= WINDOW - 1\n",
        "tests/speech/test_mel_decoder.py -k of_the_whole",
    ),
    Mutation(
        "-",
        "settled phases of streamed audio change",
        "speech/vocoder.py",
        "        angles[:settled] = kept\n",
        "        angles[:settled] = -kept\n",
        "tests/speech/test_mel_decoder.py -k of_the_whole",
    ),
    Mutation(
        "-",
        "Piper's noise is drawn",
        "speech/neural_voices.py",
        "np.array([0.0, pitch / rate, 0.0], np.float32)",
        "np.array([0.667, pitch / rate, 0.8], np.float32)",
        "tests/speech/test_synthesis.py -k 'same_samples and piper'",
    ),
    Mutation(
        "-",
        "a tokenizer is saved without its learned decoder",
        "speech/tokenizers.py",
        "        self.mel_decoder.save(folder)\n",
        "        pass\n",
        "tests/speech/test_mel_decoder.py -k stored",
    ),
    # soft tokens
    Mutation(
        "1",
        "a token sees the soft token of the next",
        PLACES,
        "            visible = ranges[stream]\n",
        "            ends = {other: there.keys.segment_ids.shape[1] for other, there in streams.items()}\n"
        "            ranges |= {o: (a, jnp.minimum(b + (o != stream), ends[o])) for o, (a, b) in ranges.items()}\n"
        "            visible = ranges[stream]\n",
        f"{FORWARD} -k 'changes_nothing_before and soft'",
    ),
    Mutation(
        "2",
        "soft tokens of a pass without their receiver are forgotten",
        PLACES,
        "        if cache is None or not into:\n            return {}",
        "        if cache is None or into:\n            return {}",
        f"{DECODING} -k 'chunks and soft'",
    ),
    Mutation(
        "2",
        "soft tokens in the cache are not read by a pass without their source",
        PLACES,
        "None if self.cache is None else self.slots.get(tower, none)",
        "self.slots.get(tower)",
        f"{DECODING} -k 'chunks and soft'",
    ),
    Mutation(
        "-",
        "soft tokens do not count as positions",
        PLACES,
        "counts = sum((end - start for start, end in ranges.values()), jnp.zeros_like(visible[0]))",
        "counts = visible[1] - visible[0]",
        f"{FORWARD} -k 'equations and soft'",
    ),
    Mutation(
        "-",
        "soft tokens see no other token",
        TOWER,
        "for other, seen in (place.others or {}).items() if other in keys]",
        "for other, seen in (place.others or {}).items() if other in keys and name == OWN]",
        f"{FORWARD} -k 'equations and soft'",
    ),
    Mutation(
        "-",
        "soft tokens enter in front of the first block whatever the pair",
        SCHEDULE,
        "stop = 3 * (1 if alone else block[tower]) - _BEFORE[placement]",
        "stop = 1 if placement == 'sequence' else 3 * block[tower] - _BEFORE[placement]",
        f"{FORWARD} -k 'equations and soft'",
    ),
    # few queries: decoding's way to the same ranges
    Mutation(
        "1",
        "counted keys of a tower's own example include the next",
        MASKS,
        "positions <= at if inclusive else positions < at",
        "positions <= at + inclusive if inclusive else positions < at",
        f"{RANGES}",
    ),
    Mutation(
        "2",
        "counted keys in front of an example include its own",
        MASKS,
        "in_front = (segments > 0) & (segments < own)",
        "in_front = (segments > 0) & (segments <= own)",
        f"{RANGES}",
    ),
    # configuration
    Mutation(
        "-",
        "dicts of a configuration can be changed",
        "utils/configs.py",
        "__setitem__ = __delitem__ = update",
        "__delitem__ = update",
        "tests/test_configs.py -k frozen",
    ),
    Mutation(
        "-",
        "a task's loss weights ignored",
        SEQUENCES,
        "Span(m, np.asarray(contents[m], np.int32), weight)",
        "Span(m, np.asarray(contents[m], np.int32), 1.0)",
        "tests/test_sequences.py -k templates",
    ),
    Mutation(
        "-",
        "the weight of a task in a mixture ignored",
        MIXTURES,
        "batch.weights[...] *= self._weights[tasks][:, None]",
        "pass",
        "tests/data/test_mixtures.py -k weigh",
    ),
    Mutation(
        "6",
        "a step in a bucket exists without its marker",
        "utils/storage.py",
        "if len(parts) == 2 and parts[1] == MARKER]",
        "if len(parts) >= 2]",
        "tests/training/test_buckets.py -k marker",
    ),
    Mutation(
        "6",
        "metrics in a bucket are not copied before a checkpoint",
        LOOP,
        "self.staging.copy()  # so that",
        "None  # so that",
        "tests/training/test_buckets.py -k twelve_kills",
    ),
    Mutation(
        "6",
        "the lock of a bucket is written whatever is there",
        "utils/leases.py",
        "json.dumps(content).encode(), only_if=only_if)",
        "json.dumps(content).encode())",
        "tests/test_storage.py -k lock",
    ),
    Mutation(
        "6",
        "a lock that is renewed is taken over",
        "utils/leases.py",
        "if found != seen:",
        "if not seen:",
        "tests/test_storage.py -k renewed",
    ),
    Mutation(
        "6",
        "a failing server is a user error",
        "utils/objects.py",
        "raise ServiceError(",
        "raise UserError(",
        "tests/training/test_buckets.py -k failing",
    ),
    Mutation(
        "6",
        "a vocabulary whose upload was killed is read",
        "training/run_folder.py",
        " or is_partial(there):",
        ":",
        "tests/training/test_buckets.py -k vocabulary",
    ),
    Mutation(
        "6",
        "nothing watches how old a lease is",
        "utils/leases.py",
        "if time.monotonic() - self._renewed > LEASE - RENEWAL:",
        "if False:",
        "tests/test_storage.py -k cannot_renew",
    ),
    Mutation(
        "6",
        "a zombie holds its lock",
        "utils/leases.py",
        '"" if fields[0] in "ZX" else fields[19]',
        "fields[19]",
        "tests/test_storage.py -k noticed",
    ),
    Mutation(
        "6",
        "an object named .. leaves its folder",
        "utils/objects.py",
        'if not {"", ".", ".."}.isdisjoint(name.split("/")):',
        "if False:",
        "tests/test_storage.py -k do_not_leave",
    ),
    Mutation(
        "6",
        "a short object is a failing server",
        "utils/objects.py",
        "if _SHORTER.search(why):",
        "if False:",
        "tests/test_storage.py -k damaged_arrays",
    ),
    Mutation(
        "6",
        "rows of a bucket may be replaced while they are read",
        "data/bucket_arrays.py",
        "if generation != self._generation:",
        "if False:",
        "tests/data/test_bucket_rows.py -k replaced",
    ),
    Mutation(
        "5",
        "a process makes the first rows of a batch instead of its own",
        MIXTURES,
        "int(number) for number in numbers]",
        "number for number in range(len(numbers))]",
        "tests/data/test_mixtures.py -k processes",
    ),
    Mutation(
        "6",
        "a line at the edge of two shards is in neither",
        "speech/manifest.py",
        "file.seek(self._begin - 1)",
        "file.seek(self._begin)",
        "tests/data/test_shards.py -k every_line",
    ),
    Mutation(
        "6",
        "shards are joined in another order",
        "data/prepare_shards.py",
        "for index in range(count)]",
        "for index in reversed(range(count))]",
        "tests/data/test_shards.py -k any_number",
    ),
    Mutation(
        "6",
        "a damaged shard is joined",
        "data/prepare_examples.py",
        "if digest.hexdigest() != done.files[name][1]:",
        "if False:",
        "tests/data/test_shards.py -k damaged",
    ),
    Mutation(
        "6",
        "a killed shard's last rows are doubled",
        "data/encode.py",
        "    os.truncate(partial, end)\n",
        "",
        "tests/data/test_shards.py -k killed",
    ),
    Mutation(
        "6",
        "a shard is not locked",
        "data/prepare_shards.py",
        "with locked(home), staged(home)",
        'with locked(home.with_name("other")), staged(home)',
        "tests/data/test_shards.py -k damaged",
    ),
    Mutation(
        "6",
        "shards of two fits are joined",
        "data/prepare_shards.py",
        "if found.fit != fit.digest:",
        "if False:",
        "tests/data/test_shards.py -k damaged",
    ),
    Mutation(
        "6",
        "a shard in a bucket is done before it is there",
        "data/prepare_shards.py",
        "        staging.copy()  # all of it before the marker\n",
        "",
        "tests/data/test_prepare_in_buckets.py -k not_done",
    ),
    Mutation(
        "6",
        "a killed shard in a bucket starts again",
        "data/prepare_shards.py",
        "if name != LOCK))",
        "if name == LOCK))",
        "tests/data/test_prepare_in_buckets.py -k where_it_was_copied",
    ),
    Mutation(
        "6",
        "what a shard has begun is not copied to the bucket",
        "utils/staging.py",
        "if not _ASIDE.search(name) and",
        'if not name.endswith(".partial") and',
        "tests/data/test_prepare_in_buckets.py -k where_it_was_copied",
    ),
    Mutation(
        "6",
        "what a shard has begun stays in the bucket",
        "utils/staging.py",
        "                storage.write(self._run_dir / name, None)\n",
        "",
        "tests/data/test_prepare_in_buckets.py -k where_it_was_copied",
    ),
    Mutation(
        "6",
        "lines that are in the bucket are lost",
        "utils/staging.py",
        "            staging.fetch(path.name)\n",
        "",
        "tests/test_api.py -k interrupted_transcription",
    ),
    Mutation(
        "-",
        "a file in a bucket is not locked",
        "utils/locks.py",
        'with leased(path, path.with_name(f".{path.name}{LOCK}")):',
        "if True:",
        "tests/test_api.py -k interrupted_transcription",
    ),
    Mutation(
        "-",
        "packed rows number modalities as they come",
        "data/packed_rows.py",
        'block["modality"] = order[block["modality"]]',
        "pass",
        "tests/data/test_packed_rows.py",
    ),
    Mutation(
        "7",
        "a field that a fusion does not use is accepted",
        "models/config.py",
        "            fusion_class(z.fusion).check_fields(z)\n",
        "",
        FIELDS,
    ),
    Mutation(
        "7",
        "a fusion lacks a field that it uses",
        "models/fusion/projector.py",
        '("projection", "normalise_source", "norm")',
        '("projection", "normalise_source")',
        FIELDS,
    ),
    Mutation(
        "-",
        "a stored field that a fusion does not use stops a run",
        "training/run_folder.py",
        'used_fields(stored["model"])',
        'stored["model"]',
        "tests/training/test_fusions.py -k stored",
    ),
    Mutation(
        "-",
        "weights of tasks scale choices",
        "models/choice.py",
        "jnp.asarray(batch.next_modality > 0, jnp.float32)",
        "jnp.asarray(batch.next_modality > 0, jnp.float32) * jnp.max(batch.weights, axis=1, keepdims=True)",
        "tests/training/test_next_modality.py -k weights_of_tasks",
    ),
    Mutation(
        "-",
        "generate does not report the chosen modality",
        "cli/generate.py",
        '{"next_modality": output.next_modality} if choosing else {}',
        "{}",
        "tests/training/test_next_modality.py -k trains_heads",
    ),
    Mutation(
        "-",
        "all jobs are read before the first result",
        "speech/workers.py",
        "(pending[0].done() or len(pending) > _AHEAD * most)",
        "len(pending) > 10**9",
        "tests/speech/test_workers.py",
    ),
)


def problems() -> list[str]:
    """What is wrong with the table itself, one line each: nothing may run while there is something."""
    found = []
    for mutation in MUTATIONS:
        path = ROOT / "zipper_jax" / mutation.file
        count = path.read_text().count(mutation.old) if path.is_file() else 0
        if count != 1:
            found.append(f"{mutation.name}: {mutation.old!r} occurs {count} times in {mutation.file}, not once")
        if not (ROOT / mutation.command[0]).is_file():
            found.append(f"{mutation.name}: there is no {mutation.command[0]}")
    names = Counter(mutation.name for mutation in MUTATIONS)
    return found + [f"{name}: {times} mutations have this name" for name, times in names.items() if times > 1]


def run(mutation: Mutation) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("zipper_jax", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        shutil.copy(ROOT / "pyproject.toml", root)
        if (emulators := ROOT / ".cache" / "emulators").is_dir():
            (root / ".cache").mkdir()
            (root / ".cache" / "emulators").symlink_to(emulators)
        path = root / "zipper_jax" / mutation.file
        path.write_text(path.read_text().replace(mutation.old, mutation.new))
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
        environment = {**os.environ, "PYTHONPATH": str(root), "JAX_COMPILATION_CACHE_DIR": cache, "COLUMNS": "1000"}
        # Tests of both tiers.
        options = ["-n0", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-m", "not gpu"]
        command = [sys.executable, "-m", "pytest", *options, *mutation.command]
        start = time.monotonic()
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        failed = [line.removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED ")]
        test, _, reason = failed[0].partition(" - ") if failed else ("", "", "")
        # 1 is "tests ran and some failed"; 2 to 5 (no tests, usage errors) prove nothing.
        result = {0: "green", 1: "red"}.get(done.returncode, f"broken ({done.returncode})")
        if reason.startswith(NO_CODE):
            result = f"broken ({reason})"
        return {
            "rule": mutation.rule, "mutation": mutation.name, "file": mutation.file, "result": result,
            "by": test, "seconds": round(time.monotonic() - start),
        }  # fmt: skip


def record(results: list[dict]) -> None:
    target = ROOT / "benchmarks" / "results" / "mutations.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(".aside")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.rename(target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="words of a mutation's name, in order; none: all mutations")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time")
    given = parser.parse_args()
    if found := problems():
        raise SystemExit("\n".join(found))
    words = " ".join(given.words)
    chosen = [m for m in MUTATIONS if words in m.name]
    if not chosen:
        raise SystemExit(f"no mutation is called {words!r}")
    results = []
    with ThreadPoolExecutor(given.jobs) as executor:
        for r in executor.map(run, chosen):
            results.append(r)
            print(f"{r['rule']:>2}  {r['result']:<7} {r['seconds']:>4} s  {r['mutation']:<60} {r['by']}", flush=True)
    if len(chosen) == len(MUTATIONS):
        record(results)
    red = sum(r["result"] == "red" for r in results)
    print(f"{red} of {len(results)} red")
    return int(red < len(results))


if __name__ == "__main__":
    sys.exit(main())

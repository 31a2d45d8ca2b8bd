"""Decoding in an order of the model's own: at each end token it chooses the next modality, or ends the example.

Rows choose differently: in each round the rows that chose one modality decode its span together, while the others wait.
A row's result thus depends on itself alone, and is that of the same order given as ``outputs``.

Axis letters: B rows, C choices (`ZipperConfig.choices`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float

from zipper_jax.decoding.spans import Generated, Given, fetch, to_host
from zipper_jax.models.cache import Cache, init_cache
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.module import Params, Placer
from zipper_jax.models.zipper import bind_params
from zipper_jax.sequences import Layout, TowerBatch
from zipper_jax.utils.errors import UserError

if TYPE_CHECKING:
    from zipper_jax.decoding.generate import Generator

MAX_SPANS = 8
"""Most spans of a row, unless another bound is given."""


def check(config: ZipperConfig, given: Sequence[Sequence[Any]], max_spans: int = MAX_SPANS) -> None:
    """Raise UserError where the model cannot choose."""
    if not config.next_modality:
        raise UserError(
            "outputs = 'auto': this model does not choose the next modality; train one with "
            "ZipperConfig.next_modality = True, or name the outputs"
        )
    if max_spans < 1:
        raise UserError(f"max_spans = {max_spans}: give at least 1")
    for row, spans in enumerate(given):
        if not spans:
            raise UserError(
                f"outputs = 'auto': prompt {row} is empty, and the model chooses at the end of a span; give one, or "
                "name the outputs"
            )


def feed_and_choose(
    config: ZipperConfig, placer: Placer, params: Params, cache: Cache, towers: dict[str, TowerBatch]
) -> tuple[Cache, dict[str, Float[Array, "B C"]]]:
    """Feed prompts; per tower, log probabilities of what comes after each row's last token in it."""
    model = bind_params(config, params, placer)
    _, states, cache = model.last_logits(towers, cache)
    return cache, {tower: jax.nn.log_softmax(model.choose(tower, x)[:, 0]) for tower, x in states.items()}


def decode(
    run: "Generator", given: Sequence[Sequence[Given]], max_new_tokens: Mapping[str, int], sampling: Any,
    numbers: Sequence[int], max_spans: int,
) -> list[list[Generated]]:  # fmt: skip
    """One batch of `Generator.__call__`. Its cache grows with the rounds, since few rows have ``max_spans`` spans."""
    worst = _longest(run.layout, max_new_tokens)
    run.capacity(given, worst * max_spans, max_new_tokens)  # raises where learned positions would not suffice
    capacity = run.capacity(given, worst, max_new_tokens)
    cache = init_cache(run.config, len(given), capacity, run.placer)
    cache, found = run.feed_and_choose(run.params, cache, run.towers(given))
    after = {tower: np.asarray(log_probs) for tower, log_probs in fetch(found).items()}
    prompts_end = [after[run.layout[spans[-1][0]].tower][row] for row, spans in enumerate(given)]
    choices, so_far = run.config.choices, [list(spans) for spans in given]
    chosen = [choices[int(np.argmax(log_probs))] for log_probs in prompts_end]
    results: list[list[Generated]] = [[] for _ in given]
    for number in range(max_spans):
        now = list(chosen)
        for modality in sorted({modality for modality in now if modality is not None}):
            rows = [row for row, own in enumerate(now) if own == modality]
            needed = run.capacity([so_far[row] for row in rows], [modality], max_new_tokens)
            if any(needed[tower] > capacity[tower] for tower in capacity):
                capacity = {tower: 2 * n if needed[tower] > n else n for tower, n in capacity.items()}
                cache = _grown(cache, init_cache(run.config, len(given), capacity, run.placer))
            active = np.isin(np.arange(len(given)), rows)
            cache, (*spans, log_probs) = run.span(cache, number, modality, max_new_tokens, sampling, numbers, active)
            log_probs, decoded = np.asarray(fetch(log_probs)), list(to_host(spans, run.layout[modality]))
            for row in rows:
                tokens, truncated, scores = decoded[row]
                chosen[row] = choices[int(np.argmax(log_probs[row]))]
                truncated |= number + 1 == max_spans and chosen[row] is not None
                results[row].append(Generated(modality, tokens, truncated, scores, chosen[row], log_probs[row]))
                so_far[row].append((modality, tokens))
    return results


def _longest(layout: Layout, max_new_tokens: Mapping[str, int]) -> list[str]:
    """Of every tower the modality with the longest spans."""
    towers: dict[str, str] = {}
    for modality, place in layout.items():
        other = towers.get(place.tower, modality)
        towers[place.tower] = max(modality, other, key=lambda name: max_new_tokens[name])
    return list(towers.values())


def _grown(cache: Cache, larger: Cache) -> Cache:
    """``larger``, an empty cache of larger capacity, with the content of ``cache``."""
    return jax.tree.map(lambda new, old: jax.lax.dynamic_update_slice(new, old, (0,) * new.ndim), larger, cache)

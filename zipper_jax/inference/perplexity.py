"""Perplexity of one modality alone, on the unimodal or the fused path.

Axis letters: B rows, T positions.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zipper_jax.models import zipper
from zipper_jax.models.config import ZipperConfig
from zipper_jax.packing import pack
from zipper_jax.sequences import Layout, Span, TowerBatch, own_tokens, rows_to_towers
from zipper_jax.utils.distributed import share
from zipper_jax.utils.errors import UserError

_BATCH_ROWS = 8


def perplexities(
    config: ZipperConfig,
    many_params: Sequence[Any],
    layout: Layout,
    modality: str,
    contents: Sequence[np.ndarray],
    *,
    fused: bool,
    shared: bool = False,
) -> list[float]:
    """exp(mean nats per predicted token, end tokens included, begin tokens not), for each set of parameters.

    Args:
        config: The model.
        many_params: Sets of parameters.
        layout: Modality -> its slice of a tower's vocabulary.
        modality: Of the contents.
        contents: Content token ids of each example.
        fused: The fused path, with input projection and zips (without visible keys); else the unimodal path, which has
            no added tokens: if begin is an added token, each example's first token is not predicted.
        shared: Shared among the processes of the group, which must all call it.

    Raises:
        UserError: No contents, or one longer than the tower's learned positions.
    """
    if not contents:
        raise UserError(f"perplexity of {modality}: no examples given")
    place = layout[modality]
    own = config.towers[place.tower]
    length = max(len(c) for c in contents) + 2
    own.check_length(length, f"tokens of the longest {modality} example")
    slots = np.array([[len(c) + 2] for c in contents])
    capacity = max(128, length)
    rows = [[contents[i] for i in row] for row in pack(slots, np.array([capacity])).rows]
    rows += [[] for _ in range(-len(rows) % _BATCH_ROWS)]
    step = jax.jit(partial(_sums, config, place.tower, fused))

    def sums_of(first: int) -> list[list[float]]:
        towers = _towers(layout, modality, rows[first : first + _BATCH_ROWS], {place.tower: capacity})
        if not fused:
            towers = {place.tower: own_tokens(towers[place.tower], own.vocab_size)}
        return [[float(x) for x in step(params, towers)] for params in many_params]

    sums = np.zeros((len(many_params), 2))
    starts = range(0, len(rows), _BATCH_ROWS)
    for _, some in share(starts, sums_of) if shared else ((first, sums_of(first)) for first in starts):
        sums += some
    return [math.exp(nats / tokens) for nats, tokens in sums]


def pack_contents(
    layout: Layout, modality: str, contents: Sequence[np.ndarray], lengths: Mapping[str, int]
) -> dict[str, TowerBatch]:
    """One row per content; row length as in ``lengths``, else that of the longest."""
    needed = {layout[modality].tower: max(len(c) for c in contents) + 2}
    return _towers(layout, modality, [[c] for c in contents], {**needed, **lengths})


def _towers(layout: Layout, modality: str, rows: Any, lengths: Mapping[str, int]) -> dict[str, TowerBatch]:
    place = layout[modality]
    examples = [[(Span(modality, tokens, 1.0),) for tokens in row] for row in rows]
    return rows_to_towers(examples, layout, {place.tower: lengths[place.tower]})


def _sums(config: ZipperConfig, tower: str, fused: bool, params: Any, towers: Any) -> Any:
    batch = towers[tower]
    model = zipper.bind_params(config, params)
    own = model.towers[tower]
    losses = model.losses(towers)[tower] if fused else own.losses(own.hidden(batch), batch)
    return jnp.sum(losses.nll), jnp.sum(batch.weights)

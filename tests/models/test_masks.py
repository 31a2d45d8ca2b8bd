"""Attention ranges against a brute-force reading of their rule, on random packed rows."""

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import TRIO_LAYOUT, random_rows

from zipper_jax.models.masks import Order, attention_range
from zipper_jax.sequences import Span, rows_to_towers

LENGTHS = {"text": 9, "speech": 40, "image": 14}


@jax.jit
def ranges(queries, keys):
    """(of self-attention of ``queries``, of attention to ``keys``), each (start, end)."""
    own, others = (Order(x.segment_ids, x.global_positions) for x in (queries, keys))
    return attention_range(own, own, inclusive=True), attention_range(own, others, inclusive=False)


def spans(modality, *lengths):
    return [(Span(modality, np.zeros(n, np.int32), 1.0),) for n in lengths]


def check_self(batch):
    start, end = (np.asarray(x) for x in ranges(batch, batch)[0])
    for b, t in np.ndindex(batch.tokens.shape):
        segment = batch.segment_ids[b, t]
        same = batch.segment_ids[b] == segment
        seen = np.flatnonzero(same & (batch.global_positions[b] <= batch.global_positions[b, t]))
        check_range(start[b, t], end[b, t], seen if segment else [], None if segment else batch.tokens.shape[1])
    check_contract(start, end, batch.tokens.shape[1])
    later = end > np.arange(batch.tokens.shape[1]) + 1
    assert not later[batch.segment_ids > 0].any()  # what towers promise of causal attention


def check_cross(queries, keys):
    start, end = (np.asarray(x) for x in ranges(queries, keys)[1])
    for b, t in np.ndindex(queries.tokens.shape):
        segment = queries.segment_ids[b, t]
        earlier = keys.global_positions[b] < queries.global_positions[b, t]
        seen = np.flatnonzero((keys.segment_ids[b] == segment) & earlier)
        check_range(start[b, t], end[b, t], seen if segment else [], None if segment else keys.tokens.shape[1])
    check_contract(start, end, keys.tokens.shape[1])


def check_range(start, end, seen, empty_at):
    assert list(range(start, end)) == list(seen)
    if empty_at is not None:
        assert start == end == empty_at


def check_contract(start, end, slots):
    assert start.dtype == end.dtype == np.int32
    assert (np.diff(start, axis=1) >= 0).all()
    assert (np.diff(end, axis=1) >= 0).all()
    assert (start <= end).all()
    assert (start >= 0).all()
    assert (end <= slots).all()


def check_rows(rows):
    towers = rows_to_towers(rows, TRIO_LAYOUT, LENGTHS)
    for tower in LENGTHS:
        check_self(towers[tower])
        for other in LENGTHS:
            if other != tower:
                check_cross(towers[tower], towers[other])


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 5))
@example(0, 0, 1)
@settings(max_examples=40)
def test_random_rows(seed, longest, most_spans):
    rng = np.random.default_rng(seed)
    check_rows(random_rows(rng, 2, TRIO_LAYOUT, LENGTHS, 30, longest=longest, most_spans=most_spans))


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 5))
@settings(max_examples=1500)
def test_many_random_rows(seed, longest, most_spans):
    rng = np.random.default_rng(seed)
    check_rows(random_rows(rng, 2, TRIO_LAYOUT, LENGTHS, 30, longest=longest, most_spans=most_spans))


@pytest.mark.parametrize(
    "row",
    [
        [],
        spans("text", 0),
        spans("text", 7),
        # More examples than the text tower has positions come before the one with text.
        [*spans("speech", *[0] * 19), *spans("text", 3)],
        [*spans("speech", *[0] * 9), *spans("text", 0), *spans("speech", *[0] * 10), *spans("text", 0)],
        [*spans("text", 0, 0, 0), *spans("speech", 5)],
        [(*spans("text", 1)[0], *spans("speech", 2)[0], *spans("text", 1)[0], *spans("speech", 3)[0])],
    ],
    ids=["empty", "one", "full", "late text", "text between", "speech last", "four spans"],
)
def test_chosen_rows(row):
    check_rows([row, []])

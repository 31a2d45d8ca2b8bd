import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.packing import pack
from zipper_jax.utils.errors import UserError


@st.composite
def problems(draw):
    towers = draw(st.integers(1, 3))
    capacity = draw(st.lists(st.integers(1, 20), min_size=towers, max_size=towers))
    lengths = draw(st.lists(st.lists(st.integers(0, 22), min_size=towers, max_size=towers), max_size=40))
    return np.array(lengths, np.int64).reshape(-1, towers), np.array(capacity), draw(st.integers(1, 5))


@given(problems())
def test_every_example_once_or_dropped_and_no_row_overflows(problem):
    lengths, capacity, open_rows = problem
    packing = pack(lengths, capacity, open_rows)
    placed = [index for row in packing.rows for index in row]
    assert sorted(placed + packing.dropped) == list(range(len(lengths)))
    assert packing.dropped == [i for i, need in enumerate(lengths) if (need > capacity).any()]
    for row in packing.rows:
        assert row
        assert row == sorted(row)
        assert (lengths[row].sum(axis=0) <= capacity).all()
    assert packing == pack(lengths, capacity, open_rows)


@given(problems())
def test_first_fit_against_a_plain_reading_of_it(problem):
    lengths, capacity, open_rows = problem
    rows: list[list[int]] = []
    for index, need in enumerate(lengths):
        if (need > capacity).any():
            continue
        for row in rows[-open_rows:]:
            if (lengths[row].sum(axis=0) + need <= capacity).all():
                row.append(index)
                break
        else:
            rows.append([index])
    assert pack(lengths, capacity, open_rows).rows == rows


def test_more_open_rows_fill_better():
    lengths = np.random.default_rng(0).integers(5, 60, (500, 2))
    few, many = (len(pack(lengths, np.array([100, 100]), n).rows) for n in (1, 64))
    assert many < few


@pytest.mark.parametrize(
    ("lengths", "capacity", "open_rows", "message"),
    [
        ([[1]], [0], 4, "at least 1 position"),
        ([[1]], [4], 0, "open_rows is 0"),
        ([[-1]], [4], 4, "cannot be negative"),
    ],
)
def test_errors(lengths, capacity, open_rows, message):
    with pytest.raises(UserError, match=message):
        pack(np.array(lengths), np.array(capacity), open_rows)

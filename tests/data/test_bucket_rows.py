"""Packed rows in buckets: the same rows as on a disk, read in blocks."""

import resource

import numpy as np
import pytest
from buckets import any_folder, folder, gcs, s3  # noqa: F401

from zipper_jax.cli.failures import explained
from zipper_jax.data import bucket_arrays
from zipper_jax.data.packed_rows import RowStore, write_rows
from zipper_jax.sequences import Span
from zipper_jax.utils import storage
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import is_no_room
from zipper_jax.utils.storage import as_path

RANDOM = np.random.default_rng(0)
ROWS = [
    [
        tuple(
            Span(m, RANDOM.integers(0, 900, RANDOM.integers(0, 60)).astype(np.int32), 1.0) for m in ("text", "speech")
        )
        for _ in range(RANDOM.integers(0, 4))
    ]
    for _ in range(60)
]


def plain(row):
    return [[(span.modality, span.tokens.tolist(), span.weight) for span in example] for example in row]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(bucket_arrays, "BLOCK", 64)
    monkeypatch.setattr(bucket_arrays, "IN_FLIGHT", 3)


def test_rows_in_a_bucket_are_those_on_a_disk(any_folder, small_blocks):  # noqa: F811
    write_rows(any_folder, ROWS, {"task": "x"})
    store = RowStore(any_folder)
    assert len(store) == len(ROWS)
    assert store.meta["task"] == "x"
    some = [41, 3, 59, 3]
    store.fetch(some)
    for index in [*some, *range(len(ROWS))]:
        assert plain(store.row(index)) == plain(ROWS[index])


def test_a_block_is_read_once_and_only_when_it_is_needed(folder, small_blocks, monkeypatch):  # noqa: F811
    write_rows(folder, ROWS, {})
    asked = []
    real = storage.read_spans
    monkeypatch.setattr(
        storage, "read_spans", lambda path, spans: (asked.append((path.name, spans)), real(path, spans))[1]
    )
    store = RowStore(folder)
    asked.clear()
    store.fetch([10, 11])
    assert 0 < sum(len(spans) for _, spans in asked) < 20
    assert all(len(spans) <= 3 for _, spans in asked), "in flight at a time"
    asked.clear()
    store.row(10), store.row(11), store.fetch([10, 11])
    assert asked == []


def test_rows_that_are_replaced_while_they_are_read_are_an_error(folder, small_blocks):  # noqa: F811
    write_rows(folder, ROWS, {})
    store = RowStore(folder)
    store.row(0)
    write_rows(folder, ROWS[::-1], {})
    with pytest.raises(UserError, match="was replaced while it was read"):
        store.fetch(range(len(ROWS)))


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(folder, small_blocks):  # noqa: F811
    """A limit on the size of files stands for the disk; once there is room, the same store reads on."""
    write_rows(folder, ROWS, {})
    store = RowStore(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # in the middle of the second block
    try:
        with pytest.raises(OSError, match=r".") as error:
            store.fetch(range(len(ROWS)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_no_room(error.value)
    assert explained(error.value)[0] == 2
    for index, row in enumerate(ROWS):
        assert plain(store.row(index)) == plain(row)


def test_damaged_rows_in_a_bucket_are_named(folder):  # noqa: F811
    here = as_path(folder)
    with pytest.raises(UserError, match=f"no packed rows in '{folder}'"):
        RowStore(folder)
    write_rows(folder, ROWS, {})
    whole = storage.read(here / "spans.npy")
    for content, message in (
        (whole[:40], "cannot"),
        (b"x" * 400, "damaged, or no array"),
        (None, "damaged, or no array"),
    ):
        storage.write(here / "spans.npy", content)
        with pytest.raises(UserError, match=message) as error:
            RowStore(folder)
        assert "spans.npy" in str(error.value)
    storage.write(here / "spans.npy", whole[:-30])
    with pytest.raises(UserError, match=r"spans\.npy"):
        RowStore(folder)


def test_rows_without_their_meta_are_not_there(folder):  # noqa: F811
    write_rows(folder, ROWS, {})
    storage.write(as_path(folder) / "meta.json", None)
    with pytest.raises(UserError, match="there are no packed rows"):
        RowStore(folder)

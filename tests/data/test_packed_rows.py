import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.data.packed_rows import RowStore, write_rows
from zipper_jax.sequences import Span
from zipper_jax.utils.errors import UserError

spans = st.builds(
    lambda modality, tokens, weight: Span(modality, np.array(tokens, np.int32), weight),
    st.sampled_from(["text", "speech", "image"]),
    st.lists(st.integers(0, 70_000), max_size=5),
    st.sampled_from([0.0, 0.5, 1.0]),
)
rows_of_examples = st.lists(st.lists(st.lists(spans, min_size=1, max_size=3).map(tuple), max_size=4), max_size=5)


def plain(row):
    return [[(span.modality, span.tokens.tolist(), span.weight) for span in example] for example in row]


@given(rows_of_examples)
def test_round_trip(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows") / "store"
    write_rows(folder, rows, {"task": "x"})
    store = RowStore(folder)
    assert len(store) == len(rows)
    assert [plain(store.row(i)) for i in range(len(store))] == [plain(row) for row in rows]
    assert store.meta["task"] == "x"
    assert store.meta["examples"] == sum(map(len, rows))
    with pytest.raises(IndexError):
        store.row(len(rows))
    for name in ("tokens", "spans", "rows"):  # written in blocks, but the file is that of numpy.save
        np.save(folder / "again.npy", np.load(folder / f"{name}.npy"))
        assert (folder / "again.npy").read_bytes() == (folder / f"{name}.npy").read_bytes()


def example(*tokens):
    return (Span("text", np.array(tokens, np.int32), 1.0),)


@pytest.mark.parametrize(("largest", "dtype"), [(255, "uint8"), (256, "uint16"), (65_536, "uint32")])
def test_smallest_type(tmp_path, largest, dtype):
    meta = write_rows(tmp_path / "s", [[example(0, largest)]], {})
    assert meta["token_dtype"] == dtype == str(np.load(tmp_path / "s" / "tokens.npy").dtype)
    assert RowStore(tmp_path / "s").row(0)[0][0].tokens.dtype == np.int32


def test_counts(tmp_path):
    pair = (Span("speech", np.zeros(3, np.int32), 0.0), Span("text", np.zeros(1, np.int32), 1.0))
    meta = write_rows(tmp_path / "s", [[pair, pair], [example(1)]], {})
    assert meta["tokens"] == {"speech": 6, "text": 3}
    assert meta["slots"] == {"speech": 10, "text": 9}
    assert meta["longest"] == {"speech": 10, "text": 6}


def test_rewriting_replaces(tmp_path):
    write_rows(tmp_path / "s", [[example(1)]] * 3, {})
    write_rows(tmp_path / "s", [[example(2)]], {})
    assert len(RowStore(tmp_path / "s")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_rows(tmp_path / "s", [[example(1)]], {})

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("zipper_jax.data.packed_rows.write_json", interrupt)
    for folder in ("s", "new"):
        with pytest.raises(KeyboardInterrupt):
            write_rows(tmp_path / folder, [[example(2)]], {})
    assert plain(RowStore(tmp_path / "s").row(0)) == [[("text", [1], 1.0)]]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_damage_is_reported(tmp_path):
    with pytest.raises(UserError, match="no packed rows"):
        RowStore(tmp_path)
    write_rows(tmp_path / "s", [[example(1, 2, 3)]], {})
    tokens = tmp_path / "s" / "tokens.npy"
    np.save(tokens, np.load(tokens)[:-1])
    with pytest.raises(UserError, match="sizes do not agree"):
        RowStore(tmp_path / "s")
    tokens.write_bytes(tokens.read_bytes()[:20])
    with pytest.raises(UserError, match="damaged"):
        RowStore(tmp_path / "s")
    meta = tmp_path / "s" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        RowStore(tmp_path / "s")
    with pytest.raises(UserError, match="holds token -1"):
        write_rows(tmp_path / "t", [[example(-1)]], {})

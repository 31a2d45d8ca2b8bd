"""JSON that users write: every fault is one line that names place, field, value and expected type."""

import json
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.speech.manifest import ManifestRow
from zipper_jax.utils import user_json


class Line(msgspec.Struct):
    name: user_json.Name
    kind: Literal["a", "b"] = "a"
    spans: list[tuple[str, str | list[int]]] = []
    seconds: user_json.Number = 0.0
    some: Annotated[list[str], msgspec.Meta(min_length=1)] | msgspec.UnsetType = msgspec.UNSET


def read(content, kind, **options):
    return user_json.convert(user_json.decode(content, "FILE", "MEND"), kind, "FILE", "MEND", **options)


@pytest.mark.parametrize(
    "content, message, field",
    [
        ("{", "FILE is not a JSON object in UTF-8 (Expecting property name enclosed in double quotes); MEND", ""),
        (b'{"name": "caf\xe9"}', "FILE is not a JSON object in UTF-8 (not UTF-8); MEND", ""),
        ("[" * 100_000, "FILE is not a JSON object in UTF-8 (nested too deeply); MEND", ""),
        ('["x"]', 'FILE is not a JSON object but ["x"]; MEND', ""),
        ("{}", "FILE: name is missing; MEND", "name"),
        ('{"name": ""}', 'FILE: name = "": expected a string of length >= 1; MEND', "name"),
        ('{"name": null}', "FILE: name = null: expected a string; MEND", "name"),
        ('{"name": "n", "kind": "dev"}', 'FILE: kind = "dev": expected one of a, b; MEND', "kind"),
        ('{"name": "n", "spans": "text"}', 'FILE: spans = "text": expected a list; MEND', "spans"),
        ('{"name": "n", "spans": [["t", null]]}',
         "FILE: spans[0][1] = null: expected a string or a list; MEND", "spans"),
        ('{"name": "n", "spans": [["t", [1, 1.9]]]}', "FILE: spans[0][1][1] = 1.9: expected an integer; MEND", "spans"),
        ('{"name": "n", "seconds": "1.4"}', 'FILE: seconds = "1.4": expected a number; MEND', "seconds"),
        ('{"name": "n", "seconds": NaN}', "FILE: seconds = NaN: expected a number >= 0.0; MEND", "seconds"),
        ('{"name": "n", "seconds": Infinity}',
         "FILE: seconds = Infinity: expected a number <= 1000000000.0; MEND", "seconds"),
        ('{"name": "n", "some": []}', "FILE: some = []: expected a list of length >= 1; MEND", "some"),
        ('{"name": "n", "other": 1}', "FILE: there is no field 'other'; known: kind, name; MEND", "other"),
    ],
)  # fmt: skip
def test_every_fault_has_one_form(content, message, field):
    with pytest.raises(user_json.JsonError) as caught:
        read(content, Line, known=["name", "kind"] if "other" in str(content) else ())
    assert str(caught.value) == message
    assert caught.value.field == field


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(ManifestRow.__struct_fields__)


@given(st.dictionaries(FIELDS, ANY, max_size=9) | ANY, st.booleans())
def test_any_value_is_a_row_or_one_line(value, valid):
    if valid and isinstance(value, dict):
        value |= {"id": "a", "split": "train"}
    try:
        row = read(json.dumps(value), ManifestRow)
    except user_json.JsonError as caught:
        error = caught
    else:
        assert all(getattr(row, name) == value[name] for name in value.keys() & set(ManifestRow.__struct_fields__))
        return
    assert "\n" not in str(error)
    assert str(error).startswith("FILE")
    assert error.field in ("", *ManifestRow.__struct_fields__)


@pytest.mark.parametrize("content", ['\ufeff{"a": "b"}', b'\xef\xbb\xbf{"a": "b"}'])
def test_a_byte_order_mark_is_no_part_of_the_content(content):
    assert user_json.decode(content, "a.json", "save it again") == {"a": "b"}

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.utils.configs import closest, freeze, from_dict, to_dict
from zipper_jax.utils.errors import UserError


@dataclass(frozen=True)
class Inner:
    width: int
    scale: float = 1.0

    def __post_init__(self):
        if self.width < 1:
            raise UserError(f"Inner.width = {self.width} must be positive")


@dataclass(frozen=True)
class Outer:
    name: str
    form: Literal["mlp", "none"] = "mlp"
    hidden: int | None = None
    inner: Inner = Inner(3)
    towers: dict[str, Inner] = field(default_factory=dict)
    rates: Mapping[str, float] | None = None
    pairs: tuple[tuple[int, int], ...] | None = None
    names: tuple[str, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    flag: bool = False


inners = st.builds(Inner, st.integers(1, 99), st.floats(allow_nan=False, allow_infinity=False))
outers = st.builds(
    Outer,
    st.text("ab \u00e9."),
    st.sampled_from(["mlp", "none"]),
    st.none() | st.integers(),
    inners,
    st.dictionaries(st.text("ab \u00e9."), inners, max_size=3),
    st.none() | st.dictionaries(st.text("ab \u00e9."), st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    st.none() | st.lists(st.tuples(st.integers(), st.integers()), max_size=3).map(tuple),
    st.lists(st.text("ab \u00e9."), max_size=3).map(tuple),
    st.tuples(st.text("ab \u00e9."), st.integers()),
    st.booleans(),
)


@given(outers)
def test_round_trip_through_json(config):
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


def test_missing_fields_take_defaults():
    assert from_dict(Outer, {"name": "x"}) == Outer("x")
    assert from_dict(Inner, {"width": 2, "scale": 3}) == Inner(2, 3.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "hiden": 1}, r"Outer\.hiden: Outer has no such field; did you mean 'hidden'\?"),
        ({}, r"Outer\.name is missing"),
        ({"name": 3}, r"Outer\.name = 3: expected a value of type str"),
        ({"name": "x", "hidden": True}, r"Outer\.hidden = True"),
        ({"name": "x", "form": "lin"}, r"Outer\.form = 'lin': give one of 'mlp', 'none'"),
        ({"name": "x", "form": []}, r"Outer\.form = \[\]: give one of"),
        ({"name": "x", "towers": {"text": {"wdth": 3}}}, r"Outer\.towers\['text'\]\.wdth.*'width'"),
        ({"name": "x", "towers": {"text": {"width": 0}}}, r"Inner\.width = 0 must be positive"),
        ({"name": "x", "pairs": [[1]]}, r"Outer\.pairs\[0\] = \[1\]: expected 2 values"),
        ({"name": "x", "inner": 3}, r"Outer\.inner = 3: expected an object"),
    ],
)
def test_errors_name_the_field(data, message):
    with pytest.raises(UserError, match=message):
        from_dict(Outer, data)


def test_what_a_config_cannot_hold():
    with pytest.raises(TypeError, match="cannot hold"):
        to_dict({"a": object()})


def test_closest():
    assert closest("widht", ["width", "depth"]) == "; did you mean 'width'?"
    assert closest("zzz", ["b", "a"]) == "; known: a, b"
    assert closest("zzz", []) == ""


def test_frozen_dicts_are_never_changed():
    frozen = freeze({"a": [1, {"b": 2}]})
    for name, arguments in {
        "__setitem__": ("a", 1), "__delitem__": ("a",), "__ior__": ({"c": 1},), "update": ({"c": 1},),
        "setdefault": ("c", 1), "pop": ("a",), "popitem": (), "clear": (),
    }.items():  # fmt: skip
        with pytest.raises(TypeError, match=r"never changed; use dataclasses\.replace"):
            getattr(frozen, name)(*arguments)
    assert frozen == {"a": (1, {"b": 2})}
    same = pickle.loads(pickle.dumps(frozen))
    assert {frozen: 1}[same] == 1, "equal dicts hash alike"
    assert type(same) is type(frozen)

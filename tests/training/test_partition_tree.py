"""Freezing: split and join are exact inverses, rules find what they name, mistakes are explained."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import zipper_model

from zipper_jax.models import zipper
from zipper_jax.training.partition_tree import FreezeConfig, LayerRange, split
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import base_path, flatten, join, unflatten

SHAPES = zipper.abstract_params(zipper_model())
PARAMS = jax.tree.map(lambda s: np.random.default_rng(0).normal(size=s.shape).astype(np.float32), SHAPES)


def ranges(tower: str, layers: int):
    pair = st.tuples(st.integers(0, layers - 1), st.integers(1, layers)).filter(lambda p: p[0] < p[1])
    return pair.map(lambda p: (tower, *p))


# Plain values; the checked dataclasses are built in the test (beartype draws from `random`, which strategies must not).
rules = st.tuples(
    st.lists(st.sampled_from(["text", "speech"]), max_size=2),
    st.lists(st.sampled_from([".*gate", "zips/.*", "towers/speech/.*/mlp/up/kernel"]), max_size=2),
    st.lists(st.one_of(ranges("text", 2), ranges("speech", 3)), max_size=3),
)


def build(drawn) -> FreezeConfig:
    towers, paths, layers = drawn
    return FreezeConfig(tuple(towers), tuple(paths), tuple(LayerRange(*r) for r in layers))


@given(rules)
def test_join_is_the_exact_inverse_of_split(drawn):
    trainable, frozen = split(PARAMS, build(drawn))
    assert not set(trainable) & set(frozen)
    joined, original = flatten(join(trainable, frozen)), flatten(PARAMS)
    assert set(joined) == set(original)
    for path, leaf in original.items():
        np.testing.assert_array_equal(joined[path], leaf)  # bitwise


@given(rules)
def test_shapes_split_as_arrays_do(drawn):
    arrays = split(PARAMS, build(drawn))
    shapes = split(SHAPES, build(drawn))
    for a, s in zip(arrays, shapes, strict=True):
        assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in s.items()}


def test_flatten_and_unflatten():
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, unflatten(flatten(PARAMS)), PARAMS))


def test_a_tower_rule_freezes_that_tower_and_nothing_else():
    trainable, frozen = split(PARAMS, FreezeConfig(towers=("text",)))
    assert all(key.startswith("towers/text/") for key in frozen)
    assert not any(key.startswith("towers/text/") for key in trainable)


def test_a_layer_range_slices_the_blocks_of_its_tower_only():
    trainable, frozen = split(PARAMS, FreezeConfig(layers=(LayerRange("speech", 1, 3),)))
    assert all(key.startswith("towers/speech/blocks/") and key.endswith("@1:3") for key in frozen)
    assert trainable["towers/speech/blocks/mlp/up/kernel@0:1"].shape[0] == 1
    assert base_path("towers/speech/blocks/mlp/up/kernel@0:1") == "towers/speech/blocks/mlp/up/kernel"
    assert "towers/speech/embedding/table" in trainable


def test_a_path_rule_must_match_the_whole_path():
    _, frozen = split(PARAMS, FreezeConfig(paths=(".*/attention_gate",)))
    assert sorted(frozen) == [f"zips/speech-text/into_{t}/attention_gate" for t in ("speech", "text")]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FreezeConfig(towers=("txet",)), ["txet", "'text'"]),
        (lambda: FreezeConfig(paths=("towers/text/embeding/table",)), ["matches no", "towers/text/embedding/table"]),
        (lambda: FreezeConfig(paths=("(",)), ["regular expression"]),
        (lambda: FreezeConfig(layers=(LayerRange("text", 0, 9),)), ["0:9", "2 blocks"]),
        (lambda: FreezeConfig(layers=(LayerRange("text", 2, 2),)), ["start=2"]),
    ],
)
def test_a_rule_that_names_nothing_is_explained(make, words):
    with pytest.raises(UserError) as error:
        split(PARAMS, make())
    assert all(word in str(error.value) for word in words), error.value

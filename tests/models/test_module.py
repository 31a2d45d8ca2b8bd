"""What parameters declare of themselves, against what a pass does with them; and how a model object is initialised."""

import dataclasses
from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from options import FUSIONS, OPTIONS, TRIOS, layout_of
from passes import equations, forward
from tiny import is_gate, paths

from zipper_jax.models.module import Unsharded, pure
from zipper_jax.models.zipper import Zipper, abstract_params, init_params, parameters
from zipper_jax.sequences import rows_to_towers

# Unlike any size of a model, so that a shape says whose tokens they are.
TOKENS = {"text": 101, "speech": 103, "image": 107}


def empty_batch(config):
    return rows_to_towers([[]], layout_of(config), {tower: TOKENS[tower] for tower in config.towers})


def member(found):
    """(shape, axes) of one member of a stack, or of the parameter itself."""
    return (found.shape[1:], found.axes[1:]) if found.stacked else (found.shape, found.axes)


def test_parameters_are_declared_by_their_use():
    for config in OPTIONS.values():
        for path, found in parameters(config).items():
            last = path.split("/")[-1]
            if is_gate(path.split("/")):
                assert found.use == "gate", path
            else:
                use = {
                    "kernel": "product",
                    "scale": "scale",
                    "bias": "scale",
                    "query_offset": "scale",
                    "key_offset": "scale",
                }.get(last)
                assert found.use == (use or "lookup"), path
                assert use or last.endswith("table"), path
            heads = [t for t, c in config.towers.items() if path == f"towers/{t}/head/table"]
            heads += [t for t, c in config.towers.items() if c.tied_head and path == f"towers/{t}/embedding/table"]
            assert found.output == bool(heads), path


@pytest.mark.parametrize(
    "name", ["paper", "one way", "positions", "heads", "relative", "soft", "soft late", "projector", "trio"]
)
def test_products_are_those_of_the_declared_parameters_and_tokens(name):
    """Every matrix product with a kernel in a traced pass: so many, of these shapes, over the tokens of this tower."""
    config = dataclasses.replace(OPTIONS[name], scan=False)
    jaxpr = jax.make_jaxpr(partial(forward, config))(abstract_params(config), empty_batch(config))
    found = Counter()
    for equation in equations(jaxpr.jaxpr):
        if equation.primitive.name != "dot_general" or any(equation.params["dimension_numbers"][1]):
            continue  # products of activations have batch axes
        shapes = [variable.aval.shape for variable in equation.invars]
        of_tokens = [shape[0] in TOKENS.values() for shape in shapes]  # one row, taken as one axis with its positions
        assert sorted(of_tokens) == [False, True]
        found[shapes[of_tokens.index(False)], shapes[of_tokens.index(True)][0]] += 1
    wanted = Counter()
    for p in parameters(config).values():
        if p.use == "product" or p.output:
            for tower, share in p.tokens.items():
                wanted[member(p)[0], TOKENS[tower]] += round(p.shape[0] * share) if p.stacked else 1
    assert found == wanted


@pytest.mark.parametrize("name", ["paper", "positions", "relative", *TRIOS, *FUSIONS])
def test_what_is_used_whole_is_gathered_and_tables_are_not(name):
    """By the rules of the tower that the parameter belongs or writes to."""
    config, gathered = OPTIONS[name], set()

    class Recording(Unsharded):
        def __call__(self, x, tower, *names, in_use=False):
            if in_use:
                gathered.add((tower, x.shape, names))
            return x

    jax.eval_shape(partial(forward, config, placer=Recording()), abstract_params(config), empty_batch(config))
    known = parameters(config).items()
    whole = {path: p.use != "lookup" or p.output or path.startswith("added_embeddings/") for path, p in known}
    assert gathered == {(p.owner, *member(p)) for path, p in known if whole[path]}


def test_a_model_with_plain_flax_layers_starts_as_a_run_of_its_seed():
    """They draw from the same rngs; the declared parameters must not depend on how often."""
    config, rngs = OPTIONS["ungated"], nnx.Rngs(3)
    first, second = (dict(paths(pure(Zipper(config, rngs=rngs)))) for _ in range(2))
    wanted = dict(paths(init_params(config, 3)))
    assert first.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(first[path], leaf, err_msg=str(path))
        if path[-1] == "kernel":
            assert (np.asarray(second[path]) != leaf).any(), "the next model of the same rngs is another"

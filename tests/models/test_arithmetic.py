"""What must not depend on how a model is run (scan, remat, dtype, names), and what its parameters are."""

import dataclasses
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from options import OPTIONS, batch_of, gradient_program, losses, numpy_tree, program
from passes import equations, forward, unimodal
from tiny import ZIP, is_gate, pair, paths, random_params, with_gates

from zipper_jax.models.config import ModalityConfig, ZipperConfig
from zipper_jax.models.zipper import abstract_params, init_params, param_axes
from zipper_jax.sequences import TowerBatch
from zipper_jax.utils.configs import from_dict, to_dict
from zipper_jax.utils.errors import UserError

# ---- scan, remat, dtype ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"remat": "full"}, {"remat": "dots"}, {"scan": False}], ids=str)
def test_remat_and_unrolling_give_the_same_gradients(changes):
    config = dataclasses.replace(OPTIONS["paper"], **changes)
    params = random_params(config)
    _, towers = batch_of(config)
    loss, gradients = jax.jit(jax.value_and_grad(partial(losses, config)))(params, towers)
    wanted_loss, wanted = gradient_program("paper")(params, towers)
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-6)
    for (path, g), (_, w) in zip(paths(numpy_tree(gradients)), paths(numpy_tree(wanted)), strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5 * (1 + np.abs(w).max()), err_msg=str(path))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_the_tpu_kernel_gives_the_same_gradients(name):
    """Also for fusions, grouped heads, soft caps, windows; the kernel is interpreted. T5's bias stays with the rest."""
    config = dataclasses.replace(OPTIONS[name], attention="pallas_tpu")
    params = random_params(config)
    _, towers = batch_of(config)
    traced = str(jax.make_jaxpr(partial(forward, config))(params, towers))
    assert "pallas_call" in traced
    loss, gradients = jax.jit(jax.value_and_grad(partial(losses, config)))(params, towers)
    wanted_loss, wanted = gradient_program(name)(params, towers)
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-6)
    for (path, g), (_, w) in zip(paths(numpy_tree(gradients)), paths(numpy_tree(wanted)), strict=True):
        np.testing.assert_allclose(g, w, atol=5e-5 * (1 + np.abs(w).max()), err_msg=str(path))


def test_a_tower_computes_no_scores_of_later_halves_on_cpu():
    """Of 128 tokens in two parts: 64 x 64 and 64 x 128 scores a head."""
    batch = TowerBatch(*(np.zeros((1, 128), kind) for kind in "iifiii"))
    traced = jax.make_jaxpr(partial(unimodal, pair(), tower="text", batch=batch))(abstract_params(pair()))
    shapes = {e.outvars[0].aval.shape[-2:] for e in equations(traced.jaxpr) if e.primitive.name == "exp"}
    assert shapes == {(64, 64), (64, 128)}


def test_sines_are_computed_at_most_once_a_block_on_cpu():
    """And not in every operation that reads them, which are several a block, half of them in the backward pass."""
    config = pair(scan=False)
    _, towers = batch_of(config)
    text = jax.jit(jax.grad(partial(losses, config))).lower(abstract_params(config), towers).compile().as_text()
    assert 0 < len(re.findall(r" sine\(", text)) <= sum(tower.num_layers for tower in config.towers.values())


def test_unrolled_blocks_are_slices_of_the_stored_arrays():
    """And no slices of slices, which compile to two copies of the weights, and two of their gradients."""
    config = pair(scan=False)
    _, towers = batch_of(config)
    traced = jax.make_jaxpr(partial(forward, config))(abstract_params(config), towers).jaxpr
    stored = set(traced.invars)
    slices = [e for e in equations(traced) if e.primitive.name == "slice"]
    cut = {e.outvars[0] for e in slices if e.invars[0] in stored}
    assert cut
    assert not [e for e in slices if e.invars[0] in cut]


def test_an_unknown_implementation_of_attention_is_refused():
    stored = {**to_dict(OPTIONS["paper"]), "attention": "pallas"}
    with pytest.raises(UserError, match=r"ZipperConfig\.attention = 'pallas': give one of 'auto', 'dense'"):
        from_dict(ZipperConfig, stored)


@pytest.mark.parametrize("name", ["paper", "residual", "positions"])
def test_bfloat16_multiplies_in_bfloat16_and_returns_float32(name):
    config = dataclasses.replace(OPTIONS[name], dtype="bfloat16")
    _, towers = batch_of(config)
    jaxpr, shapes = jax.make_jaxpr(partial(forward, config), return_shape=True)(abstract_params(config), towers)
    products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert products
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype(jnp.bfloat16)}
    exponentials = [e for e in equations(jaxpr.jaxpr) if e.primitive.name in ("exp", "rsqrt", "sin")]
    assert {v.aval.dtype for e in exponentials for v in e.invars} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in shapes.values()} == {jnp.dtype(jnp.float32)}


def test_bfloat16_stays_near_float32():
    config = dataclasses.replace(OPTIONS["paper"], dtype="bfloat16")
    params = random_params(config)
    _, towers = batch_of(config)
    half = jax.jit(partial(forward, config))(params, towers)
    for tower, logits in program("paper")(params, towers).items():
        real = towers[tower].segment_ids > 0
        error = np.abs(np.asarray(half[tower]) - np.asarray(logits))[real]
        assert error.max() < 0.1 * np.std(np.asarray(logits)[real]) + 0.05
        assert error.max() > 0


# ---- parameters ------------------------------------------------------------------------------------------------------


def test_initial_parameters():
    config = with_gates(OPTIONS["paper"], gate_init=0.5)
    assert ZIP.gate_init == 0
    params = init_params(config, 0)
    assert {p: x.shape for p, x in paths(params)} == {p: x.shape for p, x in paths(abstract_params(config))}
    for path, x in paths(numpy_tree(params)):
        assert x.dtype == np.float32
        if is_gate(path):
            assert (x == 0.5).all()
        elif path[-1] == "bias":
            assert (x == 0).all()
        elif path[-1] == "scale":
            assert (x == 1).all()
        else:
            assert np.std(x) > 0
            for a, b in itertools.pairwise(x):
                assert (a != b).any(), f"{path}: two members start alike"
    kernels = {p: float(np.std(x)) for p, x in paths(params) if p[-1] == "kernel"}
    assert kernels["towers", "speech", "blocks", "attention", "query", "kernel"] == pytest.approx(80**-0.5, rel=0.1)
    first = "zips", "speech-text", "into_text", "projection", "layer_0", "kernel"
    assert kernels[first] == pytest.approx(80**-0.5, rel=0.1)
    check_adding_a_part_changes_no_other(params)


def check_adding_a_part_changes_no_other(params):
    big = params
    small = init_params(pair(zips=(), projections={}), 0)
    big = dict(paths(big))
    for path, x in paths(small):
        np.testing.assert_array_equal(x, big[path])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_leaf_names_its_axes(name):
    config = OPTIONS[name]
    axes = dict(paths(param_axes(config)))
    shapes = dict(paths(abstract_params(config)))
    assert set(axes) == set(shapes)
    known = {
        "layers", "zips", "vocab", "embed", "heads", "kv_heads", "head_size", "mlp", "projection", "projection_out",
        None,
    }  # fmt: skip
    for path, names in axes.items():
        assert len(names) == len(shapes[path].shape), path
        assert set(names) <= known, path
        named = [n for n in names if n is not None]
        assert len(set(named)) == len(named), f"{path}: one mesh axis would be used twice"
        tower = config.towers.get(path[1] if path[0] != "zips" else path[2].removeprefix("into_"))
        sizes = dict(zip(names, shapes[path].shape, strict=True))
        if path[0] == "towers":
            wanted = {
                "layers": tower.num_layers, "vocab": tower.vocab_size, "embed": tower.embed_dim,
                "heads": tower.num_heads, "kv_heads": tower.num_kv_heads,
                "head_size": tower.head_dim, "mlp": tower.mlp_dim,
            }  # fmt: skip
            sizes.pop(None, None)  # tables of positions and buckets
            assert sizes == {k: wanted[k] for k in sizes}, path


# ---- rule 7: no tower, modality or number of towers is special -------------------------------------------------------


@pytest.mark.slow
def test_names_do_not_matter():
    """The same model with other names gives the same logits."""
    renamed = {"text": "zebra", "speech": "apple"}
    config = OPTIONS["one way"]
    z = dataclasses.replace(
        config.zips[0], towers=("zebra", "apple"), intervals={"zebra": 1, "apple": 2}, into=("apple",)
    )
    other = ZipperConfig(
        {renamed[t]: c for t, c in config.towers.items()},
        {renamed[m]: ModalityConfig(renamed[c.tower], c.size) for m, c in config.modalities.items()},
        (z,),
        {renamed[t]: p for t, p in config.input_projections.items()},
    )
    params = random_params(config)
    moved = {
        "towers": {renamed[t]: x for t, x in params["towers"].items()},
        "input_projections": {renamed[t]: x for t, x in params["input_projections"].items()},
        "zips": {"apple-zebra": {"into_apple": params["zips"]["speech-text"]["into_speech"]}},
    }
    _, towers = batch_of(config)
    found = jax.jit(partial(forward, other))(moved, {renamed[t]: x for t, x in towers.items()})
    wanted = program("one way")(params, towers)
    for tower, name in renamed.items():
        np.testing.assert_allclose(found[name], wanted[tower], atol=1e-5)

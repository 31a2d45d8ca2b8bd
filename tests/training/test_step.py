"""The update: accumulation, devices, freezing and bad batches, on a tiny zipper."""

import re
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from passes import equations, losses
from tiny_models import zipper_model

from zipper_jax.aot.compile_train import batch_shapes
from zipper_jax.inference import likelihood, perplexity
from zipper_jax.models import tower, zipper
from zipper_jax.ops.vocab_loss import LARGE_VOCABULARY, vocab_loss
from zipper_jax.sharding.mesh import MeshConfig, make_mesh, put_batch
from zipper_jax.training import data_source, program
from zipper_jax.training.optimizer import OPTIMIZERS, OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig, LayerRange
from zipper_jax.training.step import loss_and_gradients
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten, unflatten

EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)


def random_params(model):
    """Random everywhere: gates away from 0, so that gradients reach everything."""
    random = np.random.default_rng(1)
    shapes = flatten(zipper.abstract_params(model))
    return {key: (0.3 * random.normal(size=s.shape)).astype(np.float32) for key, s in shapes.items()}


@pytest.fixture(scope="module")
def params():
    return random_params(zipper_model())


def start(config, params):
    built = program.build(config, 2)
    return built, built.start(unflatten(params))


@pytest.fixture(scope="module")
def gradients(params):
    """Loss, sums and gradients under a run's mesh and microbatches; each computed once (compiling is slow)."""
    known = {}

    def of(config):
        key = repr(replace(config, model_dir="x"))
        if key not in known:
            known[key] = _gradients(config, params)
        return known[key]

    return of


def _gradients(config, params):
    built, state = start(config, params)
    batch = put_batch(data_source.open_data(config).batches.get(0), built.mesh)
    compute = jax.jit(
        partial(
            loss_and_gradients,
            partial(losses, config.model),
            num_tasks=2,
            loss_weights=config.loss_weights,
            microbatches=config.microbatches,
        )
    )
    return jax.device_get(compute(state.trainable, state.frozen, batch))


def assert_close(got, want, tolerance):
    """Within ``tolerance`` of each leaf's largest entry."""
    for key, leaf in want.items():
        np.testing.assert_allclose(got[key], leaf, rtol=0, atol=tolerance * max(np.abs(leaf).max(), 1e-3), err_msg=key)


LAMBDA = {"speech": 0.5}


def test_accumulation_equals_one_big_batch(zipper_run, gradients):
    """Within 2e-5 of each leaf's largest gradient: the same sums in another order. Tasks and weights differ by row."""
    loss, sums, whole = gradients(zipper_run(loss_weights=LAMBDA))
    loss4, sums4, parts = gradients(zipper_run(loss_weights=LAMBDA, microbatches=4))
    np.testing.assert_allclose(loss4, loss, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), sums4, sums)
    assert_close(parts, whole, 2e-5)


def test_state_is_sharded_by_the_rules_and_stays_so(text_run):
    config = text_run(mesh=EIGHT, batch_size=4)
    built, state = start(config, random_params(config.model))
    kernel = state.trainable["towers/text/blocks/mlp/up/kernel"]
    assert tuple(kernel.sharding.spec) == (None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    moments = [m for m in jax.tree.leaves(state.opt_state) if m.shape == kernel.shape]
    assert len(moments) == 4, "Adam's two, of mlp/up and of mlp/gate (the same shape)"
    assert all(m.sharding == kernel.sharding for m in moments)
    batch = put_batch(data_source.open_data(config).batches.get(0), built.mesh)
    state, metrics = built.train_step(state, batch)
    assert metrics.applied
    assert state.trainable["towers/text/blocks/mlp/up/kernel"].sharding == kernel.sharding


def test_frozen_leaves_stay_bitwise_and_have_no_optimizer_state(zipper_run, params):
    rules = FreezeConfig(towers=("text",), layers=(LayerRange("speech", 0, 1),))
    built, state = start(zipper_run(freeze=rules), params)
    before = jax.device_get(state)
    batches = data_source.open_data(zipper_run()).batches
    for step in range(3):
        state, metrics = built.train_step(state, put_batch(batches.get(step), built.mesh))
        assert metrics.applied
    after = jax.device_get(state)
    assert int(after.step) == 3
    for key, leaf in before.frozen.items():
        np.testing.assert_array_equal(after.frozen[key], leaf)
    unchanged = [k for k, leaf in before.trainable.items() if np.array_equal(after.trainable[k], leaf)]
    assert not unchanged, "every trainable leaf moves"
    count = sum(leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim)
    assert count == 2 * sum(leaf.size for leaf in after.trainable.values()), "Adam: two moments per trained weight"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loss_that_is_not_finite_changes_nothing(text_run, name):
    config = text_run(optimizer=OptimizerConfig(name=name))
    built, state = start(config, random_params(config.model))
    batch = data_source.open_data(config).batches.get(0)
    text = batch["towers"]["text"]
    weights = np.where(text.weights > 0, np.float32(np.inf), text.weights)
    bad = {**batch, "towers": {**batch["towers"], "text": text._replace(weights=weights)}}
    before = jax.device_get(state)
    state, metrics = built.train_step(state, put_batch(bad, built.mesh))
    assert not metrics.applied
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    state, metrics = built.train_step(state, put_batch(batch, built.mesh))
    assert metrics.applied
    assert int(state.step) == 1


def test_no_leaf_of_the_state_is_selected_or_copied(text_run):
    """An update is applied in place, or the state stays where it is. Rows and lengths are such that no activation has
    the shape of a leaf; the backward pass copies zeros that its sums start from."""
    config = text_run(batch_size=3)
    built = program.build(config, 1)
    compiled = built.train_step.lower(built.like, *batch_shapes(config, built)).compile()
    leaves = [leaf for leaf in jax.tree.leaves((built.like.trainable, built.like.opt_state)) if leaf.ndim]
    shapes = {",".join(map(str, leaf.shape)) for leaf in leaves}
    moved = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:select|copy|copy-start)\((?!%\w*broadcast)", compiled.as_text())
    assert len(moved) > 10, "the pattern finds instructions"
    assert not shapes.intersection(moved)
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(leaf.size * 4 for leaf in leaves), "all donated"


def test_an_update_reads_gradients_once(text_run):
    """Their norm, which clipping needs, is the step's own: there is no sum over gradients in the update."""
    config = text_run()
    assert config.optimizer.clip_norm
    built = program.build(config, 1)
    step = jax.make_jaxpr(built.train_step)(built.like, *batch_shapes(config, built))
    conditions = [e for e in equations(step.jaxpr) if e.primitive.name == "cond"]
    update = max(conditions, key=lambda e: len(e.outvars))
    assert len(update.outvars) > len(built.like.trainable)
    for branch in update.params["branches"]:
        assert not [e for e in equations(branch.jaxpr) if e.primitive.name == "reduce_sum"]


def test_no_step_holds_all_logits_of_a_large_vocabulary(zipper_run, monkeypatch):
    """Training, validation, likelihood and perplexity, with towers of which one is frozen."""
    config = zipper_run(freeze=FreezeConfig(towers=("text",)))
    towers = {name: replace(t, vocab_size=LARGE_VOCABULARY + 8) for name, t in config.model.towers.items()}
    config = replace(config, model=replace(config.model, towers=towers), batch_size=16)
    monkeypatch.setattr(tower, "vocab_loss", partial(vocab_loss, chunk=64))
    built = program.build(config, 2)
    batch, stop = batch_shapes(config, built)
    params, text = built.like.params, {"text": batch["towers"]["text"]}
    programs = {
        "training": jax.make_jaxpr(built.train_step)(built.like, batch, stop),
        "validation": jax.make_jaxpr(built.eval_step)(params, batch),
        "likelihood": jax.make_jaxpr(partial(likelihood._nats, config.model))(params, batch["towers"]),
        "perplexity": jax.make_jaxpr(partial(perplexity._sums, config.model, "text", False))(params, text),
        "fused perplexity": jax.make_jaxpr(partial(perplexity._sums, config.model, "text", True))(params, text),
    }
    for name, jaxpr in programs.items():
        shapes = [v.aval.shape for e in equations(jaxpr.jaxpr) for v in e.outvars if hasattr(v.aval, "shape")]
        logits = {shape for shape in shapes if shape and shape[-1] == LARGE_VOCABULARY + 8}
        assert any(shape[0] == 64 for shape in logits), f"{name}: a chunk's"
        assert max(np.prod(shape[:-1]) for shape in logits) == 64, (name, logits)


def test_denominators_are_those_of_the_whole_batch(zipper_run, gradients):
    """The loss is sum over towers of lambda * sum(nll) / sum(weight), whatever task a row is of."""
    loss, sums, _ = gradients(zipper_run(loss_weights=LAMBDA))
    by_hand = sum(LAMBDA.get(name, 1.0) * tower.nll.sum() / tower.weight.sum() for name, tower in sums.items())
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
    assert sums["text"].weight[1] == sums["speech"].weight[0] == 0, "asr targets text, tts speech"


def test_axes_that_do_not_divide_are_replicated_and_noted(zipper_run):
    built = program.build(zipper_run(mesh=MeshConfig(data=1, fsdp=1, tensor=8)), 2)
    assert any("'kv_heads' of size 2 does not divide over 'tensor' = 8" in note for note in built.notes)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mesh": MeshConfig(data=3, fsdp=4)}, ["there are 8"]),
        ({"mesh": MeshConfig(data=-1, fsdp=3)}, ["there are 8"]),
        ({"batch_size": 6, "mesh": MeshConfig(data=4)}, ["batch_size=6", "multiple of 4"]),
        ({"batch_size": 6, "microbatches": 4}, ["batch_size=6", "4 microbatches"]),
    ],
)
def test_sizes_that_do_not_fit_are_explained(zipper_run, fields, words):
    with pytest.raises(UserError) as error:
        program.build(zipper_run(**fields), 2)
    assert all(word in str(error.value) for word in words), error.value


def test_a_mesh_rule_must_exist():
    with pytest.raises(UserError, match="did you mean 'heads'"):
        MeshConfig(rules={"haeds": "tensor"})
    assert make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)).size == 8

"""Any mesh gives the loss and the gradients of one device, and sends between devices what it must and no more."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from zipper_jax.aot.bounds import bounds
from zipper_jax.aot.compile_train import batch_shapes
from zipper_jax.aot.hlo import collectives
from zipper_jax.models import tower, zipper
from zipper_jax.ops.vocab_loss import vocab_loss
from zipper_jax.sharding.mesh import MeshConfig, make_mesh, put_batch
from zipper_jax.sharding.rules import param_specs
from zipper_jax.training import data_source, program
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.training.step import loss_and_gradients
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten, unflatten

MESHES = {
    "8x1x1": MeshConfig(data=8),
    "1x8x1": MeshConfig(data=1, fsdp=8),
    "2x2x2": MeshConfig(data=2, fsdp=2, tensor=2),
    "1x4x2": MeshConfig(data=1, fsdp=4, tensor=2),
    "two slices": MeshConfig(slices=2, data=1, fsdp=2, tensor=2),
    "speech whole": MeshConfig(data=1, fsdp=4, tensor=2, towers={"speech": "replicated"}),
    "tensor": MeshConfig(data=4, tensor=2, strategy="tensor"),
    "heads whole": MeshConfig(data=1, tensor=8),  # 4 heads and 2 of keys: replicated, the MLP is sharded
}
FAST = ("2x2x2",)
SLOW = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MESHES]


@pytest.fixture(scope="module")
def on_mesh():
    """(loss, sums, gradients) of a run's first batch with random parameters; each computed once."""
    known = {}

    def of(config):
        key = repr(replace(config, model_dir="x"))
        if key not in known:
            known[key] = _computed(config)
        return known[key]

    return of


def _computed(config):
    built = program.build(config, 2)
    random = np.random.default_rng(1)  # gates away from 0, so that gradients reach everything
    shapes = flatten(zipper.abstract_params(config.model))
    params = {key: (0.3 * random.normal(size=s.shape)).astype(np.float32) for key, s in shapes.items()}
    state = built.start(unflatten(params))
    batch = put_batch(data_source.open_data(config).batches.get(0), built.mesh)
    compute = jax.jit(partial(loss_and_gradients, built.losses, num_tasks=2, microbatches=config.microbatches))
    return jax.device_get(compute(state.trainable, state.frozen, batch))


def same(got, want):
    """Loss within 1e-6, gradients within 2e-5 of each leaf's largest: the same sums in another order."""
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    assert set(got[2]) == set(want[2])
    for key, leaf in want[2].items():
        np.testing.assert_allclose(got[2][key], leaf, rtol=0, atol=2e-5 * max(np.abs(leaf).max(), 1e-3), err_msg=key)


@pytest.mark.parametrize("name", SLOW)
def test_fusion_with_a_frozen_tower(zipper_run, on_mesh, name):
    rules = FreezeConfig(towers=("text",))
    same(on_mesh(zipper_run(freeze=rules, mesh=MESHES[name])), on_mesh(zipper_run(freeze=rules)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MESHES if n != "speech whole"])
def test_pretraining(text_run, on_mesh, name):
    same(on_mesh(text_run(batch_size=8, mesh=MESHES[name])), on_mesh(text_run(batch_size=8)))


def large(monkeypatch):
    """Every vocabulary is processed in chunks from now on."""
    monkeypatch.setattr(tower, "LARGE_VOCABULARY", 1)
    monkeypatch.setattr(tower, "vocab_loss", partial(vocab_loss, chunk=16))


def test_large_vocabularies_of_a_trained_tower(text_run, monkeypatch):
    """In chunks on a mesh, in microbatches: the losses of the small vocabularies' path on one device."""
    run = partial(text_run, batch_size=8, z_loss=0.01)
    small = _computed(run())
    large(monkeypatch)
    same(_computed(run(mesh=MESHES["2x2x2"], microbatches=2)), small)


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "2x2x2", "two slices", "heads whole"])
def test_large_vocabularies_of_a_fusion(zipper_run, on_mesh, monkeypatch, name):
    """Of a trained and a frozen tower, with added tokens."""
    model = zipper_run().model
    towers = {t: replace(config, vocab_size=config.vocab_size - 2) for t, config in model.towers.items()}
    model = replace(model, towers=towers, added_tokens={"text": 2, "speech": 2})
    run = partial(zipper_run, model=model, freeze=FreezeConfig(towers=("text",)))
    small = on_mesh(run())
    large(monkeypatch)
    same(_computed(run(mesh=MESHES[name]) if name else run()), small)


def test_a_tower_may_have_a_strategy_of_its_own(zipper_run):
    like = program.build(zipper_run(mesh=MESHES["speech whole"]), 2).like.trainable
    cut = {key for key, leaf in like.items() if any(leaf.sharding.spec)}
    assert "towers/text/blocks/mlp/up/kernel" in cut
    assert "zips/speech-text/into_text/mlp/up/kernel" in cut, "what writes to a tower follows its rules"
    assert not any(key.startswith(("towers/speech", "input_projections/speech")) or "into_speech" in key for key in cut)
    with pytest.raises(UserError, match=r"MeshConfig.towers: the model has no tower 'speach'; did you mean 'speech'"):
        program.build(zipper_run(mesh=MeshConfig(data=1, towers={"speach": "replicated"})), 2)
    with pytest.raises(
        UserError, match=r"MeshConfig.towers\['text'\]='sharted': choose one of .*did you mean 'sharded'"
    ):
        MeshConfig(towers={"text": "sharted"})


def test_slices_are_the_outermost_blocks_of_devices():
    mesh = make_mesh(MeshConfig(slices=2, data=1, fsdp=2, tensor=2))
    assert [d.id for d in mesh.devices[0].flat] == [0, 1, 2, 3], "no slice shares devices with another"
    with pytest.raises(UserError, match=r"slices=3, data=1, .*there are 8"):
        make_mesh(MeshConfig(slices=3, data=1, fsdp=4))


def test_specs_need_no_devices(zipper_run):
    model = zipper_run().model
    shapes, known = flatten(zipper.abstract_params(model)), zipper.parameters(model)
    sizes = {"slices": 1, "data": 1, "fsdp": 256, "tensor": 2}
    specs, notes = param_specs(shapes, known, sizes, MeshConfig(fsdp=256, tensor=2))
    assert tuple(specs["towers/text/blocks/mlp/up/kernel"]) == (None, None, "tensor")
    assert any("'embed' of size 16 does not divide over 'fsdp' = 256" in note for note in notes)


# ---- what is sent ----------------------------------------------------------------------------------------------------


def sent(config):
    built = program.build(config, 2)
    lowered = built.train_step.lower(built.like, *batch_shapes(config, built))
    return collectives(lowered.compile().as_text(), built.mesh.size), bounds(config, built).network


@pytest.mark.parametrize("frozen", [(), pytest.param(("text",), marks=pytest.mark.slow)], ids=["alone", "frozen"])
def test_copies_of_the_model_exchange_gradients_and_nothing_else(text_run, zipper_run, frozen):
    """Of a frozen tower not even those. XLA joins them to a few."""
    run = zipper_run(freeze=FreezeConfig(towers=frozen)) if frozen else text_run(batch_size=8)
    found, asked = sent(replace(run, mesh=MESHES["8x1x1"]))
    assert sum(c.times for c in found) <= 6
    assert {c.kind for c in found} == {"all-reduce"}
    total = sum(c.moved for c in found)
    assert asked <= total < 1.1 * asked, "the rest is the loss, its parts and the stop flag"


SENT = {
    "1x8x1": ((58, 239e3), (91, 175e3)),
    "1x4x2": ((91, 540e3), (123, 157e3)),
    "2x2x2": ((55, 527e3), (125, 136e3)),
}
"""mesh -> number and bytes of collectives in a step of 16 rows, by jaxlib 0.10.2: reductions, and transfers."""


@pytest.mark.parametrize("mesh", SENT)
@pytest.mark.slow
def test_sharded_parameters_are_gathered_and_activations_are_not(zipper_run, mesh):
    """What is sent grows with the rows only where ``tensor`` adds up activations, and by no more than that. (XLA's CPU
    compiler adds up whole gradients where a share would do: up to twice what is asked for.)"""
    few, many = (zipper_run(mesh=MESHES[mesh], batch_size=size) for size in (16, 128))
    (found, asked), (more, asked_more) = sent(few), sent(many)
    total, total_more = (sum(c.moved for c in s) for s in (found, more))
    for added_up, (number, size) in zip((True, False), SENT[mesh], strict=True):
        some = [c for c in found if (c.kind == "all-reduce") is added_up]
        assert sum(c.times for c in some) <= number
        assert sum(c.moved for c in some) <= 1.05 * size
    assert total < 2.5 * asked
    # Rows of sharded tables go where they are needed, which XLA writes in either way.
    embeddings = sum(c.moved for c in more if c.kind == "all-to-all" or "(_take)" in c.place)
    assert total_more - total <= 2.5 * (asked_more - asked) + embeddings + 1000

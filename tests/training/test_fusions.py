"""Fusions other than the paper's through all that a run does: the package's, and those of tests/outside_fusions.py.

The rules of the forward pass and of decoding run on all in tests/models and tests/decoding (OPTIONS "ungated" and
"shared", "soft").
"""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from running import log, params, run
from tiny_models import LENGTHS, zipper_model

import zipper_jax
from zipper_jax.checkpoint.run_format import read_model
from zipper_jax.checkpoint.tools import export
from zipper_jax.models import zipper
from zipper_jax.models.config import ProjectionConfig, ZipConfig
from zipper_jax.models.flops import flops_per_row
from zipper_jax.models.fusion import fusion_class
from zipper_jax.sequences import fill_template, rows_to_towers
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.tasks import TASKS
from zipper_jax.training import run_folder
from zipper_jax.training.config import SaveCheckpointConfig
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.training.program import build
from zipper_jax.utils import trees

ZIPS = {
    "ungated": ZipConfig(
        ("speech", "text"), {"text": 1, "speech": 2}, into=("text",), fusion="outside_fusions:OneWay",
        options={"scale": 0.5},
    ),
    "shared": ZipConfig(("speech", "text"), {"text": 1, "speech": 2}, fusion="outside_fusions:SharedAttention"),
    "shared attention": ZipConfig(  # of the package; the towers' heads are alike, so maps are on request
        ("speech", "text"), {"text": 1, "speech": 2}, fusion="shared_attention", options={"maps": "always"},
    ),
    "projector": ZipConfig(
        ("speech", "text"),
        pairs=((3, 2),), fusion="projector", projection=ProjectionConfig(depth=2, final_activation="none"),
    ),
    "stacked": ZipConfig(
        ("speech", "text"), pairs=((3, 2),), fusion="projector", options={"stack": {"speech": 4}},
        projection=ProjectionConfig(depth=2, final_activation="none"), insulate=("speech",),
    ),
    "soft": ZipConfig(("text", "speech"), pairs=((1, 2),), into=("text",), fusion="outside_fusions:SoftTokens"),
}  # fmt: skip


# One of each kind of the package's own in the fast tier.
FAST = ("shared attention", "projector")
ALL = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ZIPS]


def model(name):
    return replace(zipper_model(), zips=(ZIPS[name],))


@pytest.mark.parametrize("name", ALL)
def test_a_run_trains_freezes_stops_resumes_and_is_exported(name, zipper_run, tmp_path):
    """Rules 3 and 6, bitwise: the frozen tower is what it was, and a run in two parts logs the same losses."""
    config = zipper_run(
        model=model(name), freeze=FreezeConfig(towers=("text",)), save=SaveCheckpointConfig(period=2), steps=4
    )
    run(config)
    start = trees.flatten(zipper.init_params(config.model, config.seed))
    moved = {path for path, leaf in params(config).items() if (leaf != start[path]).any()}
    assert not {path for path in moved if path.startswith("towers/text/")}
    assert any(path.startswith("zips/") for path in moved)
    parts = replace(config, model_dir=str(tmp_path / "parts"))
    run(replace(parts, steps=2, optimizer=config.optimizer))
    run(parts)
    assert log(parts) == log(config)
    export(config.model_dir, str(tmp_path / "exported"))
    loaded = zipper_jax.load(tmp_path / "exported")
    assert loaded.config.zips == config.model.zips
    found, wanted = trees.flatten(loaded.params), params(config)
    assert found.keys() == wanted.keys()
    assert all((found[path] == leaf).all() for path, leaf in wanted.items())


@pytest.mark.parametrize("name", ALL)
def test_any_mesh_gives_the_loss_of_one_device(name, zipper_run):
    """Rule 5; also parameters whose axes no sharding rule knows (plain Flax layers)."""
    losses = []
    for mesh in (MeshConfig(data=1), MeshConfig(data=2, fsdp=2, tensor=2)):
        config = zipper_run(model=model(name), mesh=mesh, optimizer=OptimizerConfig(learning_rate=1e-2))
        built = build(config, 2)
        towers = rows_to_towers([[_example(b)] for b in range(8)], _layout(), LENGTHS)
        batch = {"towers": towers, "task": np.arange(8, dtype=np.int32) % 2}
        state = built.start(zipper.init_params(config.model, 0))
        steps = []
        for _ in range(2):
            state, metrics = built.train_step(state, batch)
            steps.append(float(metrics.loss))
        losses.append(steps)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    # An update of 1e-2 per element divides by root mean squares of small gradients: it magnifies what rounding differs.
    assert losses[1][1] == pytest.approx(losses[0][1], rel=1e-4)


@pytest.mark.parametrize("name", ZIPS)
def test_flops_are_those_of_its_weights_and_pairs(name):
    config = model(name)
    known = zipper.parameters(config)
    shapes = {path: jax.ShapeDtypeStruct(p.shape, p.dtype) for path, p in known.items()}
    bare = replace(config, zips=())
    own = zipper.parameters(bare)
    alone = flops_per_row(bare, {path: shapes[path] for path in own}, own, [], LENGTHS)
    zips = flops_per_row(config, shapes, known, [], LENGTHS) - alone
    products = {path: p for path, p in known.items() if p.use == "product"}
    weights = sum(
        4.0 * np.prod(p.shape) * sum(share * LENGTHS[tower] for tower, share in p.tokens.items())
        for path, p in products.items()
        if path.startswith("zips/")
    )
    text, speech, wide = LENGTHS["text"], LENGTHS["speech"], lambda tower: 12 * tower.num_heads * tower.head_dim
    if fusion_class(ZIPS[name].fusion).placement == "sequence":
        pairs, alone = 0.0, fusion_class(ZIPS[name].fusion).alone
        for into in ZIPS[name].receivers:  # every block of the receiver works on the source's tokens, too
            source, own = ZIPS[name].other(into), LENGTHS[into]
            other = LENGTHS[source] // ZIPS[name].options.get("stack", {}).get(source, 1)
            blocks = [p for path, p in products.items() if path.startswith(f"towers/{into}/blocks/")]
            more = other + alone * own  # both towers are also read alone
            weights += sum(4.0 * np.prod(p.shape) * more for p in blocks)
            seen = ((own + other) ** 2 - own**2 + alone * own**2) / 2
            pairs += config.towers[into].num_layers * wide(config.towers[into]) * seen
    else:
        heads = [fusion_class(ZIPS[name].fusion).heads(ZIPS[name], config.towers[t]) for t in ZIPS[name].receivers]
        pairs = sum(12 * n * h * text * speech / 2 for n, h in heads)
    assert zips == pytest.approx(weights + pairs)


@pytest.mark.parametrize("name", ["shared attention", "projector", "ungated"])
def test_a_stored_field_that_the_fusion_does_not_use_is_omitted(name, zipper_run):
    """Folders from when such a field was accepted: they are read, and resume with a configuration without it."""
    config = zipper_run(model=model(name))
    path = run_folder.open_run(config) / "config.json"
    stored = json.loads(path.read_text())
    stored["model"]["zips"][0] |= {"positions": "rotary", "position_scales": {"text": 0.5}, "mlp_multiplier": 2}
    path.write_text(json.dumps(stored))
    assert run_folder.stored_config(config.model_dir) == config
    assert run_folder.check_run(config) == ""
    assert read_model(config.model_dir)[1] == config.model


def test_options_of_a_fusion_are_checked_by_name():
    from zipper_jax.utils.errors import UserError

    with pytest.raises(
        UserError, match=r"zip speech-text, fusion 'outside_fusions:OneWay'.*scal.*did you mean 'scale'"
    ):
        replace(zipper_model(), zips=(replace(ZIPS["ungated"], options={"scal": 1.0}),))
    with pytest.raises(UserError, match=r"ZipConfig.fusion = 'gated_cross_atention' is unknown; did you mean"):
        replace(zipper_model(), zips=(replace(ZIPS["ungated"], fusion="gated_cross_atention"),))
    with pytest.raises(UserError, match="cannot be imported"):
        replace(zipper_model(), zips=(replace(ZIPS["ungated"], fusion="outside_fusions:Nothing"),))
    with pytest.raises(UserError, match="no subclass"):
        replace(zipper_model(), zips=(replace(ZIPS["ungated"], fusion="outside_fusions:dataclass"),))


def _layout():
    from zipper_jax.sequences import make_layout
    from zipper_jax.vocabularies import UnitVocabulary

    vocabularies = {"text": UnitVocabulary(20, 25.0), "speech": UnitVocabulary(30, 25.0)}
    return make_layout(zipper_model().modalities, vocabularies)


def _example(seed):
    random = np.random.default_rng(seed)
    contents = {
        "text": random.integers(0, 20, 5).astype(np.int32),
        "speech": random.integers(0, 30, 9).astype(np.int32),
    }
    return fill_template(TASKS[("asr", "tts")[seed % 2]], contents)

"""Every check of the model configuration, and its way through JSON."""

import dataclasses
import inspect
import json
import re

import pytest
from options import OPTIONS
from tiny import IMAGE, PAIR_LAYOUT, SPEECH, TEXT, ZIP, pair, trio

from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.models.config_parts import FUSION_FIELDS
from zipper_jax.models.fusion import FUSIONS, GatedCrossAttention, fusion_class
from zipper_jax.utils.configs import from_dict, to_dict
from zipper_jax.utils.errors import UserError

MODALITIES = {m: ModalityConfig(p.tower, p.size, p.offset) for m, p in PAIR_LAYOUT.items()}


@pytest.mark.parametrize(
    "field", ["vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"]
)
@pytest.mark.parametrize("value", [0, -2])
def test_tower_sizes_are_positive(field, value):
    with pytest.raises(UserError, match=f"TowerConfig.{field} = {value} must be positive"):
        dataclasses.replace(TEXT, **{field: value})


def test_tower_heads():
    with pytest.raises(UserError, match=r"num_heads = 4 must be a multiple of num_kv_heads = 3"):
        dataclasses.replace(TEXT, num_kv_heads=3)
    with pytest.raises(UserError, match=r"head_dim = 7 times rope_fraction = 1.0 must be even"):
        dataclasses.replace(TEXT, head_dim=7)
    dataclasses.replace(TEXT, head_dim=6, num_heads=6, num_kv_heads=6)  # independent of embed_dim / num_heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"towers": ("text", "text")}, "joins two different towers"),
        ({"intervals": None}, "give either intervals or pairs"),
        ({"pairs": ((1, 1),)}, "give either intervals or pairs"),
        ({"intervals": {"text": 1}}, "must name text and speech"),
        ({"intervals": {"text": 1, "image": 1}}, "must name text and speech"),
        ({"intervals": {"text": 1, "speech": 0}}, "positive numbers"),
        ({"into": ()}, "must name text, speech or both"),
        ({"into": ("image",)}, "must name text, speech or both"),
        ({"projection": ProjectionConfig(form="residual")}, "projection.form = 'residual' is for input projections"),
        ({"insulate": ("image",)}, r"insulate = \('image',\) names 'image', which it does not read; give 'speech' or"),
        ({"insulate": ("text",), "into": ("text",)}, "names 'text', which it does not read; give 'speech'$"),
    ],
)
def test_zip_checks(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(ZIP, **changes)


@pytest.mark.parametrize("changes", [{"num_heads": 3, "num_kv_heads": 2}, {"num_kv_heads": 3}])
def test_zip_heads_are_a_multiple_of_its_kv_heads(changes):
    """Whether given or taken from the tower written to."""
    with pytest.raises(UserError, match="multiple of num_kv_heads"):
        pair(zips=(dataclasses.replace(ZIP, **changes),))


@pytest.mark.parametrize("field", ["num_heads", "num_kv_heads", "head_dim", "mlp_multiplier", "max_positions"])
@pytest.mark.parametrize("value", [0, -1])
def test_zip_sizes_are_positive(field, value):
    with pytest.raises(UserError, match=rf"{field} = {value} must be positive"):
        dataclasses.replace(ZIP, **{field: value})


def test_projection_checks():
    with pytest.raises(UserError, match="depth = 0 must be at least 1"):
        ProjectionConfig(depth=0)
    with pytest.raises(UserError, match=r"hidden_dim = 0 must be positive"):
        ProjectionConfig(hidden_dim=0)
    assert ProjectionConfig().last == "relu"
    assert ProjectionConfig(form="residual").last == "none"
    assert ProjectionConfig(form="residual", final_activation="relu").last == "relu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"towers": {"my-text": TEXT, "speech": SPEECH}}, "letters, digits and underscores"),
        ({"modalities": {"text": ModalityConfig("txt", 3)}}, "names tower 'txt'"),
        ({"modalities": {"text": ModalityConfig("text", 24)}}, "tokens 0 to 23 do not fit tower 'text'"),
        ({"modalities": {"text": ModalityConfig("text", 20, 4)}}, "tokens 4 to 23 do not fit"),
        ({"modalities": {"text": ModalityConfig("text", 20, -1)}}, "do not fit"),
        ({"modalities": {"text": ModalityConfig("text", 0)}}, "do not fit"),
        (
            {"modalities": {"text": ModalityConfig("text", 12), "sign": ModalityConfig("text", 12, 11)}},
            "'sign' and 'text' overlap",
        ),
        ({"input_projections": {"txt": ProjectionConfig()}}, "unknown tower 'txt'"),
        ({"zips": (ZIP, dataclasses.replace(ZIP, towers=("speech", "text")))}, "two zips join the same towers"),
        ({"zips": (ZipConfig(("text", "image"), pairs=((1, 1),)),)}, "zip image-text names tower 'image'"),
        (
            {"zips": (dataclasses.replace(ZIP, projection=ProjectionConfig(form="none")),)},
            "'none' needs equal embed_dim, got .48, 80.",
        ),
    ],
)
def test_zipper_checks(changes, message):
    fields = {"towers": {"text": TEXT, "speech": SPEECH}, "modalities": MODALITIES, **changes}
    with pytest.raises(UserError, match=message):
        ZipperConfig(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"options": {"stack": {"speech": 0}}},
            r"stack = {'speech': 0}: 'speech' needs 1 or more states per soft token",
        ),
        ({"options": {"stack": {"speach": 5}}}, r"'speach', which the zip does not read; did you mean 'speech'"),
        ({"options": {"stack": {"text": 5}}, "into": ("text",)}, r"'text', which the zip does not read"),
        ({"options": {"stack": 5}}, r"stack = 5"),
        (
            {"options": {"stack": {"speech": 5}}, "into": ("text",), "projection": ProjectionConfig(form="none")},
            "form 'none' cannot bring 5 stacked states into one",
        ),
    ],
)
def test_stacks_of_the_projector_are_checked(changes, message):
    z = ZipConfig(("text", "speech"), pairs=((3, 5),), fusion="projector")
    with pytest.raises(UserError, match=message):
        pair(zips=(dataclasses.replace(z, **changes),))


OTHER = {
    "num_heads": 6, "num_kv_heads": 1, "head_dim": 10, "mlp_multiplier": 3, "mlp_activation": "relu", "bias": True,
    "norm": "rms", "normalise_source": True, "gate_init": 0.5, "projection": ProjectionConfig(depth=2),
    "feed_forward": "where_visible", "positions": "learned", "max_positions": 7, "position_scales": {"text": 0.5},
    "rope_base": 50.0, "diagonal_init": 1.0,
}  # fmt: skip
"""A value of each field that is not its default."""
JOINED = {z.fusion: z for config in OPTIONS.values() for z in config.zips}


@pytest.mark.parametrize("fusion", sorted(JOINED))
def test_a_field_that_a_fusion_does_not_use_is_refused(fusion):
    """Of every fusion, those from outside the package included."""
    kind, plain = fusion_class(fusion), ZipConfig(("text", "speech"), pairs=((3, 5),), into=("text",), fusion=fusion)
    assert tuple(OTHER) == FUSION_FIELDS
    pair(zips=(plain,))
    for name, value in OTHER.items():
        rotary = {"positions": "rotary"} if name in ("position_scales", "diagonal_init") else {}
        z = dataclasses.replace(plain, **rotary, **{name: value})
        first = next(iter({**rotary, name: value}))
        if name in kind.fields:
            pair(zips=(z,))
            continue
        assert kind.unused(z) == (*rotary, name)
        message = (
            rf"ZipConfig.{first} = .*: zip speech-text has fusion '{fusion}', which does not use it .*; leave it at"
        )
        with pytest.raises(UserError, match=message):
            pair(zips=(z,))


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_the_fields_of_a_fusion_are_those_that_its_module_reads(name):
    source = inspect.getsource(inspect.getmodule(FUSIONS[name]))
    assert set(FUSIONS[name].fields) == set(re.findall(r"\bconfig\.(\w+)", source)) & set(FUSION_FIELDS)


def test_zip_names_and_shapes():
    z = dataclasses.replace(ZIP, into=("speech",))
    assert z.name == "speech-text" == dataclasses.replace(z, towers=("speech", "text")).name
    assert z.receivers == ("speech",)
    assert ZIP.receivers == ("speech", "text")
    assert (z.other("text"), z.other("speech")) == ("speech", "text")

    def kept(z):
        return GatedCrossAttention.cache(z, SPEECH, TEXT).key.shape

    assert kept(ZIP) == (2, 12)
    assert kept(dataclasses.replace(ZIP, num_heads=6)) == (6, 12)
    assert kept(dataclasses.replace(ZIP, num_heads=6, num_kv_heads=3, head_dim=4)) == (3, 4)


@pytest.mark.parametrize(
    "config",
    [
        pair(),
        trio(),
        pair(dtype="bfloat16", remat="dots", scan=False),
        pair(projections={"text": ProjectionConfig(form="residual", gate_init=0.25, bias=False)}),
        ZipperConfig({"image": dataclasses.replace(IMAGE, tied_head=False)}, {"image": ModalityConfig("image", 30)}),
    ],
    ids=["pair", "trio", "bf16", "residual", "lone"],
)
def test_json_round_trip(config):
    text = json.dumps(to_dict(config))
    assert from_dict(ZipperConfig, json.loads(text)) == config


def test_json_errors_name_the_field():
    data = to_dict(pair())
    data["towers"]["text"]["embed_dmi"] = 48
    with pytest.raises(UserError, match=r"towers\['text'\].embed_dmi.*did you mean 'embed_dim'"):
        from_dict(ZipperConfig, data)
    data = to_dict(pair())
    data["zips"][0]["norm"] = "batch"
    with pytest.raises(UserError, match=r"zips\[0\].norm = 'batch': give one of 'layer', 'rms'"):
        from_dict(ZipperConfig, data)
    with pytest.raises(UserError, match=r"num_heads = 4 must be a multiple"):
        from_dict(TowerConfig, {**to_dict(TEXT), "num_kv_heads": 3})

"""The gin files that ship: each run builds, and macros and parameters can be set from the command line."""

import json
import math
import shutil
from pathlib import Path

import jax
import pytest

import gin
from zipper_jax.cli import gin_bindings, gin_flags
from zipper_jax.cli.main import main
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.fusion import FUSIONS
from zipper_jax.training import program
from zipper_jax.training.config import TrainConfig
from zipper_jax.utils.configs import from_dict, to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import UnitVocabulary

ROOT = Path(__file__).resolve().parents[2]
GIVEN = {
    "pretrain_text": {},
    "pretrain_speech": {},
    "fuse": {"TEXT_RUN": "t", "SPEECH_RUN": "s"},
    "single_decoder": {"TEXT_RUN": "t"},
    "paper/gecko_128m": {"TEXT_RUN": "t", "SPEECH_RUN": "s"},
    "paper/gecko_1b": {"TEXT_RUN": "t", "SPEECH_RUN": "s"},
}


def build(prepared, run: str, *more: str) -> TrainConfig:
    macros = {"DATA": str(prepared), "MODEL_DIR": "runs/x", **GIVEN[run]}
    flags = [f"--gin_file=runs/{run}.gin", *(f'--gin.{k}="{v}"' for k, v in macros.items()), *more]
    gin_flags.apply(gin_flags.parse(flags))
    return gin_bindings.train_config()


@pytest.mark.parametrize("run", GIVEN)
def test_every_run_builds_and_survives_json(prepared, run):
    config = build(prepared, run)
    assert (type(config), type(config.model)) == (TrainConfig, ZipperConfig)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_vocabulary_sizes_come_from_the_data(prepared):
    assert build(prepared, "pretrain_text").model.towers["text"].vocab_size == 22
    decoder = build(prepared, "single_decoder").model
    assert decoder.towers["decoder"].vocab_size == 54
    assert decoder.towers["decoder"].num_layers == build(prepared, "fuse").model.towers["text"].num_layers
    assert (decoder.modalities["speech"].offset, decoder.modalities["speech"].size) == (22, 32)


def test_position_scales_are_the_pairs_numbers_of_tokens(prepared):
    rotary = ['--gin.ZipConfig.positions="rotary"', "--gin.ZipConfig.position_scales=@position_scales()"]
    given = [*rotary, f'--gin.position_scales.folder="{prepared}"']
    scales = build(prepared, "fuse", *given, '--gin.position_scales.task="asr"').model.zips[0].position_scales
    tokens = {"text": 0, "speech": 0}
    store = RowStore(prepared / "rows" / "asr" / "train")
    for span in (span for row in range(len(store)) for example in store.row(row) for span in example):
        tokens[span.modality] += len(span.tokens)
    assert scales == {"text": 1.0, "speech": pytest.approx(tokens["text"] / tokens["speech"])}
    with pytest.raises(UserError, match="holds no pairs"):
        build(prepared, "fuse", *given, '--gin.position_scales.task="another"')


@pytest.mark.parametrize("size", ["128m", "1b"])
def test_a_larger_tower_keeps_nothing_of_the_one_that_it_replaces(prepared, size):
    alone = build(prepared, "pretrain_speech", f"--gin_file=towers/speech_{size}.gin").model
    assert alone.towers["speech"] == build(prepared, f"paper/gecko_{size}").model.towers["speech"]


def test_macros_and_parameters_from_the_command_line(prepared):
    config = build(prepared, "fuse", "--gin.TRAIN_STEPS=7", "--gin.OptimizerConfig.warmup_steps=2")
    assert (config.steps, config.optimizer.warmup_steps, config.freeze.towers) == (7, 2, ("text",))
    assert config.data.tasks == {"asr": 1.0, "tts": 1.26}
    with pytest.raises(UserError, match=r"lerning_rate.*learning_rate"):
        build(prepared, "fuse", "--gin.OptimizerConfig.lerning_rate=1.0")
    with pytest.raises(UserError, match="DATA = '/nowhere'"):
        build(prepared, "pretrain_text", '--gin.DATA="/nowhere"')


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("TRAIN_STEPS=abc", "TrainConfig.steps = 'abc': expected a value of type int"),
        ("TRAIN_STEPS=1e3", "TrainConfig.steps = 1000.0: expected a value of type int"),
        ("TRAIN_STEPS=%TRAIN_STEP", "%TRAIN_STEP has no value; did you mean 'TRAIN_STEPS'?"),
        ("TRAIN_STEP=3", "--gin.TRAIN_STEP: no gin file given defines or uses it; did you mean 'TRAIN_STEPS'?"),
        ("OptimizerConfig.learning_rate=fast", "OptimizerConfig.learning_rate = 'fast': expected a value of"
         " type float"),
        ("OptimizerConfig.name=adm", "OptimizerConfig.name='adm': choose one of adam, adafactor; did you mean 'adam'?"),
        ("ZipperConfig.scan=yes", "ZipperConfig.scan = 'yes': expected a value of type bool"),
        ("FreezeConfig.towers=text", "FreezeConfig.towers = 'text': expected a list"),
        ("TASK_FEATURE_LENGTHS={'text': '9'}", "DataConfig.lengths['text'] = '9': expected a value of type int"),
        ("text/TowerConfig.num_layers=2.5", "TowerConfig.num_layers = 2.5: expected a value of type int"),
        ("txet/TowerConfig.num_layers=2", "--gin.txet/TowerConfig.num_layers: no gin file given has 'txet';"
         " did you mean 'text'?"),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_one_line_that_says_how_to_fix_it(prepared, capsys, flag, message):
    given = {"DATA": prepared, "MODEL_DIR": "runs/x", **GIVEN["fuse"]}
    macros = [f'--gin.{name}="{value}"' for name, value in given.items()]
    assert main(["train", "--gin_file=runs/fuse.gin", *macros, f"--gin.{flag}", "--print_config"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_macros_without_a_value_and_files_that_are_no_run(prepared, capsys):
    assert main(["train", "--gin_file=runs/pretrain_text.gin", f"--gin.DATA={prepared}"]) == 2
    assert capsys.readouterr().err == "error: %MODEL_DIR has no value: give --gin.MODEL_DIR=...\n"
    assert main(["train", "--gin_file=towers/smoke.gin"]) == 2
    assert "describe no run (train.config): begin with one of runs/" in capsys.readouterr().err


def test_the_identity_form_and_hardware_files_compose(prepared):
    files = ["--gin_file=models/zipper_identity.gin", "--gin_file=hardware/accelerator.gin"]
    config = build(prepared, "fuse", *files)
    assert {p.form for p in config.model.input_projections.values()} == {"residual"}
    assert (config.model.zips[0].feed_forward, config.model.dtype) == ("where_visible", "bfloat16")
    assert config.model.zips[0].projection.form == "mlp", "the scope of input projections does not reach the zips"


@pytest.mark.parametrize("path", sorted((ROOT / "gin/fusions").glob("*.gin")), ids=lambda path: path.stem)
def test_every_fusion_is_one_file_after_a_run(prepared, path):
    plain, config = build(prepared, "fuse"), build(prepared, "fuse", f"--gin_file=fusions/{path.name}")
    assert config.model != plain.model
    assert set(config.model.towers) == set(plain.model.towers)
    fusion = config.model.zips[0].fusion
    assert fusion == (path.stem if path.stem in FUSIONS else "gated_cross_attention")
    program.build(config, 1)  # freeze rules and multipliers of the learning rate match its parameters
    assert not path.stem.startswith("one_way") or set(config.freeze.towers) == set(config.model.towers)


@pytest.mark.parametrize("path", sorted((ROOT / "gin/fusions").glob("*.gin")), ids=lambda path: path.stem)
def test_every_fusion_follows_other_forms_of_the_zips(prepared, path):
    """What those files set for cross-attention, and this fusion does not use, is back at its default."""
    files = [f"--gin_file={name}" for name in ("models/zipper_quick.gin", "models/zipper_identity.gin")]
    (z,) = build(prepared, "fuse", *files, f"--gin_file=fusions/{path.name}").model.zips
    assert (z.positions == "rotary") == (z.fusion == "gated_cross_attention")


def test_train_trains_inspect_shows_and_a_finished_run_reports_it(prepared, tmp_path, capsys):
    from zipper_jax.cli import inspect

    macros = {"DATA": prepared, "MODEL_DIR": tmp_path / "run"}
    extra = [
        "--gin_file=runs/pretrain_text.gin",
        *(f'--gin.{k}="{v}"' for k, v in macros.items()),
        "--gin.TRAIN_STEPS=2",
        "--gin.BATCH_SIZE=8",
        "--gin.OptimizerConfig.warmup_steps=1",
        "--gin.text/TowerConfig.num_layers=1",
    ]
    assert main(["train", *extra]) == 0
    assert "TrainConfig" in (tmp_path / "run" / "config.gin").read_text()
    capsys.readouterr()
    assert main(["train", *extra]) == 0
    assert "already finished (2 steps)" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    for words in ("2 of 2", "text: 1 layers x", "text_lm", "trained, 0 frozen", "loss "):
        assert words in shown
    assert main(["inspect", str(tmp_path / "run"), "--sharding", "--devices=64", "--mesh=data=1,fsdp=32,tensor=2"]) == 0
    shown = capsys.readouterr().out
    assert "mesh         slices 1 x data 1 x fsdp 32 x tensor 2, 64 devices" in shown
    assert "towers/text/blocks/mlp/up/kernel [1, 96, 256] (-, fsdp, tensor): 1.5 KiB per device, + 3.0 KiB" in shown
    assert main(["inspect", str(tmp_path / "run"), "--sharding", "--mesh=fdsp=4"]) == 2
    assert "there is no 'fdsp'; did you mean 'fsdp'" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "run"), "--kernels", "--platform=tpu"]) == 0
    shown = capsys.readouterr().out
    assert "kernels      on tpu, ZipperConfig.attention = 'auto'" in shown
    assert "attention    tower text, one token: dense (at most 1,048,576 scores per head); 1 queries" in shown
    assert main(["inspect", str(tmp_path / "run"), "--platform=tpu"]) == 2
    assert "--platform needs --kernels" in capsys.readouterr().err
    with pytest.raises(UserError, match="does not exist"):
        list(inspect.summary(str(tmp_path / "nothing")))


def test_what_stops_a_run_that_has_begun_has_a_status_and_spoils_nothing(prepared, tmp_path, capsys):
    """Another configuration, another vocabulary, and a folder that is no run."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(prepared, data)
    sizes = ["--gin.BATCH_SIZE=8", "--gin.text/TowerConfig.num_layers=1"]
    sizes += ["--gin.OptimizerConfig.schedule=constant", "--gin.OptimizerConfig.warmup_steps=0"]
    command = ["train", "--gin_file=runs/pretrain_text.gin", f"--gin.DATA={data}", f"--gin.MODEL_DIR={run}", *sizes]
    assert main([*command, "--gin.TRAIN_STEPS=1"]) == 0
    capsys.readouterr()

    assert main([*command, "--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=16"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {str(run)!r} holds another run: choose another MODEL_DIR, ")
    assert error.endswith("; what differs:\n  train.batch_size: 8 -> 16\n")

    UnitVocabulary(20, 25.0, codebook="another").save(data / "vocabularies" / "text")
    assert main([*command, "--gin.TRAIN_STEPS=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: MODEL_DIR = {str(run)!r} was trained with another text vocabulary than that of ")
    assert main(["ckpt", "verify", str(run)]) == 0
    assert capsys.readouterr().out.startswith("step 1: good\n")

    thesis = tmp_path / "mine" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("precious")
    assert main([*command, f"--gin.MODEL_DIR={thesis.parent}"]) == 2
    assert "is neither empty nor a run folder; choose another one" in capsys.readouterr().err
    assert list(thesis.parent.iterdir()) == [thesis]


PAPER = {  # run: parameters of the text and the speech tower in billions, zips
    "paper/tiny_128m": (0.49, 0.128, 4),
    "paper/gecko_128m": (2.6, 0.128, 8),
    "paper/gecko_1b": (2.6, 1.03, 9),
    "paper/gemma2_9b_1b": (9.2, 1.03, 9),
}


@pytest.mark.parametrize("run", PAPER)
def test_the_papers_sizes(run):
    from zipper_jax.models import zipper
    from zipper_jax.models.schedule import zip_pairs
    from zipper_jax.utils.trees import flatten

    places = [f"--gin.{name}=x" for name in ("DATA", "MODEL_DIR", "TEXT_RUN", "SPEECH_RUN")]
    gin_flags.apply(gin_flags.parse([f"--gin_file=runs/{run}.gin", "--gin_file=xla/tpu.gin", *places]))
    config = gin_bindings.train_config()
    assert (config.batch_size, config.steps, config.freeze.towers) == (512, 1_000_000, ("text",))
    assert (config.model.scan, config.model.dtype, config.optimizer.b2) == (True, "bfloat16", 0.99)
    assert config.xla_options, "the preset is in force"
    text, speech, zips = PAPER[run]
    assert len(zip_pairs(config.model.zips[0], config.model.towers)) == zips
    counts = dict.fromkeys(config.model.towers, 0)
    for path, leaf in flatten(zipper.abstract_params(config.model)["towers"]).items():
        counts[path.split("/")[0]] += math.prod(leaf.shape)
    assert counts["text"] == pytest.approx(text * 1e9, rel=0.02)
    assert counts["speech"] == pytest.approx(speech * 1e9, rel=0.02)


@pytest.mark.parametrize("preset", ["gpu", "gpu_deterministic"])
def test_presets_of_the_compiler_name_options_that_it_knows(preset):
    gin_flags.apply(gin_flags.parse([f"--gin_file=xla/{preset}.gin"]))
    options = gin.query_parameter("TrainConfig.xla_options")

    def compiled(**more):
        return jax.jit(lambda x: x + 1, compiler_options={**options, **more}).lower(1.0).compile()

    assert options
    assert compiled() is not None
    with pytest.raises(Exception, match="xla_gpu_no_such_option"):
        compiled(xla_gpu_no_such_option=True)

"""The gin files that ship: each run builds, and macros and parameters can be set from the command line."""

import argparse
import json

import pytest

from zipper_jax import gin_bindings
from zipper_jax.cli import gin_flags
from zipper_jax.cli import train as train_command
from zipper_jax.configs import from_dict, to_dict
from zipper_jax.errors import UserError
from zipper_jax.models.config import ZipperConfig
from zipper_jax.training.config import TrainConfig

GIVEN = {
    "pretrain_text": {},
    "pretrain_speech": {},
    "fuse": {"TEXT_RUN": "t", "SPEECH_RUN": "s"},
    "single_decoder": {"TEXT_RUN": "t"},
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


def test_macros_and_parameters_from_the_command_line(prepared):
    config = build(prepared, "fuse", "--gin.TRAIN_STEPS=7", "--gin.OptimizerConfig.warmup_steps=2")
    assert (config.steps, config.optimizer.warmup_steps, config.freeze.towers) == (7, 2, ("text",))
    assert config.data.tasks == {"asr": 1.0, "tts": 1.26}
    with pytest.raises(UserError, match=r"lerning_rate.*learning_rate"):
        build(prepared, "fuse", "--gin.OptimizerConfig.lerning_rate=1.0")
    with pytest.raises(UserError, match="DATA='/nowhere'"):
        build(prepared, "pretrain_text", '--gin.DATA="/nowhere"')


def test_the_identity_form_and_hardware_files_compose(prepared):
    files = ["--gin_file=models/zipper_identity.gin", "--gin_file=hardware/accelerator.gin"]
    config = build(prepared, "fuse", *files)
    assert {p.form for p in config.model.input_projections.values()} == {"residual"}
    assert (config.model.zips[0].feed_forward, config.model.dtype) == ("where_visible", "bfloat16")
    assert config.model.zips[0].projection.form == "mlp", "the scope of input projections does not reach the zips"


def test_train_trains_inspect_shows_and_a_finished_run_says_so(prepared, tmp_path, capsys):
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
    args = argparse.Namespace(print_config=False, coordinator=None)
    assert train_command.run(args, extra) == 0
    assert "TrainConfig" in (tmp_path / "run" / "config.gin").read_text()
    capsys.readouterr()
    assert train_command.run(args, extra) == 0
    assert "already finished (2 steps)" in capsys.readouterr().err
    inspect.run(argparse.Namespace(run=str(tmp_path / "run")))
    shown = capsys.readouterr().out
    for words in ("2 of 2", "text: 1 layers x", "text_lm", "trained, 0 frozen", "loss "):
        assert words in shown
    with pytest.raises(UserError, match="does not exist"):
        list(inspect.summary(str(tmp_path / "nothing")))

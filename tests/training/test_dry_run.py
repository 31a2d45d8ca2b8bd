"""`zipper train --dry_run`: what it reports, what stops it, and that every shipped recipe goes through it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from running import run
from tiny_models import ONE_DEVICE

from zipper_jax.cli import dry_run, gin_bindings, gin_flags
from zipper_jax.cli.main import main
from zipper_jax.conversion.hugging_face import read_tower
from zipper_jax.sharding.chips import CHIPS
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.cost import cost
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.program import build
from zipper_jax.utils.errors import UserError

GIN = Path(__file__).resolve().parents[2] / "gin"
DOCS = GIN.parent / "docs" / "commands.md"
RECIPES = sorted(path.stem for path in (GIN / "runs").glob("librispeech_*.gin"))


def places(recipe: str, **given: str) -> list[str]:
    names = ["DATA", "MODEL_DIR"]
    names += ["TEXT_RUN"] if "pretrain" not in recipe else []
    names += ["SPEECH_RUN"] if "fuse" in recipe else []
    return [f"--gin.{name}='{given.get(name, 'nowhere')}'" for name in names]


def recipe_config(recipe: str) -> TrainConfig:
    gin_flags.apply(gin_flags.parse([f"--gin_file=runs/{recipe}.gin", *places(recipe)]))
    return gin_bindings.train_config()


def told(config: TrainConfig, devices: int | None = 1, mfu: float = 0.4) -> str:
    return "\n".join(dry_run.lines(config, devices, mfu))


def test_it_reports_model_mesh_schedule_cost_start_and_data(zipper_run, text_run, tmp_path):
    towers = text_run(model_dir=str(tmp_path / "text"), steps=1)
    run(towers)
    optimizer = OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=2)
    config = zipper_run(initialise_from={"text": towers.model_dir}, optimizer=optimizer, steps=100, eval_period=10)
    text = told(config)
    for line in (
        "tower        text: 2 layers x 16 wide",
        "mesh         slices 1 x data 1 x fsdp 1 x tensor 1, 1 devices",
        "adam, b1 0.9, b2 0.99, clip 1; cosine learning rate: 0.005 at 1, 0.01 at 2, ",
        " 0 at 100",
        "100 steps x 8 rows: 3.2e+04 token positions",
        f"new; text from {towers.model_dir} is loaded, the rest is random",
        "data         asr: 20 rows of 40 examples",
        "the first batch is read; its rows are filled: speech ",
        "all checks passed",
    ):
        assert line in text, line
    share = float(re.search(r"tts: .*; ([\d.]+) epochs", text)[1])
    assert share == pytest.approx(100 * 8 * 1.26 / 2.26 / 20, abs=0.06)
    assert not Path(config.model_dir).exists(), "nothing is written"


def test_the_cost_is_what_the_training_step_is_counted_to_be(zipper_run):
    config = zipper_run(steps=7)
    assert cost(config).flops == pytest.approx(7 * build(config, 2).flops_per_step)
    assert cost(config).device_hours(peak=1e9, mfu=0.5) == pytest.approx(cost(config).flops / 0.5e9 / 3600)


def test_a_run_that_has_begun_resumes(text_run):
    config = text_run(steps=1)
    run(config)
    assert "resumes after step 1 of 6" in told(replace(config, steps=6))
    with pytest.raises(UserError, match="holds another run"):
        told(replace(config, steps=6, batch_size=4))


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"mesh": MeshConfig(fsdp=3)}, 8, "fsdp=3, tensor=1 needs a multiple of 6 devices, there are 8"),
        ({"mesh": MeshConfig(data=-1)}, 64, "batch_size=8 rows must be a multiple of 64"),
        ({"mesh": ONE_DEVICE, "microbatches": 3}, 1, "must be a multiple of 3"),
        ({}, 0, "--devices = 0: give 1 or more"),
        ({"optimizer": OptimizerConfig(schedule="cosine", warmup_steps=9)}, 1, "give fewer warm-up steps"),
        ({"optimizer": OptimizerConfig(learning_rate_multipliers={"no/such": 2.0})}, 1, "no/such"),
        ({"initialise_from": {"text": "nowhere"}}, 1, "run folder 'nowhere' does not exist"),
        ({"initialise_from": {"text": "."}}, 1, "has no config.json"),
    ],
)
def test_what_stops_it(zipper_run, tmp_path, monkeypatch, changes, devices, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        told(zipper_run(**changes), devices)


def test_a_tower_of_other_sizes_stops_it_and_no_weight_is_read(zipper_run, text_run, tmp_path):
    towers = text_run(model_dir=str(tmp_path / "text"), steps=1)
    run(towers)
    config = zipper_run(initialise_from={"text": towers.model_dir})
    text = replace(config.model.towers["text"], embed_dim=20)
    wider = replace(config, model=replace(config.model, towers={**config.model.towers, "text": text}))
    with pytest.raises(UserError, match=r"has shape \(.*16.* this model needs \(.*20"):
        told(wider)
    for array in Path(towers.model_dir).rglob("ocdbt.process_*"):
        array.rename(array.with_name("gone"))
    assert "is loaded, the rest is random" in told(config)


def test_the_command(prepared, tmp_path, capsys):
    flags = [f"--gin.DATA='{prepared}'", f"--gin.MODEL_DIR='{tmp_path / 'run'}'"]
    arguments = ["train", "--gin_file=runs/pretrain_text.gin", *flags, "--dry_run"]
    assert main([*arguments, "--devices=8", "--mfu=0.5"]) == 0
    out = capsys.readouterr().out
    assert "mesh         slices 1 x data 8" in out
    assert "device-hours at 50% of the peak: TPU v3 " in out
    assert main([*arguments, "--mfu=50"]) == 2
    assert capsys.readouterr().err == "error: --mfu=50.0: give a share of the peak above 0, at most 1\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("ZIP_PAIRS=((1, 99),)", "zip speech-text: pair (1, 99) is outside towers of 4 (speech) and 3 (text) blocks"),
        ("ZIP_PAIRS=((0, 1),)", "zip speech-text: pair (0, 1) is outside"),
        ("ZIP_PAIRS=((1, 2), (2, 1))", "the zips form a cycle: speech block 1 waits for text block 2; text block 1 "),
        ("ZipConfig.towers=('text', 'image')", "zip image-text names tower 'image'; known: ['speech', 'text']"),
        ("speech/ModalityConfig.tower=spech", "modality 'speech' names tower 'spech'"),
        ("TASK_FEATURE_LENGTHS={'txt': 32, 'speech': 64}", "DataConfig.lengths (TASK_FEATURE_LENGTHS) names ['speech"),
        ("FreezeConfig.towers=('txt',)", "there is no tower 'txt' (towers: speech, text); did you mean 'text'?"),
        ("TrainConfig.initialise_from={'txt': 'x'}", "'txt'"),
        ("DataConfig.rates={'ars': 1.0}", "DataConfig.rates: task 'ars' is unknown; did you mean 'asr'?"),
        ("MIXTURE_OR_TASK_NAME='asr'", "DataConfig.mixture='asr' is a task, but DataConfig.rates mixes asr, tts"),
    ],
)
def test_towers_zips_and_tasks_that_are_not_there(prepared, tmp_path, capsys, flag, message):
    given = {"DATA": prepared, "MODEL_DIR": tmp_path / "run", "TEXT_RUN": "x", "SPEECH_RUN": "x"}
    flags = [f"--gin.{name}='{value}'" for name, value in given.items()]
    fresh = "--gin.TrainConfig.initialise_from={}"
    assert main(["train", "--gin_file=runs/fuse.gin", *flags, fresh, f"--gin.{flag}", "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_report_their_cost_and_then_what_is_missing(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = [f"--gin_file=runs/{recipe}.gin", "--dry_run", "--devices=64"]
    assert main(["train", *start, *places(recipe)]) == 2
    out, err = capsys.readouterr()
    assert "FLOP" in out
    missing = "data folder 'nowhere'" if "pretrain" in recipe else "run folder 'nowhere'"
    assert err.startswith(f"error: {missing} does not exist; ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_costs_in_headers_and_docs_are_what_the_configuration_costs(recipe):
    config, header = recipe_config(recipe), (GIN / "runs" / f"{recipe}.gin").read_text()
    found = re.search(
        r"^# Cost, by --dry_run: (\S+) token positions, (\S+) FLOP; "
        r"at 40 % of the peak (\S+) TPU v5e hours or (\S+) H100",
        header,
        re.MULTILINE,
    )
    counted = cost(config)
    hours = [f"{counted.device_hours(CHIPS[name].flops, 0.4):,.0f}" for name in ("TPU v5 lite", "NVIDIA H100")]
    assert found.groups() == (f"{counted.slots:.3g}", f"{counted.flops:.3g}", *hours)
    documented = re.search(rf"`runs/{recipe}.gin` \|[^|]*\| (\S+) \| (\S+) \| (\S+) \|", DOCS.read_text())
    assert documented.groups() == found.groups()[:3]


def test_recipes_have_the_papers_numbers():
    speech = recipe_config("librispeech_pretrain_speech")
    assert (speech.batch_size, speech.steps, speech.optimizer.learning_rate) == (1024, 400_000, 5e-4)
    for name, zips in (("qwen", 4), ("gemma", 8)):
        fuse = recipe_config(f"librispeech_fuse_{name}")
        assert (fuse.batch_size, fuse.steps, fuse.data.rates) == (512, 1_000_000, {"asr": 1.0, "tts": 1.26})
        adam = fuse.optimizer
        assert (adam.name, adam.learning_rate, adam.b1, adam.b2, adam.clip_norm) == ("adam", 5e-4, 0.9, 0.99, 1.0)
        assert (adam.schedule, fuse.freeze.towers) == ("constant", ("text",))
        decoder = recipe_config(f"librispeech_single_decoder_{name}")
        assert (decoder.batch_size, decoder.steps, decoder.data.rates) == (fuse.batch_size, fuse.steps, fuse.data.rates)
        assert (decoder.optimizer.name, decoder.optimizer.learning_rate) == ("adafactor", 1e-4)
        assert (decoder.optimizer.schedule, decoder.freeze.towers) == ("constant", ())
        assert decoder.data.lengths["decoder"] == sum(fuse.data.lengths.values())
        text = fuse.model.towers["text"]
        grown = replace(text, vocab_size=text.vocab_size + fuse.model.towers["speech"].vocab_size)
        assert decoder.model.towers["decoder"] == grown
        assert decoder.model.modalities["speech"].offset == text.vocab_size
        from zipper_jax.models.schedule import zip_pairs

        assert len(zip_pairs(fuse.model.zips[0], fuse.model.towers)) == zips


PUBLISHED = {  # what config.json of the hub says of the things that decide what is computed
    "qwen": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "hidden_act": "silu",
        "max_position_embeddings": 32768, "max_window_layers": 24, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": True,
    },
    "gemma": {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096, "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_towers_of_the_recipes_are_those_that_conversion_makes(name):
    """So that TEXT_RUN, a converted tower, fits: else the run would refuse it."""
    _, tower = read_tower(PUBLISHED[name], "config.json")
    assert recipe_config(f"librispeech_fuse_{name}").model.towers["text"] == tower


def test_a_recipe_on_data_with_other_vocabularies(prepared, capsys):
    recipe = "librispeech_pretrain_speech"
    start = [f"--gin_file=runs/{recipe}.gin", "--dry_run", *places(recipe, DATA=str(prepared))]
    assert main(["train", *start]) == 2
    assert "modality 'speech': the model has a vocabulary of 1026 tokens" in capsys.readouterr().err

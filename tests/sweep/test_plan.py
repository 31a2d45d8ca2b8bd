"""What a sweep refuses, and which rows it runs in which order."""

import dataclasses
from pathlib import Path

import pytest
import tiny_sweep

from zipper_jax.cli.main import main
from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipperConfig
from zipper_jax.speech import flite
from zipper_jax.speech.corpus import CorpusSettings, plan
from zipper_jax.speech.synthesis import find_engine
from zipper_jax.sweep.plan import Arm, Claim, Places, Row, Sweep, Table, load_sweep, rows, train_config
from zipper_jax.sweep.report import command_of, write_report
from zipper_jax.sweep.runner import _waves
from zipper_jax.training.config import DataConfig, TrainConfig
from zipper_jax.training.optimizer import OptimizerConfig, learning_rate_schedule
from zipper_jax.utils.errors import UserError

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SWEEP = tiny_sweep.sweep("flite")


def names(found):
    return [row.name for row in found]


def test_rows_come_seed_by_seed_and_after_what_they_need():
    assert names(rows(SWEEP)) == [
        "text_lm-0", "speech_lm-0", "zipper-0", "single_decoder-0", "zipper.half-0", "zipper.tried-0",
        "zipper-1", "single_decoder-1", "zipper.half-1",
    ]  # fmt: skip


def test_a_group_runs_rows_in_waves_each_after_what_it_needs():
    waves = [names(wave) for wave in _waves(rows(SWEEP))]
    assert waves[0] == ["text_lm-0", "speech_lm-0", "single_decoder-0", "single_decoder-1"]
    assert waves[1] == ["zipper-0", "zipper.half-0", "zipper.tried-0", "zipper-1", "zipper.half-1"]
    assert len(waves) == 2
    assert [names(wave) for wave in _waves(rows(SWEEP)[2:4])] == [["zipper-0", "single_decoder-0"]], "done before"


def test_a_single_row_brings_what_it_needs():
    assert names(rows(SWEEP, ["zipper"], [1])) == ["text_lm-0", "speech_lm-0", "zipper-1"]
    assert names(rows(SWEEP, ["single*"])) == ["single_decoder-0", "single_decoder-1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": (*SWEEP.arms, SWEEP.arms[0])}, "two arms are named 'text_lm'"),
        ({"tables": (Table("T", ("ziper",), ("asr",)),)}, r"table 'T' names unknown arm 'ziper'; did you mean"),
        ({"claims": (Claim("C", "asr", "zipper", "other"),)}, "claim 'C' names unknown arm 'other'"),
        ({"arms": SWEEP.arms[2:]}, r"\(needs\) names unknown arm 'text_lm'"),
        ({"arms": (*SWEEP.arms[2:], *SWEEP.arms[:2])}, "needs 'text_lm'; list that one before it"),
    ],
)
def test_a_sweep_that_cannot_be_run(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SWEEP, **change)


def test_an_arm_names_a_folder():
    with pytest.raises(UserError, match="'a/b'"):
        Arm("a/b", "", lambda places, seed: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; give a Python file"),
        ("x = 1\n", r"has no function sweep\(size\)"),
        ("def sweep(size):\n    return 3\n", "returned int, not a Sweep"),
    ],
)
def test_a_file_that_is_no_sweep(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_sweep(path, "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--only", "ziper"], "--only 'ziper' matches no arm"),
        (["run", "--seeds", "a"], "--seeds = 'a': give comma-separated numbers"),
        (["report"], "needs --to"),
        (["score"], "there are no outputs"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path, capsys):
    action, *more = arguments
    assert main(["sweep", action, str(HERE / "tiny_sweep.py"), "--out", str(tmp_path), *more]) == 2
    assert message in capsys.readouterr().err


def test_the_shipped_findings_are_a_sweep(tmp_path):
    experiments = ROOT / "experiments" / "findings.py"
    for size in ("cpu", "gpu"):
        sweep = load_sweep(experiments, size)
        assert len(rows(sweep)) > 100
        assert Places(tmp_path).data(0.01).endswith("shares/0.01")
    with pytest.raises(UserError, match="'tpu': give one of cpu, gpu, gpu_trial"):
        load_sweep(experiments, "tpu")


def test_the_shipped_fusions_are_a_sweep_of_every_fusion():
    """Each on the same data, steps and rows, with three seeds."""
    path = ROOT / "experiments" / "fusions.py"
    for size in ("cpu", "gpu"):
        sweep = load_sweep(path, size)
        scored = [row for row in rows(sweep) if row.arm.scored == "test"]
        assert len(scored) == 3 * len({row.arm.name for row in scored}) == 60
        assert sweep.corpus == load_sweep(ROOT / "experiments" / "findings.py", size).corpus


def test_a_trial_of_few_steps_cuts_the_warm_up(tmp_path):
    towers = {"text": TowerConfig(9, 1, 16, 2, 2, 8, 32)}
    config = TrainConfig(
        model=ZipperConfig(towers, {"text": ModalityConfig("text", 9)}),
        data=DataConfig("-", "text_lm", {"text": 8}),
        model_dir="-",
        steps=800,
        batch_size=2,
        optimizer=OptimizerConfig(schedule="cosine", warmup_steps=30),
    )
    arm = Arm("text_lm", "", lambda places, seed: config)
    for steps, (wanted, warmup) in {None: (800, 30), 1: (1, 0), 2: (2, 1), 100: (100, 30)}.items():
        sweep = Sweep("trial", {}, {}, (arm,), steps=steps)
        found = train_config(sweep, Row(arm, 3), Places(tmp_path))
        assert (found.steps, found.optimizer.warmup_steps, found.seed) == (wanted, warmup, 3)
        learning_rate_schedule(found.optimizer, found.steps)


@pytest.mark.skipif(not flite.is_available(), reason="flite's libraries are not installed")
@pytest.mark.parametrize(("size", "utterances"), [("cpu", 4400), ("gpu", 41_200)])
def test_flite_can_speak_the_corpus_of_the_findings(size, utterances):
    settings = CorpusSettings(**load_sweep(ROOT / "experiments" / "findings.py", size).corpus)
    assert len(plan(settings, find_engine("flite"))) == utterances


@pytest.mark.parametrize(
    "folder",
    sorted(page for name in ("findings", "fusions", "few_pairs") for page in (ROOT / "docs" / name).glob("*/")),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_the_committed_findings_are_what_their_results_say(folder, tmp_path):
    file = f"experiments/{folder.parent.name}.py"
    sweep = load_sweep(ROOT / file, folder.name)
    page = write_report(sweep, Places(folder), tmp_path, command_of(file, folder.name))
    assert page.read_text() == (folder / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()}

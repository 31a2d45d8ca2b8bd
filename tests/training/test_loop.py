"""Whole runs: resume, interruption, bad losses, wrong folders. On a lone tiny tower, so that they compile fast."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import Stopping, log, params, run
from tiny_models import SPEECH, decoder_model, speech_model, zipper_model

from zipper_jax.checkpoint import checkpoints
from zipper_jax.models import zipper
from zipper_jax.tasks import TASKS, TaskSet
from zipper_jax.training import data_source, program
from zipper_jax.training.config import DataConfig, SaveCheckpointConfig
from zipper_jax.training.initial import initial_params
from zipper_jax.training.monitor import read_metrics
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig, LayerRange
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten
from zipper_jax.vocabularies import UnitVocabulary


def test_a_stopped_and_resumed_run_is_bitwise_the_undisturbed_one(text_run, tmp_path):
    straight = text_run(model_dir=str(tmp_path / "straight"), eval_period=2)
    result, shown = run(straight)
    assert (result.status, result.step, result.exit_code) == ("finished", 6, 0)
    assert all(words in shown for words in ("step 6/6", "tok/s", "GFLOP/s"))

    broken = text_run(model_dir=str(tmp_path / "broken"), eval_period=2)
    result, shown = run(broken, wrap_batches=lambda batches: Stopping(batches, 3, signal.SIGTERM))
    assert (result.status, result.step, result.exit_code) == ("interrupted", 4, 128 + signal.SIGTERM)
    assert "saved step 4 of 6" in shown
    assert log(broken) == log(straight)[: len(log(broken))]
    result, shown = run(broken)
    assert result.status == "finished"
    assert "resuming after step 4" in shown

    assert log(broken) == log(straight), "losses, accuracies and norms, of training and validation: bitwise"
    for key, leaf in params(straight).items():
        np.testing.assert_array_equal(params(broken)[key], leaf)
    assert len([line for line in log(straight) if line["split"] == "validation"]) == 3
    assert log(straight)[-2]["loss"] < log(straight)[0]["loss"]


def test_lines_after_the_checkpoint_are_written_again_not_twice(text_run):
    """A kill between checkpoints leaves lines that the resumed run repeats."""
    config = text_run()
    run(replace(config, steps=3))
    whole = read_metrics(config.model_dir)
    with (Path(config.model_dir) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**whole[-1], "step": 4}) + "\n" + '{"split": "tra')
    run(config)
    assert [line["step"] for line in read_metrics(config.model_dir)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_stays_as_it_is(text_run):
    config = text_run(steps=2)
    run(config)
    before = (Path(config.model_dir) / "metrics.jsonl").read_bytes()
    result, _ = run(config)
    assert (result.status, result.step, result.exit_code) == ("already finished", 2, 0)
    assert (Path(config.model_dir) / "metrics.jsonl").read_bytes() == before


def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(text_run):
    config = text_run(steps=2)
    run(config)
    with pytest.raises(UserError, match=r"(?s)another run.*train.batch_size: 2 -> 4"):
        run(replace(config, batch_size=4))
    shallow = replace(config.model.towers["text"], num_layers=1)
    with pytest.raises(UserError, match=r"towers.text.num_layers: 2 -> 1"):
        run(replace(config, model=replace(config.model, towers={"text": shallow})))
    result, shown = run(replace(config, steps=3, optimizer=OptimizerConfig(learning_rate=1e-3), allow_changes=True))
    assert result.status == "finished"
    assert "train.optimizer.learning_rate: 0.01 -> 0.001" in shown, "what is allowed is told, too"
    config = replace(config, optimizer=OptimizerConfig(learning_rate=1e-3))
    result, _ = run(replace(config, steps=4, log_period=2, save=SaveCheckpointConfig(keep=1)))
    assert result.status == "finished", "what alters neither model nor data may change"
    assert checkpoints.steps(config.model_dir) == [3, 4], "the newest periodic one stays besides"


def test_a_folder_that_is_no_run_is_left_alone(text_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="neither empty nor a run folder"):
        run(text_run())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_missing_task_or_folder_is_explained(text_run, prepared):
    with pytest.raises(UserError, match="data folder '/nowhere' does not exist"):
        run(text_run(data=DataConfig("/nowhere", "text_lm", {"text": 16})))
    with pytest.raises(UserError, match=r"DataConfig.mixture='txt_lm'.*did you mean 'text_lm'"):
        run(text_run(data=DataConfig(str(prepared), "txt_lm", {"text": 16})))
    mine = TaskSet(tasks={"text_ml": TASKS["text_lm"]})
    with pytest.raises(UserError, match=r"no task 'text_ml'.*did you mean 'text_lm'"):
        run(text_run(data=DataConfig(str(prepared), "text_ml", {"text": 16}, task_set=mine)))
    with pytest.raises(UserError, match=r"DataConfig\.lengths"):
        text_run(data=DataConfig(str(prepared), "text_lm", {"txt": 16}))


def test_fusion_and_the_single_decoder_start_from_tower_runs(text_run, zipper_run, prepared, tmp_path):
    text = text_run(model_dir=str(tmp_path / "text"), steps=1)
    speech = text_run(
        model_dir=str(tmp_path / "speech"),
        model=speech_model(),
        data=DataConfig(str(prepared), "speech_lm", {"speech": 24}),
        steps=1,
    )
    run(text)
    run(speech)
    sources = {"text": text.model_dir, "speech": speech.model_dir}
    fused = zipper_run(
        steps=2, freeze=FreezeConfig(towers=("text",)), initialise_from=sources, save=SaveCheckpointConfig(period=1)
    )
    run(fused)
    for key, leaf in params(text).items():
        np.testing.assert_array_equal(params(fused)[key], leaf)  # frozen: bitwise what it was
    frozen = list((Path(fused.model_dir) / "frozen").iterdir())
    assert [p.name for p in frozen if p.is_dir()] == [checkpoints.read_manifest(fused.model_dir, 2)["frozen"]]
    assert checkpoints.steps(fused.model_dir) == [1, 2]
    stored = checkpoints.load_params(fused.model_dir, 1)[1]["towers"]["speech"]["embedding"]["table"]
    assert stored.shape == params(speech)["towers/speech/embedding/table"].shape
    gates = log(fused)[-1]["gates"]["speech-text"]
    assert set(gates) == {f"into_{t}/{g}_gate" for t in ("speech", "text") for g in ("attention", "mlp")}
    assert set(log(fused)[-1]["tasks"]) == {"asr", "tts"}

    table = flatten(initial_params(decoder_model(), 0, {"decoder": text.model_dir}))["towers/decoder/embedding/table"]
    np.testing.assert_array_equal(table[:22], params(text)["towers/text/embedding/table"])
    assert table.shape[0] == 54
    assert np.std(table[22:]) > 0, "the added rows are random"
    wrong = replace(fused, model_dir=str(tmp_path / "wrong"), initialise_from={"speech": text.model_dir})
    with pytest.raises(UserError, match=r"initialise_from 'speech'.*has shape"):
        run(wrong)


@pytest.mark.slow
def test_frozen_kernels_are_rounded_for_products_once_and_kept_as_they_are_stored(
    text_run, zipper_run, tmp_path, monkeypatch
):
    text = text_run(model_dir=str(tmp_path / "text"), steps=1)
    run(text)
    weights = params(text)
    kernel = "towers/text/blocks/attention/query/kernel"
    assert not np.array_equal(weights[kernel], np.asarray(jnp.bfloat16(weights[kernel]), np.float32)), "no exact case"
    fused = zipper_run(
        model=replace(zipper_model(), dtype="bfloat16"),
        freeze=FreezeConfig(towers=("text",), layers=(LayerRange("speech", 0, 2),)),
        initialise_from={"text": text.model_dir},
        xla_options={"xla_allow_excess_precision": False},  # otherwise a CPU may skip the rounding
    )
    held = program.build(fused, 2).like.frozen
    assert held[kernel].dtype == held["towers/speech/blocks/mlp/down/kernel@0:2"].dtype == jnp.bfloat16
    assert held["towers/text/embedding/table"].dtype == held["towers/text/final_norm/scale"].dtype == jnp.float32
    run(fused)
    for key, leaf in weights.items():
        np.testing.assert_array_equal(params(fused)[key], leaf)

    broken = replace(fused, model_dir=str(tmp_path / "broken"))
    run(broken, wrap_batches=lambda batches: Stopping(batches, 2, signal.SIGTERM))
    run(broken)
    assert log(broken) == log(fused)

    monkeypatch.setattr(zipper, "frozen_dtype", lambda config, parameter, stored: stored)
    every_step = replace(fused, model_dir=str(tmp_path / "every_step"))
    run(every_step)
    assert log(every_step) == log(fused), "rounded in every step: bitwise the same"


def test_another_vocabulary_of_the_same_size_is_refused(text_run, prepared, tmp_path):
    """Its tokens mean something else: neither does a run resume with it nor a fusion start from such a tower."""
    data = tmp_path / "prepared"
    shutil.copytree(prepared, data)
    config = text_run(steps=1, data=DataConfig(str(data), "text_lm", {"text": 16}))
    run(config)
    UnitVocabulary(20, 25.0, codebook="another").save(data / "vocabularies" / "text")
    with pytest.raises(UserError, match=r"MODEL_DIR.*another text vocabulary"):
        run(replace(config, steps=2))
    with pytest.raises(UserError, match=r"initialise_from 'text'.*another text vocabulary"):
        run(replace(config, model_dir=str(tmp_path / "new"), initialise_from={"text": config.model_dir}))
    assert not (tmp_path / "new").exists()


def test_training_from_packed_rows_never_imports_tensorflow(text_run):
    script = (
        "import sys\n"
        "import zipper_jax.training.loop, zipper_jax.cli.gin_bindings, zipper_jax.cli.train\n"
        "assert 'tensorflow' not in sys.modules and 'seqio' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_tasks_may_be_stored_in_folders_of_their_own(zipper_run, prepared, tmp_path):
    """The paper recognises one corpus and synthesises another; the tokens must mean the same."""
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    shutil.rmtree(other / "rows" / "asr")
    plain = zipper_run(steps=2)
    apart = replace(plain, data=replace(plain.data, task_folders={"tts": str(other)}))
    for one, two in zip(*(data_source.open_data(c).batches.get(3)["towers"].values() for c in (plain, apart))):
        jax.tree.map(np.testing.assert_array_equal, one, two)
    with pytest.raises(UserError, match=r"task_folders: the mixture has no task 'tss'; did you mean 'tts'"):
        replace(plain.data, task_folders={"tss": str(other)})
    UnitVocabulary(SPEECH - 2, 50.0, "other units").save(other / "vocabularies" / "speech")
    with pytest.raises(UserError, match=r"task_folders\['tts'\] = .*has another speech vocabulary.*--tokenizer"):
        data_source.open_data(apart)
    with pytest.raises(UserError, match=r"task_weights\['tts'\]=0: give a positive factor"):
        replace(plain.data, task_weights={"tts": 0})

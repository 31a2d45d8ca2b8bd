"""Tasks and modalities as configuration: what is added, what is refused, what older folders have."""

import json

import pytest

import gin
from zipper_jax.cli.main import main
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.metrics.task_metrics import metrics_of, symbol_error_rate, unit_error_rate, word_error_rate
from zipper_jax.tasks import MODALITIES, TASKS, DataModality, TaskConfig, TaskSet, stored_task_set
from zipper_jax.training.config import RESUME_MAY_CHANGE, DataConfig
from zipper_jax.training.run_folder import differences
from zipper_jax.utils.configs import from_dict, to_dict
from zipper_jax.utils.errors import UserError

PHONES = {"phones": DataModality("phones", "symbols")}
SPOKEN = {"speech_phones": TaskConfig((("speech", 0.0), ("phones", 1.0)))}
MINE = TaskSet(PHONES, SPOKEN, {"mine": {"speech_phones": 1.0, "asr": 2.0}})


def test_what_is_given_is_added_to_ours_and_survives_json():
    assert MINE.modalities == MODALITIES | PHONES
    assert MINE.tasks == TASKS | SPOKEN
    assert set(MINE.mixtures) == {"asr_tts", "mine"}
    assert from_dict(TaskSet, json.loads(json.dumps(to_dict(MINE)))) == MINE
    assert MINE.tasks["speech_phones"].target == "phones"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataModality("shift", "units"), r"DataModality.field = 'shift': name the field"),
        (
            lambda: from_dict(DataModality, {"field": "x", "vocabulary": "symbol"}),
            r"vocabulary = 'symbol': give one of",
        ),
        (lambda: TaskConfig(()), r"no target"),
        (lambda: TaskConfig((("text", 0.0),)), r"no target"),
        (lambda: TaskConfig((("text", -1.0), ("x", 1.0))), r"'text' has weight -1.0: give 0 or more"),
        (lambda: TaskConfig((("text", 0.0), ("text", 1.0))), r"name each modality once"),
        (
            lambda: TaskSet(PHONES, {"t": TaskConfig((("phone", 1.0),))}),
            r"TaskSet.tasks\['t'\]: there is no modality 'phone'.*did you mean 'phones'",
        ),
        (lambda: TaskSet({"text": DataModality("x", "units")}), r"TaskSet.modalities\['text'\].*another name"),
        (lambda: TaskSet(mixtures={"m": {"ars": 1.0}}), r"mixtures\['m'\]: task 'ars' is unknown; did you mean 'asr'"),
        (lambda: TaskSet(mixtures={"asr": {"tts": 1.0}}), r"mixtures\['asr'\]: a task has that name"),
        (lambda: DataConfig("d", "asrr", {"text": 8}), r"DataConfig.mixture='asrr'.*did you mean 'asr'"),
        (lambda: DataConfig("d", "m", {"text": 8}, {"asl": 1.0}), r"DataConfig.rates: task 'asl' is unknown; did you"),
        (lambda: PrepareSettings(task_set=MINE), r"lengths has no 'phones', which task 'speech_phones' needs"),
        (lambda: PrepareSettings(lengths={"phone": 8}, task_set=MINE), r"no modality 'phone'; did you mean 'phones'"),
        (
            lambda: PrepareSettings(lengths={"text": 8}),
            "this modality has its own fields; see text_length",
        ),
        (lambda: PrepareSettings(lengths={"phones": 2}, task_set=MINE), r"begin, one token and end take 3"),
    ],
)
def test_errors_name_the_field_and_the_nearest_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_run_takes_rates_from_its_mixture_and_may_know_more_tasks_later():
    data = DataConfig("d", "mine", {"text": 8}, task_set=MINE)
    assert data.tasks == data.rates == {"speech_phones": 1.0, "asr": 2.0}
    assert from_dict(DataConfig, to_dict(data)) == data
    assert "data.task_set" in RESUME_MAY_CHANGE
    before, now = (to_dict(DataConfig("d", "asr", {"text": 8}, task_set=known)) for known in (TaskSet(), MINE))
    assert differences({"train": {"data": before}}, {"train": {"data": now}}) == []
    other = to_dict(DataConfig("d", "mine", {"text": 8}, task_set=TaskSet(PHONES, SPOKEN, {"mine": {"asr": 1.0}})))
    assert differences({"train": {"data": to_dict(data)}}, {"train": {"data": other}})


def test_older_folders_have_ours():
    assert stored_task_set({"format_version": 1, "made_with": {}}) == TaskSet()
    assert stored_task_set({"model": {}, "lengths": {}}) == TaskSet()
    assert stored_task_set({"train": {"data": {"folder": "x"}}}) == TaskSet()
    assert stored_task_set({"train": {"data": {"task_set": to_dict(MINE)}}}) == MINE
    assert set(PrepareSettings().of_examples()) == {
        "text_vocabulary", "text_vocabulary_size", "num_units", "seed", "shifts"
    }, "or folders that were prepared before would not go on"  # fmt: skip


def test_metrics_go_by_the_vocabulary_of_the_target():
    found = {task: metrics_of(MINE, task) for task in MINE.tasks}
    assert (found["asr"], found["tts"]) == ((word_error_rate,), (unit_error_rate,))
    assert (found["speech_phones"], found["text_lm"]) == ((symbol_error_rate,), ())
    assert symbol_error_rate(["HH AH L OW"], ["HH AH OW"]) == {"symbol_error_rate": 0.25}


def test_gin_builds_the_settings_of_prepare_and_options_win(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("zipper_jax.data.prepare_rows.prepare", lambda *arguments: seen.append(arguments[2]))
    arguments = ["data", "prepare", "--corpus=c", "--out=o", "--gin_file=tasks/phones.gin", "--text_length=32"]
    spans = '{"phones_lm": {"spans": (("phones", 1.0),)}}'
    mine = [f"--gin.TaskSet.tasks={spans}", "--gin.TaskSet.mixtures={}"]
    assert main([*arguments, *mine, "--gin.PrepareSettings.text_length=16"]) == 0
    assert main([*arguments[:-1], "--lengths=phones=9", "--gin.PrepareSettings.text_length=16"]) == 0
    assert seen[0].tasks == (*TASKS, "phones_lm")
    assert seen[0].row_lengths == {"text": 32, "speech": 512, "phones": 64}
    assert seen[1].row_lengths == {"text": 16, "speech": 512, "phones": 9}
    assert main(["data", "inspect", "c", "--gin_file=tasks/phones.gin"]) == 2
    assert "zipper data has no option '--gin_file=tasks/phones.gin'" in capsys.readouterr().err
    assert main([*arguments, "--gin.phones/DataModality.vocabulary=symbol"]) == 2
    assert capsys.readouterr().err.startswith("error: DataModality.vocabulary = 'symbol': give one of 'subwords'")
    assert main([*arguments, "--text_lenght=3"]) == 2
    assert "did you mean '--text_length'" in capsys.readouterr().err
    gin.clear_config()

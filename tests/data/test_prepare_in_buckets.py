"""`zipper data prepare` into a bucket: the bytes of a folder on a disk, also when it is killed anywhere."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buckets import any_folder, failing, folder, gcs, s3  # noqa: F401
from test_prepare import SETTINGS, contents, write_corpus

from zipper_jax.cli import main as cli
from zipper_jax.data import prepare_rows, prepared
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.utils import staging, storage
from zipper_jax.utils.errors import ServiceError, UserError
from zipper_jax.utils.locks import locked
from zipper_jax.utils.storage import as_path

ROOT = Path(__file__).resolve().parents[2]
AUDIO = dataclasses.replace(SETTINGS, shifts=2)
OF_AUDIO = ["--text_length=24", "--speech_length=60", "--text_vocabulary_size=24", "--num_units=8", "--open_rows=3"]
OF_AUDIO += ["--unit_features=log-mel"]
OF_AUDIO += ["--max_unknown=1", "--shifts=2"]
UNITS = PrepareSettings(text_length=40, speech_length=30, text_vocabulary_size=24, open_rows=2, max_unknown=1.0)
OF_UNITS = ["--text_length=40", "--speech_length=30", "--text_vocabulary_size=24", "--open_rows=2", "--max_unknown=1"]


def on_a_disk(corpus, how) -> dict[str, bytes]:
    prepare_rows.prepare(corpus, corpus.parent / "whole", how, processes=1)
    return {str(name): content for name, content in contents(corpus.parent / "whole").items()}


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """A corpus of recordings, of which one is dropped, and what every way into a bucket must write."""
    made = write_corpus(tmp_path_factory.mktemp("audio") / "corpus")
    (made / "audio" / "train_3.flac").unlink()
    return made, on_a_disk(made, AUDIO)


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """As `audio`, of given units: no processes encode it."""
    made = tmp_path_factory.mktemp("units") / "corpus"
    made.mkdir()
    (made / "corpus.json").write_text(json.dumps({"units": {"num_units": 10, "rate_hz": 25}}))
    rows = [
        {
            "id": f"{split}{n}",
            "split": split,
            "text": f"set lamp {n} to nine",
            "units": [(n * 3 + k) % 10 for k in range(9)],
        }
        for split in ("train", "validation", "test")
        for n in range(12)
    ]
    (made / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made, on_a_disk(made, UNITS)


def objects(where) -> dict[str, bytes]:
    return {name: storage.read(as_path(where) / name) for name in storage.keys(where)}


def test_shards_in_a_bucket_give_the_bytes_of_a_disk(units, any_folder, capsys):  # noqa: F811
    corpus, whole = units
    words = ["data", "prepare", "--corpus", str(corpus), "--out", any_folder, *OF_UNITS]
    assert cli.main([*words, "--fit"]) == 0
    for index in (1, 0, 1):
        assert cli.main([*words, "--shard", f"{index}/2", "--processes=1"]) == 0
    shard = sorted(name for name in storage.keys(any_folder) if name.startswith("shards/00001-of-00002/"))
    files = ["done.json", "fit.sha256", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert [name.rpartition("/")[2] for name in shard if not name.endswith(".dropped")] == files
    assert cli.main([*words, "--finish"]) == 0
    assert objects(any_folder) == whole
    assert cli.main([*words, "--finish"]) == 0, "it is done"
    assert cli.main(words) == 0, "so is the plain command"
    assert objects(any_folder) == whole
    assert len(RowStore(f"{any_folder}/rows/asr/train")) > 0
    capsys.readouterr()
    assert cli.main(["data", "inspect", any_folder]) == 0
    assert "rows asr/train: 12 examples" in capsys.readouterr().out
    storage.write(f"{any_folder}/corpus/manifest.jsonl", b"")
    assert cli.main(["data", "inspect", f"{any_folder}/corpus"]) == 2
    assert "/corpus' is a corpus in a bucket, which cannot be read there" in capsys.readouterr().err


def test_the_plain_command_and_workers_do(units, folder):  # noqa: F811
    corpus, whole = units
    prepare_rows.prepare(corpus, f"{folder}/one", UNITS, processes=1)
    prepare_rows.prepare(corpus, f"{folder}/workers", UNITS, workers=2)
    assert objects(f"{folder}/one") == objects(f"{folder}/workers") == whole


def test_another_corpus_or_setting_starts_over_only_when_it_is_asked_to(units, folder):  # noqa: F811
    corpus, whole = units
    prepare_rows.prepare(corpus, folder, dataclasses.replace(UNITS, text_vocabulary_size=25), processes=1)
    with pytest.raises(
        UserError, match=r"with other settings \(text_vocabulary_size was 25, now 24\): give --overwrite"
    ):
        prepare_rows.prepare(corpus, folder, UNITS, processes=1)
    prepare_rows.prepare(corpus, folder, UNITS, overwrite=True, processes=1)
    assert objects(folder) == whole


def test_what_is_missing_damaged_or_locked_is_named(units, folder):  # noqa: F811
    corpus, _ = units
    with pytest.raises(UserError, match=r"fit.json' does not exist: run the same command with --fit first"):
        prepare_rows.prepare_shard(corpus, folder, UNITS, (0, 2))
    prepare_rows.prepare_fit(corpus, folder, UNITS)
    with (
        locked(f"{folder}/shards/00001-of-00002"),
        pytest.raises(UserError, match=r"shards/00001-of-00002' is being written by process \d+ on "),
    ):
        prepare_rows.prepare_shard(corpus, folder, UNITS, (1, 2), processes=1)
    for index in (0, 1):
        prepare_rows.prepare_shard(corpus, folder, UNITS, (index, 2), processes=1)
    path = as_path(folder) / "shards" / "00000-of-00002" / "train.jsonl"
    before = storage.read(path)
    storage.write(path, before.replace(b"lamp", b"lamb", 1))
    with pytest.raises(UserError, match=r"00000-of-00002/train.jsonl' is damaged: delete the folder of this shard"):
        prepare_rows.prepare_finish(corpus, folder, UNITS)
    storage.write(path, None)
    with pytest.raises(UserError, match=r"00000-of-00002/train.jsonl' is missing or not whole: delete the folder"):
        prepare_rows.prepare_finish(corpus, folder, UNITS)
    assert not prepared.is_complete(folder)


def test_a_shard_is_not_done_before_all_of_it_is_in_the_bucket(units, folder):  # noqa: F811
    corpus, _ = units
    prepare_rows.prepare_fit(corpus, folder, UNITS)
    with failing(r"POST .*validation\.jsonl"), pytest.raises(ServiceError, match="cannot be used"):
        prepare_rows.prepare_shard(corpus, folder, UNITS, (0, 1), processes=1)
    assert "shards/00000-of-00001/done.json" not in storage.keys(folder)
    prepare_rows.prepare_shard(corpus, folder, UNITS, (0, 1), processes=1)
    assert "shards/00000-of-00001/done.json" in storage.keys(folder)


KILLED = """
import os, signal, sys
from zipper_jax.cli import main
from zipper_jax.utils import objects, staging, storage
left = int(sys.argv[1])
real = objects.write
def write(path, *rest, **more):
    global left
    if not str(path).endswith(".lock"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(path, *rest, **more)
objects.write = storage.write = write
sys.exit(main.main(sys.argv[2:]))
"""


def killed_before(write: int, words: list[str]) -> bool:
    """Whether the command was killed before one of its writes; else it ended well."""
    command = [sys.executable, "-c", KILLED, str(write), *words]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


def killed_again_and_again(corpus, where: str, kills: list[int]) -> int:
    words = ["data", "prepare", "--corpus", str(corpus), "--out", where, *OF_UNITS, "--processes=1"]
    return sum(killed_before(write, words) for write in kills)


def test_a_command_that_was_killed_in_its_writes_goes_on(units, folder):  # noqa: F811
    """Before the first rows, in the middle of a store of rows, and behind the header."""
    corpus, whole = units
    assert killed_again_and_again(corpus, folder, [9, 9]) == 2
    prepare_rows.prepare(corpus, folder, UNITS, processes=1)
    assert objects(folder) == whole


@pytest.mark.slow
def test_a_command_that_is_killed_before_each_of_its_writes_goes_on(units, folder):  # noqa: F811
    corpus, whole = units
    done, write = False, 0
    while not done:  # about 70 of them
        where = f"{folder}/{write}"
        done = not killed_again_and_again(corpus, where, [write])
        prepare_rows.prepare(corpus, where, UNITS, processes=1)
        assert objects(where) == whole, write
        write += 1
    assert write > 40


HELD = """
import sys, time
from zipper_jax.cli import main
from zipper_jax.data import encode
from zipper_jax.utils import staging
staging.PERIOD = 0.1
class Bar:
    left = int(sys.argv[1])
    def update(self):
        Bar.left -= 1
        if Bar.left < 0:
            time.sleep(600)
    def close(self): pass
encode.progress = lambda *a, **k: Bar()
sys.exit(main.main(sys.argv[2:]))
"""


def test_a_killed_shard_goes_on_where_it_was_copied(audio, folder, monkeypatch):  # noqa: F811
    corpus, whole = audio
    words = ["data", "prepare", "--corpus", str(corpus), "--out", folder, *OF_AUDIO, "--processes=1"]
    assert cli.main([*words, "--fit"]) == 0
    home = as_path(folder) / "shards" / "00000-of-00001"
    command = [sys.executable, "-c", HELD, "9", *words, "--shard", "0/1"]  # test has 3 rows, train 12
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 60
        while (half := lines(home / "train.jsonl.partial")) < 5 * 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert "done.json" not in storage.keys(home)
    copied = storage.read(home / "train.jsonl.partial")
    seen = []
    real = staging.Staging.fetch
    monkeypatch.setattr(staging.Staging, "fetch", lambda self, *names: (seen.extend(names), real(self, *names))[1])
    assert cli.main([*words, "--shard", "0/1"]) == 0
    assert "train.jsonl.partial" in seen
    assert "train.jsonl.partial" not in storage.keys(home)
    assert storage.read(home / "train.jsonl").startswith(copied[: copied.rfind(b"\n") + 1])
    assert half >= 5 * 2
    assert cli.main([*words, "--finish"]) == 0
    assert objects(folder) == whole


def lines(path) -> int:
    try:
        return storage.read(path).count(b"\n")
    except FileNotFoundError:
        return 0

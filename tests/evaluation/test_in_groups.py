"""`zipper eval` and `zipper transcribe` as a group of real processes: the files of one process, to the byte."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from buckets import folder, gcs  # noqa: F401
from tiny_run import UNITS, write_run

import zipper_jax
from zipper_jax.cli import transcribe
from zipper_jax.cli.main import main
from zipper_jax.utils import storage
from zipper_jax.utils.storage import as_path

WORDS = ("on", "off", "go", "up", "lights", "door")
SENTENCES = 11
BATCHES = ["--batch_size", "2"]
SERVER = ("TENSORSTORE_GCS_HTTP_URL", "GOOGLE_AUTH_TOKEN_FOR_TESTING")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(zipper_jax.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}

JUDGE = """#!/usr/bin/env python3
import hashlib, pathlib, sys
words = {words!r}
for name in sys.argv[1:]:
    print(words[int(hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest(), 16) % len(words)])
"""
"""Writes words that depend on every sample of the audio."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, a prepared split, the corpus of its recordings, pairs and a judge."""
    root = tmp_path_factory.mktemp("groups")
    run = write_run(root)
    (root / "corpus").mkdir()
    chosen = random.Random(0)
    texts = [" ".join(chosen.choices(WORDS, k=chosen.randint(1, 4))) for _ in range(SENTENCES)]
    examples, manifest, pairs = [], [], []
    for number, text in enumerate(texts):
        name, units = f"u{number}", [chosen.randrange(UNITS) for _ in range(chosen.randint(2, 20))]
        noise = 0.1 * np.random.default_rng(number).standard_normal(4_000 + 800 * number)
        soundfile.write(root / "corpus" / f"{name}.wav", noise, 16_000)
        examples.append({"id": name, "split": "test", "text": text, "units": units, "seconds": 0.5})
        manifest.append({"id": name, "split": "test", "text": text, "audio": f"{name}.wav"})
        pairs.append({"prompt": [["speech", units]], "good": text, "bad": text[::-1], "group": "ab"[number % 2]})
    for path, lines in (
        (root / "prepared" / "examples" / "test.jsonl", examples),
        (root / "corpus" / "manifest.jsonl", manifest),
        (root / "pairs.jsonl", pairs),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "judge").write_text(JUDGE.format(words=[*WORDS, "on the door"]))
    (root / "judge").chmod(0o755)
    return run


def commands(run: Path) -> dict[str, list[str]]:
    root, data = run.parent, str(run.parent / "prepared")
    judged = ["--corpus", str(root / "corpus"), "--judge", f"command:{root / 'judge'}"]
    sampled = ["--temperature", "1.3", "--seed", "5", "--speech_seeds", "2"]
    return {
        "split": ["eval", "--run", str(run), "--data", data, "--split", "test", *BATCHES],
        "pairs": ["eval", "--run", str(run), "--pairs", str(root / "pairs.jsonl"), *BATCHES],
        "everything": ["eval", "--run", str(run), "--data", data, *judged, *sampled, *BATCHES],
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def group(*members: list[str], **environment: str) -> list[subprocess.Popen]:
    """A process per command, all of one group and without a launcher."""
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--process_count", str(len(members))]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "zipper_jax.cli.main", *command, *where, "--process_index", str(index),
             "--heartbeat_seconds", "10"],
            env={**ENVIRONMENT, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index, command in enumerate(members)
    ]  # fmt: skip


def finished(processes: list[subprocess.Popen], seconds: float = 300) -> tuple[list[int], list[str], list[str]]:
    """Statuses, outputs and errors; none of the processes is left behind."""
    try:
        texts = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [out for out, _ in texts], [error for _, error in texts]


def content(out: Path) -> dict[str, bytes]:
    """Path -> content; times left out."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if "results.json" in found:
        results = json.loads(found.pop("results.json"))
        found["results"] = json.dumps({**results, "seconds": None}).encode()
        found.pop("report.html")  # shows them
    return found


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("split", 2),
        *(pytest.param(what, 2, marks=pytest.mark.slow) for what in ("pairs", "everything")),
        *(pytest.param(what, 4, marks=pytest.mark.slow) for what in ("split", "pairs", "everything")),
    ],
)
def test_a_group_writes_what_one_process_writes(run, tmp_path, what, count):
    command = commands(run)[what]
    alone, together, other = (tmp_path / name for name in ("alone", "together", "other"))
    assert main([*command, "--out", str(alone)]) == 0
    members = [[*command, "--out", str(together if not index else other)] for index in range(count)]
    statuses, out, errors = finished(group(*members))
    assert statuses == [0] * count, errors
    assert content(together) == content(alone)
    assert not other.exists(), "the others write nothing"
    assert [bool(text) for text in out] == [True] + [False] * (count - 1)


def shared_out(errors: list[str]) -> int:
    return sum("error: " in text for text in errors)


def test_a_process_that_fails_alone_ends_the_group_with_one_message(run, tmp_path):
    """No launcher is there to kill the others. Both the coordinator's process and another one may fail."""
    command = [*commands(run)["split"], "--out", str(tmp_path / "out")]
    lacks = [part.replace("prepared", "elsewhere") for part in command]
    for members in ([command, lacks], [lacks, command]):
        statuses, _, errors = finished(group(*members), seconds=100)
        assert statuses == [2, 2], errors
        assert shared_out(errors) == 1, errors
        assert "elsewhere: there is no such folder" in "".join(errors)
    assert not (tmp_path / "out").exists() or {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}


def test_processes_that_read_other_data_are_named(run, tmp_path):
    """A folder of each machine's own, or a run that got a newer checkpoint meanwhile: outputs of two would be mixed."""
    shutil.copytree(run.parent / "prepared", tmp_path / "prepared")
    path = tmp_path / "prepared" / "examples" / "test.jsonl"
    examples = [json.loads(line) for line in path.read_text().splitlines()]
    for example in examples:
        example["units"] = example["units"][::-1]
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    command = [*commands(run)["split"], "--out", str(tmp_path / "out")]
    other = [part.replace(str(run.parent / "prepared"), str(tmp_path / "prepared")) for part in command]
    statuses, _, errors = finished(group(command, other), seconds=100)
    assert statuses == [2, 2], errors
    assert shared_out(errors) == 1, errors
    assert "process 1 has another input than process 0" in "".join(errors)
    assert not (tmp_path / "out" / "outputs.jsonl").exists()


def test_every_process_transcribes_the_files_that_the_first_one_found(tmp_path, monkeypatch):
    """A file that appears while they list a folder must not shift the batches of some."""
    found, there = [], [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in there:
        path.touch()
    monkeypatch.setattr(transcribe, "is_first", lambda: False)
    monkeypatch.setattr(transcribe, "from_first", lambda _: [str(there[1])])
    monkeypatch.setattr(transcribe, "_resume", lambda args, files, out: found.extend(files) or 0)
    assert main(["transcribe", "--model", str(tmp_path), str(tmp_path)]) == 0
    assert found == there[1:]


@pytest.mark.slow
def test_a_killed_group_resumes_behind_its_last_outputs(run, tmp_path):
    command = commands(run)["split"]
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    out = tmp_path / "out"
    member, lines = [*command, "--out", str(out)], (out / "outputs.jsonl")
    processes = group(member, member)
    try:
        deadline = time.monotonic() + 120
        while not (lines.is_file() and lines.read_bytes()):
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            time.sleep(0.001)
        processes[1].send_signal(signal.SIGKILL)
        processes[0].send_signal(signal.SIGKILL)
    finally:
        finished(processes)
    before = lines.read_bytes()
    assert before
    assert before.count(b"\n") < (tmp_path / "alone" / "outputs.jsonl").read_bytes().count(b"\n")
    statuses, _, errors = finished(group(member, member))
    assert statuses == [0, 0], errors
    assert lines.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    (out / ".lock").unlink(missing_ok=True)
    assert content(out) == content(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_group_transcribes_and_resumes_as_one_process_does(run, tmp_path, capsys, count):
    corpus = run.parent / "corpus"
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    command = ["transcribe", "--model", str(run), str(corpus), str(tmp_path / "bad.wav"), *BATCHES]
    assert main([*command, "--out", str(tmp_path / "alone.jsonl")]) == 1
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    out = tmp_path / "out.jsonl"
    lines = (tmp_path / "alone.jsonl").read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:10])  # left by one that was killed
    statuses, _, errors = finished(group(*[[*command, "--out", str(out)]] * count))
    assert statuses == [2] * count, "no launcher starts it again"
    assert out.read_text() == "".join(lines)
    assert [line for line in errors[0].splitlines() if line.startswith("skipped: ")] == skipped
    assert len(skipped) == 1
    statuses, outputs, errors = finished(group(*[command] * count))
    assert statuses == [2] * count
    assert outputs[0] == "".join(f"{line['audio']}\t{line['text']}\n" for line in map(json.loads, lines))
    assert not any(outputs[1:])
    assert not any("skipped" in text for text in errors[1:])


@pytest.mark.slow
def test_four_processes_evaluate_a_run_in_a_bucket_into_a_bucket(run, folder, tmp_path):  # noqa: F811
    command, data = commands(run)["split"], f"{folder}/prepared"
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    assert main(["ckpt", "export", str(run), "--out", f"{folder}/run"]) == 0
    storage.copy_tree(run.parent / "prepared", data)
    there = {str(run): f"{folder}/run", str(run.parent / "prepared"): data}
    member = [*(there.get(part, part) for part in command), "--out", f"{folder}/out"]
    statuses, _, errors = finished(group(*[member] * 4, **{name: os.environ[name] for name in SERVER}))
    assert statuses == [0] * 4, errors
    out = as_path(f"{folder}/out")
    assert storage.read(out / "outputs.jsonl") == (tmp_path / "alone" / "outputs.jsonl").read_bytes()
    found = json.loads(storage.read(out / "utterances.json"))
    assert found == {**json.loads((tmp_path / "alone" / "utterances.json").read_text()), "run": f"{folder}/run"}
    assert set(storage.keys(out)) == set(content(tmp_path / "alone"))


@pytest.mark.slow
def test_launch_restarts_an_evaluation(run, tmp_path):
    """A process is killed; the launcher ends the other and starts both again."""
    command = [*commands(run)["split"], "--out", str(tmp_path / "out")]
    assert main([*commands(run)["split"], "--out", str(tmp_path / "alone")]) == 0
    launch = [sys.executable, "-m", "zipper_jax.cli.main", "launch", "--processes", "2", "--restarts", "1", "--"]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen([*launch, *command], env=ENVIRONMENT, stdout=log, stderr=log)
    lines = tmp_path / "out" / "outputs.jsonl"
    while not (lines.is_file() and lines.read_bytes()):
        assert launcher.poll() is None
        time.sleep(0.001)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    assert launcher.wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert "restarting it (1 of 1)" in (tmp_path / "log").read_text()
    assert content(tmp_path / "out") == content(tmp_path / "alone")

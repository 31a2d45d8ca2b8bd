"""Entry points that read what runs, evaluations and sweeps write, and lines of `generate`."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from property import Entry, entry_point
from valid_files import lines, model_files

from zipper_jax.api import load
from zipper_jax.cli import generate as generate_command
from zipper_jax.cli import transcribe
from zipper_jax.evaluation.outputs import Outputs
from zipper_jax.sweep.scores import read_results


@cache
def _model() -> Any:
    with TemporaryDirectory() as folder:
        for name, content in model_files().items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        return load(folder)


def _generate(source: Path, out: Path) -> None:
    path = source / "prompts.jsonl"
    requests = list(generate_command._read(path, ["text"]))
    for place, request in requests:
        generate_command._check(_model(), request, place)
    assert len(requests) == sum(bool(line.strip()) for line in path.read_text("utf-8").split("\n"))
    assert sum(map(len, generate_command._batches((request for _, request in requests), 2))) == len(requests)


def _transcripts(source: Path, out: Path) -> None:
    path = source / "out.jsonl"
    before = path.read_bytes()
    done = transcribe._finished(path, {"model": "m", "beams": 1})
    after = path.read_bytes()
    assert before.startswith(after), "finished lines were changed"
    assert len(before) - len(after) == len(before) - (before.rfind(b"\n") + 1), "more than an unfinished line is gone"
    assert len(done) <= after.count(b"\n")


def _outputs(source: Path, out: Path) -> None:
    path = source / "outputs.jsonl"
    before = path.read_bytes()
    outputs = Outputs(path)
    assert path.read_bytes() == before[: before.rfind(b"\n") + 1], "more than an unfinished line is gone"
    outputs.add({"new": "text"}, {"id": "x"})
    again = Outputs(path)
    for line in path.read_bytes().split(b"\n")[:-1]:
        assert again.get(json.loads(line)["key"]) is not None or b"null" in line
    again.tidy()
    assert Outputs(path).get("new") == "text"


def _results(source: Path, out: Path) -> None:
    rows = read_results(source / "results.jsonl")
    assert len(rows) == sum(bool(line) for line in (source / "results.jsonl").read_text("utf-8").split("\n"))


@entry_point
def generate() -> Entry:
    rows = [{"prompt": [["text", "a b"], ["speech", [1, 2]]], "outputs": ["speech"]}, {"prompt": []}]
    return Entry("generate", {"prompts.jsonl": [lines(rows)]}, _generate, ("cli/generate.py", "utils/user_json.py"))


@entry_point
def transcripts() -> Entry:
    rows = [
        {"audio": f"{n}.wav", "text": "é", "seconds": 1.0, "truncated": False, "model": "m", "beams": 1}
        for n in range(3)
    ]
    return Entry("transcripts", {"out.jsonl": [lines(rows)]}, _transcripts, ("cli/transcribe.py",))


@entry_point
def outputs() -> Entry:
    rows = [{"key": f"k{n}", "id": n, "output": text} for n, text in enumerate(["a", ["b"], {"c": 1}])]
    return Entry("outputs", {"outputs.jsonl": [lines(rows)]}, _outputs, ("evaluation/outputs.py",))


@entry_point
def results() -> Entry:
    rows = [{"arm": "a", "seed": n, "outputs": "x", "measures": {"asr": [[1, 4]]}} for n in range(2)]
    return Entry("results", {"results.jsonl": [lines(rows)]}, _results, ("sweep/scores.py",))

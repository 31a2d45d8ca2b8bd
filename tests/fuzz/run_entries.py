"""Entry points that read what runs, evaluations and sweeps write, and lines of `generate`."""

import io
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from property import Entry, entry_point
from valid_files import lines, model_files

from zipper_jax.api import load
from zipper_jax.cli import eval as eval_command
from zipper_jax.cli import generate as generate_command
from zipper_jax.cli import transcribe
from zipper_jax.evaluation.outputs import Outputs
from zipper_jax.reports.report import write_report


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
    done = transcribe._finished(path, path, {"model": "m", "beams": 1})
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
        assert again.get(json.loads(line)["key"]) is not None
    again.tidy()
    assert Outputs(path).get("new") == "text"


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


_FIGURES = {
    "asr_wer_test": 0.06,
    "asr_wer_test_other": 0.13,
    "asr_wer_shuffled_audio": "not possible: one sentence",
    "tts_wer_test": 0.2,
    "tts_wer_gold_units": 0.1,
    "text_ppl_unimodal_before": 6.7,
    "parameters": {"zipper": {"frozen": 3, "trained": 4}},
    "seconds": {"fuse": 240.2, "total": 471.6},
    "sentences": {"test": 100},
    "settings": {"beams": 1, "normaliser": "default", "speech_sampling": {"top_p": None}},
    "another": 0.5,
}
_SAMPLES = [
    {
        "id": "a", "reference": "open the door", "asr": {"zipper": "open a door"}, "audio": {"gold": "audio/a.wav"},
        "tts_judged": {"zipper": "the door", "raw_audio": None},
    }
]  # fmt: skip


def _report(source: Path, out: Path) -> None:
    shutil.copytree(source / "eval", out / "eval")
    write_report(out / "eval", {"zipper": source / "run"})
    assert (out / "eval" / "report.html").read_text("utf-8").endswith("</html>\n")
    eval_command._stage_seconds(source / "stages")


@entry_point
def report() -> Entry:
    attention = io.BytesIO()
    np.savez(attention, tokens=np.array(["a", "b"]), seconds_per_unit=0.04, weights_0=np.ones((2, 2, 3), np.float32))
    rows = [{"step": n, "split": s, "loss": 2.5 - n} for n in (1, 2) for s in ("train", "validation")]
    files = {
        "eval/results.json": [json.dumps(_FIGURES).encode()],
        "eval/samples.json": [json.dumps(_SAMPLES).encode()],
        "eval/attention.npz": [attention.getvalue()],
        "run/metrics.jsonl": [lines([*rows, rows[-1] | {"gates": {"a-b": {"into_a/gate": [0.1, 0.2]}}}])],
        "stages/01_fuse.seconds": [b"12.5\n"],
    }
    return Entry("report", files, _report, ("reports/report.py", "reports/tables.py", "reports/plots.py"))

"""A whole small sweep through the command line: data, rows on a machine with few packages installed, scores, report."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from zipper_jax.cli.main import main
from zipper_jax.speech.synthesis import find_engine
from zipper_jax.sweep.plan import Places, digest, load_sweep, rows
from zipper_jax.sweep.prepare import MADE_WITH
from zipper_jax.sweep.scores import read_results

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

BARE = """
import sys
import time
from importlib.machinery import PathFinder
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {gone!r} else super().find_spec(name, path, target)
sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""Runs at a process's start: from then on these packages are not there."""
# What jax, flax, optax and orbax-checkpoint do not bring and zipper_jax lists, but for jaxtyping.
GONE = (
    "tensorflow", "tensorflow_datasets", "seqio", "sentencepiece", "gin", "tensorboardX", "jiwer", "matplotlib",
    "tokenizers", "huggingface_hub", "safetensors", "soundfile", "soxr", "pocketsphinx", "torch", "transformers",
    "espeakng_loader", "clu", "t5x", "tqdm", "argcomplete",
)  # fmt: skip


def zipper(*arguments, **environment):
    command = [sys.executable, "-m", "zipper_jax.cli.main", "sweep", *map(str, arguments)]
    paths = os.pathsep.join(filter(None, [environment.pop("first", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": "", **environment}
    )


def on_a_bare_machine(out: Path, *arguments: object) -> None:
    bare = out / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(BARE.format(gone=set(GONE)))
    done = zipper("run", *arguments, first=str(bare))
    assert done.returncode == 0, done.stderr


def scored_and_reported(out: Path, given: list) -> str:
    assert main(["sweep", "score", *map(str, given)]) == 0
    assert main(["sweep", "report", *map(str, given), "--to", str(out / "docs")]) == 0
    return (out / "docs" / "README.md").read_text()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The arguments of a sweep whose data is prepared."""
    out = tmp_path_factory.mktemp("sweep")
    arguments = [HERE / "tiny_sweep.py", "--size", find_engine("auto").name, "--out", out]
    assert main(["sweep", "prepare", *map(str, arguments)]) == 0
    return arguments


def copied(given: list, out: Path) -> list:
    """The same for another folder with the same data."""
    for name in ("corpus", "prepared", "shares", "sentences"):
        shutil.copytree(given[-1] / name, out / name)
    shutil.copy(given[-1] / MADE_WITH, out)
    return [*given[:-1], out]


@pytest.mark.slow
def test_prose_for_the_text_tower(tmp_path):
    """The text tower reads it, everything shares its vocabulary."""
    book = tmp_path / "book.txt"
    book.write_text("".join(f"the {n} th line of a book about zip fasteners\n" for n in range(60)))
    given = [HERE / "tiny_sweep.py", "--size", find_engine("auto").name, "--out", tmp_path / "out"]
    assert main(["sweep", "prepare", *map(str, given), "--prose", str(book)]) == 0
    places = Places(tmp_path / "out")
    assert places.text() == str(places.prose)
    digests = {(folder / "vocabularies/text/vocabulary.json").read_text() for folder in (places.prose, places.prepared)}
    assert len(digests) == 1
    assert json.loads((places.prose / "rows/text_lm/train/meta.json").read_text())["examples"] > 40


def test_the_blocked_packages_are_real_ones():
    known = packages_distributions()
    assert {"tensorflow", "sentencepiece", "soundfile", "gin"} <= known.keys()


def test_a_share_of_the_pairs_keeps_unimodal_rows_and_validation(given):
    whole, half = given[-1] / "prepared" / "rows", given[-1] / "shares" / "0.5" / "rows"

    def examples(folder, task, split):
        return json.loads((folder / task / split / "meta.json").read_text())["examples"]

    assert [examples(half, task, "train") for task in ("asr", "tts", "text_lm", "speech_lm")] == [12, 12, 24, 24]
    assert examples(half, "asr", "validation") == examples(whole, "asr", "validation")


def test_data_of_another_sweep_is_refused(given, tmp_path, capsys):
    """As it would be if the file had changed behind the data's back."""
    given = copied(given, tmp_path)
    found = json.loads((tmp_path / MADE_WITH).read_text())
    (tmp_path / MADE_WITH).write_text(json.dumps({**found, "corpus": {**found["corpus"], "train": 25}}))
    for action in ("run", "prepare"):
        assert main(["sweep", action, *map(str, given)]) == 2
        assert "holds data that was made with corpus = " in capsys.readouterr().err
    (tmp_path / MADE_WITH).write_text(json.dumps(found))
    assert main(["sweep", "run", *map(str, given), "--prose", str(tmp_path)]) == 2
    assert "was prepared without it" in capsys.readouterr().err


def test_a_single_row_with_its_errors_and_controls(given, tmp_path, capsys):
    given = copied(given, tmp_path)
    row = [*given, "--only", "single_decoder", "--seeds", "1"]
    on_a_bare_machine(tmp_path, *row)
    page = scored_and_reported(tmp_path, given)
    assert "1 of 7 rows are scored" in page
    assert main(["sweep", "report", *map(str, given), "--to", str(tmp_path)]) == 0  # into the sweep's own folder
    assert (tmp_path / "README.md").read_text() == page
    (line,) = read_results(tmp_path / "results.jsonl")
    assert (line["arm"], line["seed"], line["steps"]) == ("single_decoder", 1, 2)
    lengths = {name: len(pairs) for name, pairs in line["measures"].items()}
    assert lengths["asr"] == lengths["asr_shuffled"] == lengths["asr_no_audio"] == lengths["tts_shuffled_nats"] == 6
    assert (lengths["tts"], lengths["asr_other"], lengths["asr_validation"]) == (4, 4, 4)
    assert "asr_gates_zero" not in lengths
    # A line whose outputs are on another machine stays; one of another configuration goes.
    places = Places(tmp_path)
    sweep = load_sweep(Path(given[0]), given[2])
    (other,) = (row for row in rows(sweep) if (row.arm.name, row.seed) == ("single_decoder", 0))
    kept = {**line, "seed": 0, "digest": digest(sweep, other, places)}
    gone = {**line, "arm": "zipper", "seed": 0}
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (line, kept, gone)))
    assert main(["sweep", "score", *map(str, given)]) == 0
    assert read_results(tmp_path / "results.jsonl") == [kept, line]
    # Again: nothing to do. With other steps: another row, not this one's results.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").iterdir()}
    assert main(["sweep", "run", *map(str, row)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").iterdir()}
    assert main(["sweep", "run", *map(str, row), "--steps", "3"]) == 2
    assert "was run with another configuration" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_sweep(given, tmp_path):
    """Two rows at a time, on a machine with few packages installed."""
    given = copied(given, tmp_path)
    on_a_bare_machine(tmp_path, *given, "--jobs", 2)
    page = scored_and_reported(tmp_path, given)
    assert "7 of 7 rows are scored" in page
    for part in ("| zipper |", "the zipper hears better", "reversed audio"):
        assert part in page
    assert (tmp_path / "docs" / "by_length.png").is_file()
    assert len((tmp_path / "docs" / "results.jsonl").read_text().splitlines()) == 7
    lines = {(line["arm"], line["seed"]): line for line in read_results(tmp_path / "results.jsonl")}
    assert sorted(lines) == sorted(
        [(arm, seed) for arm in ("zipper", "single_decoder", "zipper.half") for seed in (0, 1)] + [("zipper.tried", 0)]
    )
    assert len(lines["zipper", 1]["measures"]["asr_gates_zero"]) == 6
    assert {"text_fused_before", "speech_unimodal_after"} <= lines["zipper", 0]["perplexity"].keys()
    # Choosing between settings touches no test sentence.
    assert {"asr", "asr_other", "tts"}.isdisjoint(lines["zipper.tried", 0]["measures"])


@pytest.mark.slow
def test_a_row_that_fails_is_named_with_its_log_and_the_others_continue(given, tmp_path):
    """Its data is damaged; rows that need it are skipped."""
    given = copied(given, tmp_path)
    (tmp_path / "prepared" / "rows" / "speech_lm" / "train" / "tokens.npy").write_bytes(b"damaged")
    done = zipper("run", *given, "--only", "zipper", "single_decoder", "--seeds", "0")
    assert done.returncode == 2
    assert "2 of 4 rows failed: speech_lm-0, zipper-0" in done.stderr
    assert "zipper-0: skipped" in done.stderr
    assert (tmp_path / "outputs" / "single_decoder-0.json").is_file()


@pytest.mark.slow
def test_a_killed_sweep_resumes_row_by_row(given, tmp_path):
    """Finished rows are kept as they are; the row that was killed with the sweep runs again."""
    given = [*copied(given, tmp_path), "--only", "single_decoder"]
    first, second = (Places(tmp_path).outputs("single_decoder", seed) for seed in (0, 1))
    command = [sys.executable, "-m", "zipper_jax.cli.main", "sweep", "run", *map(str, given)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "XLA_FLAGS": ""}, cwd=ROOT)
    try:
        deadline = time.monotonic() + 300
        while not first.is_file() and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        killed.kill()  # its row ends with it, see `training.supervise`
        killed.wait()
    assert first.is_file()
    assert not second.is_file()
    written = first.stat().st_mtime_ns
    done = zipper("run", *given)
    assert done.returncode == 0, done.stderr
    assert "2 rows, 1 finished before" in done.stderr
    assert second.is_file()
    assert first.stat().st_mtime_ns == written


@pytest.mark.slow
def test_two_processes_run_and_score_what_one_does(given, tmp_path):
    """The zipper needs both towers, which two processes train at the same time."""
    alone, together = (copied(given, tmp_path / name) for name in ("alone", "together"))
    chosen = ["--only", "text_lm", "speech_lm", "zipper", "--seeds", "0"]
    launch = [sys.executable, "-m", "zipper_jax.cli.main", "launch", "--processes", "2", "--restarts", "0", "--"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    for action, more in (("run", chosen), ("score", [])):
        assert zipper(action, *alone, *more).returncode == 0
        command = [*launch, "sweep", action, *map(str, [*together, *more])]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    found = [
        {
            path.name: {**json.loads(path.read_text()), "goodput": None, "digest": None}
            for path in (arguments[-1] / "outputs").iterdir()
        }
        for arguments in (alone, together)
    ]
    assert len(found[0]) == 3
    for name, one in found[0].items():
        assert found[1][name] == one
    lines = [read_results(arguments[-1] / "results.jsonl") for arguments in (alone, together)]
    for one, other in zip(*lines, strict=True):
        assert one["measures"] == other["measures"]

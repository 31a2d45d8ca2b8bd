"""A whole small sweep through the command line: data, rows on a machine that has almost nothing, scores, report."""

import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from zipper_jax.cli.main import main
from zipper_jax.speech.synthesis import find_engine
from zipper_jax.sweep.plan import Places
from zipper_jax.sweep.scores import read_results

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

BARE = """
import sys
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
    "espeakng_loader", "clu", "t5x",
)  # fmt: skip


def zipper(*arguments, **environment):
    command = [sys.executable, "-m", "zipper_jax.cli.main", "sweep", *map(str, arguments)]
    paths = os.pathsep.join(filter(None, [environment.pop("first", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": "", **environment}
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a finished sweep, and the report's."""
    out = tmp_path_factory.mktemp("sweep")
    size = find_engine("auto").name
    given = [HERE / "tiny_sweep.py", "--size", size, "--out", out]
    assert main(["sweep", "prepare", *map(str, given)]) == 0
    bare = out / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(BARE.format(gone=set(GONE)))
    done = zipper("run", *given, "--jobs", 2, first=str(bare))
    assert done.returncode == 0, done.stderr
    assert main(["sweep", "score", *map(str, given)]) == 0
    page = out / "docs"
    assert main(["sweep", "report", *map(str, given), "--to", str(page)]) == 0
    return out, page, given


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


def test_every_row_has_its_errors_and_controls(swept):
    lines = {(line["arm"], line["seed"]): line for line in read_results(swept[0] / "results.jsonl")}
    assert sorted(lines) == sorted(
        [(arm, seed) for arm in ("zipper", "single_decoder", "zipper.half") for seed in (0, 1)] + [("zipper.tried", 0)]
    )
    measures = lines["zipper", 1]["measures"]
    for name in ("asr", "asr_shuffled", "asr_no_audio", "asr_gates_zero", "asr_nats", "tts_shuffled_nats"):
        assert len(measures[name]) == 6
    assert len(measures["tts"]) == 4
    assert len(measures["asr_other"]) == len(measures["asr_validation"]) == 4
    assert "asr_gates_zero" not in lines["single_decoder", 0]["measures"]
    # Choosing between settings touches no test sentence.
    assert {"asr", "asr_other", "tts"}.isdisjoint(lines["zipper.tried", 0]["measures"])
    assert {"text_fused_before", "speech_unimodal_after"} <= lines["zipper", 0]["perplexity"].keys()


def test_a_share_of_the_pairs_keeps_unimodal_rows_and_validation(swept):
    out = swept[0]
    whole, half = out / "prepared" / "rows", out / "shares" / "0.5" / "rows"

    def examples(folder, task, split):
        return json.loads((folder / task / split / "meta.json").read_text())["examples"]

    assert [examples(half, task, "train") for task in ("asr", "tts", "text_lm", "speech_lm")] == [12, 12, 24, 24]
    assert examples(half, "asr", "validation") == examples(whole, "asr", "validation")


def test_the_report_has_tables_verdicts_and_pictures(swept):
    page = (swept[1] / "README.md").read_text()
    assert "7 of 7 rows are scored" in page
    assert "| zipper |" in page
    assert "the zipper hears better" in page
    assert "reversed audio" in page
    assert (swept[1] / "by_length.png").is_file()
    assert len((swept[1] / "results.jsonl").read_text().splitlines()) == 7


def test_run_again_it_does_nothing_and_a_changed_row_is_not_taken_for_the_old_one(swept, capsys):
    out, _, given = swept
    before = {path: path.stat().st_mtime_ns for path in (out / "outputs").iterdir()}
    assert main(["sweep", "run", *map(str, given)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "outputs").iterdir()}
    assert main(["sweep", "run", *map(str, given), "--steps", "3"]) == 2
    assert "was run with another configuration" in capsys.readouterr().err


def test_a_row_that_fails_is_named_with_its_log_and_the_others_go_on(swept, tmp_path):
    """Its data is damaged; rows that need it are left out."""
    _, _, (file, *_, size, _, _) = swept
    given = [file, "--size", size, "--out", tmp_path]
    for name in ("corpus", "prepared", "shares", "sentences"):
        (tmp_path / name).mkdir()
        subprocess.run(["cp", "-r", f"{swept[0] / name}/.", tmp_path / name], check=True)
    (tmp_path / "prepared" / "rows" / "speech_lm" / "train" / "tokens.npy").write_bytes(b"damaged")
    done = zipper("run", *given, "--only", "zipper", "single_decoder", "--seeds", "0")
    assert done.returncode == 2
    assert "2 of 4 rows failed: speech_lm-0, zipper-0" in done.stderr
    assert "zipper-0: left out" in done.stderr
    assert (tmp_path / "outputs" / "single_decoder-0.json").is_file()

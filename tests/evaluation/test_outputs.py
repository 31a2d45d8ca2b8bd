"""A set is decoded in bounded memory, and a killed evaluation resumes: the same files as one that was not killed."""

import json
import signal
import subprocess
import sys
import time

import pytest
from tiny_run import UNITS, write_run

from zipper_jax.cli.main import main
from zipper_jax.evaluation.evaluator import EvalSettings
from zipper_jax.evaluation.outputs import FILE, Outputs, digest
from zipper_jax.utils.errors import UserError

RUN = "import sys; from zipper_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
PEAK = """
import resource, sys
from zipper_jax.cli.main import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("outputs"))


def command(run, sentences: int, *more: str) -> list[str]:
    """`zipper eval` on so many sentences of several lengths."""
    examples = run.parent / "prepared" / "examples"
    examples.mkdir(exist_ok=True)
    lines = [
        {"id": f"u{k}", "split": "test", "text": f"go {k}", "units": [(k + i) % UNITS for i in range(3 + k % 7)]}
        for k in range(sentences)
    ]
    (examples / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ["--data", str(run.parent / "prepared"), "--split", "test", "--sentences", "0"]
    return ["eval", "--run", str(run), *data, *more]


def test_a_killed_evaluation_resumes_to_the_same_files(run, tmp_path, capsys):
    given = command(run, 40, "--batch_size", "2")
    assert main([*given, "--out", str(tmp_path / "whole")]) == 0
    whole = (tmp_path / "whole" / FILE).read_bytes()
    assert whole.count(b"\n") == 4 * 40  # the sentences, and three controls
    out = tmp_path / "killed"
    with subprocess.Popen([sys.executable, "-c", RUN, *given, "--out", str(out)], stderr=subprocess.PIPE) as process:
        while process.poll() is None and not ((out / FILE).is_file() and (out / FILE).stat().st_size > 2_000):
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before = (out / FILE).read_bytes()
    assert len(before) < len(whole)
    (out / FILE).write_bytes(before[:-7])  # as if within a line
    assert main([*given, "--out", str(out)]) == 0
    assert (out / FILE).read_bytes() == whole
    assert (out / "utterances.json").read_bytes() == (tmp_path / "whole" / "utterances.json").read_bytes()
    # Of another setting nothing is used, and nothing stays.
    assert main([*command(run, 40, "--batch_size", "3"), "--out", str(out)]) == 0
    keys = [{json.loads(line)["key"] for line in text.splitlines()} for text in (whole, (out / FILE).read_bytes())]
    assert len(keys[1]) == 4 * 40
    assert not keys[0] & keys[1]


def test_a_file_of_something_else_is_named(run, tmp_path, capsys):
    for text in ("[1]", "no JSON", '{"key": "a"}'):
        (tmp_path / FILE).write_text(text + "\n")
        assert main([*command(run, 4), "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {str(tmp_path / FILE)!r} line 1 is no finished output")
    (tmp_path / FILE).write_text("")
    with pytest.raises(UserError, match="give at least 1"):
        EvalSettings(batch_size=0)


def test_outputs_are_found_by_what_determines_them(tmp_path):
    path = tmp_path / FILE
    outputs = Outputs(path)
    outputs.add({digest("a", 1): [[1, 2], False], digest("a", 2): "ü"}, {"set": "test"})
    outputs.add({digest("a", 2): "ü"}, {"set": "test"})
    assert outputs.get(digest("a", 2)) == "ü"
    assert not outputs.resumed
    again = Outputs(path)
    assert again.get(digest("a", 1)) == [[1, 2], False]
    assert again.resumed
    assert again.get(digest("b", 1)) is None
    again.tidy()
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_sentences(run, tmp_path):
    """A cache of 0.8 MB a sentence: at once, 800 more sentences would take 600 MB more."""
    config = json.loads((run / "config.json").read_text())
    config["lengths"]["speech"] = 4096
    (run / "config.json").write_text(json.dumps(config))
    peaks = []
    for sentences in (200, 1_000):
        given = [*command(run, sentences), "--out", str(tmp_path / str(sentences))]
        done = subprocess.run([sys.executable, "-c", PEAK, *given], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.splitlines()[-1]))
    assert peaks[1] < peaks[0] + 100, peaks

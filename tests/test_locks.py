"""One lock for every output folder: two real processes, one killed, one that resumes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making_corpora import held, text_corpus

from zipper_jax.cli import main as cli
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import new_folder
from zipper_jax.utils.locks import locked, locked_file


def test_a_folder_is_refused_by_name_while_a_process_writes_it_and_free_when_it_is_killed(tmp_path):
    out = tmp_path / "out"
    with held(out) as process:
        with pytest.raises(UserError) as caught, locked(out):
            pass
        assert str(caught.value) == (
            f"{str(out)!r} is being written by process {process.pid} on {socket.gethostname()}; wait for it or choose "
            "another folder"
        )
        process.kill()
        process.wait()
    assert (out / ".lock").is_file()  # left by the crash
    with locked(out):
        (out / "a").write_text("written")
    assert [path.name for path in out.iterdir()] == ["a"]


def test_an_output_folder_of_an_error_is_not_left_behind(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path / "new"):
        raise ValueError
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()
    written = r"a\.jsonl' is being written by another process; wait .*another file"
    with locked_file(tmp_path / "a.jsonl"), pytest.raises(UserError, match=written):
        locked_file(tmp_path / "a.jsonl").__enter__()
    assert not (tmp_path / "a.jsonl").exists()


def test_two_writers_of_a_new_folder(tmp_path):
    out = tmp_path / "model"
    with new_folder(out) as aside:
        (aside / "a").write_text("mine")
        with pytest.raises(UserError, match="is being written by process"), new_folder(out):
            pass
    assert [path.name for path in out.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


COMMANDS = {
    "synth": ["data", "synth", "--sentences=1"],
    "import": ["data", "import", "text", "SOURCE"],
    "prepare": ["data", "prepare", "--corpus", "CORPUS"],
    "eval": ["eval", "--run", "CORPUS", "--data", "CORPUS", "--corpus", "CORPUS"],
    "eval --split": ["eval", "--run", "CORPUS", "--data", "CORPUS", "--split", "test"],
    "sweep": ["sweep", "prepare", "SWEEP"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_a_folder_that_another_process_writes(tmp_path, capsys, name):
    corpus = text_corpus(tmp_path / "corpus", 3)
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    sweep = Path(__file__).resolve().parents[1] / "experiments" / "findings.py"
    places = {"CORPUS": str(corpus), "SOURCE": str(tmp_path / "a.txt"), "SWEEP": str(sweep)}
    out = tmp_path / "out"
    with held(out) as process:
        before = sorted(out.rglob("*"))
        assert cli.main([*(places.get(word, word) for word in COMMANDS[name]), "--out", str(out)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {str(out)!r} is being written by process {process.pid} on ")
        assert sorted(out.rglob("*")) == before


def test_two_prepare_runs_into_one_folder_never_double_an_utterance(tmp_path):
    """The commands at once, then one that is killed and run again."""
    corpus, out = text_corpus(tmp_path / "corpus", 3000), tmp_path / "out"
    code = "import sys; from zipper_jax.cli import main; sys.exit(main.main(sys.argv[1:]))"
    arguments = [
        "data",
        "prepare",
        "--corpus",
        str(corpus),
        "--out",
        str(out),
        "--text_vocabulary=bytes",
        "--tasks=asr",
    ]
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    both = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    refused = [error for error in errors if "is being written by process" in error.splitlines()[-1]]
    assert len(refused) <= 1, errors  # none where one had ended before the other began
    assert not any("Traceback" in error for error in errors)
    ids = [json.loads(line)["id"] for line in (out / "examples" / "train.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 3000

    process = subprocess.Popen(
        [*command, "--overwrite", "--seed=1"], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not (out / ".lock").is_file():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    cli.main([*arguments, "--overwrite"])
    ids = [json.loads(line)["id"] for line in (out / "examples" / "train.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 3000

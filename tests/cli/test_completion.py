"""Completion: what is offered, and that a real bash accepts it."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zipper_jax.cli.completion import SCRIPTS, words
from zipper_jax.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("typed", "some"),
    [
        ([""], {*COMMANDS, "--help", "--version"}),
        (["tr"], {"train", "transcribe"}),
        (["data", ""], {"import", "inspect", "synth", "prepare", "tokenizer"}),
        (["data", "synth", "--see"], {"--seed"}),
        (["compile", "--what", ""], {"train", "decode"}),
        (["compile", "--what=d"], {"--what=decode"}),
        (["train", "--gin"], {"--gin_file=", "--gin."}),
        (["train", "--gin_file=runs/fu"], {"--gin_file=runs/fuse.gin", "--gin_file=runs/fuse_from.gin"}),
        (["train", "--gin_file", "xla/t"], {"xla/tpu.gin"}),
        (["launch", "--processes", "2", "--", "train", "--print"], {"--print_config"}),
        (["launch", "--"], {"--processes", "--restarts", "--heartbeat_seconds", "--help"}),
        (["ckpt", "verify", "--f"], {"--files_only"}),
        (["completion", ""], {"bash", "zsh", "fish", "words"}),
        (["transcribe", "--model", ""], set()),  # a folder: the shell's own completion of files
        (["transcribe", ""], set()),
        (["no_such_command", ""], set()),
    ],
)
def test_what_is_offered(typed, some):
    assert set(words(typed)) == some


def test_every_command_has_completions():
    for name in COMMANDS:
        assert "--help" in words([name, "--"]), name


@pytest.fixture
def bin_folder(tmp_path):
    """A folder with a `zipper` to put on the PATH."""
    script = tmp_path / "bin" / "zipper"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m zipper_jax.cli.main "$@"\n')
    script.chmod(0o755)
    return script.parent


def environment(bin_folder: Path) -> dict[str, str]:
    paths = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, "TERM": "dumb", "PS1": "$ "}


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("zipper trai", "train"),
        ("zipper train --gin_file=runs/pretrain_t", "runs/pretrain_text.gin"),  # readline keeps what is before the =
        ("zipper train --gin_file runs/pretrain_t", "runs/pretrain_text.gin"),
        ("zipper ckpt ver", "verify"),
        ("zipper transcribe ", ""),
    ],
)
def test_bash_function_replies(bin_folder, capsys, line, reply):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ask = 'COMP_LINE="$1" COMP_POINT=${#1}; _zipper; printf "%s\\n" "${COMPREPLY[@]}"'
    told = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{ask}", "bash", line],
        env=environment(bin_folder), check=True, text=True, capture_output=True,
    )  # fmt: skip
    assert (told.stdout, told.stderr) == (f"{reply}\n", "")


def test_tab_in_an_interactive_bash(bin_folder, tmp_path):
    """Keys into a terminal; what is then run is what was completed."""
    (tmp_path / "script").write_text(SCRIPTS["bash"])
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment(bin_folder))
    try:
        os.write(terminal, f"source {tmp_path}/script; cd {tmp_path}; touch 'my audio.wav'\n".encode())
        os.write(terminal, b"zipper insp\t")
        seen = read_until(terminal, "zipper inspect ")
        os.write(terminal, b"\x15zipper train --gin_file=runs/pretrain_s\t")
        seen += read_until(terminal, "--gin_file=runs/pretrain_speech.gin ")
        os.write(terminal, b"\x15zipper transcribe my\t")
        seen += read_until(terminal, "my\\ audio.wav")
        os.write(terminal, b"\x15exit\n")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def read_until(terminal: int, wanted: str, seconds: float = 60.0) -> str:
    seen, ends = "", time.monotonic() + seconds
    while wanted not in seen:
        assert time.monotonic() < ends, f"no {wanted!r} in {seen!r}"
        if select.select([terminal], [], [], 1.0)[0]:
            seen += os.read(terminal, 4096).decode()
    return seen

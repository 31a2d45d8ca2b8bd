"""Completion: what is offered, and that a real bash accepts it."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zipper_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


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
    ("line", "replies"),
    [
        ("zipper tr", {"train", "transcribe"}),
        ("zipper data ", {"import", "inspect", "synth", "sentences", "prepare", "tokenizer", "vocoder"}),
        ("zipper data synth --see", {"--seed"}),
        ("zipper compile --what ", {"train", "decode"}),
        ("zipper ckpt ver", {"verify"}),
        ("zipper train --gin_file runs/pretrain_t", {"runs/pretrain_text.gin"}),
        ("zipper train --gin_file=runs/fu", {"runs/fuse.gin", "runs/fuse_from.gin"}),  # bash splits words at the =
        ("zipper completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_what_bash_is_offered(bin_folder, capsys, line, replies):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ask = 'COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=63; _python_argcomplete zipper; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{ask}", "bash", line],
        env=environment(bin_folder), check=True, text=True, capture_output=True,
    )  # fmt: skip
    assert {word.strip() for word in done.stdout.splitlines() if word.strip()} - {"-h", "--help"} == replies, done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "zipper" in capsys.readouterr().out


def test_tab_in_an_interactive_bash(bin_folder, tmp_path, capsys):
    """Keys into a terminal; what is then run is what was completed."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
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

"""JAX_PLATFORMS names what is not here: one line and status 2, from every command that starts jax."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from killing import Job
from tiny_run import tone, write_run

ROOT = Path(__file__).resolve().parents[2]


def run(words, platform: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": platform, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "zipper_jax.cli.main", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, input='{"prompt": []}\n')


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("no_device"))


@pytest.mark.parametrize(
    ("command", "platform"),
    [
        ("transcribe", "cuda"), ("train", "cuda"), ("launch", "tpu"),
        *(pytest.param(*names, marks=pytest.mark.slow) for names in (("speak", "tpu"), ("generate", "cuda"))),
    ],
)  # fmt: skip
def test_a_platform_that_is_not_here_is_one_line(trained, prepared, tmp_path, command, platform):
    words = {
        "transcribe": ["--model", trained, tone(tmp_path / "a.wav", 16_000, 1)],
        "speak": ["go on", "--model", trained, "--out", tmp_path / "a.wav"],
        "generate": ["--model", trained],
        "train": Job(tmp_path, "r", prepared, 2).command[4:],
        "launch": ["--restarts", "0", "--", *Job(tmp_path, "r", prepared, 2).command[3:]],
    }[command]
    done = run([command, *words], platform)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: JAX_PLATFORMS = '{platform}': jax cannot start there (")
    assert "Traceback" not in done.stderr


def test_doctor_and_version_report_it():
    done = run(["--version", "--devices"], "cuda")
    assert done.returncode == 0, done.stderr
    assert "devices: JAX_PLATFORMS = 'cuda': jax cannot start there" in done.stdout

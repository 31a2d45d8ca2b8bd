"""Commands keep compiled programs for the next start, and leave what the user set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from zipper_jax.cli import main
main.main(["--version"])
import jax
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((3, 3))))
print(jax.config.jax_compilation_cache_dir, len(hits))
"""


def start(**variables: str) -> tuple[str, int]:
    """(Folder of the cache, programs found in it) of a fresh process with these environment variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION") and k != "XDG_CACHE_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=kept | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | variables,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder, hits = done.stdout.splitlines()[-1].rsplit(" ", 1)
    return folder, int(hits)


def test_the_second_start_finds_the_programs_of_the_first(tmp_path):
    folder, hits = start(XDG_CACHE_HOME=str(tmp_path))
    assert hits == 0
    assert Path(folder).parent == tmp_path / "zipper_jax"
    stored = sorted(p.name for p in Path(folder).iterdir() if p.name.endswith("-cache"))
    assert stored
    again, hits = start(XDG_CACHE_HOME=str(tmp_path))
    assert again == folder
    assert hits >= 1
    assert sorted(p.name for p in Path(folder).iterdir() if p.name.endswith("-cache")) == stored


def test_home_is_the_default_and_the_users_own_setting_stays(tmp_path):
    folder, _ = start(HOME=str(tmp_path))
    assert Path(folder).parent == tmp_path / ".cache" / "zipper_jax"
    own = tmp_path / "own"
    assert start(HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(own))[0] == str(own)


@pytest.mark.parametrize("home", ["file", "/proc/no/such/home"])
def test_a_home_that_cannot_hold_the_folder_keeps_nothing(tmp_path, home):
    (tmp_path / "file").write_text("")
    assert start(HOME=str(tmp_path / home)) == ("None", 0)

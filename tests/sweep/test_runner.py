"""Rows of a group of processes: a signal lets every row save, wherever it runs."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zipper_jax

MEMBER = """
import sys
from pathlib import Path
from types import SimpleNamespace

from zipper_jax.cli import group
from zipper_jax.sweep.runner import run_rows

where, index, folder = sys.argv[1:]
row = '''
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(60)
'''
args = SimpleNamespace(
    coordinator=where, process_count=2, process_index=int(index), heartbeat_seconds=10, join_seconds=100
)
arm = SimpleNamespace(name="a", needs=())
places = SimpleNamespace(root=Path(folder), log=lambda *_: Path(folder) / "log")
command = [sys.executable, "-c", row, folder]
sys.exit(group.run(args, lambda: run_rows([SimpleNamespace(name="a-0", seed=0, arm=arm)], command, places, 1)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_without_a_row_waits_for_those_that_save(tmp_path, number):
    """`zipper launch` forwards signals to all; one that died of it would take the coordinator or a row with it."""
    where = f"127.0.0.1:{random.SystemRandom().randint(20_000, 50_000)}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(zipper_jax.__file__).parents[1])}
    members = [
        subprocess.Popen([sys.executable, "-c", MEMBER, where, str(index), str(tmp_path)], env=environment)
        for index in range(2)
    ]
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)  # process 1 waits
        for member in members:
            member.send_signal(number)
        assert [member.wait(timeout=100) for member in members] == [130, 130]
    finally:
        for member in members:
            member.kill()
    assert (tmp_path / "saved").exists()

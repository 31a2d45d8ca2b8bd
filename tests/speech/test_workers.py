"""Work in other processes: in order, with errors that reach the caller, and nothing left running."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zipper_jax.speech.workers import parallel_map
from zipper_jax.utils.errors import UserError

TARGET = "jobs_of_a_test:make"
CODE = """
import os, time
from zipper_jax.utils.errors import UserError

def make(offset):
    print("a library that prints must not disturb the answers")
    def run(job):
        if job == "user":
            raise UserError("mend this")
        if job == "full":
            raise OSError(28, "No space left on device")
        if job == "die":
            os._exit(3)
        if job == "long":
            while True:
                with open("alive", "a") as file:
                    file.write(".")
                time.sleep(0.05)
        if job == "pid":
            return os.getpid()
        time.sleep(0.05 / (1 + job))  # later jobs finish first
        return job + offset
    return run
"""


@pytest.fixture(autouse=True)
def jobs_module(tmp_path, monkeypatch):
    (tmp_path / "jobs_of_a_test.py").write_text(CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_results_keep_the_order_of_the_jobs():
    assert list(parallel_map(TARGET, {"offset": 10}, list(range(9)), processes=3)) == list(range(10, 19))
    assert list(parallel_map(TARGET, {"offset": 10}, [])) == []


def test_jobs_are_read_a_few_ahead():
    jobs = iter(range(500))  # as few, so that reading them all ends, too
    results = parallel_map(TARGET, {"offset": 1}, jobs, processes=2)
    with contextlib.closing(results):
        assert list(itertools.islice(results, 50)) == list(range(1, 51))
    assert next(jobs, 500) < 100


def test_errors_reach_the_caller():
    with pytest.raises(UserError, match="mend this"):
        list(parallel_map(TARGET, {"offset": 1}, [1, "user", 2, 3], processes=2))
    with pytest.raises(OSError, match="No space left"):  # the command line reports it in one line
        list(parallel_map(TARGET, {"offset": 1}, [1, "full", 2], processes=1))
    with pytest.raises(RuntimeError, match="TypeError"):
        list(parallel_map(TARGET, {"offset": None}, [1, 2], processes=2))
    with pytest.raises(RuntimeError, match="exit status 3"):
        list(parallel_map(TARGET, {"offset": 1}, [1, "die", 2], processes=1))
    with pytest.raises(UserError, match="processes = 0"):
        list(parallel_map(TARGET, {"offset": 1}, [1], processes=0))


def test_workers_end_when_the_caller_stops_early():
    results = parallel_map(TARGET, {"offset": 1}, ["pid", *range(1000)], processes=1)
    pid = next(results)
    begin = time.monotonic()
    results.close()
    assert time.monotonic() - begin < 5
    assert subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode != 0


def test_a_long_job_ends_with_a_killed_parent(tmp_path):
    """SIGTERM or the kernel ends the parent without any cleanup; a job of `prepare --workers` may take hours."""
    code = f"""
from zipper_jax.speech.workers import parallel_map
list(parallel_map({TARGET!r}, {{"offset": 1}}, ["long"], 1))
"""
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).resolve().parents[2]}{os.pathsep}{tmp_path}"}
    parent, alive = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path), tmp_path / "alive"
    deadline = time.monotonic() + 60
    while not alive.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    parent.wait()
    written = -1
    while written != alive.stat().st_size:
        assert time.monotonic() < deadline, "the job continues without its parent"
        written = alive.stat().st_size
        time.sleep(1)

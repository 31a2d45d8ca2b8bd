"""What groups of processes exchange, with three real ones and no device."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import group_exchange
import pytest

import zipper_jax
from zipper_jax.utils import distributed

COUNT = 3


def run(*failing: str) -> tuple[list[int], list[dict], list[str]]:
    """Statuses, what each process has seen, and what it said."""
    where = f"127.0.0.1:{random.SystemRandom().randint(20_000, 50_000)}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(zipper_jax.__file__).parents[1])}
    members = [
        subprocess.Popen(
            [sys.executable, group_exchange.__file__, where, str(COUNT), str(index), *failing],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(COUNT)
    ]  # fmt: skip
    try:
        texts = [member.communicate(timeout=120) for member in members]
    finally:
        for member in members:
            member.kill()
    return [m.returncode for m in members], [json.loads(out or "{}") for out, _ in texts], [error for _, error in texts]


def test_items_are_shared_and_every_process_gets_all_results():
    statuses, seen, errors = run()
    assert statuses == [0] * COUNT, errors
    assert [one["own"] for one in seen] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    wanted = [[item, [item, 1 + number // COUNT, 0.1 + 0.2]] for number, item in enumerate("abcdefg")]
    assert all(one["shared"] == wanted for one in seen)
    assert all(one["large"] == [3_000_000] * COUNT for one in seen)
    assert [one["first"] for one in seen] == ["0"] * COUNT


@pytest.mark.parametrize("failing", ["0", "2"])
def test_a_process_that_fails_ends_the_others_with_one_message(failing):
    """Before any heartbeat is missed; the coordinator's own failure, too."""
    statuses, seen, errors = run(failing)
    assert statuses == [2] * COUNT, errors
    assert all("shared" in one for one in seen)
    assert [f"error: process {failing} cannot" in text for text in errors] == [str(i) == failing for i in range(COUNT)]
    assert not any("Traceback" in text or "heartbeat" in text for text in errors)


def test_of_processes_that_all_fail_one_prints():
    statuses, _, errors = run("all")
    assert statuses == [2] * COUNT
    assert sum("error: process" in text for text in errors) == 1, errors


def test_one_process_shares_with_itself():
    assert list(distributed.share("ab", str.upper)) == [("a", "A"), ("b", "B")]
    assert distributed.gather("x") == ["x"]
    assert (distributed.count(), distributed.index(), distributed.is_first()) == (1, 0, True)

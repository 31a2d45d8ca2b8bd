"""A run is killed at random moments and started again with the same command: nothing but the clock may differ."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from killing import SIGNALS, Job, check_prefix, children, moment, wait_for

from zipper_jax.checkpoint import checkpoints
from zipper_jax.utils.trees import flatten


def same_end(job: Job, reference: Job) -> None:
    assert job.lines() == reference.lines()
    ours, theirs = (flatten(checkpoints.load_params(j.run_dir)[1]) for j in (job, reference))
    for key, leaf in theirs.items():
        np.testing.assert_array_equal(ours[key], leaf)
    last = checkpoints.steps(job.run_dir)[-1]
    assert checkpoints.verify(job.run_dir, last) == []
    assert not job.writing(), "nothing half written stays"


def kill_and_restart(job: Job, reference: Job, kills: int, reach: int, rng: random.Random) -> list[str]:
    """Returns what was done, a word per kill."""
    done = []
    for number in range(kills):
        process = job.start()
        wait_for(moment(job, rng, reach), process)
        if not isinstance(job.run_dir, Path):  # whose metrics appear with a checkpoint only
            time.sleep(rng.choice((0.0, rng.random())))
        how = SIGNALS[number % len(SIGNALS)]
        done.append(f"{how.name}{' in a write' if job.writing() else ''}")
        process.send_signal(how)
        status = process.wait(timeout=120)
        assert status == (-signal.SIGKILL if how == signal.SIGKILL else 128 + signal.SIGTERM), job.said()[-2000:]
        check_prefix(job.lines(), reference.lines())
    assert job.finish() == 0, job.said()[-2000:]
    return done


def disturb_one_process(prepared, folder, kills: int, steps: int, seed: int) -> list[str]:
    reference = Job(folder, "reference", prepared, steps)
    assert reference.finish() == 0, reference.said()
    job = Job(folder, "killed", prepared, steps)
    done = kill_and_restart(job, reference, kills, max(2, steps // kills - 4), random.Random(seed))
    same_end(job, reference)
    assert f"in {kills + 1} attempts" in job.said()
    return done


def disturb_a_group(prepared, folder, kills: int, steps: int, seed: int, where=None) -> None:
    """One random process of four is killed; the launcher ends the others and starts all again."""
    rng = random.Random(seed)
    reference = Job(folder, "reference", prepared, steps, ("--processes=4", "--restarts=0"))
    assert reference.finish() == 0, reference.said()
    job = Job(folder, "killed", prepared, steps, ("--processes=4", f"--restarts={kills}"), where=where)
    launcher = job.start()
    for number in range(kills):
        wait_for(moment(job, rng, max(2, steps // kills - 4)), launcher)
        group = children(launcher.pid)
        assert len(group) == 4
        os.kill(rng.choice(group), signal.SIGTERM if number % 3 == 2 else signal.SIGKILL)
        wait_for(lambda number=number: f"({number + 1} of {kills})" in job.said(), launcher)
        check_prefix(job.lines(), reference.lines())
    assert launcher.wait(timeout=600) == 0, job.said()[-3000:]
    same_end(job, reference)


def test_three_kills_leave_no_trace(prepared, tmp_path):
    disturb_one_process(prepared, tmp_path, kills=3, steps=60, seed=0)


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(prepared, tmp_path):
    done = disturb_one_process(prepared, tmp_path, kills=20, steps=300, seed=1)
    print(done)
    assert any("in a write" in how for how in done)


@pytest.mark.slow
def test_a_group_of_four_that_loses_a_process_resumes(prepared, tmp_path):
    disturb_a_group(prepared, tmp_path, kills=1, steps=24, seed=0)


@pytest.mark.slow
def test_a_group_of_four_survives_twenty_kills(prepared, tmp_path):
    disturb_a_group(prepared, tmp_path, kills=20, steps=300, seed=1)


def test_ctrl_c_saves_and_a_second_one_ends_at_once(prepared, tmp_path):
    job = Job(tmp_path, "run", prepared, 100_000, bindings=("--gin.SaveCheckpointConfig.period=100000",))
    process = job.start()
    wait_for(lambda: job.logged() >= 3, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    saved = checkpoints.steps(job.run_dir)
    assert len(saved) == 1
    assert f"saved step {saved[0]} of 100000; the same command resumes from there" in job.said()
    assert checkpoints.verify(job.run_dir, saved[0]) == []

    slow = Job(tmp_path, "slow", prepared, 100_000)
    process = slow.start()
    wait_for(lambda: slow.logged() >= 3, process)
    process.send_signal(signal.SIGSTOP)  # both signals are waiting when it wakes
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert "saved step" not in slow.said()
    assert slow.finish("--gin.TRAIN_STEPS=12") == 0


@pytest.mark.slow
def test_a_stop_takes_no_longer_than_its_grace(prepared, tmp_path):
    """A hundredth of a second is not enough to save: the process ends anyway, and its earlier checkpoint is good."""
    job = Job(tmp_path, "run", prepared, 100_000, bindings=("--gin.SaveCheckpointConfig.grace_seconds=0.01",))
    process = job.start()
    wait_for(lambda: len(checkpoints.steps(job.run_dir)) >= 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert "not saved within 0.01 s" in job.said() or "saved step" in job.said()
    assert job.finish("--gin.TRAIN_STEPS=30") == 0
    assert job.logged() >= 30

"""Ctrl-C where Python drops the KeyboardInterrupt: it is raised nevertheless."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zipper_jax.utils.interrupts import interruptible

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def hears():
    """Also where the tests themselves were started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler, "put back"


def press():
    signal.raise_signal(signal.SIGINT)


def swallow():
    with contextlib.suppress(BaseException):
        press()


def swallow_and_fail():
    swallow()
    raise ImportError("an extension could not be initialised")


def test_a_swallowed_interrupt_is_raised_at_the_end_of_the_block():
    with pytest.raises(KeyboardInterrupt), interruptible(at_end=False), interruptible():
        swallow()


def test_a_command_that_handled_it_succeeds_and_one_that_failed_was_interrupted():
    with interruptible(at_end=False):
        swallow()
    with interruptible(), interruptible():  # an earlier one does not count
        pass
    with pytest.raises(KeyboardInterrupt), interruptible(at_end=False):
        swallow_and_fail()
    with pytest.raises(ImportError), interruptible(at_end=False):
        raise ImportError("another reason")


def test_an_interrupt_in_a_garbage_collector_callback_is_raised_later():
    def callback(phase, info):
        gc.callbacks.remove(callback)
        press()

    slept = []

    def load():
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(20)
        slept.append(True)

    with pytest.raises(KeyboardInterrupt), interruptible(at_end=False):
        load()
    assert not slept, "raised while the block runs, not at its end"


def test_another_signal_handler_is_kept():
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with interruptible():
        press()
    assert heard == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_before_training_has_begun(tmp_path):
    """The real command: jax is being imported, and drops it."""
    deaf = "import gc, os, signal\ngc.callbacks.append(lambda *a: (gc.callbacks.clear(), os.kill(os.getpid(), 2)))\n"
    (tmp_path / "gin.py").write_text(f"{deaf}gc.collect()\nimport time\ntime.sleep(20)\n")
    hears = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from zipper_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", hears, "train", "--gin_file=runs/fuse.gin"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=180,  # jax is imported first
    )
    assert (done.returncode, done.stderr) == (130, "interrupted; run the same command again to resume\n")

"""XProf traces of some updates of a run: from a configured one on, or from when the process receives SIGUSR1.

They lie in the run folder, ``profile/plugins/profile/TIME/``, one file per host, with the scopes of the model
(`jax.named_scope`) that `zipper compile --profile` sums over. TensorBoard's profile plugin, xprof, reads them.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from zipper_jax.training.config import ProfileConfig
from zipper_jax.utils.storage import AnyPath

logger = logging.getLogger(__name__)

FOLDER = "profile"
SIGNAL = signal.SIGUSR1


class Traces:
    """Starts and stops traces between updates; a context, at whose end an unfinished trace is written."""

    def __init__(self, config: ProfileConfig, staging: Path, run_dir: AnyPath):
        self._config, self._folder = config, staging / FOLDER
        self._named = run_dir / FOLDER  # to which the files are copied where it is in a bucket
        self._asked, self._left = False, 0
        self._previous: Any = None

    def __enter__(self) -> "Traces":
        if threading.current_thread() is threading.main_thread():  # Python takes handlers there only
            self._previous = signal.signal(SIGNAL, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(SIGNAL, self._previous)
        if self._left:
            self._stop()

    def _ask(self, *_: object) -> None:
        self._asked = True

    @contextlib.contextmanager
    def update(self, number: int) -> Iterator[list[Any]]:
        """Dispatch update ``number``, from 1, in this context; a trace ends when what is put into the list is there."""
        if not self._left and (self._asked or number == self._config.start_step):
            self._asked, self._left = False, self._config.steps
            jax.profiler.start_trace(self._folder)
            logger.info(f"tracing updates {number} to {number + self._left - 1} into {self._named}")
        results: list[Any] = []
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield results
        if self._left:
            self._left -= 1
            if not self._left:
                jax.block_until_ready(results)
                self._stop()

    def _stop(self) -> None:
        self._left = 0
        jax.profiler.stop_trace()
        logger.info(f"the trace is in {self._named}: tensorboard --logdir {self._named.parent}, with xprof installed")

"""Running tiny trainings in tests: with the console captured, the clock removed from the log, and signals on time."""

import signal

from logged import logged

from zipper_jax.checkpoint import checkpoints
from zipper_jax.training.loop import train
from zipper_jax.training.monitor import read_metrics
from zipper_jax.utils.trees import flatten

SPEEDS = ("tokens_per_second", "flops_per_second", "goodput")


def run(config, **options):
    """(result of the run, what it logged)."""
    with logged() as lines:
        return train(config, **options), "\n".join(lines)


def log(config) -> list[dict]:
    """The metrics without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in read_metrics(config.model_dir)]


def params(config, step=None):
    return flatten(checkpoints.load_params(config.model_dir, step)[1])


class Stopping:
    """Batches that send this process a signal when a step is asked for."""

    def __init__(self, batches, step: int, number: signal.Signals):
        self.batches, self.step, self.number = batches, step, number

    def get(self, step: int):
        if step == self.step:
            self.step = -1  # once: a second signal ends the process, and a batch may be asked for twice
            signal.raise_signal(self.number)
        return self.batches.get(step)

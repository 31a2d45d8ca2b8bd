"""Commands that run as a group of processes: their options, and how a group ends."""

import argparse
import traceback
from collections.abc import Callable

from zipper_jax.cli.failures import close_bars, explained
from zipper_jax.utils import distributed, logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make a process one of a group."""
    group = parser.add_argument_group("several processes (see also `zipper launch`)")
    group.add_argument("--coordinator", help="HOST:PORT of process 0; auto: detect the cluster (TPU pod, SLURM)")
    group.add_argument("--process_count", type=int, help="number of processes")
    group.add_argument("--process_index", type=int, help="index of this process, from 0")
    group.add_argument("--heartbeat_seconds", type=int, default=100, help="heartbeat timeout of a process")
    group.add_argument("--join_seconds", type=int, default=300, help="timeout for the other processes to join")


def join(args: argparse.Namespace) -> bool:
    """Join the group that the options name; whether they name one."""
    if not args.coordinator:
        return False
    from zipper_jax.training.supervise import die_with_launcher

    die_with_launcher()
    distributed.join(
        distributed.Group(
            args.coordinator, args.process_count, args.process_index, args.heartbeat_seconds, args.join_seconds
        )
    )
    logs.to_console(distributed.index())
    return True


def run(args: argparse.Namespace, task: Callable[[], int]) -> int:
    """Run ``task`` in this process or, if the options name a group, in each of its processes; return the status.

    When ``task`` fails in one process of a group, one message is printed, and all end at once with one status.
    """
    if not join(args):
        return task()
    try:
        with distributed.watched():
            return task()
    except BaseException as error:
        status, message = explained(error) or (1, "".join(traceback.format_exception(error)).rstrip())
        close_bars()
        distributed.fail(status, message)
        raise

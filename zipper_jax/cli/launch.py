"""``zipper launch``: run a command as a group of processes on this machine, restarted together."""

import argparse
from collections.abc import Sequence

from zipper_jax.utils.errors import UserError

COMMANDS = ("train", "eval", "transcribe", "sweep")
TAKES_GIN_FLAGS = True  # what follows the options is a command of its own
DESCRIPTION = """\
Run a zipper command as a group of processes on this machine: train, eval, transcribe or sweep. When one of them dies,
all are killed and restarted; training resumes from its newest checkpoint, the others behind their last outputs.

  zipper launch --processes 4 -- train --gin_file=runs/fuse.gin --gin.MODEL_DIR=runs/fused
  zipper launch --processes 4 -- eval --run runs/fused --data data/prepared --split test --out errors

Ctrl-C and SIGTERM are forwarded: the group saves a checkpoint and exits. A second one kills it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.description = DESCRIPTION
    parser.add_argument("--processes", type=int, default=1, help="number of processes (default 1)")
    parser.add_argument("--restarts", type=int, default=100, help="maximum number of restarts (default 100)")
    parser.add_argument("--heartbeat_seconds", type=int, default=10, help="heartbeat timeout of a process (default 10)")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Run the group and return its exit status."""
    from zipper_jax.training.supervise import supervise

    command = list(extra[1:] if extra[:1] == ["--"] else extra)
    if not command or command[0] not in COMMANDS:
        raise UserError(
            f"zipper launch runs {', '.join(COMMANDS)}, not {command[:1]}: zipper launch --processes 4 -- train ..."
        )
    for name in ("processes", "heartbeat_seconds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} = {getattr(args, name)}: give 1 or more")
    return supervise(command, args.processes, args.restarts, args.heartbeat_seconds)

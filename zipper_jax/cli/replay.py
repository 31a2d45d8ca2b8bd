"""``zipper replay FILE``: what went wrong with a batch whose update was not applied."""

import argparse

DESCRIPTION = """\
Bring a run back to the moment before a bad batch, bit for bit (from the checkpoint before it, over the updates since),
and show what that batch does: loss per tower, task and row, and the gradient's largest and non-finite parts.
Nothing in the run folder changes.

  zipper replay runs/fused/bad_batches/batch_1234.npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = DESCRIPTION
    parser.add_argument("batch", help="a file below bad_batches/ of a run folder")
    parser.add_argument("--rows", type=int, default=8, help="how many rows to show, worst first (default 8)")


def run(args: argparse.Namespace) -> int:
    """Print what the batch does; returns 0."""
    from pathlib import Path

    from zipper_jax.training.replay import replay

    for line in replay(Path(args.batch), args.rows):
        print(line, flush=True)
    return 0

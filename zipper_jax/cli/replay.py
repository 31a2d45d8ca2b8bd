"""``zipper replay FILE``: diagnose a batch whose update was not applied."""

import argparse

from zipper_jax.utils.paths import folder_text
from zipper_jax.utils.storage import as_path

DESCRIPTION = """\
Restore a run to its exact state before a bad batch (from the preceding checkpoint, recomputing the updates since), and
show that batch's loss per tower, task and row, and the largest and the non-finite parts of its gradient.
The run folder is not changed.

  zipper replay runs/fused/bad_batches/batch_1234.npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = DESCRIPTION
    parser.add_argument("batch", type=folder_text, help="a file below bad_batches/ of a run folder")
    parser.add_argument("--rows", type=int, default=8, help="number of rows to show, worst first (default 8)")


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis of the batch; return 0."""
    from zipper_jax.training.replay import replay

    for line in replay(as_path(args.batch), args.rows):
        print(line, flush=True)
    return 0

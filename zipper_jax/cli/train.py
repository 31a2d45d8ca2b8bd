"""``zipper train``: pretraining of a tower, fusion and the Single Decoder alike; gin files say which."""

import argparse
import os
import sys
from collections.abc import Sequence

from zipper_jax.errors import UserError

TAKES_GIN_FLAGS = True
DESCRIPTION = """\
Train what gin files describe; run again to go on from the newest checkpoint.

  zipper train --gin_file=runs/pretrain_text.gin --gin.DATA='"prepared"' --gin.MODEL_DIR='"runs/text"'
  zipper train --gin_file=runs/fuse.gin --gin.TRAIN_STEPS=2000 --gin.OptimizerConfig.learning_rate=1e-3

--gin_file may be repeated; --gin.NAME=VALUE sets a macro or a parameter and wins over the files.
Ctrl-C and SIGTERM save a checkpoint and stop; a second one stops at once.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments (gin flags are read from the rest)."""
    parser.description = DESCRIPTION
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Returns the exit status: 0 when finished, 128 + signal when interrupted."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from zipper_jax import gin_bindings
    from zipper_jax.cli import gin_flags

    flags = gin_flags.parse(extra)
    if not flags.files:
        raise UserError("zipper train needs --gin_file=..., for example --gin_file=runs/pretrain_text.gin")
    text = gin_flags.apply(flags)
    config = gin_bindings.train_config()
    if args.print_config:
        import json

        from zipper_jax.training.run_folder import resolved

        print(json.dumps(resolved(config), indent=2, sort_keys=True))
        return 0
    from zipper_jax.training.loop import train

    result = train(config, provenance=text)
    if result.status == "already finished":
        print(f"{result.model_dir}: already finished ({result.step} steps)", file=sys.stderr)
    return result.exit_code

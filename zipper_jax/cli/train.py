"""``zipper train``: pretrain a tower, fuse towers, or train the Single Decoder, as gin files describe."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace

from zipper_jax.cli import group
from zipper_jax.cli.failures import explained
from zipper_jax.utils.devices import no_device
from zipper_jax.utils.errors import ServiceError, UserError
from zipper_jax.utils.files import is_no_room

TAKES_GIN_FLAGS = True
DESCRIPTION = """\
Train the model that gin files describe. A rerun resumes from the newest checkpoint.

  zipper train --gin_file=runs/pretrain_text.gin --gin.DATA=prepared --gin.MODEL_DIR=runs/text
  zipper train --gin_file=runs/fuse.gin --gin.TRAIN_STEPS=2000 --gin.OptimizerConfig.learning_rate=1e-3

  zipper train --gin_file=runs/librispeech_fuse_qwen.gin --gin.DATA=... --dry_run    check the run, estimate its cost

--gin_file may be repeated; --gin.NAME=VALUE sets a macro or a parameter and wins over the files.
Ctrl-C and SIGTERM save a checkpoint and stop; a second one stops at once.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments (gin flags are read from the rest)."""
    parser.description = DESCRIPTION
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--debug_nans",
        action="store_true",
        help="stop at an update that is not finite and name the operation that made a NaN; holds the state twice",
    )
    plan = parser.add_argument_group("dry run, in less than a minute")
    plan.add_argument(
        "--dry_run", action="store_true", help="check data, model, schedule and mesh, print the cost, and stop"
    )
    plan.add_argument("--devices", type=int, help="with --dry_run: number of devices (default: this machine's)")
    plan.add_argument("--mfu", type=float, default=0.4, help="with --dry_run: share of the peak reached (%(default)s)")
    group.add_arguments(parser)


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Train; return the exit status: 0 when finished, 128 + signal when interrupted."""
    began = time.perf_counter()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from zipper_jax.cli import gin_bindings, gin_flags

    flags = gin_flags.parse(extra)
    if not flags.files:
        raise UserError("zipper train needs --gin_file=..., for example --gin_file=runs/pretrain_text.gin")
    text = gin_flags.apply(flags)
    config = gin_bindings.train_config()
    if args.debug_nans:
        config = replace(config, debug_nans=True)
    if args.print_config:
        import json

        from zipper_jax.training.run_folder import resolved

        print(json.dumps(resolved(config), indent=2, sort_keys=True))
        return 0
    if args.dry_run:
        from zipper_jax.cli import dry_run

        for line in dry_run.lines(config, args.devices, args.mfu):
            print(line, flush=True)
        return 0
    group.join(args)
    from zipper_jax.evaluation import in_loop
    from zipper_jax.training.loop import train
    from zipper_jax.utils.distributed import FailedAloneError

    try:
        result = train(config, provenance=text, infer=in_loop.make(config), began=began)
    except FailedAloneError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    except Exception as error:
        if not args.coordinator or isinstance(error, UserError) or no_device(error):
            raise
        known = isinstance(error, ServiceError) or (isinstance(error, OSError) and is_no_room(error))
        status, message = (known and explained(error)) or (1, traceback.format_exc().rstrip())
        print(message, file=sys.stderr, flush=True)
        os._exit(status)  # a regular exit would wait for the other processes, which wait for this one
    if result.status == "already finished":
        print(f"{result.model_dir}: already finished ({result.step} steps)", file=sys.stderr)
    return result.exit_code

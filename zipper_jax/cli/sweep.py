"""``zipper sweep``: a grid of runs from a Python file, resumable by row, scored and reported."""

import argparse
import contextlib
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from zipper_jax.cli import group
from zipper_jax.utils.distributed import from_first, is_first
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Run the arms that a Python file describes (each a model, trained once per seed), score them on held-out sentences and
write a report. Every action skips finished rows, so it can be interrupted and rerun at any time.

  zipper sweep prepare experiments/findings.py --out runs/findings     corpus, units, rows, shares of the pairs
  zipper sweep run experiments/findings.py --out runs/findings         every row; one: --only zipper --seeds 1
  zipper sweep score experiments/findings.py --out runs/findings       errors per sentence; generated speech is judged
  zipper sweep report experiments/findings.py --out runs/findings --to docs/findings/cpu
  zipper sweep list experiments/findings.py --out runs/findings        all rows, and which are done

`run` needs only jax, flax, optax, orbax-checkpoint, jaxtyping and msgspec: prepare here, copy --out to the machine with
the GPU, run there, copy its outputs/ back, score and report here.

As a group every process runs and scores its share of the rows, each row on the devices of one process; all must see
--out. The first one does the rest.

  zipper launch --processes 2 -- sweep run experiments/findings.py --out runs/findings
"""
ACTIONS = ("prepare", "run", "score", "report", "list")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("file", type=Path, help="Python file with a function sweep(size)")
    parser.add_argument("--size", default="cpu", help="argument of sweep(size) (%(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="folder of the sweep")
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="arms, or patterns such as 'zipper*'")
    parser.add_argument("--seeds", default="", help="comma-separated; default: all of each arm")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once (%(default)s); on CPU they share the cores")
    parser.add_argument("--steps", type=int, help="steps per row, instead of the file's, for a trial")
    parser.add_argument(
        "--prose", nargs="+", type=Path, default=[], help="text files for the text tower (default: the corpus)"
    )
    parser.add_argument("--to", type=Path, help="report: folder for README.md and its figures")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--slot", default="0/1", help=argparse.SUPPRESS)
    group.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the action; return 0, or 130 if interrupted."""
    return group.run(args, partial(_in_process, args))


def _in_process(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from zipper_jax.sweep import plan, runner

    if args.row:
        from zipper_jax.training.supervise import die_with_launcher

        die_with_launcher()
        runner.own_cores(args.slot)  # before jax counts the cores

    sweep = plan.load_sweep(args.file, args.size)
    if args.steps is not None:
        sweep = replace(sweep, steps=args.steps)
    places = plan.Places(args.out)
    rows = plan.rows(sweep, args.only, _seeds(args.seeds))
    if args.row:
        return _one_row(sweep, places, args.row)
    if not is_first() and args.action not in ("run", "score"):
        return 0
    with contextlib.nullcontext() if args.action in ("report", "list") or not is_first() else locked(args.out):
        return _act(args, sweep, rows, places)


def _act(args: argparse.Namespace, sweep: Any, rows: Any, places: Any) -> int:
    match args.action:
        case "prepare":
            from zipper_jax.sweep.prepare import prepare

            prepare(sweep, places, args.prose)
        case "run":
            return _run(args, sweep, rows, places)
        case "score":
            from zipper_jax.sweep.scores import score

            score(sweep, places)
        case "report":
            from zipper_jax.sweep.report import command_of, write_report

            if args.to is None:
                raise UserError("zipper sweep report needs --to, the folder for README.md and its figures")
            print(write_report(sweep, places, args.to, command_of(args.file, args.size)))
        case "list":
            for row in rows:
                done = places.outputs(row.arm.name, row.seed).is_file()
                print(f"{'done' if done else '    '}  {row.name:32}  {row.arm.about}")
    return 0


def _run(args, sweep, rows, places) -> int:
    from zipper_jax.sweep.prepare import prepare, prepared
    from zipper_jax.sweep.row import finished
    from zipper_jax.sweep.runner import run_rows

    def left() -> list[str]:
        """Prepare what is missing, and name the rows to run."""
        ready = prepared(sweep, places)
        if ready and args.prose and not places.prose.is_dir():
            raise UserError(f"--prose: {str(places.root)!r} was prepared without it; give another --out")
        if not ready:  # asked first: preparing imports TensorFlow, which the machine may lack
            prepare(sweep, places, args.prose)
        return [row.name for row in rows if not finished(sweep, row, places)]

    names = from_first(left() if is_first() else None)
    waiting = [row for row in rows if row.name in names]
    logger.info(f"{len(rows)} rows, {len(rows) - len(waiting)} finished before")
    steps = [] if args.steps is None else ["--steps", str(args.steps)]
    command = [
        sys.executable, "-m", "zipper_jax.cli.main", "sweep", "run", str(args.file), "--size", args.size,
        "--out", str(args.out), *steps,
    ]  # fmt: skip
    return run_rows(waiting, command, places, args.jobs)


def _one_row(sweep, places, name: str) -> int:
    from zipper_jax.sweep import plan
    from zipper_jax.sweep.row import run_row

    arm, _, seed = name.rpartition("-")
    return run_row(sweep, plan.Row(sweep.arm(arm), int(seed)), places)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise UserError(f"--seeds = {text!r}: give comma-separated numbers, e.g. 0,1") from None

"""``zipper ckpt``: list, verify, export and prune the checkpoints of a run."""

import argparse

from zipper_jax.utils.paths import folder_text

DESCRIPTION = """\
  zipper ckpt list runs/fused               steps, sizes, metrics
  zipper ckpt verify runs/fused             compare files and arrays with their digests; exit status 1: damaged
  zipper ckpt export runs/fused --out best  write one self-contained folder, without the optimizer
  zipper ckpt prune runs/fused --keep 1     delete older steps and leftovers of incomplete ones
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    parser.description = DESCRIPTION
    commands = parser.add_subparsers(dest="what", required=True, metavar="list|verify|export|prune")
    for name, text in (
        ("list", "list steps, sizes and metrics"),
        ("verify", "compare every file and array with its digest"),
        ("export", "copy one step into a self-contained folder"),
        ("prune", "delete older steps and leftovers"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("run", type=folder_text, help="a folder that `zipper train` wrote")
        if name in ("verify", "export"):
            command.add_argument("--step", type=int, help="step (default: verify: all; export: the newest)")
        if name == "verify":
            command.add_argument("--files_only", action="store_true", help="do not read the arrays back")
        if name == "export":
            command.add_argument("--out", required=True, type=folder_text, help="the folder to write; must not exist")
            command.add_argument("--best", action="store_true", help="export the step with the best metric")
        if name == "prune":
            command.add_argument("--keep", type=int, default=1, help="number of newest steps to keep (default 1)")
            command.add_argument("--keep_best", type=int, default=0, help="number of best steps to keep (default 0)")
            command.add_argument("--dry_run", action="store_true", help="only print what would be deleted")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; return 0, or 1 if verify found damage."""
    from zipper_jax.checkpoint import tools

    if args.what == "list":
        print("\n".join(tools.listing(args.run)))
        return 0
    if args.what == "verify":
        return _verify(args)
    if args.what == "export":
        step = tools.export(args.run, args.out, args.step, args.best)
        print(f"{args.out}: step {step} of {args.run}")
        return 0
    for line in tools.prune(args.run, args.keep, args.keep_best, args.dry_run):
        print(line)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from zipper_jax.checkpoint import tools

    bad = 0
    for step, problems, note in tools.verify_run(args.run, args.step, not args.files_only):
        print(f"step {step}: {'good' if not problems else 'DAMAGED'}{f' ({note})' if note else ''}", flush=True)
        for problem in problems:
            print(f"  {problem}")
        bad += bool(problems)
    return 1 if bad else 0

"""``zipper ckpt``: list, verify, export and prune the checkpoints of a run."""

import argparse

DESCRIPTION = """\
  zipper ckpt list runs/fused               what there is: steps, sizes, metrics
  zipper ckpt verify runs/fused             is every file and every array what was saved? exit status 1 if not
  zipper ckpt export runs/fused --out best  one self-contained folder, without the optimizer
  zipper ckpt prune runs/fused --keep 1     delete older steps, and what is left over of broken ones
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    parser.description = DESCRIPTION
    commands = parser.add_subparsers(dest="what", required=True, metavar="list|verify|export|prune")
    for name, text in (
        ("list", "what there is"),
        ("verify", "compare every file and array with its digest"),
        ("export", "copy one step into a self-contained folder"),
        ("prune", "delete older steps and leftovers"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("run", help="a folder that `zipper train` wrote")
        if name in ("verify", "export"):
            command.add_argument("--step", type=int, help="which step (verify: default all; export: the newest)")
        if name == "verify":
            command.add_argument("--files_only", action="store_true", help="do not read the arrays back")
        if name == "export":
            command.add_argument("--out", required=True, help="the folder to write; must not exist")
            command.add_argument("--best", action="store_true", help="the step with the best metric")
        if name == "prune":
            command.add_argument("--keep", type=int, default=1, help="so many of the newest steps stay (default 1)")
            command.add_argument("--keep_best", type=int, default=0, help="and so many of the best")
            command.add_argument("--dry_run", action="store_true", help="only say what would be deleted")


def run(args: argparse.Namespace) -> int:
    """Returns 0; for verify 1 when something is damaged."""
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

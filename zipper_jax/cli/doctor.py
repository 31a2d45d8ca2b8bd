"""``zipper doctor``: installed and missing requirements, and how to install them."""

import argparse
from collections.abc import Iterator

from zipper_jax.utils.errors import UserError

DESCRIPTION = """\
Check this machine: Python, packages, devices, synthesisers, memory, disk. One line per finding: ok; note (optional);
missing (required). Exit status 1: a requirement is missing.

  zipper doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = DESCRIPTION
    parser.add_argument("--no_devices", action="store_true", help="do not start jax to list its devices")


def run(args: argparse.Namespace) -> int:
    """Print the findings; return 0, or 1 if a requirement is missing."""
    from zipper_jax.cli import environment

    print(environment.version_line())
    missing = 0
    for finding in _findings(args.no_devices):
        missing += finding.state == "missing"
        advice = f"; {finding.advice}" if finding.advice else ""
        print(f"{finding.state:<8} {finding.name:<20} {finding.found}{advice}", flush=True)
    print(f"{missing} missing" if missing else "all that is needed is here")
    return 1 if missing else 0


def _findings(no_devices: bool) -> Iterator:
    from zipper_jax.cli import environment

    try:
        import packaging  # noqa: F401  (needed to compare versions)
    except ImportError:
        raise UserError("packaging is not installed, so versions cannot be compared: pip install packaging") from None
    yield environment.python()
    yield from environment.packages()
    if not no_devices:
        yield from environment.devices()
    yield environment.synthesisers()
    yield from environment.room()

"""``zipper completion SHELL``: a script that lets the shell complete zipper's commands, options and gin files.

The script is argcomplete's: at each Tab it runs ``zipper`` with variables that make `answer` print the completions.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from types import ModuleType

DESCRIPTION = """\
Print a script that completes commands, options, choices and gin files:

  zipper completion bash > ~/.local/share/bash-completion/completions/zipper
  zipper completion zsh > "${fpath[1]}/_zipper"
  zipper completion fish > ~/.config/fish/completions/zipper.fish

Or for this shell alone: source <(zipper completion bash).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's argument."""
    parser.description = DESCRIPTION
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="which shell")


def run(args: argparse.Namespace) -> int:
    """Returns 0."""
    import argcomplete

    print(argcomplete.shellcode(["zipper"], shell=args.shell))
    return 0


def answer(commands: Iterable[str], module_of: Callable[[str], ModuleType]) -> None:
    """Print what may stand in place of the last word typed, and exit.

    Args:
        commands: Of zipper.
        module_of: The module of a command.
    """
    import argcomplete

    from zipper_jax.cli.gin_path import known_files

    parser = argparse.ArgumentParser(prog="zipper")
    parser.add_argument("--version", action="store_true")
    subparsers = parser.add_subparsers()
    typed = os.environ.get("COMP_LINE", "").split()
    for name in commands:
        command = subparsers.add_parser(name)
        if name in typed[1:2]:  # of the command typed alone: each imports a module
            module = module_of(name)
            module.add_arguments(command)
            if getattr(module, "TAKES_GIN_FLAGS", False) is True:
                files = command.add_argument("--gin_file")
                files.completer = lambda **_: sorted(known_files())  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)

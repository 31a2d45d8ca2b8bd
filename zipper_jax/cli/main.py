"""``zipper``: imports only the module of the subcommand, runs it, and prints user errors in one line.

A command's module has ``add_arguments(parser)`` and ``run(args) -> int``. One that sets ``TAKES_GIN_FLAGS`` (True, or
the subcommands that accept them) has ``run(args, extra)``: ``extra`` are the arguments that its parser does not know,
for `zipper_jax.cli.gin_flags.parse`.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from zipper_jax.cli.failures import close_bars, explained
from zipper_jax.utils import logs
from zipper_jax.utils.compile_cache import keep_compiled_programs
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.heap import keep_freed_memory
from zipper_jax.utils.interrupts import interruptible
from zipper_jax.utils.paths import any_path, folder_path, folder_text, local_path, path_text

COMMANDS: dict[str, tuple[str, str]] = {
    "data": ("zipper_jax.cli.data", "synthesise a corpus; turn a corpus into units and packed rows"),
    "train": ("zipper_jax.cli.train", "pretrain a tower, fuse towers, or train the Single Decoder"),
    "launch": ("zipper_jax.cli.launch", "run a command as a group of processes, restarted together"),
    "ckpt": ("zipper_jax.cli.ckpt", "list, verify, export and prune checkpoints"),
    "compile": ("zipper_jax.cli.compile", "compile the training step for a TPU slice, without one"),
    "replay": ("zipper_jax.cli.replay", "recompute a batch whose update was not applied"),
    "convert": ("zipper_jax.cli.convert", "convert Hugging Face and T5X models; export; verify"),
    "fuse": ("zipper_jax.cli.fuse", "zip converted or trained towers into an untrained model"),
    "sweep": ("zipper_jax.cli.sweep", "run a grid of runs from a Python file: prepare, run, score, report"),
    "eval": ("zipper_jax.cli.eval", "word error rates and perplexities of runs, with a report"),
    "transcribe": ("zipper_jax.cli.transcribe", "audio files to text"),
    "speak": ("zipper_jax.cli.speak", "text to an audio file"),
    "generate": ("zipper_jax.cli.generate", "continue prompts of any modalities, as JSON lines"),
    "demo": ("zipper_jax.cli.demo", "a web page for speech to text and text to speech"),
    "inspect": ("zipper_jax.cli.inspect", "summarise a run: configuration, parameters, checkpoints"),
    "doctor": ("zipper_jax.cli.doctor", "check what is installed and what is missing"),
    "completion": (
        "zipper_jax.cli.completion",
        "a script that completes commands, options, gin files: bash, zsh, fish",
    ),
}
"""command -> (module, one line)."""

COMPUTING = frozenset({"train", "eval", "transcribe", "speak", "generate", "demo"})
"""Commands that run the same programs again and again, and keep the memory between."""

EXAMPLE = """\
example:
  zipper data synth --out data/corpus
  zipper data prepare --corpus data/corpus --out data/prepared --text_length 32 --speech_length 128
  zipper train --gin_file=runs/pretrain_text.gin --gin.DATA=data/prepared --gin.MODEL_DIR=runs/text
  zipper transcribe --model runs/smoke/zipper hello.wav     # what `make smoke` trained

"zipper COMMAND --help" lists the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``zipper ARGUMENTS`` and returns the exit status: 0, what the command says, 2 (user error), 130 (Ctrl-C).

    1: a bucket's server failed (`ServiceError`).
    """
    if "_ARGCOMPLETE" in os.environ:
        from zipper_jax.cli import completion

        completion.answer(COMMANDS, command_module)
    keep_compiled_programs()
    try:
        with interruptible(at_end=False):
            return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # `zipper inspect RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if (found := explained(error)) is None:
            raise
        status, message = found
        close_bars()
        print(message, file=sys.stderr)
        return status


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        return _version(arguments[1:])
    logs.to_console()
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise UserError(f"zipper has no command {name!r}{closest(name, COMMANDS)}")
    if name in COMPUTING:
        keep_freed_memory()
    module, parser = command_parser(name)
    try:
        args, extra = parser.parse_known_args(rest)
    except SystemExit as stop:  # argparse has printed its help (0) or its error (2)
        return int(stop.code or 0)
    if getattr(module, "TAKES_GIN_FLAGS", False):
        return module.run(args, extra)
    refuse(name, args, extra)
    return module.run(args)


def refuse(name: str, args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Raise UserError if there are arguments that the command ``name`` does not know."""
    if extra:
        known = [f"--{argument}" for argument in vars(args)]
        raise UserError(f"zipper {name} has no option {extra[0]!r}{closest(extra[0].split('=')[0], known)}")


def command_module(name: str) -> ModuleType:
    """The module of the command ``name``."""
    return importlib.import_module(COMMANDS[name][0])


def command_parser(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """The module of the command ``name``, and the parser of its own arguments."""
    module = command_module(name)
    # No abbreviations: --gin would match --gin_file, and a new flag would change what an old script means.
    parser = Parser(
        prog=f"zipper {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return module, parser


class Parser(argparse.ArgumentParser):
    """Checks and expands every path (`local_path`): options whose type is `Path` or `path_text`, subcommands' too."""

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if action.type in (folder_path, folder_text) and (arg_string or action.default != ""):
            arg_string = any_path(arg_string, action.option_strings[0] if action.option_strings else action.dest)
        if action.type in (Path, path_text) and (arg_string or action.default != ""):  # "" where it is the default
            arg_string = local_path(arg_string, action.option_strings[0] if action.option_strings else action.dest)
        return super()._get_value(action, arg_string)


def _version(rest: list[str]) -> int:
    """Print the version; with ``--devices``, start jax and list its devices, too."""
    from zipper_jax.cli import environment

    if rest not in ([], ["--devices"]):
        raise UserError(f"zipper --version takes --devices or nothing, not {' '.join(rest)!r}")
    print(environment.version_line())
    for finding in environment.devices() if rest else ():
        print(f"{finding.name}: {finding.found}")
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "".join(f"  {name:{width}}  {summary}\n" for name, (_, summary) in COMMANDS.items())
    return f"usage: zipper COMMAND ...\n\ncommands:\n{lines}\n  --version [--devices]  --help\n\n{EXAMPLE}"


if __name__ == "__main__":
    sys.exit(main())

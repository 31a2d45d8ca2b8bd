"""t5x-style gin flags: ``--gin_file=runs/pretrain_text.gin --gin.TRAIN_STEPS=100``.

Files are read in the order given, then bindings are applied, so bindings win. A value is a gin value; one that does not
parse as one and has no bracket or quote is a string. The value of a path (`PATHS`) is a string whatever it looks like,
with or without quotes: ``--gin.MODEL_DIR=2024_11_28``, ``--gin.DATA='my data'``; ``%NAME`` is another macro's.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zipper_jax.cli.gin_path import known_files, search_paths
from zipper_jax.utils.configs import RENAMED, closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import any_path, local_path

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z_][\w./]*$")
_MACRO = re.compile(r"^\s*([A-Z][A-Z0-9_]*)\s*=", re.MULTILINE)
_MACRO_USE = re.compile(r"%([A-Z][A-Z0-9_]*)\b")
_SCOPED = re.compile(r"^([\w/]+)/\w+(?:\.\w+)*\.\w+ = ")
_SCOPE_USE = re.compile(r"(?:^\s*|@)([\w/]+)/[\w.]+", re.MULTILINE)
_BARE_STRING = re.compile(r"[^'\"()\[\]{}%@,]+$")
PATHS = frozenset(
    {
        *("MODEL_DIR", "DATA", "TTS_DATA", "TEXT_RUN", "SPEECH_RUN", "FUSED"),
        *("TrainConfig.model_dir", "DataConfig.folder", "RestoreCheckpointConfig.path"),
        *("PrepareSettings.tokenizer", "PrepareSettings.text_vocabulary", "PrepareSettings.speech_vocabulary"),
        *("stored_model.folder", "vocabulary_size.folder"),
    }
)
"""Macros and parameters that are paths."""
_NO_CONFIGURABLE = re.compile(r"No configurable matching (?:reference )?'@?([^'()]+)(?:\(\))?'")
_NO_PARAMETER = re.compile(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'")

_INCLUDE = re.compile(r"""^include[ \t]+['"]([^'"]+)['"][ \t]*(?:#.*)?$""", re.MULTILINE)

CONFIGURABLES: dict[str, Callable[..., Any]] = {}
"""Name in gin files -> what `configurable` registered, for hints in errors."""


def configurable(function: Callable[..., T], name: str | None = None) -> Callable[..., T]:
    """Registers a function or class with gin under ``name`` (its own, where None); also a decorator."""
    import gin

    name = name or function.__name__
    CONFIGURABLES[name] = function
    return gin.external_configurable(function, name=name, module="zipper_jax")


@dataclasses.dataclass(frozen=True)
class GinFlags:
    """Parsed gin flags.

    Attributes:
        files: Names as given, resolved along `search_paths`.
        bindings: ``NAME = VALUE`` lines of gin.
    """

    files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> GinFlags:
    """Parse ``--gin_file=F`` (or ``--gin_file F``) and ``--gin.NAME=VALUE``, each any number of times.

    Raises:
        UserError: Any other argument; the message names the closest flag.
    """
    files: list[str] = []
    bindings: list[str] = []
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag == "--gin_file":
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UserError("--gin_file needs a file name, e.g. --gin_file=runs/pretrain_text.gin")
                value = rest.pop(0)
            files.append(value)
        elif flag.startswith("--gin."):
            name = flag.removeprefix("--gin.")
            if not equals or not value or not _NAME.match(name):
                raise UserError(f"{flag}{equals}{value}: give --gin.NAME=VALUE, e.g. --gin.TRAIN_STEPS=100")
            bindings.append(_binding(name, value))
        else:
            raise UserError(f"unknown argument {flag!r}{closest(flag, ('--gin_file', '--gin.NAME=VALUE', '--help'))}")
    return GinFlags(tuple(files), tuple(bindings))


def apply(flags: GinFlags, defaults: Sequence[str] = ()) -> str:
    """Clear gin's state, read the files, then the bindings; return the resolved gin text (for ``config.gin``).

    Configurables must be registered (imported) before.

    Args:
        flags: Files and bindings.
        defaults: Bindings with the lowest precedence.

    Raises:
        UserError: A missing file, a macro or scope of a flag that no file defines or uses, an unknown configurable or
            parameter, or a syntax error; the message names the closest known name.
    """
    import gin

    gin.clear_config()
    gin.parse_config(list(defaults))
    texts: list[str] = []
    for name in flags.files:
        texts += _parse_file(name, find(name))
    macros = {found for text in texts for pattern in (_MACRO, _MACRO_USE) for found in pattern.findall(text)}
    scopes = {part for text in texts for found in _SCOPE_USE.findall(text) for part in found.split("/")}
    for binding in flags.bindings:
        macro, scoped = _MACRO.match(binding), _SCOPED.match(binding)
        if macro and flags.files and macro[1] not in macros:
            raise UserError(f"--gin.{macro[1]}: no gin file given defines or uses it{closest(macro[1], macros)}")
        for scope in scoped[1].split("/") if scoped and flags.files else ():
            if scope not in scopes:  # gin would bind it without any effect
                raise UserError(
                    f"--gin.{binding.split(' = ')[0]}: no gin file given has {scope!r}{closest(scope, scopes)}"
                )
        try:
            gin.parse_config(binding)
        except Exception as error:
            raise UserError(f"--gin.{binding.replace(' = ', '=', 1)}: {_explain(error)}") from error
    given = "".join(f"#   {line}\n" for line in (*(f"--gin_file={f}" for f in flags.files), *flags.bindings))
    return f"# Resolved from\n{given}\n{gin.config_str(max_line_length=120)}"


def find(name: str) -> Path:
    """Return the gin file ``name`` along `search_paths`. Raises UserError with the closest existing name."""
    name, folders = local_path(name, "--gin_file"), [Path(folder) for folder in search_paths()]
    for path in (folder / name for folder in folders):  # an absolute name is unchanged
        if path.is_file():
            return path
    searched = ", ".join(map(str, folders))
    raise UserError(f"gin file {name!r} does not exist (searched {searched}){closest(name, known_files())}")


def _binding(name: str, value: str) -> str:
    import gin

    if name in PATHS and value[0] not in "%@":
        checked = local_path if name.startswith("PrepareSettings.") else any_path
        return f"{name} = {checked(_unquoted(value), f'--gin.{name}')!r}"
    if _BARE_STRING.match(value):
        try:
            gin.config.parse_value(value)
        except Exception:
            value = repr(value)
    return f"{name} = {value}"


def _unquoted(value: str) -> str:
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return found if isinstance(found, str) else value


def _parse_file(name: str, path: Path) -> list[str]:
    """Parses a gin file and what it includes, in order; returns their texts.

    gin's own include also takes the path for a resource of a Python package of that name, and fails on folders of
    ``sys.path`` that are called so; ours are files along `search_paths`.
    """
    import gin

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"gin file {name!r} is not UTF-8 ({error}): save it as UTF-8") from error
    texts, done = [text], 0
    for include in [*_INCLUDE.finditer(text), None]:
        end = len(text) if include is None else include.start()
        try:  # the lines above are left empty, so that errors name the right line
            gin.parse_config("\n" * text.count("\n", 0, done) + text[done:end])
        except Exception as error:  # gin raises its own syntax errors, ValueError, RuntimeError, TypeError
            raise UserError(f"gin file {name!r}: {_explain(error)}") from error
        if include is not None:
            done, other = include.end(), include[1]
            try:
                found = find(other)
            except UserError:
                hint = closest(other, known_files())
                raise UserError(f"gin file {name!r}: include {other!r}: there is no such file{hint}") from None
            texts += _parse_file(other, found)
    return texts


def _explain(error: Exception) -> str:
    """gin's message in one line, with the closest known name where it complains about an unknown one."""
    message = " ".join(str(error.args[0] if error.args else error).split())
    configurable = _NO_CONFIGURABLE.search(message)
    if configurable:
        bare = configurable[1].rsplit("/", 1)[-1]
        return f"nothing configurable is called {bare!r}{closest(bare, CONFIGURABLES)}"
    parameter = _NO_PARAMETER.search(message)
    if parameter:
        now = RENAMED.get(parameter[1].rsplit(".", 1)[-1], {}).get(parameter[2])
        if now is not None:
            return f"{parameter[1]}.{parameter[2]} is now called {parameter[1]}.{now}: write that"
        owner = CONFIGURABLES.get(parameter[1].rsplit(".", 1)[-1])
        known = inspect.signature(owner).parameters if owner is not None else ()
        return f"{parameter[1]} has no parameter {parameter[2]!r}{closest(parameter[2], known)}"
    return message

"""t5x-style gin flags: ``--gin_file=runs/pretrain_text.gin --gin.TRAIN_STEPS=100``.

Files are read in the order given, then bindings are applied, so bindings win. A value is a gin value; a bare word or
path that does not parse as one is a string: ``--gin.MODEL_DIR=runs/a`` means ``--gin.MODEL_DIR='"runs/a"'``.
"""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zipper_jax.cli.gin_path import known_files, search_paths
from zipper_jax.models.config_parts import RENAMED
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError

_NAME = re.compile(r"[A-Za-z_][\w./]*$")
_MACRO = re.compile(r"^\s*([A-Z][A-Z0-9_]*)\s*=", re.MULTILINE)
_MACRO_USE = re.compile(r"%([A-Z][A-Z0-9_]*)\b")
_SCOPED = re.compile(r"^([\w/]+)/\w+(?:\.\w+)*\.\w+ = ")
_SCOPE_USE = re.compile(r"(?:^\s*|@)([\w/]+)/[\w.]+", re.MULTILINE)
_BARE_STRING = re.compile(r"[\w./+-]+$")
_NO_CONFIGURABLE = re.compile(r"No configurable matching (?:reference )?'@?([^'()]+)(?:\(\))?'")
_NO_FILE = re.compile(r"Unable to open file: (\S+)\. Searched")
_NO_PARAMETER = re.compile(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'")

_searched: set[str] = set()


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
    for folder in search_paths():
        if folder not in _searched:
            gin.add_config_file_search_path(folder)
            _searched.add(folder)
    gin.parse_config(list(defaults))
    texts: list[str] = []
    for name in flags.files:
        path = find(name)
        try:
            texts += _texts(gin.parse_config_file(str(path)))
        except Exception as error:  # gin raises its own syntax errors, ValueError, OSError, RuntimeError, TypeError
            raise UserError(f"gin file {name!r}: {_explain(error)}") from error
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
    folders = [Path(folder) for folder in search_paths()]
    for path in (folder / name for folder in folders):  # an absolute name is unchanged
        if path.is_file():
            return path
    searched = ", ".join(map(str, folders))
    raise UserError(f"gin file {name!r} does not exist (searched {searched}){closest(name, known_files())}")


def _binding(name: str, value: str) -> str:
    import gin

    if _BARE_STRING.match(value):
        try:
            gin.config.parse_value(value)
        except Exception:
            value = repr(value)
    return f"{name} = {value}"


def _texts(parsed: Any) -> list[str]:
    """Return the texts of a gin file and all its includes."""
    texts = [find(parsed.filename).read_text(encoding="utf-8")]
    for included in parsed.includes:
        texts += _texts(included)
    return texts


def _explain(error: Exception) -> str:
    """Return gin's message in one line, with the closest known name for an unknown one."""
    import gin

    message = " ".join(str(error.args[0] if error.args else error).split())
    registry = dict(gin.config._REGISTRY.items())
    configurable = _NO_CONFIGURABLE.search(message)
    if configurable:
        bare = configurable[1].rsplit("/", 1)[-1]
        return f"nothing configurable is called {bare!r}{closest(bare, {n.rsplit('.', 1)[-1] for n in registry})}"
    missing = _NO_FILE.search(message)
    if missing:
        return f"include {missing[1]!r}: there is no such file{closest(missing[1], known_files())}"
    parameter = _NO_PARAMETER.search(message)
    if parameter:
        owners = [
            value for name, value in registry.items() if name.rsplit(".", 1)[-1] == parameter[1].rsplit(".", 1)[-1]
        ]
        now = RENAMED.get(parameter[1].rsplit(".", 1)[-1], {}).get(parameter[2])
        if now is not None:
            return f"{parameter[1]}.{parameter[2]} is now called {parameter[1]}.{now}: use that name"
        known = inspect.signature(owners[0].wrapped).parameters if owners else ()
        return f"{parameter[1]} has no parameter {parameter[2]!r}{closest(parameter[2], known)}"
    return message

"""Reads T5X gin files without importing or running anything.

gin itself would import the modules that a file names, t5x among them, and store bindings in global state. Only its
parser is used here: statements are collected, later ones override earlier ones as in gin, and macros are resolved when
a value is requested.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gin import config_parser
from zipper_jax.utils.errors import UserError


@dataclass(frozen=True)
class Unresolved:
    """A value that only T5X's code can provide: ``@function``, or a macro that no file defines."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Setting:
    """One bound value, with the file and line, or the flag, of its binding."""

    value: Any
    where: str


@dataclass(frozen=True)
class _Macro:
    name: str


class _Delegate(config_parser.ParserDelegate):
    """Parser delegate that returns placeholders for references and macros."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return Unresolved(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name):
        return _Macro(macro_name)


class GinFiles:
    """All bindings of gin files, of the files they include, and of ``bindings``. Imports are ignored.

    Args:
        files: gin files, read in order. An included file is searched for in the including file's folder, in the
            folders above it, in the working folder, and beside the package t5x where installed (it is not imported).
        bindings: gin lines ``NAME = VALUE``, which override the files.

    Raises:
        UserError: A file does not exist or is no valid gin; the message names it.
    """

    def __init__(self, files: Sequence[str | Path], bindings: Sequence[str] = ()):
        self._macros: dict[str, Setting] = {}
        self._parameters: dict[tuple[str, str, str], Setting] = {}  # (scope, configurable, parameter)
        for file in files:
            self._file(Path(file), ())
        for binding in bindings:
            self._statements(binding, f"--gin.{binding.replace(' = ', '=', 1)}", None, ())

    def parameters(self, name: str) -> dict[str, Setting]:
        """Parameter -> value of the configurable ``name``, whatever its module prefix.

        Raises:
            UserError: Two configurables have that name, or one is in a scope; only one network can be read.
        """
        found: dict[str, Setting] = {}
        selectors: dict[str, str] = {}
        for (scope, selector, parameter), setting in self._parameters.items():
            if selector.rsplit(".", 1)[-1] != name:
                continue
            selectors[f"{scope}/{selector}" if scope else selector] = setting.where
            found[parameter] = Setting(self._resolve(setting.value), setting.where)
        longest = max(selectors, key=len, default="")
        for selector, where in selectors.items():
            if "/" in longest or not f".{longest}".endswith(f".{selector}"):
                raise UserError(
                    f"{where}: {selector} and {longest} are configurations of several networks, or of a scope; give a "
                    f"gin file with one {name} without a scope"
                )
        return found

    def bound(self, parameter: str) -> Iterator[Setting]:
        """Every value bound to a parameter of this name, of any configurable."""
        for (_, _, name), setting in self._parameters.items():
            if name == parameter:
                yield Setting(self._resolve(setting.value), setting.where)

    def _file(self, path: Path, parents: tuple[Path, ...]) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UserError(f"gin file {str(path)!r} does not exist") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"gin file {str(path)!r} cannot be read: {error}") from error
        self._statements(text, str(path), path, parents)

    def _statements(self, text: str, where: str, path: Path | None, parents: tuple[Path, ...]) -> None:
        try:
            statements = list(config_parser.ConfigParser(text, _Delegate()))
        except Exception as error:  # the parser's own errors and those of tokenize, ast and its assertions
            reason = " ".join(str(error.args[0] if error.args else error).split())
            line = f", line {error.lineno}" if path and isinstance(error, SyntaxError) and error.lineno else ""
            raise UserError(f"{where}{line}: invalid gin: {reason}") from error
        for statement in statements:
            at = where if path is None else f"{where}, line {statement.location.line_num}"
            if isinstance(statement, config_parser.IncludeStatement):
                self._include(statement.filename, path, at, parents)
            elif isinstance(statement, config_parser.BindingStatement):
                self._bind(statement.scope, statement.selector, statement.arg_name, Setting(statement.value, at))

    def _bind(self, scope: str, selector: str, parameter: str, setting: Setting) -> None:
        if not parameter:  # NAME = value
            self._macros[f"{scope}/{selector}" if scope else selector] = setting
        elif (selector, parameter) == ("macro", "value"):  # NAME/macro.value = value, gin's own long form
            self._macros[scope] = setting
        else:
            self._parameters[scope, selector, parameter] = setting

    def _include(self, name: str, path: Path | None, at: str, parents: tuple[Path, ...]) -> None:
        above = list(path.resolve().parents) if path is not None else []
        for folder in (*above, Path(), *_t5x_folders()):
            found = folder / name
            if found.is_file():
                chain = (*parents, path.resolve()) if path is not None else parents
                if found.resolve() in chain:
                    raise UserError(f"{at}: includes {name!r}, which includes this file again")
                return self._file(found, chain)
        raise UserError(
            f"{at}: includes {name!r}, which is in none of the folders above it: put it there, or give the config.gin "
            "that T5X wrote into its MODEL_DIR, which includes nothing"
        )

    def _resolve(self, value: Any, within: tuple[str, ...] = ()) -> Any:
        if isinstance(value, _Macro):
            if value.name in within:
                raise UserError(f"gin macro {value.name!r} is defined by itself: {' -> '.join(within)}")
            setting = self._macros.get(value.name)
            if setting is None:
                return Unresolved(f"%{value.name}")
            return self._resolve(setting.value, (*within, value.name))
        if isinstance(value, tuple | list):
            return type(value)(self._resolve(item, within) for item in value)
        return value


def _t5x_folders() -> list[Path]:
    """Folders that contain the package t5x, if installed; its gin files include each other as ``t5x/...``."""
    spec = importlib.util.find_spec("t5x")
    return [Path(folder).parent for folder in (spec.submodule_search_locations or ())] if spec else []

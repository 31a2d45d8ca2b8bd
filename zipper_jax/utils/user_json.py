"""JSON that users write: decoded, checked against a type, and every error in one form.

The form is ``PLACE: FIELD = VALUE: expected TYPE; FIX``. Types are msgspec Structs or dataclasses. Files that
zipper_jax writes itself (config.json, header.json, vocabulary.json) are decoded here too: they get damaged like others.
"""

import json
import re
import typing
from collections.abc import Iterable, Iterator
from types import GenericAlias, UnionType
from typing import Annotated, Any, TypeVar

import msgspec

from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import AnyPath

T = TypeVar("T")

Number = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
"""A number of seconds, for example: from 0, neither NaN nor infinite."""
Natural = Annotated[int, msgspec.Meta(ge=0)]
"""An integer from 0."""
Name = Annotated[str, msgspec.Meta(min_length=1)]
"""A string that is not empty."""

_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_AT = re.compile(r" - at `\$\.?(.*)`$")
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")  # of half a surrogate pair, as JSON writes it
_MOST_SHOWN = 60  # characters of a value


class JsonError(UserError):
    """JSON of another type, or none.

    Attributes:
        field: The top-level field at fault, "" for the whole.
        missing: Whether it is not there.
    """

    def __init__(self, message: str, field: str = "", missing: bool = False):
        super().__init__(message)
        self.field, self.missing = field, missing


class NotUnicodeError(JsonError):
    """A string with half a surrogate pair, such as ``"\\ud800"``, which no file in UTF-8 can hold."""


def decode(content: str | bytes, place: str, fix: str) -> dict[str, Any]:
    """Return the JSON object in ``content``.

    Args:
        content: One object.
        place: File and line, for messages.
        fix: What to do about an error.

    Raises:
        NotUnicodeError: A string has half a surrogate pair.
        JsonError: It is not JSON in UTF-8, or no object.
    """
    return _decode(content, place, fix, dict, "object")


def decode_list(content: str | bytes, place: str, fix: str) -> list[Any]:
    """Return the JSON list in ``content``; as `decode`."""
    return _decode(content, place, fix, list, "list")


def _decode(content: str | bytes, place: str, fix: str, kind: type, called: str) -> Any:
    try:
        text = (content if isinstance(content, str) else content.decode()).removeprefix("\ufeff")  # editors on Windows
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else "a number of too many digits"
        if isinstance(error, UnicodeDecodeError):
            why = "not UTF-8"
        if isinstance(error, RecursionError):
            why = "nested too deeply"
        raise JsonError(f"{place} is not a JSON {called} in UTF-8 ({why}); {fix}") from error
    if not isinstance(value, kind):
        raise JsonError(f"{place} is not a JSON {called} but {_shown(value)}; {fix}")
    if _ESCAPE.search(text) or (not text.isascii() and _HALF.search(text)):
        _check_unicode(value, place, fix)
    return value


def convert(
    value: Any,
    kind: type[T] | GenericAlias | UnionType,
    place: str,
    fix: str,
    field: str = "",
    known: Iterable[str] = (),
) -> T:
    """Return the decoded JSON ``value`` as ``kind``.

    Args:
        value: From `decode`.
        kind: A msgspec Struct, a dataclass or another type that msgspec converts to.
        place: File and line, for messages.
        fix: What to do about an error.
        field: Name of the value, if it is a field of an object.
        known: If given, other fields of an object are an error.

    Raises:
        JsonError: A field is missing, unknown, or of another type.
    """
    known = list(known)
    for name in value if known and isinstance(value, dict) else ():
        if name not in known:
            raise JsonError(f"{place}: there is no field {name!r}{closest(name, known)}; {fix}", name)
    try:
        return msgspec.convert(value, kind)
    except UserError as error:  # of a __post_init__
        raise JsonError(f"{place}: {field}{': ' * bool(field)}{error}") from error
    except msgspec.ValidationError as error:
        text = str(error)
        path = match.group(1) if (match := _AT.search(text)) else ""
        text = _AT.sub("", text)
        inside = _follow(value, path)
        path = field + ("." if field and path and path[0] != "[" else "") + path
        top = re.split(r"[.\[]", path)[0]
        if (missing := re.fullmatch(r"Object missing required field `(.*)`", text)) is not None:
            name = f"{path}.{missing[1]}" if path else missing[1]
            raise JsonError(f"{place}: {name} is missing; {fix}", top or missing[1], missing=True) from error
        what = f"{path} = {_shown(inside)}" if path else _shown(inside)
        raise JsonError(f"{place}: {what}: {_expected(text, kind, top)}; {fix}", top) from error


def read_file(path: AnyPath, kind: type[T], fix: str, known: Iterable[str] = ()) -> T:
    """Return the content of a file that holds one JSON object. Raises JsonError, which names the file."""
    return convert(read_object(path, fix), kind, repr(str(path)), fix, known=known)


def read_object(path: AnyPath, fix: str) -> dict[str, Any]:
    """Return the one JSON object that a file holds. Raises JsonError, which names the file."""
    return decode(path.read_bytes(), repr(str(path)), fix)


def read_list(path: AnyPath, kind: type[T], fix: str) -> list[T]:
    """Return the JSON list that a file holds, of values of a kind. Raises JsonError, which names the file."""
    place = repr(str(path))
    return convert(decode_list(path.read_bytes(), place, fix), list[kind], place, fix)


def read_lines(path: AnyPath, fix: str, unfinished: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the object of each line that is not empty; a file that is missing has none.

    Args:
        path: A file with one JSON object per line.
        fix: What to do about an error.
        unfinished: Whether a last line without its end is dropped: the process that wrote it was killed.

    Raises:
        JsonError: A line is no object; it names file and line.
    """
    content = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(content.split(b"\n")[: -1 if unfinished else None], 1):
        if line:
            place = f"{str(path)!r} line {number}"
            yield place, decode(line, place, fix)


def _check_unicode(value: Any, place: str, fix: str) -> None:
    """Raise NotUnicodeError, which names the top-level field, where a string has half a surrogate pair."""
    for name, part in value.items() if isinstance(value, dict) else [("", value)]:
        left = [name, part]  # a loop, because JSON may be nested as deeply as Python's stack allows
        while left:
            one = left.pop()
            if isinstance(one, str) and _HALF.search(one):
                what = f"{place}: {json.dumps(name)}" if name else place
                raise NotUnicodeError(f"{what}: half a surrogate pair, which is no character; {fix}", name)
            left += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else []


def _follow(value: Any, path: str) -> Any:
    """Return the value at a path as msgspec writes it, such as ``prompt[0][1]``."""
    for name, index in re.findall(r"([^.\[\]]+)(?![^\[]*\])|\[(\d+)\]", path):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            break
    return value


def _expected(text: str, kind: Any, field: str) -> str:
    """Say msgspec's complaint in JSON's words."""
    if text.startswith("Invalid enum value"):
        hint = typing.get_type_hints(kind).get(field) if isinstance(kind, type) else None
        if typing.get_origin(hint) is typing.Literal:
            return f"expected one of {', '.join(map(str, typing.get_args(hint)))}"
        lists = any(typing.get_origin(one) is list for one in typing.get_args(hint))
        words = [one for part in typing.get_args(hint) for one in typing.get_args(part) if isinstance(one, str)]
        return f"expected {' or '.join(['a list'] * lists + list(map(repr, words)))}" if words else text
    if text.startswith("Number out of range"):
        return "expected a number that fits 64 bits"
    wanted = text.split(", got")[0].removeprefix("Expected ")
    said = re.sub(r"`([^`]*)`", lambda m: " or ".join(_WORDS.get(one, one) for one in m[1].split(" | ")), wanted)
    return f"expected {said}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"

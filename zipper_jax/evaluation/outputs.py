"""Finished outputs of an evaluation, one JSON line each: a killed evaluation resumes behind the last line.

A line's key is a digest of all that determines its value (weights, prompts, decoding), so an output of another model or
setting is never used.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import numpy as np

from zipper_jax.checkpoint.manifest import name_of, table
from zipper_jax.inference.model import Model
from zipper_jax.utils import user_json
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.distributed import count, from_first, is_first, require_same
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes
from zipper_jax.utils.trees import flatten

FILE = "outputs.jsonl"
_known: WeakKeyDictionary[Model, str] = WeakKeyDictionary()
"""Model -> digest of its parameters, which takes seconds for a large one and is needed for every set."""


class _Line(msgspec.Struct):
    key: str
    output: Any

    def __post_init__(self) -> None:
        if self.output is None:
            raise UserError("output is null")


class Outputs:
    """Key -> output, and the file that holds them; without a path they are in memory only.

    Attributes:
        resumed: Whether an output of an earlier start was used.

    Raises:
        UserError: A line of the file is not such an output.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self._used: dict[str, dict[str, Any]] = {}
        self._lines: dict[str, dict[str, Any]] = {}
        self.resumed = False
        if path is None:
            return
        # Of a group only the first process reads and writes the file, which may be on its own disk.
        for line in from_first(_read(path) if is_first() else None):
            self._lines[line["key"]] = line

    def get(self, key: str) -> Any:
        """The output stored under ``key``, or None."""
        line = self._lines.get(key)
        if line is None:
            return None
        self.resumed |= key not in self._used
        self._used[key] = line
        return line["output"]

    def add(self, outputs: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Store outputs by key; those already there are not written again. ``about`` is for readers of the file."""
        new = {key: {"key": key, **about, "output": value} for key, value in outputs.items() if key not in self._lines}
        self._lines |= new
        self._used |= new
        if self._path is not None and new and is_first():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(b"".join(_line(line) for line in new.values()))

    def tidy(self) -> None:
        """Remove the lines that were neither read nor added: outputs of other models or settings."""
        if self._path is not None and is_first() and self._used.keys() != self._lines.keys():
            write_bytes(self._path, b"".join(_line(self._used[key]) for key in self._lines if key in self._used))


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, which may be missing; an incomplete last one, of a process that was killed, is removed."""
    if not path.is_file():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            found = user_json.decode(line, repr(str(path)), "")
            user_json.convert(found, _Line, repr(str(path)), "")
        except user_json.JsonError as error:
            raise UserError(
                f"{str(path)!r} line {number} is no finished output: remove the file or give another --out"
            ) from error
        lines.append(found)
    if whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return lines


def require_same_input(model: Model, contents: Iterable[np.ndarray], settings: Any = None) -> None:
    """Raise UserError where a process of the group has other parameters, token ids or settings than process 0.

    Each reads them by itself: from a disk of its own, or after the run's training has saved a newer checkpoint.
    """
    if count() > 1:
        own = {"parameters": digest(model), "token ids": digest(*contents), "settings": settings}
        require_same(own, "input")


def digest(*parts: Any) -> str:
    """Digest of JSON values, arrays, dataclasses and models, 32 hex digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(_bytes(part) + b"\0")
    return found.hexdigest()[:32]


def _bytes(part: Any) -> bytes:
    if isinstance(part, Model):
        if part not in _known:
            _known[part] = name_of(table(flatten(part.params)))
        part = [to_dict(part.config), _known[part]]
    if isinstance(part, np.ndarray):
        return f"{part.dtype} {part.shape} ".encode() + np.ascontiguousarray(part).tobytes()
    return json.dumps(part, sort_keys=True).encode()


def _line(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()

"""The rows of a corpus: its ``manifest.jsonl``, one JSON object per line, read row by row."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError

Split = Literal["train", "validation", "test", "test_other"]
SPLITS: tuple[str, ...] = get_args(Split)
_REPAIR = "repair the line, or make the corpus again"


class ManifestRow(msgspec.Struct):
    """The fields of a manifest row and their types; absent, not null. Further ones belong to user-defined modalities.

    Attributes:
        id: Unique in the manifest.
        split: One of `SPLITS`.
        text: Transcript or document.
        audio: File, relative to the corpus folder, or absolute.
        units: Given units.
        voice: Speaker.
        start: Start of the segment in seconds, with ``seconds``; absent: the whole file.
        seconds: Duration.
        channel: Channel of the file, from 0; absent: the mean of all.
        word_times: [start, end] of each word of ``text``, by whitespace, in seconds from ``start``.
    """

    id: user_json.Name
    split: Split
    text: str | msgspec.UnsetType = msgspec.UNSET
    audio: user_json.Name | msgspec.UnsetType = msgspec.UNSET
    units: list[int] | msgspec.UnsetType = msgspec.UNSET
    voice: str | msgspec.UnsetType = msgspec.UNSET
    start: user_json.Number | msgspec.UnsetType = msgspec.UNSET
    seconds: user_json.Number | msgspec.UnsetType = msgspec.UNSET
    channel: user_json.Natural | msgspec.UnsetType = msgspec.UNSET
    word_times: list[tuple[user_json.Number, user_json.Number]] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.start is not msgspec.UNSET and self.seconds is msgspec.UNSET:
            raise UserError(f"start = {self.start:g}: without seconds; give both, or neither for the whole file")


CONTENT: dict[str, Any] = {"text": str, "audio": str, "units": list[int]}
"""Content fields and their types; a row has at least one."""


class Manifest:
    """The rows of a manifest, read from the file by each iteration: memory does not grow with their number.

    Args:
        folder: Corpus folder.
        content: Content fields and their types, of user-defined modalities too.
        change: Applied to each row.
        part: (i, n): the lines that begin in the i-th of n equal parts of the file, i from 0; every line is in one.

    Raises:
        UserError: There is no manifest.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        content: Mapping[str, Any] = CONTENT,
        change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        part: tuple[int, int] = (0, 1),
    ):
        self.path, self._content, self._change = Path(folder) / "manifest.jsonl", content, change
        if not self.path.is_file():
            raise UserError(
                f"{str(self.path)!r} does not exist: finish the corpus first (zipper data synth, zipper data import), "
                "or check the folder"
            )
        size, (index, count) = self.path.stat().st_size, part
        self._begin, self._end = size * index // count, size * (index + 1) // count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows, of which only their being JSON objects is checked."""
        for _, line in self._lines():
            if line.strip():
                yield self._row(line)

    def checked(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the offset of each row in the file, and the row.

        Raises:
            UserError: A row is not a `ManifestRow` with at least one field of ``content``.
        """
        for number, (offset, line) in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            place = f"{str(self.path)!r} line {number}"
            row = user_json.decode(line, place, _REPAIR)
            user_json.convert(row, ManifestRow, place, _REPAIR)
            for field in self._content.keys() - CONTENT.keys() & row.keys():
                user_json.convert(row[field], self._content[field], place, _REPAIR, field)
            if not row.keys() & self._content.keys():
                raise UserError(f"{place} lacks {', '.join(sorted(self._content))}: give at least one of them")
            yield offset, self._change(row)

    def at(self, offsets: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
        """Yield the rows at these offsets, in their order."""
        with self.path.open("rb") as file:
            for offset in offsets:
                file.seek(int(offset))
                yield self._row(file.readline())

    def require_unique(self, ids: np.ndarray) -> None:
        """Raise UserError where two rows have the same id; ``ids``: Python's `hash` of each row's id, int64."""
        ids = np.sort(ids)
        if not len(twice := set(ids[1:][ids[1:] == ids[:-1]].tolist())):
            return
        lines: dict[str, int] = {}
        for number, (_, line) in enumerate(self._lines(), 1):
            if line.strip() and hash(name := self._row(line)["id"]) in twice:
                if first := lines.get(name):
                    raise UserError(
                        f"{str(self.path)!r} line {number} has id {name!r}, as line {first} has: give each row an id "
                        "of its own"
                    )
                lines[name] = number

    def _row(self, line: bytes) -> dict[str, Any]:
        return self._change(user_json.decode(line, repr(str(self.path)), _REPAIR))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            if self._begin:  # the line around this byte begins before it, unless the byte before it ends a line
                file.seek(self._begin - 1)
                file.readline()
            offset = file.tell()
            while offset < self._end and (line := file.readline()):
                yield offset, line
                offset += len(line)


def read_manifest(
    folder: str | os.PathLike, split: str | None = None, content: Mapping[str, Any] = CONTENT
) -> list[dict[str, Any]]:
    """Return the manifest's rows, of one split or all.

    Args:
        folder: Corpus folder.
        split: One of `SPLITS`; None: all.
        content: See `Manifest`.

    Raises:
        UserError: There is no manifest, a row is not a `ManifestRow`, or two rows have the same id.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: give one of {', '.join(SPLITS)}")
    manifest = Manifest(folder, content)
    rows = [row for _, row in manifest.checked()]
    manifest.require_unique(np.array([hash(row["id"]) for row in rows], np.int64))
    return [row for row in rows if split in (None, row["split"])]

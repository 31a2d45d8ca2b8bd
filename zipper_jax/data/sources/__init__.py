"""Readers of data set formats, one module each: ``read(path, settings)`` yields rows, valid and invalid.

An invalid row carries its ``problem`` and is dropped and counted later; an invalid source raises UserError.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zipper_jax.data.sources import audio, kaldi, librispeech, ljspeech, table, text, tfds, units
from zipper_jax.data.sources.rows import NOT_UTF8, ImportSettings, Row
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError

READERS: dict[str, Callable[[Path, ImportSettings], Iterator[Row]]] = {
    "text": text.read,
    "audio": audio.read,
    "librispeech": librispeech.read,
    "ljspeech": ljspeech.read,
    "table": table.read,
    "kaldi": kaldi.read,
    "units": units.read,
}
"""format -> reader. ``tfds:NAME`` is handled separately."""

KEEP_FIELDS = ("text", "table", "units")
"""Formats whose rows may have further fields."""

_WORDS = ("id", "place", "split", "text", "audio", "voice")


def read_sources(kind: str, paths: list[Path], settings: ImportSettings, out: Path) -> Iterator[Row]:
    """Yield the rows of every path, in order. Raises UserError for an unknown format or an invalid source."""
    if settings.fields and kind not in KEEP_FIELDS:
        raise UserError(f"fields: format {kind!r} has no further fields; use it with {', '.join(KEEP_FIELDS)}")
    if kind.startswith("tfds:"):
        if len(paths) > 1:
            raise UserError(f"format {kind}: got {len(paths)} paths; give at most one DATA_DIR")
        yield from tfds.read(kind.removeprefix("tfds:"), paths[0] if paths else None, settings, out)
        return
    if kind not in READERS:
        raise UserError(f"format {kind!r} is unknown{closest(kind, READERS)}: give {', '.join(READERS)} or tfds:NAME")
    if not paths:
        raise UserError(f"format {kind} needs a file or folder to read: name it after the format")
    for path in paths:
        if not path.exists():
            raise UserError(f"{str(path)!r} does not exist: check the path")
        yield from map(_writable, READERS[kind](path, settings))


def _writable(row: Row) -> Row:
    """Return the row, with a problem if it cannot be encoded as UTF-8 (a lone surrogate, a Latin-1 file name)."""
    words: dict[str, Any] = {name: value for name in _WORDS if isinstance(value := getattr(row, name), str)}
    try:
        "".join([*words.values(), *(value for value in row.more.values() if isinstance(value, str))]).encode()
        return row
    except UnicodeEncodeError:
        escaped = {name: value.encode(errors="backslashreplace").decode() for name, value in words.items()}
    bad = {name for name, value in words.items() if escaped[name] != value}
    problem = "file name that is not UTF-8" if "audio" in bad else ""
    if "text" in bad or not bad:  # none of these fields is bad: then a further one is
        problem = NOT_UTF8
    return dataclasses.replace(row, **{**escaped, "problem": row.problem or problem})

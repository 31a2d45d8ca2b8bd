"""LJSpeech layout: metadata.csv with ``id|text|normalised text``, and wavs/ID.wav (or .flac, …)."""

import re
from collections.abc import Iterator
from pathlib import Path

from zipper_jax.data.sources import lines
from zipper_jax.data.sources.rows import (
    NO_TEXT,
    NOT_UTF8,
    ImportSettings,
    Row,
    audio_files,
    beside,
    require_folder,
)
from zipper_jax.utils.errors import UserError

_MANY = "columns that are not id|text|normalised text"
_NUMBER = re.compile(r"[\d\s.,:;+-]+")


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows, with the normalised text if there is one (numbers and abbreviations as words).

    Raises:
        UserError: The third column is no normalised text: in most rows it has no word of the second.
    """
    folder = require_folder(path, "metadata.csv and wavs/")
    table, named = folder / "metadata.csv", set()
    other: list[tuple[str, str]] = []  # (place, third column) without a word of the second
    normalised, rows = 0, []
    for number, line in lines.lines(table):
        place = f"{table}:{number}"
        if line is None:
            rows.append(Row(place, place, problem=NOT_UTF8))
            continue
        name, *texts = (part.strip() for part in line.split("|"))
        if not name:
            continue
        named.add(name)
        while len(texts) > 2 and not texts[-1]:
            texts.pop()
        text, third = [*texts, "", ""][:2]
        if third and text and not _NUMBER.fullmatch(third):
            normalised += 1
            if not _words(text) & _words(third):
                other.append((place, third))
        chosen = third if third and not (text and _NUMBER.fullmatch(third)) else text
        problem = _MANY if len(texts) > 2 else "" if chosen else NO_TEXT
        rows.append(Row(name, place, "", chosen, str(beside(folder / "wavs" / f"{name}.wav")), problem=problem))
    if other and len(other) > normalised / 2:
        place, third = other[0]
        raise UserError(
            f"{place}: {third!r} is not the normalised text of the second column, nor are {len(other) - 1:,} others of "
            f"{normalised:,}; give id|text or id|text|normalised text"
        )
    yield from rows
    for audio in audio_files(folder / "wavs"):
        if audio.stem not in named:
            yield Row(audio.stem, str(audio), problem=NO_TEXT)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))

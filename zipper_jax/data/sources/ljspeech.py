"""LJSpeech layout: metadata.csv with ``id|text|normalised text``, and wavs/ID.wav."""

from collections.abc import Iterator
from pathlib import Path

from zipper_jax.data.sources import lines
from zipper_jax.data.sources.rows import (
    NO_TEXT,
    NOT_UTF8,
    ImportSettings,
    Row,
    audio_files,
    require_folder,
)


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows, with the normalised text if there is one (numbers and abbreviations as words)."""
    folder = require_folder(path, "metadata.csv and wavs/")
    table, named = folder / "metadata.csv", set()
    for number, line in lines.lines(table):
        place = f"{table}:{number}"
        if line is None:
            yield Row(place, place, problem=NOT_UTF8)
            continue
        name, *texts = (part.strip() for part in line.split("|"))
        if not name:
            continue
        named.add(name)
        text = next(filter(None, reversed(texts)), "")
        yield Row(name, place, "", text, str(folder / "wavs" / f"{name}.wav"), problem="" if text else NO_TEXT)
    for audio in audio_files(folder / "wavs"):
        if audio.stem not in named:
            yield Row(audio.stem, str(audio), problem=NO_TEXT)

"""Tables: .tsv or .csv with a header line of column names.

Columns are audio, optionally text, id, split, voice, and of a segment in seconds start, end or duration.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from zipper_jax.data.sources import columns, lines
from zipper_jax.data.sources.rows import NO_AUDIO, NO_TEXT, NOT_UTF8, ImportSettings, Row
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError

_DELIMITERS = {".tsv": "\t", ".csv": ","}


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows; audio paths are relative to ``settings.audio_folder``, or else to the table's folder."""
    delimiter = _DELIMITERS.get(lines.ending(path))
    if delimiter is None:
        raise UserError(f"{str(path)!r} has an unknown ending: give a table that ends in {' or '.join(_DELIMITERS)}")
    folder = Path(settings.audio_folder or path.parent).resolve()
    bad: list[int] = []
    rows = _decoded(path, bad)
    records = csv.reader(rows, strict=True)
    if delimiter == "\t":  # a .tsv has no quoting: quotes are part of the text
        records = csv.reader(rows, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    try:
        header = [name.strip() for name in next(records, [])]
        audio, text, voice = _columns(path, header, settings)
        used = columns.used_columns(settings, "id", "split", audio, text, voice, header=header)
        columns.warn_unused(path, header, used)
        for record in records:
            if not record:
                continue
            place = f"{path}:{records.line_num}"
            cells = dict(zip(header, (cell.strip() for cell in record), strict=False))
            file = cells.get(audio, "")
            problem = NO_TEXT if text in header and not cells.get(text) else ""
            if any(cell.strip() for cell in record[len(header) :]):  # unquoted text with commas
                problem = "more columns than the header"
            try:
                start, seconds = columns.times(cells)
            except ValueError:
                yield Row(place, place, problem="start, end or duration that is no time in seconds")
                continue
            yield Row(
                id=cells.get("id") or (Path(file).parent / Path(file).stem).as_posix().strip("/") + _suffix(start),
                place=place,
                split=cells.get("split", ""),
                text=cells.get(text),
                audio=str(folder / file) if file else None,
                voice=cells.get(voice) or None,
                start=start,
                seconds=seconds,
                more=settings.more(cells),
                problem=problem if file else NO_AUDIO,
            )
    except csv.Error as error:
        raise UserError(
            f"{str(path)!r} line {records.line_num} is not valid {path.suffix} ({error}): repair it"
        ) from error
    yield from (Row(f"{path}:{number}", f"{path}:{number}", problem=NOT_UTF8) for number in bad)


def _suffix(start: float | None) -> str:
    """Return what distinguishes the segments of a file without ids of their own."""
    return "" if start is None else f"-{start:.3f}"


def _decoded(path: Path, bad: list[int]) -> Iterator[str]:
    for number, line in lines.lines(path):
        if line is None:
            bad.append(number)
        yield (line or "") + "\n"


def _columns(path: Path, header: list[str], settings: ImportSettings) -> tuple[str, str, str]:
    """Return the columns of audio, text and voice. Raises UserError when a column that the settings name is missing."""
    wanted = {"audio": settings.audio_field, "text": settings.text_field, "voice": settings.voice_field}
    for name in settings.fields:
        if name not in header:
            raise UserError(
                f"--fields: {str(path)!r} has no column {name!r} (there: {', '.join(header)}){closest(name, header)}"
            )
    for field, name in wanted.items():
        name = name or (field if field == "audio" else "")
        if name and name not in header:
            raise UserError(
                f"{str(path)!r} has no column {name!r} (there: {', '.join(header) or 'none'}){closest(name, header)}: "
                f"name the columns in its first line, or give --{field}_field"
            )
    return settings.audio_field or "audio", settings.text_field or "text", settings.voice_field or "voice"

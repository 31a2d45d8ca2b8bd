"""Units of an external tokenizer: JSON lines {"id", "units"}, optionally "text", "split", "voice", "seconds".

A header beside them (header.json) describes them: {"num_units": 500, "rate_hz": 25}, optionally "name" (sets of equal
name, number and rate are the same units) and "vocoder", a command that turns a file {units} into a file {wav}.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec

from zipper_jax.data.sources import lines
from zipper_jax.data.sources.columns import warn_unused
from zipper_jax.data.sources.rows import NOT_UTF8, ImportSettings, Row
from zipper_jax.speech.given_units import GivenUnits
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError


class _Line(msgspec.Struct):
    id: user_json.Name | int
    units: list[int]
    text: str | None = None
    split: str | None = None
    voice: str | int | None = None
    seconds: user_json.Number | None = None


_PROBLEMS = {
    "units": "units that are no list of integers",
    "text": "text that is no string",
    "split": "split that is no name",
    "voice": "voice that is no name",
    "seconds": "seconds that are no number",
}
_NO_LINE = 'line that is no JSON object with "id" and "units"'


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows of one .jsonl file; `checked` validates the units later, against the header."""
    if lines.ending(path) != ".jsonl":
        raise UserError(
            f"{str(path)!r} has an unknown ending: give units as .jsonl (also {', '.join(lines.COMPRESSED)})"
        )
    there: dict[str, None] = {}
    for number, line in lines.lines(path):
        place = f"{path}:{number}"
        if line is None:
            yield Row(place, place, problem=NOT_UTF8)
            continue
        if not line.strip():
            continue
        try:
            value = user_json.decode(line, place, "")
            there |= dict.fromkeys(value)
            found = user_json.convert(value, _Line, place, "")
        except user_json.NotUnicodeError:
            yield Row(place, place, problem=NOT_UTF8)
            continue
        except user_json.JsonError as error:
            yield Row(place, place, problem=_NO_LINE if error.missing else _PROBLEMS.get(error.field, _NO_LINE))
            continue
        yield Row(
            id=str(found.id),
            place=place,
            split=found.split or "",
            text=(found.text or "").strip() or None,
            units=found.units,
            voice=None if found.voice is None else str(found.voice),
            seconds=found.seconds,
            more=settings.more(value),
        )
    warn_unused(path, there, [*_Line.__struct_fields__, *settings.fields], "fields")


def header(path: Path, settings: ImportSettings) -> GivenUnits:
    """Return the header of the units in ``path``."""
    return GivenUnits.read(Path(settings.header) if settings.header else path.parent / "header.json")


def checked(row: Row, what: GivenUnits) -> Row:
    """Return the row with the problem of its units, or with their duration."""
    problem = _problem(row, what)
    seconds = row.seconds if problem or row.seconds else len(row.units) / what.rate_hz
    return dataclasses.replace(row, problem=problem, seconds=seconds)


def _problem(row: Row, what: GivenUnits) -> str:
    units = row.units
    if not units:
        return "no units"
    if min(units) < 0:
        return "negative unit"
    if max(units) >= what.num_units:
        return f"unit above {what.num_units - 1}"
    # Tolerates frames lost at the edges (10 % and two units); a wrong rate deviates by far more.
    if row.seconds and abs(len(units) / what.rate_hz - row.seconds) > 0.1 * row.seconds + 2 / what.rate_hz:
        return f"not {what.rate_hz:g} units per second"
    return ""

"""Units of an external tokenizer: JSON lines {"id", "units"}, optionally "text", "split", "voice", "seconds".

A header beside them (header.json) describes them: {"num_units": 500, "rate_hz": 25}, optionally "name" (sets of equal
name, number and rate are the same units) and "vocoder", a command that turns a file {units} into a file {wav}.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

from zipper_jax.data.sources import lines
from zipper_jax.data.sources.rows import NOT_UTF8, ImportSettings, Row
from zipper_jax.speech.given_units import GivenUnits
from zipper_jax.utils.errors import UserError


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows of one .jsonl file; `checked` validates the units later, against the header."""
    if lines.ending(path) != ".jsonl":
        raise UserError(
            f"{str(path)!r} has an unknown ending: give units as .jsonl (also {', '.join(lines.COMPRESSED)})"
        )
    for number, line in lines.lines(path):
        place = f"{path}:{number}"
        if line is None:
            yield Row(place, place, problem=NOT_UTF8)
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            own, units = str(value["id"]), value["units"]
        except (ValueError, KeyError, TypeError):
            yield Row(place, place, problem='line that is no JSON object with "id" and "units"')
            continue
        text, voice, seconds = value.get("text"), value.get("voice"), value.get("seconds")
        problem = ""
        if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds < math.inf):
            problem = "seconds that are no number"
        if not isinstance(voice, str | int | None):
            problem = "voice that is no name"
        yield Row(
            id=own,
            place=place,
            split=str(value.get("split") or ""),
            text=text.strip() if isinstance(text, str) and text.strip() else None,
            units=units,
            voice=None if problem or voice is None else str(voice),
            seconds=None if problem else seconds,
            problem=problem,
            more=settings.more(value),
        )


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
    if not isinstance(units, list) or not all(type(unit) is int for unit in units):
        return "units that are no list of integers"
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

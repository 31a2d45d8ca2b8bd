"""Units that were made elsewhere: JSON lines {"id", "units"}, with "text", "split", "voice", "seconds" if known.

A header beside them (header.json) says what they are: {"num_units": 500, "rate_hz": 25}, and if known "name" (two sets
of one name are the same units) and "vocoder", a command that makes audio of them, with {units} and {wav} for files.
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
    """Rows of one .jsonl file; units are checked later, against the header."""
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
    """What the units of ``path`` are."""
    return GivenUnits.read(Path(settings.header) if settings.header else path.parent / "header.json")


def checked(row: Row, what: GivenUnits) -> Row:
    """The row with what is wrong with its units, or with their seconds."""
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
    # Frames lost at the edges, a second at most of two units; a wrong rate is off by far more.
    if row.seconds and abs(len(units) / what.rate_hz - row.seconds) > 0.1 * row.seconds + 2 / what.rate_hz:
        return f"not {what.rate_hz:g} units per second"
    return ""

"""Columns and fields of a source that an import does not read: named, with the option that would read them."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from zipper_jax.data.sources.rows import ImportSettings

logger = logging.getLogger(__name__)

_MEANT = {
    "text": ("text", "sentence", "transcript", "transcription", "text_normalized", "normalized_text", "caption"),
    "voice": ("voice", "speaker", "speaker_id", "client_id", "spk", "spk_id"),
    "audio": ("audio", "path", "file", "filename", "file_name", "audio_path", "audio_filepath", "wav"),
}
_MOST = 12


def warn_unused(source: str | Path, there: Iterable[str], used: Iterable[str], kind: str = "columns") -> None:
    """Log the columns or fields of ``source`` that are there and not used."""
    there, used = list(dict.fromkeys(there)), set(used)
    unused = [name for name in there if name not in used]
    if not unused:
        return
    options = [
        f"--{field}_field {name}"
        for field, names in _MEANT.items()
        for name in unused
        if name.casefold() in names and not used & {one for one in there if one.casefold() in names}
    ]
    hint = f"; did you mean {' '.join(options)}?" if options else ""
    more = f" and {len(unused) - _MOST} more" if len(unused) > _MOST else ""
    logger.warning(f"{source}: {kind} not used: {', '.join(unused[:_MOST])}{more}{hint}")


def times(cells: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Return (start, seconds) of a segment from the columns ``start``, ``end`` and ``duration`` (or ``seconds``).

    Without ``start`` and ``end`` a duration only describes the file, and is not used.

    Raises:
        ValueError: They are no times in seconds.
    """
    start, end = (float(cells[name]) if cells.get(name) else None for name in ("start", "end"))
    if start is None and end is None:
        return None, None
    length = cells.get("duration") or cells.get("seconds")
    begin = start or 0.0
    seconds = end - begin if end is not None else float(length) if length else None
    if not 0 <= begin < 1e9 or not (seconds is None or 0 < seconds < 1e9):
        raise ValueError(f"{start}, {end}, {length}")
    return begin, seconds


def used_columns(settings: ImportSettings, *names: str, header: Iterable[str] = ()) -> set[str]:
    """Return the columns that an import reads: ``names``, the settings' ``fields``, and those of `times`."""
    header = set(header)
    timed = {"start", "end"} if header & {"start", "end"} else set()
    if timed and "end" not in header:
        timed |= {"duration" if "duration" in header else "seconds"}
    return {*names, *settings.fields, *timed}

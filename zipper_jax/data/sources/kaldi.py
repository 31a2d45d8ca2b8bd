"""Kaldi data folders: wav.scp, text, optionally utt2spk and segments; or a folder of such folders (train, dev, …)."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zipper_jax.data.sources import lines
from zipper_jax.data.sources.rows import (
    NO_AUDIO,
    NO_TEXT,
    NOT_UTF8,
    ImportSettings,
    Row,
    is_file,
    require_folder,
    split_of,
)
from zipper_jax.utils.errors import UserError

_NO_SEGMENT = "segment that is not RECORDING BEGIN END [CHANNEL] in seconds"


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows; of several data folders, each name is the split. commands in wav.scp are not executed."""
    folder = require_folder(path, "wav.scp and text, or data folders called train, dev, test")
    if (folder / "wav.scp").is_file():
        yield from _read(folder, folder.name if split_of(folder.name) else "")
        return
    homes = sorted(one.parent for one in folder.glob("*/wav.scp"))
    if not homes:
        raise UserError(f"{str(path)!r} holds no wav.scp, nor does a folder in it: give a Kaldi data folder")
    for home in homes:
        yield from _read(home, home.name)


class _Part(NamedTuple):
    """What `segments` or `wav.scp` says about an utterance; ``problem``: why it has no audio."""

    place: str
    recording: str = ""
    start: float | None = None
    seconds: float | None = None
    channel: int | None = None
    problem: str = ""


def _read(folder: Path, split: str) -> Iterator[Row]:
    recordings: dict[str, tuple[str, str]] = {}
    parts: dict[str, _Part] = {}
    for name, value, place in _pairs(folder / "wav.scp"):
        twice = "recording named twice in wav.scp" if name in recordings else ""
        recordings[name] = ("", twice) if twice else _file(value, folder)
        parts[name] = _Part(place, name)
    if (folder / "segments").is_file():
        parts = {name: _segment(value, place) for name, value, place in _pairs(folder / "segments")}
    speakers: dict[str, str] = {}
    if (folder / "utt2spk").is_file():
        speakers = {name: value for name, value, _ in _pairs(folder / "utt2spk") if value is not None}
    if not (folder / "text").is_file():
        raise UserError(f"{str(folder)!r} has wav.scp but no file text: give the transcripts, or use the format audio")
    seen = set()
    for name, text, place in _pairs(folder / "text"):
        seen.add(name)
        one = parts.get(name, _Part(place, problem=NO_AUDIO))
        audio, problem = recordings.get(one.recording, ("", NO_AUDIO))
        problem = NOT_UTF8 if text is None else one.problem or problem or ("" if text else NO_TEXT)
        place = one.place if text and problem else place
        yield Row(
            name, place, split, text, audio or None, None, speakers.get(name), one.start, one.seconds, one.channel,
            problem,
        )  # fmt: skip
    for name, one in parts.items():
        if name not in seen:
            yield Row(name, one.place, split, problem=NO_TEXT)


def _pairs(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Yield (first word, the rest, place); the rest is None for a line that is not UTF-8."""
    for number, line in lines.lines(path):
        place = f"{path}:{number}"
        if line is None:
            yield place, None, place
        elif line.strip():
            name, *rest = line.split(None, 1)
            yield name, "".join(rest).strip(), place


def _file(value: str | None, folder: Path) -> tuple[str, str]:
    """Return (file, problem) of an entry of wav.scp."""
    value = value or ""
    if value.endswith("|") or value.startswith("|"):
        return "", "command in wav.scp, which is not executed: write the audio to files first"
    if re.search(r"\.ark(:\d+)?(\[.*\])?$", value):
        return "", "audio in a Kaldi archive: write it to files first (wav-copy scp:wav.scp, extract-segments)"
    if not value:
        return "", "wav.scp names no file"
    # Kaldi resolves paths against the recipe's working folder, which is not recorded; try the data folder first.
    beside = folder / value
    return str(beside if is_file(beside) else Path(value).absolute()), ""


def _segment(value: str | None, place: str) -> _Part:
    """Read ``RECORDING BEGIN END [CHANNEL]``; END -1 is the end of the recording."""
    try:
        recording, begin, end, *more = (value or "").split()
        start, stop = float(begin), float(end)
        (channel,) = map(int, more) if more else (None,)
        seconds = None if stop == -1 else stop - start
        is_valid = 0 <= start < math.inf and (seconds is None or 0 < seconds < math.inf) and (channel or 0) >= 0
    except ValueError:
        is_valid = False
    return _Part(place, recording, start, seconds, channel) if is_valid else _Part(place, problem=_NO_SEGMENT)

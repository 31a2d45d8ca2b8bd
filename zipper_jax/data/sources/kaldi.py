"""Kaldi data folders: wav.scp, text, optionally utt2spk and segments; or a folder of such folders (train, dev, …)."""

from collections.abc import Iterator
from pathlib import Path

from zipper_jax.data.sources import lines
from zipper_jax.data.sources.rows import (
    NO_AUDIO,
    NO_TEXT,
    NOT_UTF8,
    ImportSettings,
    Row,
    require_folder,
    split_of,
)
from zipper_jax.utils.errors import UserError


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows; of several data folders, each name is the split. wav.scp may not hold commands."""
    folder = require_folder(path, "wav.scp and text, or data folders called train, dev, test")
    if (folder / "wav.scp").is_file():
        yield from _read(folder, folder.name if split_of(folder.name) else "")
        return
    homes = sorted(one.parent for one in folder.glob("*/wav.scp"))
    if not homes:
        raise UserError(f"{str(path)!r} holds no wav.scp, nor does a folder in it: give a Kaldi data folder")
    for home in homes:
        yield from _read(home, home.name)


def _read(folder: Path, split: str) -> Iterator[Row]:
    recordings = {name: (place, _file(value, folder, place)) for name, value, place in _pairs(folder / "wav.scp")}
    parts: dict[str, tuple[str, float | None, float | None]] = {name: (name, None, None) for name in recordings}
    if (folder / "segments").is_file():
        parts = dict(_segment(*line) for line in _pairs(folder / "segments"))
    speakers: dict[str, str] = {}
    if (folder / "utt2spk").is_file():
        speakers = {name: value for name, value, _ in _pairs(folder / "utt2spk") if value is not None}
    if not (folder / "text").is_file():
        raise UserError(f"{str(folder)!r} has wav.scp but no file text: give the transcripts, or use the format audio")
    seen = set()
    for name, text, place in _pairs(folder / "text"):
        seen.add(name)
        recording, start, seconds = parts.get(name, ("", None, None))
        _, audio = recordings.get(recording, ("", None))
        problem = NOT_UTF8 if text is None else NO_AUDIO if audio is None else NO_TEXT if not text else ""
        yield Row(name, place, split, text, audio, None, speakers.get(name), start, seconds, problem)
    for name, (recording, _, _) in parts.items():
        if name not in seen:
            yield Row(name, recordings.get(recording, (str(folder / "segments"), ""))[0], split, problem=NO_TEXT)


def _pairs(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Yield (first word, the rest, place); the rest is None for a line that is not UTF-8."""
    for number, line in lines.lines(path):
        place = f"{path}:{number}"
        if line is None:
            yield place, None, place
        elif line.strip():
            name, *rest = line.split(None, 1)
            yield name, "".join(rest).strip(), place


def _file(value: str | None, folder: Path, place: str) -> str:
    value = value or ""
    if value.endswith("|") or value.startswith("|"):
        raise UserError(
            f"{place} is a command ({value!r}), which is not executed: write the audio to files first "
            "(for example `wav-copy scp:wav.scp ark,scp:…`, or run the commands), then name those in wav.scp"
        )
    if not value:
        raise UserError(f"{place} names no audio file: give `ID PATH`")
    # Kaldi resolves paths against the recipe's working folder, which is not recorded; try the data folder first.
    beside = folder / value
    return str(beside if beside.is_file() else Path(value).absolute())


def _segment(name: str, value: str | None, place: str) -> tuple[str, tuple[str, float, float | None]]:
    try:
        recording, begin, end = (value or "").split()
        start, seconds = float(begin), float(end) - float(begin)
        if start < 0 or seconds <= 0:
            raise ValueError
    except ValueError:
        raise UserError(
            f"{place}: {value!r} is not a segment; give `UTTERANCE RECORDING BEGIN END` in seconds"
        ) from None
    return name, (recording, start, seconds)

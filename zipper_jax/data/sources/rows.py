"""Rows that every source reader yields, import settings, and split names."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from zipper_jax.metrics.normalisers import DEFAULT, TextForm
from zipper_jax.utils.errors import UserError

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")

FIELDS = ("id", "split", "text", "audio", "units", "voice", "start", "seconds", "channel", "word_times")
"""Fields that a manifest row may have, besides the further ``fields`` of the settings."""

NO_AUDIO = "transcript without audio"
NO_TEXT = "audio without transcript"
NOT_UTF8 = "text that is not UTF-8"

_SPLITS = (
    (r"train(ing)?", "train"),
    (r"dev(elopment)?|val(id(ation)?)?", "validation"),
    (r"test[-_. ]?other", "test_other"),
    (r"test|eval(uation)?", "test"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One utterance or document of a source; None: absent from the source.

    Attributes:
        id: Unique in the source.
        place: File and line, for messages.
        split: The source's own name of the split; "" without one.
        text: Transcript or document.
        audio: Absolute path.
        units: List of unit numbers.
        voice: Speaker.
        start: Start of the segment in seconds; None: the whole file.
        seconds: Duration of the segment; None: to the end of the file.
        channel: Channel of the file, from 0; None: the mean of all.
        problem: Why the row cannot be used, in a few words that are counted; "" if it can.
        more: Fields of further modalities, unchanged.
        word_times: [start, end] of each word of the text as it is stored, in seconds from ``start``.
    """

    id: str
    place: str
    split: str = ""
    text: str | None = None
    audio: str | None = None
    units: Any = None
    voice: str | None = None
    start: float | None = None
    seconds: float | None = None
    channel: int | None = None
    problem: str = ""
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    word_times: list[list[float]] | None = None


@dataclasses.dataclass(frozen=True)
class ImportSettings:
    """How a source is read.

    Attributes:
        validation: Rows to draw from training, by a hash of the text (equal sentences together), if the source has no
            validation split; -1: one row in twenty, at most 100.
        test: The same for the test split.
        max_seconds: Longer audio with a transcript is dropped.
        piece_seconds: Audio without a transcript is cut into equal pieces of at most this length.
        piece_words: Text without audio is cut into equal pieces of at most this length; 0: never.
        documents: Of .txt files: one document per line, or paragraphs separated by blank lines.
        text_field: Column of a table, field of .jsonl or feature of a TFDS dataset with the text; "": the default.
        audio_field: The same for the audio.
        voice_field: The same for the speaker.
        audio_folder: Base of the relative paths in a table; "": the table's folder.
        header: JSON file with num_units and rate_hz of given units; "": header.json beside them.
        sample_rate: Hz, for a TFDS dataset that does not state it.
        fields: Further columns of a table or fields of .jsonl to keep, for user-defined modalities.
        normaliser: Policy by which sentences are equal: in splits, leak checks, controls and error rates.
        alignments: File or folder with word times of the rows (`data.alignments`), for interleaved tasks; "": none.
        encode_text: Whether models see texts as written (in NFC), or normalised by that policy.
    """

    validation: int = -1
    test: int = -1
    max_seconds: float = 60.0
    piece_seconds: float = 20.0
    piece_words: int = 200
    documents: Literal["lines", "paragraphs"] = "lines"
    text_field: str = ""
    audio_field: str = ""
    voice_field: str = ""
    audio_folder: str = ""
    header: str = ""
    sample_rate: int = 0
    fields: tuple[str, ...] = ()
    normaliser: str = DEFAULT.name
    alignments: str = ""
    encode_text: Literal["as_written", "normalised"] = "as_written"

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            if getattr(self, name) < -1:
                raise UserError(f"{name} = {getattr(self, name)}: give a number of rows, or -1 for one in twenty")
        for name in ("max_seconds", "piece_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} = {getattr(self, name)}: give more than 0")
        for name in ("piece_words", "sample_rate"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)}: give 0 or more")
        for name in self.fields:
            if name in FIELDS:
                raise UserError(f"fields = {name!r}: this name is reserved; name only further fields")
        _ = self.text_form.policy  # fails now where it is unknown

    @property
    def text_form(self) -> TextForm:
        """How texts are compared and encoded."""
        return TextForm(self.normaliser, self.encode_text == "normalised")

    def more(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the further ``fields`` of a source record."""
        return {name: record[name] for name in self.fields if record.get(name)}


def split_of(name: str) -> str | None:
    """Map a source's split name (dev-clean, train_clean100) to one of SPLITS; None: unknown."""
    for pattern, split in _SPLITS:
        if re.match(rf"({pattern})(?![a-z])", name.lower()):
            return split
    return None


def files_below(folder: Path) -> list[Path]:
    """Return every file below ``folder``, sorted; symlinked folders are followed, each once, because links can loop."""
    found, seen = [], set()
    for home, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        real = os.path.realpath(home)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [path for name in names if (path := Path(home, name)).is_file()]
    return sorted(found)


def audio_files(folder: Path) -> list[Path]:
    """Return every audio file below ``folder``, sorted by path."""
    return [path for path in files_below(folder) if path.suffix.lower() in AUDIO_ENDINGS]


def is_file(path: Path) -> bool:
    """Return whether ``path`` is a file; False too for a name that no file can have, such as one of 300 letters."""
    try:
        return path.is_file()
    except OSError:
        return False


def beside(path: Path) -> Path:
    """Return ``path``, or the file of the same name in another audio format, where only that exists."""
    others = (path.with_name(f"{path.stem}{ending}") for ending in AUDIO_ENDINGS)
    return path if is_file(path) else next((other for other in others if is_file(other)), path)


def id_of(path: Path, folder: Path) -> str:
    """Return the id of a file: its path relative to ``folder`` without suffix, as a valid file name."""
    return "-".join(path.relative_to(folder).with_suffix("").parts)


def require_folder(path: Path, wants: str) -> Path:
    """Return ``path``, absolute. Raises UserError when it is not a folder; ``wants`` is its expected content."""
    if not path.is_dir():
        raise UserError(f"{str(path)!r} is not a folder: give one with {wants}")
    return Path(os.path.abspath(path))  # not resolve(): a symlink's own name may name the split

"""What every reader of a source yields, and how sources name their splits."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from zipper_jax.utils.errors import UserError

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")

FIELDS = ("id", "split", "text", "audio", "units", "voice", "start", "seconds")
"""What a row of a manifest may have, beside further ``fields``."""

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
    """One utterance or document as its source has it; None: the source has none.

    id: unique in the source. place: file, and line, for messages. split: the source's own name of it, "" without one.
    audio: absolute path; start, seconds: the part of it that is meant; without start: all of it.
    more: fields of further modalities, kept as they are.
    problem: why it cannot be used, in a few words that can be counted; "" where nothing is known against it.
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
    problem: str = ""
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ImportSettings:
    """How a source is read.

    validation, test: rows of splits that the source lacks, drawn from its training rows by a hash of the text, equal
      sentences together; -1: one row in twenty, at most 100.
    max_seconds: audio with a transcript that is longer is dropped.
    piece_seconds: audio without a transcript is cut into equal pieces no longer than this.
    piece_words: text without audio is cut into equal pieces no longer than this; 0: never.
    documents: of .txt files: a document per line, or paragraphs with blank lines between them.
    text_field, audio_field, voice_field: columns of a table, fields of .jsonl, features of a TFDS dataset; "": the
      format's own.
    audio_folder: where the paths in a table begin; "": the table's folder.
    header: JSON file with num_units and rate_hz of given units; "": header.json beside them.
    sample_rate: of a TFDS dataset that does not state it.
    fields: further columns of a table, or fields of .jsonl, that are kept: content of modalities of one's own.
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

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            if getattr(self, name) < -1:
                raise UserError(f"{name} is {getattr(self, name)}: give a number of rows, or -1 for one in twenty")
        for name in ("max_seconds", "piece_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: give more than 0")
        for name in ("piece_words", "sample_rate"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: give 0 or more")
        for name in self.fields:
            if name in FIELDS:
                raise UserError(f"fields names {name!r}, which has a meaning of its own: give further ones only")

    def more(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The further ``fields`` that a record of a source has."""
        return {name: record[name] for name in self.fields if record.get(name)}


def split_of(name: str) -> str | None:
    """Our name for a source's name of a split (dev-clean, train_clean100): one of SPLITS; None: unknown."""
    for pattern, split in _SPLITS:
        if re.match(rf"({pattern})(?![a-z])", name.lower()):
            return split
    return None


def files_below(folder: Path) -> list[Path]:
    """Every file below ``folder``, in order of path; linked folders count, each once (links can make loops)."""
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
    """Every audio file below ``folder``, in order of path."""
    return [path for path in files_below(folder) if path.suffix.lower() in AUDIO_ENDINGS]


def id_of(path: Path, folder: Path) -> str:
    """The id of a file: its path below ``folder`` without ending, fit for a file name."""
    return "-".join(path.relative_to(folder).with_suffix("").parts)


def require_folder(path: Path, wants: str) -> Path:
    """``path``, absolute. Raises UserError when it is no folder; ``wants`` says what should be in it."""
    if not path.is_dir():
        raise UserError(f"{str(path)!r} is no folder: give one with {wants}")
    return Path(os.path.abspath(path))  # where a folder is a link, its name, which may be a split's, is the link's

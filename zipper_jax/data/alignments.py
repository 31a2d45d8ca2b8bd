"""Word times of utterances from forced aligners: CTM, TextGrid and JSON lines.

    .ctm        ID CHANNEL START SECONDS WORD [CONFIDENCE], a line per word (Kaldi, NeMo)
    .TextGrid   a file per utterance, named by its id, its tier of intervals called "words" (Montreal Forced Aligner)
    .jsonl      {"id": ..., "words": [[WORD, START, END], ...]}, other fields are ignored

Times are in seconds from the beginning of the utterance. Intervals without a word (silence) are skipped.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from zipper_jax.data.sources.lines import ending
from zipper_jax.data.sources.lines import lines as read_lines
from zipper_jax.data.sources.rows import files_below, id_of
from zipper_jax.metrics.normalisers import TextForm
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError

_SILENCE = frozenset({"", "<eps>", "<sil>", "sil", "sp"})
_FIX = 'give {"id": ..., "words": [[WORD, START, END], ...]} with seconds'
_TIER = re.compile(r'class = "IntervalTier"\s+name = "words"(.*?)(?=item \[\d+\]:|\Z)', re.DOTALL)
_INTERVAL = re.compile(r'xmin = (\S+)\s+xmax = (\S+)\s+text = "((?:[^"]|"")*)"')
_SLACK = 0.1
"""Seconds that the last word may end after its audio: aligners count in frames."""

Time = Annotated[float, msgspec.Meta(ge=0)]


class Word(NamedTuple):
    """A word and its times in seconds."""

    word: str
    start: Time
    end: Time


class _Line(msgspec.Struct):
    id: user_json.Name
    words: list[tuple[str, Time, Time]]


def read(path: Path) -> dict[str, list[Word]]:
    """The words of each utterance, by id as rows have it.

    Args:
        path: A .ctm or .jsonl file (also compressed), a .TextGrid, or a folder with some of these.

    Raises:
        UserError: There is no such file, or it has another form.
    """
    if not path.exists():
        raise UserError(f"alignments = {str(path)!r}: it does not exist; check the path")
    found: dict[str, list[Word]] = {}
    files = [file for file in files_below(path) if ending(file) in _READERS] if path.is_dir() else [path]
    for file in files:
        if ending(file) not in _READERS:
            raise UserError(f"alignments = {str(file)!r}: its ending is unknown; give {', '.join(_READERS)}")
        for name, words in _READERS[ending(file)](file, path if path.is_dir() else file.parent):
            found.setdefault(name.replace("/", "-"), []).extend(w for w in words if w.word.lower() not in _SILENCE)
    if not found:
        raise UserError(f"alignments = {str(path)!r}: it has no word; give a file or folder of {', '.join(_READERS)}")
    return found


def _ctm(path: Path, folder: Path) -> Iterator[tuple[str, Iterable[Word]]]:
    for number, line in enumerate(_text(path), 1):
        parts = line.split()
        if not parts or line.startswith(";;"):
            continue
        try:
            start, seconds = float(parts[2]), float(parts[3])
            word = Word(parts[4], start, start + seconds)
        except (ValueError, IndexError):
            raise UserError(
                f"alignments = {str(path)!r} line {number}: {line.strip()!r} is not ID CHANNEL START SECONDS WORD; "
                "repair the line"
            ) from None
        yield parts[0], [word]


def _textgrid(path: Path, folder: Path) -> Iterator[tuple[str, Iterable[Word]]]:
    """Both names that an aligner may have given the file: of its path below the folder, and of the file alone."""
    try:
        text = path.read_bytes().decode("utf-16" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"alignments = {str(path)!r}: it is not UTF-8 or UTF-16 ({error}); convert it") from error
    tier = _TIER.search(text)
    if tier is None:
        raise UserError(
            f"alignments = {str(path)!r}: there is no tier of intervals called 'words'; save it in Praat's long form"
        )
    try:
        words = [Word(w.replace('""', '"').strip(), float(a), float(b)) for a, b, w in _INTERVAL.findall(tier[1])]
    except ValueError as error:
        raise UserError(
            f"alignments = {str(path)!r}: an interval of 'words' has no time ({error}); repair it"
        ) from None
    for name in dict.fromkeys((id_of(path, folder), path.stem)):
        yield name, words


def _json_lines(path: Path, folder: Path) -> Iterator[tuple[str, Iterable[Word]]]:
    for number, line in enumerate(_text(path), 1):
        if line.strip():
            place = f"alignments = {str(path)!r} line {number}"
            found = user_json.convert(user_json.decode(line, place, _FIX), _Line, place, _FIX)
            yield found.id, [Word(*word) for word in found.words]


def _text(path: Path) -> Iterator[str]:
    for number, line in read_lines(path):
        if line is None:
            raise UserError(f"alignments = {str(path)!r} line {number}: it is not UTF-8; convert it")
        yield line


_READERS: dict[str, Any] = {".ctm": _ctm, ".TextGrid": _textgrid, ".jsonl": _json_lines}


def times_of(
    text: str, words: Sequence[Word] | None, seconds: float | None, form: TextForm
) -> tuple[list[list[float]], str]:
    """The times of each word of ``text``, by whitespace, or why it has none.

    Args:
        text: The transcript, as it is stored.
        words: The utterance's alignment; None: it has none.
        seconds: Length of its audio; None: not known.
        form: When two words are equal. A word of which nothing is left (a dash) has the place between its neighbours.

    Returns:
        [start, end] of each word, and ""; or [], and the problem in a few words.
    """
    if words is None:
        return [], "not in the alignments"
    spoken, times, end = iter(words), [], 0.0
    for own in text.split():
        if not form.policy(own):
            times.append([end, end])
            continue
        word = next(spoken, None)
        if word is None or form.key(word.word) != form.key(own):
            return [], "words that differ from the alignment's"
        if not end <= word.start + 1e-6 or word.end < word.start:
            return [], "word times out of order"
        start, end = max(word.start, end), max(word.end, end)
        times.append([round(start, 4), round(end, 4)])
    if next(spoken, None) is not None:
        return [], "words that differ from the alignment's"
    if seconds is not None and end > seconds + _SLACK:
        return [], "word times beyond the audio"
    return times, ""

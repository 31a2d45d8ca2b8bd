"""Policies of text normalisation, by name: what counts as the same text, in error rates, controls and leak checks.

A corpus chooses its policy when it is imported. `TextForm` is what corpus.json, header.json of a prepared folder and
config.json of a run keep of it, under ``text_form``.
"""

import dataclasses
import functools
import importlib
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zipper_jax.utils import user_json
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError


@dataclass(frozen=True)
class Policy:
    """A function from text to normalised text, and what it does.

    Attributes:
        name: Its name.
        about: What it does to Unicode form, case, punctuation, numbers and apostrophes, in a line.
        change: The function; white space is collapsed afterwards.
    """

    name: str
    about: str
    change: Callable[[str], str] = field(compare=False, repr=False)

    def __call__(self, text: str) -> str:
        return " ".join(self.change(text).split())


def _letters(text: str) -> str:
    text = unicodedata.normalize("NFC", text.lower().replace("’", "'"))
    # Combining marks belong to their letters: vowels of Hindi, accents without a composed form.
    kept = "".join(c if c.isalnum() or c == "'" or unicodedata.category(c)[0] == "M" else " " for c in text)
    return " ".join(word for piece in kept.split() if (word := piece.strip("'")))


DEFAULT = Policy("default", "lower case; only letters, digits and apostrophes inside words; single spaces", _letters)
"""Unicode NFC; numbers as written; ’ is '."""

NONE = Policy("none", "none: the text as written; single spaces", lambda text: text)

_WHISPER = {
    "basic": (
        "basic",
        "BasicTextNormalizer",
        "Whisper's basic: NFKC, lower case, no text in brackets, no symbols and punctuation, numbers as written",
    ),
    "whisper-english": (
        "english",
        "EnglishTextNormalizer",
        "Whisper's English: NFKD, lower case, no text in brackets, fillers, symbols and punctuation, contractions "
        "expanded, numbers as digits, British spelling as American",
    ),
}
ENGLISH_DIGITS = "whisper-english-digits"
_DIGITS = re.compile(r"\d")
_OF_WHISPER = (*_WHISPER, ENGLISH_DIGITS)
NAMES = ("default", "none", *_OF_WHISPER, "jiwer:TRANSFORM,...")


@dataclass(frozen=True)
class TextForm:
    """How the texts of a corpus are compared, and whether they are stored as they are compared.

    Attributes:
        normaliser: Name of the policy by which sentences are equal (splits, leak checks, controls, error rates).
        normalised: Whether `zipper data prepare` puts texts through the policy, so that vocabularies are fitted on,
            and models see, normalised text; a model then normalises its prompts, too. False: as written, in NFC.
    """

    normaliser: str = DEFAULT.name
    normalised: bool = False

    def __post_init__(self) -> None:
        if self.normaliser not in _OF_WHISPER:  # whose package may be missing where only a model is used
            policy(self.normaliser)

    @property
    def policy(self) -> Policy:
        """The policy. Raises UserError if it is unknown, or its package is not installed."""
        return policy(self.normaliser)

    def stored(self, text: str) -> str:
        """Return ``text`` as it is stored and encoded."""
        return self.policy(text) if self.normalised else unicodedata.normalize("NFC", text)

    def key(self, text: str) -> str:
        """Return what equal sentences share: the normalised text, or the text itself where nothing would be left."""
        return self.policy(text) or text

    def about(self) -> str:
        """Return one line for people."""
        encoded = "normalised" if self.normalised else "as written (NFC)"
        return f"compared by {self.normaliser} ({self.policy.about}); encoded {encoded}"


def read_text_form(header: Mapping[str, Any], place: str, fix: str) -> TextForm:
    """Return the form that a header from a file states, see `text_form`.

    Raises:
        JsonError: It has a field of another type or name.
    """
    known = [field.name for field in dataclasses.fields(TextForm)]
    return user_json.convert(header.get("text_form", {}), TextForm, place, fix, "text_form", known)


def text_form(header: Mapping[str, Any] | None) -> TextForm:
    """Return the form that a header states; one without it is of texts as written, compared by the default policy."""
    return TextForm(**(header or {}).get("text_form", {}))


@functools.cache
def policy(name: str) -> Policy:
    """The policy called ``name``: one of `NAMES`; ``jiwer:ToLowerCase,RemovePunctuation`` applies jiwer's transforms.

    Raises:
        UserError: An unknown name or transform, or a package that is not installed.
    """
    if name in (DEFAULT.name, NONE.name):
        return DEFAULT if name == DEFAULT.name else NONE
    if name in _WHISPER:
        module, made, about = _WHISPER[name]
        try:
            with warnings.catch_warnings():  # compiling its docstrings warns of escapes
                warnings.filterwarnings("ignore", ".*invalid escape sequence")
                found = importlib.import_module(f"whisper_normalizer.{module}")
        except ImportError:
            raise UserError(
                f"--normaliser = {name!r} needs a package: pip install 'whisper-normalizer>=0.1.15'"
            ) from None
        return Policy(name, about, getattr(found, made)())
    if name == ENGLISH_DIGITS:
        english = policy("whisper-english")
        return Policy(
            name, f"{english.about}; then every digit a word, one as 1", lambda text: _split_digits(english(text))
        )
    if name.startswith("jiwer:"):
        return _of_jiwer(name)
    raise UserError(f"--normaliser = {name!r} is unknown{closest(name, NAMES)}")


def _split_digits(text: str) -> str:
    """Digit strings as they are spoken: "1641" and "one 6 4 one" are both "1 6 4 1"."""
    spaced = _DIGITS.sub(r" \g<0> ", text)
    return " ".join("1" if word == "one" else word for word in spaced.split())


def _of_jiwer(name: str) -> Policy:
    import jiwer

    steps: list[Callable[[str], str]] = []
    known = [one for one in dir(jiwer) if isinstance(getattr(jiwer, one), type)]
    for step in name.removeprefix("jiwer:").split(","):
        try:
            made = getattr(jiwer, step)()
            if not isinstance(made("a b"), str):
                raise TypeError
        except (AttributeError, TypeError):
            hint = closest(step, [one for one in known if issubclass(getattr(jiwer, one), jiwer.AbstractTransform)])
            raise UserError(f"--normaliser = {name!r}: {step!r} is no transform from text to text{hint}") from None
        steps.append(made)
    return Policy(name, f"jiwer's {', '.join(name.removeprefix('jiwer:').split(','))}", lambda text: _all(steps, text))


def _all(steps: list[Callable[[str], str]], text: str) -> str:
    for step in steps:
        text = step(text)
    return text

"""The closed grammars of the synthetic corpus: "home" (about 75 words) and "wide" (about 700).

A template is a sequence of slots, a slot a tuple of alternatives; the empty alternative makes a slot optional. The same
templates give the sampled sentences and the JSGF grammar of the judge, so that the judge knows exactly the language but
not which of its sentences are in a test split.

Every sentence is lower case, without punctuation, three to eleven words, and every word is in the CMU dictionary.
"""

from __future__ import annotations

import math
import random

from zipper_jax.speech import wide_grammar

Slot = tuple[str, ...]
Template = tuple[Slot, ...]

_DIGIT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_HOUR = (*_DIGIT[1:], "ten")
_AMOUNT = (*_DIGIT[2:], "ten", "twenty")
_ROOM = ("kitchen", "bedroom", "garden", "office")
_DEVICE = ("light", "heater", "radio", "television")
_SWITCH = ("on", "off")
_PERSON = ("mother", "father", "sister", "brother", "doctor")
_DAY = ("today", "tomorrow", "tonight")
_COLOUR = ("red", "green", "blue", "yellow")
_THING = ("box", "book", "bottle", "paper", "jacket")
_THINGS = ("boxes", "books", "bottles", "papers", "jackets")
_PLACE = ("under", "behind", "beside")
_FURNITURE = ("table", "sofa", "window")
_MAYBE_PLEASE = ("", "please")
_MAYBE_DAY = ("", *_DAY)


def _one(words: str) -> list[Slot]:
    """Return one slot per word of ``words``, with that word as its only alternative."""
    return [(word,) for word in words.split()]


# Name (a JSGF rule name) -> sampling weight, and the slots. Digit strings have four templates: a recogniser cannot
# guess digits from context, so they keep the error rate honest.
TEMPLATES: dict[str, tuple[int, Template]] = {
    "digits_three": (1, (_DIGIT,) * 3),
    "digits_four": (1, (_DIGIT,) * 4),
    "digits_five": (1, (_DIGIT,) * 5),
    "number": (1, (*_one("my number is"), *(_DIGIT,) * 4)),
    "switch_last": (1, (_MAYBE_PLEASE, *_one("turn the"), _ROOM, _DEVICE, _SWITCH)),
    "switch_first": (1, (_MAYBE_PLEASE, ("turn",), _SWITCH, ("the",), _ROOM, _DEVICE)),
    "switch_at": (2, (*_one("turn the"), _ROOM, _DEVICE, _SWITCH, ("at",), _HOUR, _MAYBE_DAY)),
    "timer": (1, (_MAYBE_PLEASE, *_one("set a timer for"), _AMOUNT, ("minutes", "seconds"))),
    "open": (2, (("open", "close"), ("the",), _ROOM, ("door", "window"), ("at",), _HOUR, _MAYBE_DAY)),
    "call": (2, (_MAYBE_PLEASE, *_one("call my"), _PERSON, ("at",), _HOUR, _DAY)),
    "where": (1, (("the",), _COLOUR, _THING, ("is",), _PLACE, ("the",), _FURNITURE)),
    "put": (2, (*_one("put the"), _COLOUR, _THING, _PLACE, ("the",), _FURNITURE, _MAYBE_DAY)),
    "bring": (2, (("bring",), _AMOUNT, _COLOUR, _THINGS, *_one("to the"), _ROOM)),
}


HOME = "home"
GRAMMARS: dict[str, dict[str, tuple[int, Template]]] = {HOME: TEMPLATES, "wide": wide_grammar.TEMPLATES}
"""Grammar -> its templates."""


def sample(rng: random.Random, grammar: str = HOME) -> str:
    """Sample one sentence: a template by its weight, then every slot uniformly. Depends only on ``rng``."""
    templates = GRAMMARS[grammar]
    names = list(templates)
    name = rng.choices(names, weights=[templates[n][0] for n in names])[0]
    return " ".join(word for slot in templates[name][1] if (word := rng.choice(slot)))


def words(grammar: str = HOME) -> list[str]:
    """Return every word of the grammar, sorted."""
    return sorted({word for _, template in GRAMMARS[grammar].values() for slot in template for word in slot if word})


def num_sentences(grammar: str = HOME) -> int:
    """Return the number of different sentences (no two templates share one)."""
    return sum(math.prod(len(slot) for slot in template) for _, template in GRAMMARS[grammar].values())


def jsgf(grammar: str = HOME) -> str:
    """Return the grammar as JSGF: the public rule ``<sentence>`` accepts exactly the sentences `sample` can draw."""
    templates = GRAMMARS[grammar]
    rules = [f"<{name}> = {' '.join(map(_jsgf_slot, template))};" for name, (_, template) in templates.items()]
    sentence = " | ".join(f"<{name}>" for name in templates)
    return "\n".join(["#JSGF V1.0;", "grammar zipper;", *rules, f"public <sentence> = {sentence};", ""])


def _jsgf_slot(slot: Slot) -> str:
    present = [word for word in slot if word]
    if len(present) < len(slot):
        return f"[{' | '.join(present)}]"
    return present[0] if len(present) == 1 else f"({' | '.join(present)})"

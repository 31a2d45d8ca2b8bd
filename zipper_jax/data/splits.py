"""Splits: the source's own, else drawn by a hash of the text; no sentence is in both training and held-out rows."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence

from zipper_jax.data.sources.rows import ImportSettings, Row, split_of
from zipper_jax.metrics.normalisers import TextForm
from zipper_jax.speech.manifest import SPLITS
from zipper_jax.utils.errors import UserError

_DRAWN = ("test", "validation")


def assign(rows: Sequence[Row], settings: ImportSettings) -> list[Row]:
    """Return the rows with normalised split names; splits that the source lacks are drawn from its training rows.

    Raises:
        UserError: An unknown split name, a number of rows for a split that the source has, or too large a number.
    """
    named = [dataclasses.replace(row, split=_ours(row)) for row in rows]
    counts = {}
    for split in _DRAWN:
        asked = getattr(settings, split)
        there = sum(row.split == split for row in named)
        if there and asked > 0:
            raise UserError(f"{split} = {asked}: the source already has {there} rows of this split; omit --{split}")
        counts[split] = 0 if there else asked
    training = sum(row.split == "train" for row in named)
    counts = {split: min(100, training // 20) if count < 0 else count for split, count in counts.items()}
    if training and sum(counts.values()) >= training:
        raise UserError(
            f"validation = {counts['validation']}, test = {counts['test']}: there are only {training} training rows to "
            "draw from; give fewer"
        )
    form = settings.text_form
    drawn = _draw([_key(row, form) for row in named if row.split == "train"], counts)
    return [
        dataclasses.replace(row, split=drawn.get(_key(row, form), "train")) if row.split == "train" else row
        for row in named
    ]


def drop_leaks(rows: Sequence[Row], form: TextForm) -> list[Row]:
    """Return the rows; a training row whose sentence, as ``form`` compares it, is also held out gets a problem."""
    held_out = {_key(row, form): row.split for row in rows if row.split != "train"}
    return [
        dataclasses.replace(row, problem=f"sentence of {held_out[_key(row, form)]} in train")
        if row.split == "train" and _key(row, form) in held_out
        else row
        for row in rows
    ]


def _ours(row: Row) -> str:
    split = split_of(row.split) if row.split else "train"
    if split is None:
        raise UserError(
            f"{row.place}: split {row.split!r} is unknown: give one of {', '.join(SPLITS)} (or train-…, dev-…)"
        )
    return split


def _key(row: Row, form: TextForm) -> str:
    """Return the key that equal sentences share; a row without text has its own."""
    return form.key(row.text) if row.text else f"\0{row.id}"


def _draw(keys: Sequence[str], counts: dict[str, int]) -> dict[str, str]:
    """Return sentence -> split of the held-out ones: sentences in order of their hash, until there are enough rows.

    The order is independent of the other rows, so that a growing source keeps most of its splits.
    """
    sizes = Counter(keys)
    left, drawn = iter(sorted(sizes, key=lambda key: hashlib.sha256(key.encode()).digest())), {}
    for split, count in counts.items():
        got = 0
        while got < count and (key := next(left, None)) is not None:
            drawn[key] = split
            got += sizes[key]
    return drawn

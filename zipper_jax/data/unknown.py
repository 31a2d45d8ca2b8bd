"""Contents that a vocabulary cannot represent: counted per split, and too many of them refused.

An unknown token stands for text that the model neither reads nor writes: capitals, where the vocabulary has small
letters only, or another script.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import Vocabulary

logger = logging.getLogger(__name__)

FEW = 10
"""Fewer unknown tokens are never refused: in a split of a few sentences one rare letter is a large share."""


@dataclasses.dataclass
class Unknown:
    """How much of a split's content of one modality a vocabulary lacks.

    Attributes:
        tokens: Number of tokens.
        lacking: Number of unknown tokens, and of characters that the vocabulary drops.
        first: Row and text of the first of them.
    """

    tokens: int = 0
    lacking: int = 0
    first: str = ""

    @property
    def share(self) -> float:
        """Share of the tokens, in [0, 1]."""
        return self.lacking / max(self.tokens, self.lacking, 1)

    def describe(self, split: str, modality: str) -> str:
        """Return one line about it."""
        return (
            f"{self.lacking:,} of {max(self.tokens, self.lacking):,} {modality} tokens of split {split} are unknown to "
            f"the vocabulary ({self.share:.1%}; first: {self.first})"
        )


def count_unknown(rows: Iterable[Mapping[str, Any]], field: str, vocabulary: Vocabulary) -> dict[str, Unknown]:
    """Return split -> `Unknown` of the rows' ``field``."""
    found: dict[str, Unknown] = {}
    for row in rows:
        if row.get(field):
            mine = found.setdefault(row["split"], Unknown())
            lacking = vocabulary.unknown(row[field])
            mine.tokens += len(vocabulary.encode(row[field]))
            mine.lacking += len(lacking)
            mine.first = mine.first or (f"row {row['id']!r}, {lacking[0]!r}" if lacking else "")
    return found


def describe_unknown(found: Mapping[str, Unknown], modality: str) -> Iterator[str]:
    """Yield one line per split that has unknown tokens."""
    for split, mine in found.items():
        if mine.lacking:
            yield mine.describe(split, modality)


def refuse_unknown(found: Mapping[str, Unknown], modality: str, most: float) -> None:
    """Log what is unknown. Raises UserError for a split with `FEW` unknown tokens and a larger share than ``most``."""
    for line in describe_unknown(found, modality):
        logger.warning(line)
    for split, mine in found.items():
        if mine.lacking >= FEW and mine.share > most:
            raise UserError(
                f"max_unknown = {most:g}: {mine.describe(split, modality)}; fit a vocabulary on this text (omit "
                f"--{modality}_vocabulary), write the text as the vocabulary's own (for example in lower case), or "
                "give a larger --max_unknown"
            )

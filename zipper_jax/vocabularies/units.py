"""Units of speech, or of any quantised signal: unit u has id u; begin and end follow (1,024 + 2 in the paper).

A pretrained unit model may differ: units from another id on, its own begin and end, ids for other tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import files


class UnitVocabulary:
    """Vocabulary of units; by default ``begin = num_units``, ``end = num_units + 1``.

    Args:
        num_units: Number of units.
        rate_hz: Units per second.
        codebook: Digest of the tokenizer of these units; "" if unknown.
        first: Id of unit 0.
        rows: Vocabulary size of a pretrained unit model.
        begin_id: Its begin token.
        end_id: Its end token.
    """

    kind = "units"
    header = files.UnitHeader

    def __init__(
        self,
        num_units: int,
        rate_hz: float,
        codebook: str = "",
        *,
        first: int = 0,
        rows: int | None = None,
        begin_id: int | None = None,
        end_id: int | None = None,
    ):
        if num_units < 1:
            raise UserError(f"num_units = {num_units}: give at least 1")
        if not rate_hz > 0:
            raise UserError(f"rate_hz = {rate_hz}: give units per second, e.g. 25")
        self.num_units = int(num_units)
        self.rate_hz = float(rate_hz)
        self.codebook = codebook
        self.first = first
        self.begin_id = first + self.num_units if begin_id is None else begin_id
        self.end_id = first + self.num_units + 1 if end_id is None else end_id
        self.size = max(rows or 0, first + self.num_units, self.begin_id + 1, self.end_id + 1)
        decisive = [str(self.num_units), repr(self.rate_hz), *([codebook] if codebook else [])]
        places = (self.first, self.begin_id, self.end_id, self.size)
        if places != (0, self.num_units, self.num_units + 1, self.num_units + 2):
            decisive.append(f"places {places}")
        self.digest = files.digest(b"units", *(part.encode() for part in decisive))

    def encode(self, content: Any) -> Int32[np.ndarray, " n"]:
        """Return the ids of unit numbers. Raises UserError for one that is no integer in ``[0, num_units)``."""
        try:
            units = np.asarray(content).reshape(-1)
        except ValueError:  # lists of different lengths
            units = np.zeros(1)
        if units.size and units.dtype.kind not in "iu":
            raise UserError(f"content = {content!r}: expected a list of integers, the unit numbers")
        units = units.astype(np.int64)
        wrong = units[(units < 0) | (units >= self.num_units)]
        if len(wrong):
            raise UserError(f"unit {wrong[0]} is outside 0 to {self.num_units - 1}: was another tokenizer used?")
        return (units + self.first).astype(np.int32)

    def unknown(self, content: Any) -> list[str]:
        return []

    def decode(self, ids: Any) -> Int32[np.ndarray, " n"]:
        """Return unit numbers; begin, end and other ids that are not units are skipped."""
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        wrong = ids[(ids < 0) | (ids >= self.size)]
        if len(wrong):
            raise UserError(f"token {wrong[0]} is outside 0 to {self.size - 1}: was another vocabulary used?")
        units = ids - self.first
        return units[(units >= 0) & (units < self.num_units)].astype(np.int32)

    def save(self, folder: Any) -> None:
        files.write_header(
            folder,
            self,
            num_units=self.num_units,
            rate_hz=self.rate_hz,
            codebook=self.codebook,
            first=self.first,
        )

    @classmethod
    def load(cls, folder: Path, header: Mapping[str, Any]) -> "UnitVocabulary":
        return cls(
            header["num_units"],
            header["rate_hz"],
            header.get("codebook", ""),
            first=header.get("first", 0),
            rows=header["size"],
            begin_id=header["begin_id"],
            end_id=header["end_id"],
        )

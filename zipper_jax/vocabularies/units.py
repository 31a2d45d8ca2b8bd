"""Units of speech, or of any quantised signal: unit u is id u; begin and end follow (1,024 + 2 in the paper)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from zipper_jax.errors import UserError
from zipper_jax.vocabularies import files


class UnitVocabulary:
    """``num_units`` units at ``rate_hz`` per second; ``begin = num_units``, ``end = num_units + 1``.

    ``codebook`` is the digest of the tokenizer that the units come from: unit 7 of another one is another sound.
    """

    kind = "units"

    def __init__(self, num_units: int, rate_hz: float, codebook: str = ""):
        if num_units < 1:
            raise UserError(f"num_units is {num_units}: give at least 1")
        if not rate_hz > 0:
            raise UserError(f"rate_hz is {rate_hz}: give units per second, e.g. 25")
        self.num_units = int(num_units)
        self.rate_hz = float(rate_hz)
        self.codebook = codebook
        self.begin_id = self.num_units
        self.end_id = self.num_units + 1
        self.size = self.num_units + 2
        decisive = [str(self.num_units), repr(self.rate_hz), *([codebook] if codebook else [])]
        self.digest = files.digest(b"units", *(part.encode() for part in decisive))

    def encode(self, content: Any) -> Int32[np.ndarray, "n"]:
        """``content``: unit numbers. Raises UserError for one outside ``[0, num_units)``."""
        units = np.asarray(content, dtype=np.int64).reshape(-1)
        wrong = units[(units < 0) | (units >= self.num_units)]
        if len(wrong):
            raise UserError(f"unit {wrong[0]} lies outside 0 to {self.num_units - 1}: was another tokenizer used?")
        return units.astype(np.int32)

    def decode(self, ids: Any) -> Int32[np.ndarray, "n"]:
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        return self.encode(ids[(ids != self.begin_id) & (ids != self.end_id)])

    def save(self, folder: Any) -> None:
        files.write_header(folder, self, num_units=self.num_units, rate_hz=self.rate_hz, codebook=self.codebook)

    @classmethod
    def load(cls, folder: Path, header: Mapping[str, Any]) -> "UnitVocabulary":
        return cls(header["num_units"], header["rate_hz"], header.get("codebook", ""))

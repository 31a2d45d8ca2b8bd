"""Symbols separated by spaces (phones, notes, tags), one token each."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import files
from zipper_jax.vocabularies.contents import require_text

UNKNOWN = "<unk>"


class SymbolVocabulary:
    """Vocabulary in which ``symbols[i]`` has id i; unknown, begin and end follow."""

    kind = "symbols"
    header = files.SymbolHeader

    def __init__(self, symbols: Iterable[str]):
        self.symbols = tuple(symbols)
        if not self.symbols:
            raise UserError("there are no symbols for a vocabulary: check the field and the training split")
        for symbol in self.symbols:
            if symbol.split() != [symbol] or symbol == UNKNOWN:
                raise UserError(f"symbol {symbol!r}: give symbols without spaces, and none that is {UNKNOWN}")
        if len(set(self.symbols)) != len(self.symbols):
            raise UserError("a symbol is listed twice: list each once")
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols)}
        self.unknown_id = len(self.symbols)
        self.begin_id, self.end_id, self.size = (self.unknown_id + n for n in (1, 2, 3))
        self.digest = files.digest(b"symbols", *(symbol.encode() for symbol in self.symbols))

    @classmethod
    def list_from(cls, contents: Iterable[str]) -> "SymbolVocabulary":
        """Build the vocabulary of the symbols that occur in ``contents``, sorted."""
        return cls(sorted({symbol for content in contents for symbol in content.split()}))

    def encode(self, content: Any) -> Int32[np.ndarray, " n"]:
        symbols = require_text(content).split()
        return np.array([self._ids.get(symbol, self.unknown_id) for symbol in symbols], np.int32)

    def unknown(self, content: str) -> list[str]:
        return [symbol for symbol in content.split() if symbol not in self._ids]

    def decode(self, ids: Any) -> str:
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        wrong = ids[(ids < 0) | (ids >= self.size)]
        if len(wrong):
            raise UserError(f"token {wrong[0]} is outside 0 to {self.size - 1}: was another vocabulary used?")
        known = (*self.symbols, UNKNOWN)
        return " ".join(known[number] for number in ids if number < len(known))

    def save(self, folder: Any) -> None:
        files.write_header(folder, self, symbols=self.symbols)

    @classmethod
    def load(cls, folder: Path, header: Mapping[str, Any]) -> "SymbolVocabulary":
        return cls(header["symbols"])

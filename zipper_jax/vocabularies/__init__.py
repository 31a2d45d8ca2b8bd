"""Vocabularies: map content (a sentence, a list of units) to token ids and back. No TensorFlow.

A vocabulary's ids include its begin and end tokens. Every id from 0 is a valid token: no id is reserved for padding.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import as_path, on_this_machine
from zipper_jax.vocabularies import files
from zipper_jax.vocabularies.files import FILE_NAME
from zipper_jax.vocabularies.hugging_face import HuggingFaceVocabulary
from zipper_jax.vocabularies.symbols import SymbolVocabulary
from zipper_jax.vocabularies.text import ByteVocabulary, SentencePieceVocabulary, train_sentencepiece
from zipper_jax.vocabularies.units import UnitVocabulary

__all__ = [
    "ByteVocabulary",
    "HuggingFaceVocabulary",
    "SentencePieceVocabulary",
    "SymbolVocabulary",
    "UnitVocabulary",
    "Vocabulary",
    "load_vocabulary",
    "train_sentencepiece",
]


@runtime_checkable
class Vocabulary(Protocol):
    """Interface of every vocabulary.

    Attributes:
        kind: Name of the class in ``vocabulary.json``.
        size: Number of ids, begin and end included.
        begin_id: Id of the begin token.
        end_id: Id of the end token.
        digest: SHA-256 (hex) of everything that determines ids; equal digests mean interchangeable vocabularies.
    """

    kind: str
    size: int
    begin_id: int
    end_id: int
    digest: str

    def encode(self, content: Any) -> Int32[np.ndarray, " n"]:
        """Return the token ids of ``content``, without begin and end. Raises UserError if it cannot be represented."""
        ...

    def unknown(self, content: Any) -> list[str]:
        """Return the parts of ``content`` that no token represents, one per unknown token or dropped character."""
        ...

    def decode(self, ids: Any) -> Any:
        """Return the content of ``ids`` (any sequence of integers); begin and end tokens are skipped."""
        ...

    def save(self, folder: Any) -> None:
        """Write ``folder/vocabulary.json`` and the files it needs."""
        ...


KINDS: dict[str, Any] = {
    cls.kind: cls
    for cls in (SentencePieceVocabulary, ByteVocabulary, HuggingFaceVocabulary, SymbolVocabulary, UnitVocabulary)
}
"""kind -> class with ``load(folder, header)``."""


def load_vocabulary(folder: Any) -> Vocabulary:
    """Load the output of ``save(folder)``. Raises UserError when it is missing, damaged or of unknown kind."""
    path = as_path(folder) / FILE_NAME
    if not path.is_file():
        raise UserError(f"vocabulary {str(path)!r} does not exist: check the folder, or prepare the data again")
    if not isinstance(path, Path):
        with on_this_machine(path.parent) as copy:
            return load_vocabulary(copy)
    place, fix = f"vocabulary {str(path)!r}", "it is damaged: prepare the data again"
    header = user_json.decode(path.read_bytes(), place, fix)
    about = user_json.convert(header, files.Header, place, fix)
    kind, digest = about.kind, about.digest
    if kind not in KINDS:
        raise UserError(f"{place} is of kind {kind!r}, this version knows {', '.join(KINDS)}: upgrade")
    user_json.convert(header, KINDS[kind].header, place, fix)
    try:
        vocabulary = KINDS[kind].load(Path(folder), header)
    except UserError as error:
        raise error if str(folder) in str(error) else UserError(f"{place}: {error}") from error
    if vocabulary.digest != digest:
        raise UserError(
            f"vocabulary {str(folder)!r} has changed since it was written (digest {vocabulary.digest[:12]}, "
            f"recorded {digest[:12]}): restore it, or prepare the data again"
        )
    return vocabulary

"""Text vocabularies: sentencepiece, and bytes. Neither imports TensorFlow or seqio.

sentencepiece is imported where it is used, because training from packed rows runs on machines without it.
"""

import io
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes
from zipper_jax.utils.storage import as_path
from zipper_jax.vocabularies import files
from zipper_jax.vocabularies.contents import require_text

MODEL_NAME = "sentencepiece.model"
_SENTENCEPIECES_LONGEST = 4192  # sentencepiece's default max_sentence_length, in bytes


class SentencePieceVocabulary:
    """A sentencepiece model with begin (``<s>``) and end (``</s>``) pieces; its ids are used unchanged."""

    kind = "sentencepiece"
    header = files.Header

    def __init__(self, model: bytes, header: Mapping[str, Any] | None = None):
        """Load ``model``; with its stored ``header``, only when text is first encoded or decoded."""
        self._model = model
        if header is not None:
            self.size, self.begin_id, self.end_id = (header[name] for name in ("size", "begin_id", "end_id"))
        else:
            self.size = self._processor.get_piece_size()
            self.begin_id, self.end_id = self._processor.bos_id(), self._processor.eos_id()
        if self.begin_id < 0 or self.end_id < 0:
            raise UserError(
                "the sentencepiece model lacks a begin or an end piece "
                f"(bos_id = {self.begin_id}, eos_id = {self.end_id}): train it with both"
            )
        self.digest = files.digest(b"sentencepiece", model)

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                f"these {len(self._model)} bytes are not a sentencepiece model ({error}): give a .model file"
            ) from error

    def encode(self, content: Any) -> Int32[np.ndarray, " n"]:
        return np.asarray(self._processor.encode(require_text(content)), dtype=np.int32)

    def unknown(self, content: str) -> list[str]:
        return unknown_pieces(self._processor, content)

    def decode(self, ids: Any) -> str:
        return self._processor.decode([i for i in _checked(ids, self.size) if i not in (self.begin_id, self.end_id)])

    def save(self, folder: Any) -> None:
        write_bytes(as_path(folder) / MODEL_NAME, self._model)
        files.write_header(folder, self)

    @classmethod
    def load(cls, folder: Path, header: Mapping[str, Any]) -> "SentencePieceVocabulary":
        path = folder / MODEL_NAME
        if not path.is_file():
            raise UserError(f"vocabulary file {str(path)!r} does not exist: restore it, or prepare the data again")
        return cls(path.read_bytes(), header)


class ByteVocabulary:
    """UTF-8 bytes: byte b has id b, ``begin = 256``, ``end = 257``. Represents any text."""

    kind = "bytes"
    header = files.Header
    size = 258
    begin_id = 256
    end_id = 257

    def __init__(self) -> None:
        self.digest = files.digest(b"bytes")

    def encode(self, content: Any) -> Int32[np.ndarray, " n"]:
        return np.frombuffer(require_text(content).encode(), dtype=np.uint8).astype(np.int32)

    def unknown(self, content: str) -> list[str]:
        return []

    def decode(self, ids: Any) -> str:
        return bytes(i for i in _checked(ids, self.size) if i < 256).decode(errors="replace")

    def save(self, folder: Any) -> None:
        files.write_header(folder, self)

    @classmethod
    def load(cls, folder: Path, header: Mapping[str, Any]) -> "ByteVocabulary":
        return cls()


def unknown_pieces(processor: Any, content: str) -> list[str]:
    """Return the text of each unknown token of a sentencepiece model."""
    unknown, ids = processor.unk_id(), processor.encode(content)
    if unknown not in ids:
        return []
    pieces = processor.encode(content, out_type=str)  # of an unknown token: its text
    return [piece.replace("\u2581", " ").strip() for piece, own in zip(pieces, ids, strict=True) if own == unknown]


def train_sentencepiece(
    sentences: Iterable[str],
    size: int,
    model_type: str = "bpe",
    byte_fallback: bool = False,
    normalisation: str = "identity",
) -> SentencePieceVocabulary:
    """Train a sentencepiece vocabulary of exactly ``size`` ids: unknown, begin, end, then pieces.

    If the sentences support fewer pieces, the rest are placeholders that never occur in encoded text, so that a model's
    vocabulary size is independent of the data. Deterministic for the same sentences in the same order.

    Args:
        sentences: Training text.
        size: Total number of ids.
        model_type: "unigram", "bpe", "char" or "word".
        byte_fallback: Encode unseen characters as bytes (256 pieces of ``size``) instead of one unknown piece.
        normalisation: Normalisation rule of sentencepiece ("identity", "nmt_nfkc", "nfkc_cf", ...).

    Raises:
        UserError: There are no sentences, or ``size`` is too small for the characters.
    """
    import sentencepiece

    sentences = list(sentences)
    if not any(sentence.strip() for sentence in sentences):
        raise UserError("there is no sentence to train a text vocabulary on: check the corpus's training split")

    # sentencepiece skips longer sentences. The argument is stored in the model, so it is given only if needed.
    longest = max(len(sentence.encode()) for sentence in sentences)
    length: dict[str, Any] = {"max_sentence_length": longest} if longest > _SENTENCEPIECES_LONGEST else {}

    def train(placeholders: int) -> SentencePieceVocabulary:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            control_symbols=[f"<unused_{i}>" for i in range(placeholders)],
            model_type=model_type,
            character_coverage=1.0,
            byte_fallback=byte_fallback,
            normalization_rule_name=normalisation,
            remove_extra_whitespaces=normalisation != "identity",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # the order of floating-point sums, and so the pieces, depends on it
            minloglevel=2,
            **length,
        )
        return SentencePieceVocabulary(model.getvalue())

    try:
        vocabulary = train(0)
        if vocabulary.size < size:
            vocabulary = train(size - vocabulary.size)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"text_vocabulary_size = {size}: sentencepiece failed ({' '.join(str(error).split())}); try a larger size"
        ) from error
    if vocabulary.size != size:
        raise UserError(f"text_vocabulary_size = {size}: got {vocabulary.size} pieces; try another size")
    return vocabulary


def _checked(ids: Any, size: int) -> list[int]:
    ids = np.asarray(ids, dtype=np.int64).reshape(-1)
    wrong = ids[(ids < 0) | (ids >= size)]
    if len(wrong):
        raise UserError(f"token {wrong[0]} is outside 0 to {size - 1}: was another vocabulary used?")
    return ids.tolist()

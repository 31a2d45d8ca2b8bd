"""Tokenizers of Hugging Face folders: ``tokenizer.json``, ``vocab.json`` with ``merges.txt``, or ``tokenizer.model``.

Their ids are used unchanged. Begin and end are tokens of the tokenizer if it has two different ones; else they are ids
from ``rows`` on, whose embeddings the fused model stores beside the tower (``added_embeddings``).
"""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes
from zipper_jax.utils.storage import as_path
from zipper_jax.vocabularies import files
from zipper_jax.vocabularies.contents import require_text
from zipper_jax.vocabularies.text import unknown_pieces

DECISIVE = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model")
FILES = (
    *DECISIVE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Files that are copied from a tokenizer's folder, so that it can be exported completely."""


class HuggingFaceVocabulary:
    """A Hugging Face tokenizer for a tower of ``rows`` tokens.

    Args:
        contents: File name -> bytes, of `FILES`.
        rows: Vocabulary size of the tower; at least that of the tokenizer (towers are often padded).
        begin_id: Id of the begin token; ``rows`` or above if fusion adds it.
        end_id: Id of the end token; likewise.

    Raises:
        UserError: The files hold no tokenizer, a damaged one, or one with more tokens than the tower.
    """

    kind = "hugging_face"
    header = files.RowsHeader

    def __init__(self, contents: Mapping[str, bytes], rows: int, begin_id: int, end_id: int):
        self.contents, self.rows = dict(contents), rows
        self.begin_id, self.end_id = begin_id, end_id
        self.size = max(rows, begin_id + 1, end_id + 1)
        self._backend = backend(self.contents)
        if self._backend.size > rows:
            raise UserError(
                f"the tokenizer has {self._backend.size} tokens, the tower {rows}: it is the tokenizer of another model"
            )
        if begin_id == end_id:
            raise UserError(f"begin and end are the same token ({begin_id}): give another, or add one")
        parts = [self.contents[name] for name in DECISIVE if name in self.contents]
        self.digest = files.digest(b"hugging_face", *parts, f"{rows} {begin_id} {end_id}".encode())

    def encode(self, content: Any) -> Int32[np.ndarray, " n"]:
        return np.asarray(self._backend.encode(require_text(content)), dtype=np.int32)

    def unknown(self, content: str) -> list[str]:
        return self._backend.unknown(content)

    def decode(self, ids: Any) -> str:
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        wrong = ids[(ids < 0) | (ids >= self.size)]
        if len(wrong):
            raise UserError(f"token {wrong[0]} is outside 0 to {self.size - 1}: was another vocabulary used?")
        known = (ids != self.begin_id) & (ids != self.end_id) & (ids < self.rows)
        return self._backend.decode(ids[known].tolist())

    def save(self, folder: Any) -> None:
        for name, content in self.contents.items():
            write_bytes(as_path(folder) / "tokenizer" / name, content)
        files.write_header(folder, self, rows=self.rows)

    @classmethod
    def load(cls, folder: Path, header: Mapping[str, Any]) -> "HuggingFaceVocabulary":
        contents = read_files(folder / "tokenizer")
        return cls(contents, header["rows"], header["begin_id"], header["end_id"])


def read_files(folder: str | Path) -> dict[str, bytes]:
    """Return the tokenizer's files in a folder: name -> bytes."""
    return {name: (Path(folder) / name).read_bytes() for name in FILES if (Path(folder) / name).is_file()}


def read_config(contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Return ``tokenizer_config.json``, which may be missing. Raises UserError if it is damaged."""
    name = "tokenizer_config.json"
    return user_json.decode(contents.get(name, b"{}"), name, "it is damaged: get it again")


def backend(contents: Mapping[str, bytes]) -> Any:
    """Return the tokenizer implementation, with ``size`` (highest id of text + 1) and ``id_of(token)``.

    Raises:
        UserError: There is none, a damaged one, or vocab.json and merges.txt whose pre-tokenization is not GPT-2's.
    """
    if "tokenizer.json" not in contents and "vocab.json" in contents:
        _require_gpt2(contents)
    try:
        if "tokenizer.json" in contents or {"vocab.json", "merges.txt"} <= contents.keys():
            return _Tokenizers(contents)
        if "tokenizer.model" in contents:
            return _SentencePiece(contents["tokenizer.model"])
    except Exception as error:  # tokenizers raises bare Exceptions for damaged files
        raise UserError(f"the tokenizer's files are damaged ({' '.join(str(error).split())[:200]})") from error
    raise UserError(f"there is no tokenizer (none of {', '.join(DECISIVE)})")


class _Tokenizers:
    def __init__(self, contents: Mapping[str, bytes]):
        import tokenizers

        if "tokenizer.json" in contents:
            self._tokenizer = tokenizers.Tokenizer.from_str(contents["tokenizer.json"].decode())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        else:
            self._tokenizer = _byte_level(contents["vocab.json"], contents["merges.txt"])
        # Text that contains a special token's name must not be encoded as that token.
        self._tokenizer.encode_special_tokens = True
        # Special tokens never occur in encoded text, and may exceed the tower's vocabulary (Gemma 3 has one more).
        special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self.size = 1 + max(set(self._tokenizer.get_vocab(with_added_tokens=True).values()) - special, default=0)
        self.id_of = self._tokenizer.token_to_id
        model = json.loads(self._tokenizer.to_str())["model"]
        self._unknown_id = model.get("unk_id")  # of Unigram; the other models name the token
        if model.get("unk_token") is not None:
            self._unknown_id = self.id_of(model["unk_token"])

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def unknown(self, text: str) -> list[str]:
        """Return the text of unknown tokens, and per letter, digit or mark that no token covers its word."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        covered: set[int] = set()
        unknown = []
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            covered.update(range(start, end))
            if number == self._unknown_id:
                unknown.append(text[start:end])
        # Not spaces, control characters and combining marks, which tokenizers normalise on purpose.
        dropped = (n for n, one in enumerate(text) if n not in covered and unicodedata.category(one)[0] not in "ZCM")
        # The word, because offsets of a BPE model without an unknown token are right only up to words.
        return unknown + [text[:n].split(" ")[-1] + text[n:].split(" ")[0] for n in dropped]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class _SentencePiece:
    def __init__(self, model: bytes):
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size()

    def id_of(self, token: str) -> int | None:
        found = self._processor.piece_to_id(token)
        return None if found == self._processor.unk_id() else found

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def unknown(self, text: str) -> list[str]:
        return unknown_pieces(self._processor, text)

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


def _require_gpt2(contents: Mapping[str, bytes]) -> None:
    """Raise UserError unless the tokenizer class is GPT-2's: vocab.json and merges.txt do not define how to split."""
    named = read_config(contents)
    kind, spaced = named.get("tokenizer_class"), named.get("add_prefix_space", False)
    if kind not in (None, "GPT2Tokenizer", "GPT2TokenizerFast") or spaced or "added_tokens.json" in contents:
        raise UserError(
            f"without tokenizer.json, vocab.json and merges.txt are read as plain GPT-2's, but this is {kind} with "
            f"add_prefix_space = {spaced}: let transformers write tokenizer.json, "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )


def _byte_level(vocabulary: bytes, merges: bytes):
    """Return GPT-2's byte-level BPE from its two files."""
    import tokenizers

    lines = merges.decode().splitlines()
    split = (line.split() for line in lines if line and not line.startswith("#version"))
    pairs = [(first, second) for first, second in split]
    model = tokenizers.models.BPE(vocab=json.loads(vocabulary), merges=pairs)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer

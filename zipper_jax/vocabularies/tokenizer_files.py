"""Which vocabulary a converted tower has, and which tokens it lacks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import HuggingFaceVocabulary, UnitVocabulary, Vocabulary
from zipper_jax.vocabularies.hugging_face import backend, read_files

ADDED = "added"
"""What a user writes for a begin or end token that fusion shall add."""


def text_vocabulary(
    folder: str | Path, config: Mapping[str, Any], rows: int, begin: str | None = None, end: str | None = None
) -> HuggingFaceVocabulary:
    """The tokenizer of a Hugging Face folder.

    Begin and end are its bos and eos tokens (``config.json``, else ``tokenizer_config.json``), or what ``begin`` and
    ``end`` name: a token, an id, or `ADDED`. One that is missing, and a begin that is also the end, is added.

    Raises:
      UserError: no tokenizer, or an unknown token.
    """
    contents = read_files(folder)
    try:
        tokenizer = backend(contents)
    except UserError as error:
        raise UserError(
            f"{str(folder)!r}: {error}; for a model of units give --units NUMBER, or put the tokenizer's files there"
        ) from error
    try:
        named = dict(json.loads(contents.get("tokenizer_config.json", b"{}")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{str(folder)!r}: tokenizer_config.json is damaged ({error}); get it again") from error

    def find(given: str | None, kind: str) -> int | None:
        if given == ADDED:
            return None
        if given is not None:
            found = int(given) if given.isdecimal() else tokenizer.id_of(given)
            if found is None or not 0 <= found < rows:
                raise UserError(f"--{'begin' if kind == 'bos' else 'end'}_token {given!r} is no token of this model")
            return found
        value = config.get(f"{kind}_token_id")
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None:
            token = named.get(f"{kind}_token")
            token = token.get("content") if isinstance(token, dict) else token
            value = None if token is None else tokenizer.id_of(token)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise UserError(f"{str(folder)!r}: config.json has {kind}_token_id = {value!r}, which is no token's number")
        return value if value is not None and 0 <= value < rows else None

    begin_id, end_id = _two(find(begin, "bos"), find(end, "eos"), rows)
    return HuggingFaceVocabulary(contents, rows, begin_id, end_id)


def whole_tokenizer(folder: str | Path) -> HuggingFaceVocabulary:
    """The tokenizer of a folder with all its tokens, for a tower that is trained from nothing.

    Raises:
      UserError: as `text_vocabulary`.
    """
    about = Path(folder) / "config.json"
    try:
        config = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    except ValueError as error:
        raise UserError(f"{str(about)!r} is damaged ({error}); get it again") from error
    return text_vocabulary(folder, config, backend(read_files(folder)).size)


def sentencepiece_vocabulary(
    path: str | Path, rows: int, begin: str | None = None, end: str | None = None
) -> HuggingFaceVocabulary:
    """A sentencepiece model for a tower of T5X, which begins every sequence with token 0 and ends it with 1.

    Raises:
      UserError: no such file, not a sentencepiece model, or a token outside the tower.
    """
    if not Path(path).is_file():
        raise UserError(f"--vocabulary {str(path)!r} does not exist; give a sentencepiece .model file")
    contents = {"tokenizer.model": Path(path).read_bytes()}
    tokenizer = backend(contents)

    def find(given: str | None, default: int, option: str) -> int | None:
        if given == ADDED:
            return None
        found = default if given is None else int(given) if given.isdecimal() else tokenizer.id_of(given)
        if found is None or not 0 <= found < rows:
            raise UserError(f"--{option} {given!r} is no token of this model")
        return found

    begin_id, end_id = _two(find(begin, 0, "begin_token"), find(end, 1, "end_token"), rows)
    return HuggingFaceVocabulary(contents, rows, begin_id, end_id)


def unit_vocabulary(
    rows: int, units: int, first: int, rate_hz: float, begin: str | None = None, end: str | None = None
) -> UnitVocabulary:
    """The vocabulary of a unit model that has no tokenizer: unit u is row ``first + u``.

    ``begin`` and ``end``: rows that the model knows as such, or `ADDED` (the default).

    Raises:
      UserError: units or rows outside the tower.
    """
    if not 0 < units <= rows - first or first < 0:
        raise UserError(f"--units {units} from row {first} on do not fit a tower of {rows} tokens")

    def find(given: str | None, name: str) -> int | None:
        if given in (None, ADDED):
            return None
        if not str(given).isdecimal() or int(str(given)) >= rows or first <= int(str(given)) < first + units:
            raise UserError(f"--{name}_token {given!r}: give a row of the tower outside its units, or {ADDED!r}")
        return int(str(given))

    begin_id, end_id = _two(find(begin, "begin"), find(end, "end"), rows)
    return UnitVocabulary(units, rate_hz, first=first, rows=rows, begin_id=begin_id, end_id=end_id)


def added_tokens(vocabulary: Vocabulary, rows: int) -> int:
    """How many tokens of a vocabulary the tower lacks."""
    return max(0, vocabulary.size - rows)


def _two(begin: int | None, end: int | None, rows: int) -> tuple[int, int]:
    """Two different ids; what is missing takes the next ids behind the tower's rows."""
    if begin == end:
        begin = None
    free = iter((rows, rows + 1))
    return next(free) if begin is None else begin, next(free) if end is None else end

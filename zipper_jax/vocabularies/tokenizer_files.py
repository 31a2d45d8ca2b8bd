"""Vocabularies of converted towers, and the tokens that a tower lacks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import HuggingFaceVocabulary, UnitVocabulary, Vocabulary
from zipper_jax.vocabularies.hugging_face import backend, read_config, read_files

ADDED = "added"
"""Value of --begin_token or --end_token for a token that fusion adds."""


def text_vocabulary(
    folder: str | Path, config: Mapping[str, Any], rows: int, begin: str | None = None, end: str | None = None
) -> HuggingFaceVocabulary:
    """Return the vocabulary of the tokenizer in a Hugging Face folder.

    A begin or end token that is missing is added, as is a begin token that equals the end token.

    Args:
        folder: Hugging Face folder.
        config: Content of its ``config.json``.
        rows: Vocabulary size of the tower.
        begin: A token, an id, or `ADDED`; None: bos of ``config.json``, else of ``tokenizer_config.json``.
        end: The same for eos.

    Raises:
        UserError: There is no tokenizer, or a token is unknown.
    """
    return made_vocabulary(read_files(folder), str(folder), config, rows, begin, end)


def made_vocabulary(
    contents: Mapping[str, bytes],
    what: str,
    config: Mapping[str, Any],
    rows: int,
    begin: str | None = None,
    end: str | None = None,
) -> HuggingFaceVocabulary:
    """`text_vocabulary` of the tokenizer's files, name -> content, of ``what``."""
    try:
        tokenizer = backend(contents)
    except UserError as error:
        raise UserError(
            f"{what!r}: {error}; for a model of units give --units NUMBER, or put the tokenizer's files there"
        ) from error
    try:
        named = read_config(contents)
    except UserError as error:
        raise UserError(f"{what!r}: {error}") from error

    def find(given: str | None, kind: str) -> int | None:
        if given == ADDED:
            return None
        if given is not None:
            found = int(given) if given.isdecimal() else tokenizer.id_of(given)
            if found is None or not 0 <= found < rows:
                raise UserError(f"--{'begin' if kind == 'bos' else 'end'}_token {given!r} is not a token of this model")
            return found
        value = config.get(f"{kind}_token_id")
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None:
            token = named.get(f"{kind}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise UserError(
                    f"{what!r}: tokenizer_config.json has {kind}_token = {token!r}, which is not a token; "
                    f"correct it, or give --{'begin' if kind == 'bos' else 'end'}_token"
                )
            value = None if token is None else tokenizer.id_of(token)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise UserError(f"{what!r}: config.json has {kind}_token_id = {value!r}, which is not a token id")
        return value if value is not None and 0 <= value < rows else None

    begin_id, end_id = _two(find(begin, "bos"), find(end, "eos"), rows)
    return HuggingFaceVocabulary(contents, rows, begin_id, end_id)


def whole_tokenizer(folder: str | Path) -> HuggingFaceVocabulary:
    """Return the vocabulary of a folder's tokenizer with all its tokens, for a tower trained from scratch.

    Raises:
        UserError: As `text_vocabulary`.
    """
    about = Path(folder) / "config.json"
    config = user_json.read_object(about, "it is damaged: get it again") if about.is_file() else {}
    return text_vocabulary(folder, config, backend(read_files(folder)).size)


def sentencepiece_vocabulary(
    path: str | Path, rows: int, begin: str | None = None, end: str | None = None
) -> HuggingFaceVocabulary:
    """Return the vocabulary of a sentencepiece model for a T5X tower; T5X begins sequences with token 0, ends with 1.

    Raises:
        UserError: The file is missing or not a sentencepiece model, or a token is outside the tower.
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
            raise UserError(f"--{option} {given!r} is not a token of this model")
        return found

    begin_id, end_id = _two(find(begin, 0, "begin_token"), find(end, 1, "end_token"), rows)
    return HuggingFaceVocabulary(contents, rows, begin_id, end_id)


def unit_vocabulary(
    rows: int, units: int, first: int, rate_hz: float, begin: str | None = None, end: str | None = None
) -> UnitVocabulary:
    """Return the vocabulary of a unit model without a tokenizer: unit u has id ``first + u``.

    Args:
        rows: Vocabulary size of the tower.
        units: Number of units.
        first: Id of unit 0.
        rate_hz: Units per second.
        begin: Id of the model's begin token, or `ADDED` (the default).
        end: The same for the end token.

    Raises:
        UserError: Units or tokens are outside the tower.
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
    """Return how many tokens of a vocabulary the tower lacks."""
    return max(0, vocabulary.size - rows)


def _two(begin: int | None, end: int | None, rows: int) -> tuple[int, int]:
    """Return two different ids; a missing one becomes the next id after the tower's vocabulary."""
    if begin == end:
        begin = None
    free = iter((rows, rows + 1))
    return next(free) if begin is None else begin, next(free) if end is None else end

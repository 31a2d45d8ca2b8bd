"""Vocabularies of a prepared folder, one per modality: the tokenizer's units, given, or made from the training split.

Each is a separate stage: a vocabulary that an interrupted run wrote is reused.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.data.encode import part
from zipper_jax.data.prepare_settings import NUM_UNITS, PrepareSettings
from zipper_jax.speech import whisper
from zipper_jax.speech.audio import SAMPLE_RATE, AudioError, load_audio
from zipper_jax.speech.corpus import read_header as read_header_of_corpus
from zipper_jax.speech.given_units import GivenUnits
from zipper_jax.speech.manifest import CONTENT, Manifest
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.speech.tokenizers import Tokenizer, load_tokenizer
from zipper_jax.speech.whisper_units import WhisperUnits
from zipper_jax.tasks import MODALITIES, SPEECH, TaskSet
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import AnyPath
from zipper_jax.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    SymbolVocabulary,
    UnitVocabulary,
    Vocabulary,
    load_vocabulary,
    train_sentencepiece,
)
from zipper_jax.vocabularies.hugging_face import DECISIVE
from zipper_jax.vocabularies.tokenizer_files import whole_tokenizer

logger = logging.getLogger(__name__)

_FIT_SECONDS_WHISPER = 1200.0  # its features take 0.1 s of one core per second of audio
_FIT_SECONDS = 3600.0  # of audio: the tokenizer uses at most 60,000 units, 2,400 s, of what it is given
_FIT_CHARACTERS = 50_000_000  # of text: sentencepiece holds all of it in memory
_FITTED_SIZE = 256  # ids of a sentencepiece vocabulary of which none is said


def make_tokenizer(
    corpus: Path,
    folder: AnyPath,
    manifest: Manifest,
    offsets: np.ndarray,
    settings: PrepareSettings,
    given: Tokenizer | None,
) -> Tokenizer:
    """Return the stored tokenizer, else the given one, else one fitted on the audio of the rows at ``offsets``."""
    home = folder / "vocabularies" / SPEECH
    if (home / "vocabulary.json").is_file():
        return load_tokenizer(home)
    begun = time.monotonic()
    tokenizer = given if given is not None else _fit(corpus, manifest, offsets, settings)
    tokenizer.save(home)
    vocabulary = UnitVocabulary(tokenizer.num_units, tokenizer.rate_hz, tokenizer.digest)
    if settings.speech_vocabulary:
        vocabulary = given_units(settings, tokenizer)
        logger.info(f"units have the ids of {settings.speech_vocabulary!r}: it must be a model of these very units")
    vocabulary.save(home)
    how = "given" if given is not None else f"fitted in {time.monotonic() - begun:.1f} s"
    logger.info(f"{tokenizer.num_units} units at {tokenizer.rate_hz:g} Hz, {how}")
    return tokenizer


def _fit(corpus: Path, manifest: Manifest, offsets: np.ndarray, settings: PrepareSettings) -> Tokenizer:
    kind, _, where = settings.unit_features.partition(":")
    most = _FIT_SECONDS if kind == "log-mel" else _FIT_SECONDS_WHISPER
    chosen, seconds = [], 0.0
    problem: AudioError | None = None
    # In random order, so that the sample covers all voices.
    for row in manifest.at(offsets[np.random.default_rng(settings.seed).permutation(len(offsets))]):
        if seconds >= most:
            break
        try:
            waveform = load_audio(**part(corpus, row))
        except AudioError as error:  # encoding drops and counts it, if others are left
            problem = problem or error
            continue
        seconds += len(waveform) / SAMPLE_RATE
        chosen.append(waveform)
    if not chosen and problem is not None:
        raise problem
    logger.info(f"fitting {settings.num_units} units on {seconds / 60:.1f} minutes of training audio")
    if kind == "whisper":
        pooled = 50 // settings.unit_rate
        return WhisperUnits.fit(chosen, where, settings.unit_layer, pooled, settings.num_units, settings.seed)
    return UnitTokenizer.fit(chosen, settings.num_units, settings.seed)


def given_tokenizer(corpus: Path, settings: PrepareSettings) -> Tokenizer | None:
    """Return the tokenizer of the corpus's own units, or that of ``settings.tokenizer``; None: fit one."""
    about = (read_header_of_corpus(corpus) or {}).get("units")
    if about is not None and settings.tokenizer:
        raise UserError(f"tokenizer = {settings.tokenizer!r}: the corpus already has units; omit --tokenizer")
    if about is not None:
        return GivenUnits.of(about, repr(str(corpus / "corpus.json")), "units")
    if not settings.tokenizer:
        return None
    home = Path(settings.tokenizer) / "vocabularies" / SPEECH
    if not home.is_dir():
        raise UserError(
            f"tokenizer = {settings.tokenizer!r}: give a folder that has vocabularies/speech (a run, a prepared "
            "folder, or the output of `zipper data tokenizer`)"
        )
    return load_tokenizer(home)


def check_described(corpus: Path, row: Mapping[str, Any], is_described: bool) -> None:
    """Raise UserError for a row with units that corpus.json does not describe, or without those that it describes."""
    if "units" in row and not is_described:
        raise UserError(
            f"row {row['id']!r} of {str(corpus)!r} has units, but corpus.json does not describe them: add "
            '"units": {"num_units": …, "rate_hz": …} there'
        )
    if is_described and "audio" in row and "units" not in row:
        raise UserError(f"row {row['id']!r} of {str(corpus)!r} has audio but no units, as other rows do: add them")


def check_units(corpus: Path, rows: Iterable[dict[str, Any]], num_units: int) -> None:
    for row in rows:
        units = np.asarray(row.get("units", [0]))
        if units.ndim != 1 or units.dtype.kind != "i" or units.min() < 0 or units.max() >= num_units:
            raise UserError(f"row {row['id']!r} of {str(corpus)!r}: units must be integers from 0 to {num_units - 1}")


def check_weights(settings: PrepareSettings) -> None:
    """Raise UserError if units are to be codes of an encoder whose weights are not there."""
    kind, _, where = settings.unit_features.partition(":")
    if kind == "whisper":
        try:
            whisper.find_weights(where)
        except UserError as error:
            raise UserError(
                f"unit_features = {settings.unit_features!r}: {error}; or give --unit_features log-mel, units that "
                "need no weights, name a speaker's spectrum, and are hard to understand"
            ) from None


def of_tokenizer(settings: PrepareSettings, given: Tokenizer | None) -> PrepareSettings:
    """Return the settings with ``num_units`` of a given tokenizer, or with what the units are codes of."""
    if given is None:
        return dataclasses.replace(settings, unit_features=settings.unit_features or "whisper")
    if settings.num_units not in (NUM_UNITS, given.num_units):
        raise UserError(f"num_units = {settings.num_units}: the given units are {given.num_units}; omit --num_units")
    return dataclasses.replace(settings, num_units=given.num_units)


def make_vocabulary(
    folder: AnyPath, modality: str, rows: Iterable[Mapping[str, Any]], settings: PrepareSettings
) -> Vocabulary:
    """Of the finished stage, else the given one, else made from the training split.

    Args:
        folder: Prepared folder.
        modality: Whose vocabulary.
        rows: Of the corpus; iterated twice.
        settings: How it is made.
    """
    home = folder / "vocabularies" / modality
    if (home / "vocabulary.json").is_file():
        return load_vocabulary(home)
    kind, size = settings.task_set.vocabulary_of(modality), settings.vocabulary_size(modality)
    field = settings.task_set.field_of(modality)
    vocabulary: Vocabulary
    if settings.vocabulary(modality):
        vocabulary, source = given_vocabulary(modality, settings), "given"
    elif kind == "subwords":
        sentences, source = _text_sample(rows, field, settings.seed)
        vocabulary = train_sentencepiece(sentences, size or _FITTED_SIZE)
    elif kind == "symbols":
        contents = (row[field] for row in rows if row["split"] == "train" and row.get(field))
        vocabulary, source = SymbolVocabulary.list_from(contents), "the training split"
    elif size is None:
        raise UserError(f"vocabulary_sizes has no {modality!r}: give its number of units")
    else:
        vocabulary, source = UnitVocabulary(size, rate_hz=1.0), "its size"  # no audio, so the rate is arbitrary
    vocabulary.save(home)
    logger.info(f"{modality} vocabulary: {vocabulary.kind}, {vocabulary.size} tokens, from {source}")
    return vocabulary


def _text_sample(rows: Iterable[Mapping[str, Any]], field: str, seed: int) -> tuple[list[str], str]:
    """Return the training texts in order, or a sample of `_FIT_CHARACTERS` that ``seed`` draws; and what they are."""

    def texts() -> Iterator[str]:
        return (row[field] for row in rows if row["split"] == "train" and row.get(field))

    sizes = np.fromiter((len(text) for text in texts()), np.int64)
    order = np.random.default_rng(seed).permutation(len(sizes))
    chosen = np.zeros(len(sizes), bool)
    chosen[order[np.cumsum(sizes[order]) - sizes[order] < _FIT_CHARACTERS]] = True
    found = list(itertools.compress(texts(), chosen))
    return found, f"{len(found)}{f' of {len(sizes)}' * (len(found) < len(sizes))} training sentences"


def given_vocabulary(modality: str, settings: PrepareSettings) -> Vocabulary:
    """Return the vocabulary that the settings name for ``modality``.

    Raises:
        UserError: The setting names no vocabulary, or one of another kind.
    """
    given, subwords = settings.vocabulary(modality), settings.task_set.vocabulary_of(modality) == "subwords"
    field = f"{modality}_vocabulary" if modality in MODALITIES else f"vocabularies[{modality!r}]"
    folder = Path(given) / "vocabularies" / modality
    if subwords and given == "bytes":
        return ByteVocabulary()
    if folder.is_dir():
        found = load_vocabulary(folder)
        if not subwords and found.kind != settings.task_set.vocabulary_of(modality):
            raise UserError(
                f"{field} = {given!r}: its {modality} vocabulary is of kind {found.kind}; give one of kind "
                f"{settings.task_set.vocabulary_of(modality)}"
            )
        return found
    if subwords and Path(given).is_file():
        return SentencePieceVocabulary(Path(given).read_bytes())
    if subwords and any((Path(given) / name).is_file() for name in DECISIVE):
        return whole_tokenizer(given)
    names = "'sentencepiece', 'bytes', a sentencepiece .model file, a tokenizer's folder, or " if subwords else ""
    raise UserError(
        f"{field} = {given!r}: give {names}a folder that has vocabularies/{modality} (a run, a "
        "prepared folder, or the output of `zipper convert from-hf`)"
    )


def content_types(task_set: TaskSet) -> dict[str, Any]:
    """Return the content fields of a manifest and their types: those of every corpus, and those of ``task_set``."""
    further = {m.field: list[int] if m.vocabulary == "units" else str for m in task_set.modalities.values()}
    return further | CONTENT


def given_units(settings: PrepareSettings, tokenizer: Tokenizer | None = None) -> UnitVocabulary:
    """Return the vocabulary of ``speech_vocabulary``. Raises UserError when it does not fit the tokenizer."""
    given, place = given_vocabulary(SPEECH, settings), settings.speech_vocabulary
    assert isinstance(given, UnitVocabulary)
    if given.num_units != settings.num_units:
        raise UserError(
            f"speech_vocabulary = {place!r}: it has {given.num_units} units, but num_units = {settings.num_units}; "
            f"give --num_units {given.num_units}"
        )
    if tokenizer is not None and given.rate_hz != tokenizer.rate_hz:
        raise UserError(
            f"speech_vocabulary = {place!r}: it has {given.rate_hz:g} units per second, the tokenizer "
            f"{tokenizer.rate_hz:g}; give the vocabulary of these units"
        )
    if tokenizer is not None and given.codebook not in ("", tokenizer.digest):
        raise UserError(
            f"speech_vocabulary = {place!r}: it belongs to another unit tokenizer; give the vocabulary of these units"
        )
    return given

"""The prepared folder: vocabularies, the unit tokenizer, and every example as text and units. No TensorFlow.

    prepared/header.json                    settings, corpus, digests
    prepared/vocabularies/<modality>/       vocabulary.json (+ sentencepiece.model, tokenizer.npz or tokenizer.json)
    prepared/examples/<split>.jsonl         {"id", "split", "text", "units", "voice", "seconds", "shift"}; null: none
    prepared/rows/<task>/<split>/           see packed_rows

Vocabulary and tokenizer are fitted on the training split alone, where none is given. A corpus without text has no text
vocabulary, one without speech no units. A stage is finished when its file is there (each is written aside and renamed;
examples/<split>.jsonl.partial is gone on with); header.json pins the settings and the corpus that they were made with.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.configs import to_dict
from zipper_jax.conversion.tokenizer import whole_tokenizer
from zipper_jax.data.encode import encode_split, part
from zipper_jax.data.import_corpus import figures, leaks
from zipper_jax.data.prepare_settings import NUM_UNITS, PrepareSettings
from zipper_jax.errors import UserError
from zipper_jax.files import write_json
from zipper_jax.progress import Say
from zipper_jax.speech.audio import SAMPLE_RATE, load_audio
from zipper_jax.speech.corpus import read_header as read_header_of_corpus
from zipper_jax.speech.corpus import read_manifest
from zipper_jax.speech.given_units import GivenUnits
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.speech.tokenizers import Tokenizer, load_tokenizer
from zipper_jax.version import __version__
from zipper_jax.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    UnitVocabulary,
    Vocabulary,
    load_vocabulary,
    train_sentencepiece,
)
from zipper_jax.vocabularies.hugging_face import DECISIVE

FORMAT_VERSION = 1
_FIT_SECONDS = 3600.0  # of audio: the tokenizer uses at most 60,000 units, 2,400 s, of what it is given


def read_header(folder: Any) -> dict[str, Any]:
    """``header.json``. Raises UserError when there is none or it cannot be read."""
    header = _header_or_none(Path(folder))
    if header is None:
        raise UserError(
            f"{str(folder)!r} is no prepared folder (no header.json): run `zipper data prepare --out {folder}`"
        )
    return header


def read_examples(folder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The examples of ``split``, in the corpus's order; ``units`` as int32; text, units None: it has none."""
    path = _examples(Path(folder), split)
    if not path.is_file():
        known = ", ".join(splits(folder)) or "none"
        raise UserError(f"{str(path)!r} does not exist (splits there: {known}): run `zipper data prepare`")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            example = json.loads(line)
            if example["units"] is not None:
                example["units"] = np.array(example["units"], np.int32)
            example.setdefault("shift", 0)
            yield example


def splits(folder: Any) -> list[str]:
    """Splits with examples, by name."""
    return sorted(path.stem for path in (Path(folder) / "examples").glob("*.jsonl"))


def read_vocabularies(folder: Any) -> dict[str, Vocabulary]:
    """modality -> vocabulary, of a prepared folder or a run."""
    root = Path(folder) / "vocabularies"
    found = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not found:
        raise UserError(f"{str(root)!r} holds no vocabulary: finish `zipper data prepare` first, or check the folder")
    return {name: load_vocabulary(root / name) for name in found}


def write_examples(
    corpus: Any, folder: Any, settings: PrepareSettings, overwrite: bool, say: Say, processes: int | None = None
) -> dict[str, Any]:
    """Fits tokenizer and vocabulary, encodes every split; skips what is finished. Returns the header.

    Raises:
      UserError: ``folder`` was made from another corpus or with other settings, and ``overwrite`` is False.
    """
    corpus, folder = Path(corpus), Path(folder)
    rows = read_manifest(corpus)
    if settings.text_vocabulary not in ("sentencepiece", "bytes"):
        _given_vocabulary("text", settings.text_vocabulary)  # before the audio is encoded
    given = _given_tokenizer(corpus, rows, settings)
    if given is not None:
        settings = _of_tokenizer(settings, given)
    if settings.speech_vocabulary:
        _given_units(settings)
    named = sorted({row["split"] for row in rows})
    if "train" not in named:
        raise UserError(f"corpus {str(corpus)!r} has no training split (splits: {', '.join(named) or 'none'})")
    _begin(corpus, folder, settings, overwrite, say)
    for line in leaks(figures(rows)):
        say(line)
    training = [row for row in rows if row["split"] == "train"]
    about: dict[str, Any] = {}
    if any("speech" in _modalities(row) for row in rows):
        tokenizer = _tokenizer(corpus, folder, [row for row in training if "audio" in row], settings, given, say)
        _check_units(corpus, rows, tokenizer.num_units)
        about = {"num_units": tokenizer.num_units, "rate_hz": tokenizer.rate_hz, "tokenizer": tokenizer.digest}
    if any("text" in _modalities(row) for row in rows):
        _text_vocabulary(folder, [row["text"] for row in training if row.get("text")], settings, say)
    home = folder / "vocabularies" / "speech"
    for split in named:
        shifts = settings.shifts if split == "train" else 1
        mine = [row for row in rows if row["split"] == split]
        encode_split(_examples(folder, split), corpus, home, mine, shifts, say, processes)
    header = read_header(folder) | {
        **about,
        "vocabularies": {name: vocabulary.digest for name, vocabulary in read_vocabularies(folder).items()},
        "examples": {split: sum(row["split"] == split for row in rows) for split in named},
        "modalities": {split: _kinds(row for row in rows if row["split"] == split) for split in named},
        "complete": True,
    }
    write_json(folder / "header.json", header)
    return header


def _modalities(row: Mapping[str, Any]) -> list[str]:
    """What a corpus's row holds."""
    return ["speech"] * ("audio" in row or "units" in row) + ["text"] * bool(row.get("text"))


def _kinds(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The different lists of modalities among ``rows``."""
    return [list(kind) for kind in sorted({tuple(_modalities(row)) for row in rows})]


def _begin(corpus: Path, folder: Path, settings: PrepareSettings, overwrite: bool, say: Say) -> None:
    """Pins settings and corpus in header.json; clears the folder when they changed and ``overwrite`` says so."""
    about = corpus / "corpus.json"
    made_with = {
        "corpus": hashlib.sha256((corpus / "manifest.jsonl").read_bytes()).hexdigest(),
        "settings": to_dict(settings.of_examples()),
    }
    header = _header_or_none(folder)
    if header is not None and header["made_with"] != made_with:
        before = header["made_with"]["settings"]
        changes = [
            f"{name} was {before.get(name)}, now {value}"
            for name, value in made_with["settings"].items()
            if before.get(name) != value
        ]
        if header["made_with"]["corpus"] != made_with["corpus"]:
            changes.append("the corpus is another one")
        if not overwrite:
            raise UserError(
                f"{str(folder)!r} was prepared otherwise ({'; '.join(changes)}): give --overwrite or another --out"
            )
        say(f"prepared otherwise ({'; '.join(changes)}): starting over")
        (folder / "header.json").unlink()  # first: without it nothing here counts as finished
        header = None
    if header is None:
        there = [name for name in ("vocabularies", "examples", "rows") if (folder / name).exists()]
        if there and not overwrite:
            raise UserError(
                f"{str(folder)!r} has {', '.join(there)}, but no header.json that says they were prepared: give "
                "another --out, or --overwrite to delete them"
            )
        for name in there:
            shutil.rmtree(folder / name)
        start = {
            "format_version": FORMAT_VERSION,
            "made_with": made_with,
            "provenance": {
                "zipper_jax": __version__,
                "corpus": json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {},
            },
            "complete": False,
        }
        write_json(folder / "header.json", start)


def _tokenizer(
    corpus: Path,
    folder: Path,
    rows: list[dict[str, Any]],
    settings: PrepareSettings,
    given: Tokenizer | None,
    say: Say,
) -> Tokenizer:
    """Of the finished stage, else the given one, else fitted on the audio of ``rows``."""
    home = folder / "vocabularies" / "speech"
    if (home / "vocabulary.json").is_file():
        return load_tokenizer(home)
    begun = time.monotonic()
    tokenizer = given if given is not None else _fit(corpus, rows, settings, say)
    tokenizer.save(home)
    vocabulary = UnitVocabulary(tokenizer.num_units, tokenizer.rate_hz, tokenizer.digest)
    if settings.speech_vocabulary:
        vocabulary = _given_units(settings, tokenizer)
        say(f"units have the ids of {settings.speech_vocabulary!r}: it must be a model of these very units")
    vocabulary.save(home)
    how = "given" if given is not None else f"fitted in {time.monotonic() - begun:.1f} s"
    say(f"{tokenizer.num_units} units at {tokenizer.rate_hz:g} Hz, {how}")
    return tokenizer


def _fit(corpus: Path, rows: list[dict[str, Any]], settings: PrepareSettings, say: Say) -> UnitTokenizer:
    chosen, seconds = [], 0.0
    # In random order, so that every voice has its share of the hour.
    for place in np.random.default_rng(settings.seed).permutation(len(rows)):
        if seconds >= _FIT_SECONDS:
            break
        waveform = load_audio(**part(corpus, rows[place]))
        seconds += len(waveform) / SAMPLE_RATE
        chosen.append(waveform)
    say(f"fitting {settings.num_units} units on {seconds / 60:.1f} minutes of training audio")
    return UnitTokenizer.fit(chosen, settings.num_units, settings.seed, say)


def _given_tokenizer(corpus: Path, rows: list[dict[str, Any]], settings: PrepareSettings) -> Tokenizer | None:
    """Of the corpus's own units, or that of ``settings.tokenizer``; None: one is to be fitted."""
    about = (read_header_of_corpus(corpus) or {}).get("units")
    for row in rows:
        if "units" in row and about is None:
            raise UserError(
                f"row {row['id']!r} of {str(corpus)!r} has units, but corpus.json does not say which: add "
                '"units": {"num_units": …, "rate_hz": …} there'
            )
        if about is not None and "audio" in row and "units" not in row:
            raise UserError(f"row {row['id']!r} of {str(corpus)!r} has audio but no units, as other rows do: add them")
    if about is not None and settings.tokenizer:
        raise UserError(
            f"tokenizer = {settings.tokenizer!r}, but the corpus has units of its own: leave out --tokenizer"
        )
    if about is not None:
        return GivenUnits.of(about)
    if not settings.tokenizer:
        return None
    home = Path(settings.tokenizer) / "vocabularies" / "speech"
    if not home.is_dir():
        raise UserError(
            f"tokenizer = {settings.tokenizer!r}: give a folder that has vocabularies/speech (a run, a prepared "
            "folder, or what `zipper data tokenizer` wrote)"
        )
    return load_tokenizer(home)


def _check_units(corpus: Path, rows: list[dict[str, Any]], num_units: int) -> None:
    for row in rows:
        units = np.asarray(row.get("units", [0]))
        if units.ndim != 1 or units.dtype.kind != "i" or units.min() < 0 or units.max() >= num_units:
            raise UserError(f"row {row['id']!r} of {str(corpus)!r}: units must be integers from 0 to {num_units - 1}")


def _of_tokenizer(settings: PrepareSettings, given: Tokenizer) -> PrepareSettings:
    """The settings with the number of units that a given tokenizer has."""
    if settings.num_units not in (NUM_UNITS, given.num_units):
        raise UserError(f"num_units is {settings.num_units}, but the given units are {given.num_units}: leave it out")
    return dataclasses.replace(settings, num_units=given.num_units)


def _text_vocabulary(folder: Path, sentences: list[str], settings: PrepareSettings, say: Say) -> Vocabulary:
    home = folder / "vocabularies" / "text"
    if (home / "vocabulary.json").is_file():
        return load_vocabulary(home)
    vocabulary: Vocabulary
    if settings.text_vocabulary == "bytes":
        vocabulary = ByteVocabulary()
    elif settings.text_vocabulary != "sentencepiece":
        vocabulary = _given_vocabulary("text", settings.text_vocabulary)
    else:
        vocabulary = train_sentencepiece(sentences, settings.text_vocabulary_size)
    vocabulary.save(home)
    source = f"{len(sentences)} training sentences" if settings.text_vocabulary == "sentencepiece" else "given"
    say(f"text vocabulary: {vocabulary.kind}, {vocabulary.size} tokens, from {source}")
    return vocabulary


def _given_vocabulary(modality: str, given: str) -> Vocabulary:
    folder = Path(given) / "vocabularies" / modality
    if folder.is_dir():
        return load_vocabulary(folder)
    if modality == "text" and Path(given).is_file():
        return SentencePieceVocabulary(Path(given).read_bytes())
    if modality == "text" and any((Path(given) / name).is_file() for name in DECISIVE):
        return whole_tokenizer(given)
    names = (
        "'sentencepiece', 'bytes', a sentencepiece .model file, a tokenizer's folder, or " if modality == "text" else ""
    )
    raise UserError(
        f"{modality}_vocabulary = {given!r}: give {names}a folder that has vocabularies/{modality} (a run, a "
        "prepared folder, or what `zipper convert from-hf` wrote)"
    )


def _given_units(settings: PrepareSettings, tokenizer: Tokenizer | None = None) -> UnitVocabulary:
    """The vocabulary of ``speech_vocabulary``. Raises UserError when it is not of units like those asked for."""
    given, place = _given_vocabulary("speech", settings.speech_vocabulary), settings.speech_vocabulary
    if not isinstance(given, UnitVocabulary):
        raise UserError(f"speech_vocabulary = {place!r}: its speech vocabulary holds {given.kind}, not units")
    if given.num_units != settings.num_units:
        raise UserError(
            f"speech_vocabulary = {place!r} has {given.num_units} units, but num_units = {settings.num_units}; give "
            f"--num_units {given.num_units}"
        )
    if tokenizer is not None and given.rate_hz != tokenizer.rate_hz:
        raise UserError(
            f"speech_vocabulary = {place!r} has {given.rate_hz:g} units per second, not {tokenizer.rate_hz:g}"
        )
    if tokenizer is not None and given.codebook not in ("", tokenizer.digest):
        raise UserError(f"speech_vocabulary = {place!r} names another unit tokenizer: its unit 7 is another sound")
    return given


def _examples(folder: Path, split: str) -> Path:
    return folder / "examples" / f"{split}.jsonl"


def _header_or_none(folder: Path) -> dict[str, Any] | None:
    path = folder / "header.json"
    if not path.is_file():
        return None
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, _ = header["format_version"], header["made_with"]["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error!r}): delete the folder and prepare it again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{str(path)!r} has format {version}, this version reads {FORMAT_VERSION}: prepare it again")
    return header

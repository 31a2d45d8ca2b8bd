"""The first step of `prepare`: check the corpus, pin it and the settings, fit tokenizer and vocabularies.

Fits use the training split only: a sample that depends on the seed and the corpus, not on how the work is divided.
The manifest is read row by row; what is kept of each is 16 bytes (an offset, and a hash of its id).
"""

import logging
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zipper_jax.data import prepared
from zipper_jax.data.import_corpus import figures, leaks
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.prepare_vocabularies import (
    check_described,
    check_units,
    check_weights,
    content_types,
    given_tokenizer,
    given_units,
    given_vocabulary,
    make_tokenizer,
    make_vocabulary,
    of_tokenizer,
)
from zipper_jax.data.sources.columns import warn_unused
from zipper_jax.data.sources.rows import FIELDS
from zipper_jax.data.unknown import count_unknown, refuse_unknown
from zipper_jax.metrics.normalisers import TextForm, text_form
from zipper_jax.speech.corpus import read_header as read_corpus_header
from zipper_jax.speech.manifest import Manifest
from zipper_jax.speech.tokenizers import Tokenizer
from zipper_jax.tasks import SPEECH, TaskSet
from zipper_jax.utils import user_json
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.utils.storage import AnyPath, delete_folder, sha256
from zipper_jax.version import __version__
from zipper_jax.vocabularies import Vocabulary

logger = logging.getLogger(__name__)

SHARDS = "shards"
"""Folder of what `prepare` made so far; it is deleted when the examples are complete."""
FIT = "fit.json"
_OF_SYNTHESIS = ("rate", "pitch", "snr_db")
"""Fields of synthesised corpora, which describe how the audio was made."""


class Source(NamedTuple):
    """A corpus and how it is prepared.

    Attributes:
        corpus: Its folder.
        settings: With the number of units of a given tokenizer.
        form: How its texts are compared and stored.
        given: The given tokenizer; None: one is fitted.
    """

    corpus: Path
    settings: PrepareSettings
    form: TextForm
    given: Tokenizer | None

    def rows(self, part: tuple[int, int] = (0, 1)) -> Manifest:
        """The rows, or the i-th of n parts of them, with their texts as vocabularies and models see them."""
        task_set = self.settings.task_set
        fields = [m.field for m in task_set.modalities.values() if m.vocabulary == "subwords"]

        def stored(row: dict[str, Any]) -> dict[str, Any]:
            return row | {field: self.form.stored(row[field]) for field in fields if row.get(field)}

        return Manifest(self.corpus, content_types(task_set), stored, part)

    def made_with(self) -> dict[str, Any]:
        """What determines vocabularies and examples, as header.json has it."""
        settings = to_dict(self.settings.of_examples())
        if self.form.normalised:
            settings["encode_text"] = f"normalised by {self.form.normaliser}"
        return {"corpus": sha256(self.corpus / "manifest.jsonl")[1], "settings": settings}


class _Survey(NamedTuple):
    """What one pass over the manifest finds: splits, fields, modalities, offsets of training rows with audio."""

    splits: list[str]
    fields: list[str]
    modalities: set[str]
    audio: np.ndarray


def open_source(corpus: Any, settings: PrepareSettings) -> Source:
    """Return the corpus with the settings completed by its own or a given tokenizer.

    Raises:
        UserError: There is no corpus, or the tokenizer does not fit the settings.
    """
    corpus = Path(corpus)
    form = text_form(read_corpus_header(corpus))
    Manifest(corpus)
    given = given_tokenizer(corpus, settings)
    return Source(corpus, of_tokenizer(settings, given), form, given)


def fit(source: Source, folder: AnyPath, overwrite: bool) -> None:
    """Make vocabularies and tokenizer, unless they are there; ``shards/fit.json`` tells that all are.

    Raises:
        UserError: The corpus cannot be used; ``folder`` was made from another corpus or with other settings, and
            ``overwrite`` is False.
    """
    corpus, settings, form, given = source
    rows, made_with, modalities = source.rows(), source.made_with(), settings.task_set.modalities
    header = prepared.header_or_none(folder)
    is_ours = header is not None and header["made_with"] == made_with and not (overwrite and header.get("dropped"))
    if is_ours and (prepared.is_complete(folder) or (folder / SHARDS / FIT).is_file()):
        return
    found = _survey(source)
    for name in modalities:  # validate given vocabularies before encoding audio, which is slow
        if name != SPEECH and settings.vocabulary(name):
            _refuse_unknown(rows, name, given_vocabulary(name, settings), settings)
    if SPEECH in found.modalities and given is None:
        check_weights(settings)
    if settings.speech_vocabulary:
        given_units(settings)
    if "train" not in found.splits:
        raise UserError(f"corpus {str(corpus)!r} has no training split (splits: {', '.join(found.splits) or 'none'})")
    _begin(corpus, folder, made_with, overwrite)
    used = [*FIELDS, *_OF_SYNTHESIS, *(modality.field for modality in modalities.values())]
    warn_unused(corpus / "manifest.jsonl", found.fields, used, "fields")
    for line in leaks(figures(rows, form)):
        logger.info(line)
    about: dict[str, Any] = {}
    if SPEECH in found.modalities:
        tokenizer = make_tokenizer(corpus, folder, rows, found.audio, settings, given)
        if "units" in found.fields:
            check_units(corpus, rows, tokenizer.num_units)
        about = {"num_units": tokenizer.num_units, "rate_hz": tokenizer.rate_hz, "tokenizer": tokenizer.digest}
    for name in modalities:
        if name in found.modalities and name != SPEECH:
            vocabulary = make_vocabulary(folder, name, rows, settings)
            if not settings.vocabulary(name):
                _refuse_unknown(rows, name, vocabulary, settings)
    digests = {name: vocabulary.digest for name, vocabulary in prepared.read_vocabularies(folder).items()}
    write_json(
        folder / SHARDS / FIT,
        {
            "made_with": made_with,
            "splits": found.splits,
            "aligned": "word_times" in found.fields,
            "about": about,
            "vocabularies": digests,
        },
    )


def modalities_of(row: Mapping[str, Any], task_set: TaskSet) -> tuple[str, ...]:
    """Return the sorted modalities of a row of a corpus or of an example."""
    fields = {name: modality.field for name, modality in task_set.modalities.items()}
    spoken = "audio" in row or row.get(fields[SPEECH]) is not None
    return tuple(sorted(name for name, field in fields.items() if (spoken if name == SPEECH else row.get(field))))


def _survey(source: Source) -> _Survey:
    """Check every row; Raises UserError for one that cannot be used."""
    described = (read_corpus_header(source.corpus) or {}).get("units") is not None
    rows, task_set = source.rows(), source.settings.task_set
    splits: set[str] = set()
    fields: dict[str, None] = {}
    modalities: set[str] = set()
    ids, audio = array("q"), array("q")
    for offset, row in rows.checked():
        check_described(source.corpus, row, described)
        ids.append(hash(row["id"]))
        splits.add(row["split"])
        fields.update(dict.fromkeys(row))
        modalities.update(modalities_of(row, task_set))
        if row["split"] == "train" and "audio" in row:
            audio.append(offset)
    rows.require_unique(np.frombuffer(ids, np.int64))
    return _Survey(sorted(splits), list(fields), modalities, np.frombuffer(audio, np.int64))


def _refuse_unknown(
    rows: Iterable[dict[str, Any]], modality: str, vocabulary: Vocabulary, settings: PrepareSettings
) -> None:
    found = count_unknown(rows, settings.task_set.field_of(modality), vocabulary)
    refuse_unknown(found, modality, settings.max_unknown)


def _begin(corpus: Path, folder: AnyPath, made_with: dict[str, Any], overwrite: bool) -> None:
    """Pin settings and corpus in header.json; clear the folder when they changed and ``overwrite`` says so."""
    about = corpus / "corpus.json"
    header = prepared.header_or_none(folder)
    if header is not None and overwrite and header.get("dropped"):
        logger.info("rows were dropped because of their audio: starting over")
        (folder / "header.json").unlink()
        header = None
    if header is not None and header["made_with"] != made_with:
        before = header["made_with"]["settings"]
        changes = [
            f"{name} was {before.get(name)}, now {value}"
            for name, value in made_with["settings"].items()
            if before.get(name) != value
        ]
        if header["made_with"]["corpus"] != made_with["corpus"]:
            changes.append("the corpus changed")
        if not overwrite:
            raise UserError(
                f"{str(folder)!r} was prepared with other settings ({'; '.join(changes)}): give --overwrite or another "
                "--out"
            )
        logger.info(f"prepared otherwise ({'; '.join(changes)}): starting over")
        (folder / "header.json").unlink()  # first: without it nothing here counts as finished
        header = None
    if header is None:
        there = [name for name in ("vocabularies", SHARDS, "examples", "rows") if (folder / name).exists()]
        if there and not overwrite:
            raise UserError(
                f"{str(folder)!r} has {', '.join(there)}, but no header.json: give another --out, or --overwrite to "
                "delete them"
            )
        for name in there:
            delete_folder(folder / name)
        start = {
            "format_version": prepared.FORMAT_VERSION,
            "made_with": made_with,
            "provenance": {
                "zipper_jax": __version__,
                "corpus": user_json.read_object(about, "it is damaged: import the corpus again")
                if about.is_file()
                else {},
            },
            "complete": False,
        }
        write_json(folder / "header.json", start)

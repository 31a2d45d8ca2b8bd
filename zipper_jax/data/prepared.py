"""The prepared folder: vocabularies, the unit tokenizer, and the tokenised examples. No TensorFlow.

    prepared/header.json                    settings, corpus, digests, tasks and modalities
    prepared/vocabularies/<modality>/       vocabulary.json (+ sentencepiece.model, tokenizer.npz or tokenizer.json)
    prepared/examples/<split>.jsonl         {"id", "split", "text", "units", "voice", "seconds", "shift"}, fields of
                                            further modalities, and word_times where the corpus has some; null: absent
    prepared/rows/<task>/<split>/           see packed_rows

Unless given, vocabulary and tokenizer are fitted on the training split only. A corpus without text gets no text
vocabulary, one without speech no units. A stage is finished when its file exists (each is written under a temporary
name and renamed; examples/<split>.jsonl.partial is resumed); header.json records the settings and the corpus digest.
"""

import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from zipper_jax.data.encode import count_dropped, encode_split, read_dropped
from zipper_jax.data.import_corpus import figures, leaks
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.prepare_vocabularies import (
    check_units,
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
from zipper_jax.metrics.normalisers import TextForm, read_text_form, text_form
from zipper_jax.speech.corpus import read_header as read_corpus_header
from zipper_jax.speech.corpus import read_manifest
from zipper_jax.tasks import SPEECH, TaskSet, stored_task_set
from zipper_jax.utils import user_json
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.utils.storage import AnyPath, as_path, subfolders
from zipper_jax.version import __version__
from zipper_jax.vocabularies import Vocabulary, load_vocabulary

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_OF_SYNTHESIS = ("rate", "pitch", "snr_db")
"""Fields of synthesised corpora, which describe how the audio was made."""


class _Dropped(msgspec.Struct):
    count: user_json.Natural
    first: str


class _MadeWith(msgspec.Struct):
    corpus: str
    settings: dict[str, Any]


class _Header(msgspec.Struct):
    """The fields of ``header.json`` that readers use."""

    format_version: int
    made_with: _MadeWith
    complete: bool
    dropped: dict[str, dict[str, _Dropped]] = {}
    vocabularies: dict[str, str] = {}
    modalities: dict[str, list[list[str]]] = {}
    task_set: dict[str, Any] = {}
    text_form: TextForm = TextForm()


class _Example(msgspec.Struct):
    """The fields of every example; those of modalities are checked by what they hold."""

    id: user_json.Name
    split: str
    seconds: user_json.Number = 0.0
    shift: user_json.Natural = 0
    voice: str | None = None
    word_times: list[tuple[float, float]] | None = None


def read_header(folder: Any) -> dict[str, Any]:
    """Return ``header.json``. Raises UserError when it is missing or cannot be read."""
    header = _header_or_none(as_path(folder))
    if header is None:
        raise UserError(
            f"{str(folder)!r} is not a prepared folder (no header.json): run `zipper data prepare --out {folder}`"
        )
    return header


def read_examples(folder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Yield the examples of ``split`` in corpus order; units as int32; the field of an absent modality is None."""
    path = _examples(as_path(folder), split)
    if not path.is_file():
        known = ", ".join(splits(folder)) or "none"
        raise UserError(f"{str(path)!r} does not exist (splits there: {known}): run `zipper data prepare`")
    # Examples written by other tools may come without a header: they are of the default modalities.
    task_set = read_task_set(folder) if (as_path(folder) / "header.json").is_file() else TaskSet()
    contents = [task_set.field_of(modality) for modality in task_set.modalities]
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place, fix = f"{str(path)!r} line {number}", "it is damaged: prepare the data again"
            example = user_json.decode(line, place, fix)
            user_json.convert(example, _Example, place, fix)
            for field in contents:
                if field not in example:
                    raise UserError(f"{place}: {field} is missing; {fix}")
                user_json.convert(example[field], list[_Id] | str | None, place, fix, field)
            lists = {name: value for name, value in example.items() if isinstance(value, list) and name in contents}
            units = {name: np.array(value, np.int32) for name, value in lists.items()}
            yield {"shift": 0, "seconds": 0.0, **example, **units}


def splits(folder: Any) -> list[str]:
    """Return the sorted names of the splits that have examples."""
    return sorted(path.stem for path in (as_path(folder) / "examples").glob("*.jsonl"))


def read_task_set(folder: Any) -> TaskSet:
    """Return the tasks and modalities that the folder was prepared with."""
    header = read_header(folder)
    try:
        return stored_task_set(header)
    except UserError as error:
        raise UserError(f"{str(as_path(folder) / 'header.json')!r}: {error}") from error


def read_vocabularies(folder: Any) -> dict[str, Vocabulary]:
    """Return modality -> vocabulary of a prepared folder or a run."""
    root = as_path(folder) / "vocabularies"
    found = subfolders(root)
    if not found:
        raise UserError(f"{str(root)!r} holds no vocabulary: finish `zipper data prepare` first, or check the folder")
    return {name: load_vocabulary(root / name) for name in found}


def write_examples(
    corpus: Any, folder: Any, settings: PrepareSettings, overwrite: bool, processes: int | None = None
) -> dict[str, Any]:
    """Fit tokenizer and vocabularies and encode every split; skip finished stages. Return the header.

    Raises:
        UserError: ``folder`` was made from another corpus or with other settings, and ``overwrite`` is False.
    """
    corpus, folder, modalities = Path(corpus), Path(folder), settings.task_set.modalities
    form = text_form(read_corpus_header(corpus))
    rows = _stored(read_manifest(corpus, content=content_types(settings.task_set)), settings.task_set, form)
    for name in modalities:  # validate given vocabularies before encoding audio, which is slow
        if name != SPEECH and settings.vocabulary(name):
            _refuse_unknown(rows, name, given_vocabulary(name, settings), settings)
    given = given_tokenizer(corpus, rows, settings)
    if given is not None:
        settings = of_tokenizer(settings, given)
    if settings.speech_vocabulary:
        given_units(settings)
    named = sorted({row["split"] for row in rows})
    if "train" not in named:
        raise UserError(f"corpus {str(corpus)!r} has no training split (splits: {', '.join(named) or 'none'})")
    _begin(corpus, folder, settings, overwrite, form)
    used = [*FIELDS, *_OF_SYNTHESIS, *(modality.field for modality in modalities.values())]
    warn_unused(corpus / "manifest.jsonl", (name for row in rows for name in row), used, "fields")
    for line in leaks(figures(rows, form)):
        logger.info(line)
    training = [row for row in rows if row["split"] == "train"]
    about: dict[str, Any] = {}
    there = {name for row in rows for name in _modalities(row, settings.task_set)}
    if SPEECH in there:
        tokenizer = make_tokenizer(corpus, folder, [row for row in training if "audio" in row], settings, given)
        check_units(corpus, rows, tokenizer.num_units)
        about = {"num_units": tokenizer.num_units, "rate_hz": tokenizer.rate_hz, "tokenizer": tokenizer.digest}
    for name, modality in modalities.items():
        if name in there and name != SPEECH:
            contents = [row[modality.field] for row in training if row.get(modality.field)]
            vocabulary = make_vocabulary(folder, name, contents, settings)
            if not settings.vocabulary(name):
                _refuse_unknown(rows, name, vocabulary, settings)
    home, fields = folder / "vocabularies" / SPEECH, [m.field for name, m in modalities.items() if name != SPEECH]
    fields += ["word_times"] * any("word_times" in row for row in rows)
    for split in named:
        shifts = settings.shifts if split == "train" else 1
        mine = [row for row in rows if row["split"] == split]
        encode_split(_examples(folder, split), corpus, home, mine, fields, shifts, processes)
    lacking = {split: read_dropped(_examples(folder, split)) for split in named}
    rows = [row for row in rows if row["id"] not in lacking[row["split"]]]
    header = read_header(folder) | {
        **about,
        "vocabularies": {name: vocabulary.digest for name, vocabulary in read_vocabularies(folder).items()},
        "examples": {split: sum(row["split"] == split for row in rows) for split in named},
        "modalities": {
            split: _kinds([row for row in rows if row["split"] == split], settings.task_set) for split in named
        },
        "dropped": {split: count_dropped(found) for split, found in lacking.items() if found},
        "task_set": to_dict(settings.task_set),
        "text_form": dataclasses.asdict(form),
        "complete": True,
    }
    write_json(folder / "header.json", header)
    return header


def _stored(rows: list[dict[str, Any]], task_set: TaskSet, form: TextForm) -> list[dict[str, Any]]:
    """Return the rows with their texts as vocabularies are fitted on them and models see them."""
    fields = [m.field for m in task_set.modalities.values() if m.vocabulary == "subwords"]
    return [row | {field: form.stored(row[field]) for field in fields if row.get(field)} for row in rows]


def _refuse_unknown(
    rows: list[dict[str, Any]], modality: str, vocabulary: Vocabulary, settings: PrepareSettings
) -> None:
    found = count_unknown(rows, settings.task_set.field_of(modality), vocabulary)
    refuse_unknown(found, modality, settings.max_unknown)


def _modalities(row: Mapping[str, Any], task_set: TaskSet) -> list[str]:
    """Return the sorted modalities of a corpus row."""
    fields = {name: modality.field for name, modality in task_set.modalities.items()}
    spoken = "audio" in row or fields[SPEECH] in row
    return sorted(name for name, field in fields.items() if (spoken if name == SPEECH else row.get(field)))


def _kinds(rows: Iterable[Mapping[str, Any]], task_set: TaskSet) -> list[list[str]]:
    """Return the distinct lists of modalities among ``rows``."""
    return [list(kind) for kind in sorted({tuple(_modalities(row, task_set)) for row in rows})]


def _begin(corpus: Path, folder: Path, settings: PrepareSettings, overwrite: bool, form: TextForm) -> None:
    """Pins settings and corpus in header.json; clears the folder when they changed and ``overwrite`` says so."""
    about = corpus / "corpus.json"
    made_with = {
        "corpus": hashlib.sha256((corpus / "manifest.jsonl").read_bytes()).hexdigest(),
        "settings": to_dict(settings.of_examples()),
    }
    if form.normalised:
        made_with["settings"]["encode_text"] = f"normalised by {form.normaliser}"
    header = _header_or_none(folder)
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
        there = [name for name in ("vocabularies", "examples", "rows") if (folder / name).exists()]
        if there and not overwrite:
            raise UserError(
                f"{str(folder)!r} has {', '.join(there)}, but no header.json: give another --out, or --overwrite to "
                "delete them"
            )
        for name in there:
            shutil.rmtree(folder / name)
        start = {
            "format_version": FORMAT_VERSION,
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


def _examples(folder: AnyPath, split: str) -> AnyPath:
    return folder / "examples" / f"{split}.jsonl"


def _header_or_none(folder: AnyPath) -> dict[str, Any] | None:
    path, fix = folder / "header.json", "it is damaged: delete the folder and prepare it again"
    if not path.is_file():
        return None
    header = user_json.read_object(path, fix)
    version = user_json.convert(header, _Header, repr(str(path)), fix).format_version
    read_text_form(header, repr(str(path)), fix)
    if version != FORMAT_VERSION:
        raise UserError(f"{str(path)!r} has format {version}, this version reads {FORMAT_VERSION}: prepare it again")
    return header

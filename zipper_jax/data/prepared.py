"""Reading a prepared folder: vocabularies, the unit tokenizer, and the tokenised examples. No TensorFlow.

    prepared/header.json                    settings, corpus, digests, tasks and modalities
    prepared/vocabularies/<modality>/       vocabulary.json (+ sentencepiece.model, tokenizer.npz or tokenizer.json)
    prepared/examples/<split>.jsonl         {"id", "split", "text", "units", "voice", "seconds", "shift"}, fields of
                                            further modalities, and word_times where the corpus has some; null: absent
    prepared/rows/<task>/<split>/           see packed_rows

A corpus without text gets no text vocabulary, one without speech no units. header.json records the settings and the
corpus digest. `prepare_rows.prepare` writes it.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from zipper_jax.metrics.normalisers import TextForm, read_text_form
from zipper_jax.tasks import SPEECH, TaskSet, stored_task_set
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import AnyPath, as_path, files, subfolders
from zipper_jax.vocabularies import Vocabulary, load_vocabulary

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


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
    header = header_or_none(as_path(folder))
    if header is None:
        raise UserError(
            f"{str(folder)!r} is not a prepared folder (no header.json): run `zipper data prepare --out {folder}`"
        )
    return header


def read_examples(folder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Yield the examples of ``split`` in corpus order; units as int32; the field of an absent modality is None."""
    path = examples_path(as_path(folder), split)
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
    names = files(as_path(folder) / "examples")
    return sorted(name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl"))


def read_task_set(folder: Any) -> TaskSet:
    """Return the tasks and modalities that the folder was prepared with."""
    header = read_header(folder)
    try:
        return stored_task_set(header)
    except UserError as error:
        raise UserError(f"{str(as_path(folder) / 'header.json')!r}: {error}") from error


def with_modalities(
    examples: Iterable[Mapping[str, Any]], modalities: Iterable[str], task_set: TaskSet
) -> Iterator[Mapping[str, Any]]:
    """Yield those of ``examples`` that have all of ``modalities``, in order.

    Without speech among them, shifted copies of an utterance count once.
    """
    fields = {modality: task_set.field_of(modality) for modality in modalities}
    for example in examples:
        if (SPEECH in fields or not example["shift"]) and all(example[field] is not None for field in fields.values()):
            yield example


def read_vocabularies(folder: Any) -> dict[str, Vocabulary]:
    """Return modality -> vocabulary of a prepared folder or a run."""
    root = as_path(folder) / "vocabularies"
    found = subfolders(root)
    if not found:
        raise UserError(f"{str(root)!r} holds no vocabulary: finish `zipper data prepare` first, or check the folder")
    return {name: load_vocabulary(root / name) for name in found}


def is_complete(folder: Any) -> bool:
    """Whether every example is there; rows may be missing."""
    header = header_or_none(as_path(folder))
    return bool(
        header and header["complete"] and all(examples_path(as_path(folder), s).is_file() for s in header["examples"])
    )


def examples_path(folder: AnyPath, split: str) -> AnyPath:
    """File of the examples of a split."""
    return folder / "examples" / f"{split}.jsonl"


def header_or_none(folder: AnyPath) -> dict[str, Any] | None:
    """Return ``header.json``, or None if there is none. Raises UserError when it cannot be read."""
    path, fix = folder / "header.json", "it is damaged: delete the folder and prepare it again"
    if not path.is_file():
        return None
    header = user_json.read_object(path, fix)
    version = user_json.convert(header, _Header, repr(str(path)), fix).format_version
    read_text_form(header, repr(str(path)), fix)
    if version != FORMAT_VERSION:
        raise UserError(f"{str(path)!r} has format {version}, this version reads {FORMAT_VERSION}: prepare it again")
    return header

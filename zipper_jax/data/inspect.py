"""Summaries of a corpus or a prepared folder: counts, dropped rows, lengths, and examples as text and audio."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.data import prepared
from zipper_jax.data.encode import describe_dropped, part
from zipper_jax.data.import_corpus import figures, summary
from zipper_jax.data.packed_rows import META, read_meta
from zipper_jax.data.prepare_rows import summary as summary_of_rows
from zipper_jax.data.unknown import count_unknown, describe_unknown
from zipper_jax.metrics.normalisers import text_form
from zipper_jax.speech.audio import load_audio, save_audio
from zipper_jax.speech.corpus import read_header
from zipper_jax.speech.given_units import run_vocoder
from zipper_jax.speech.manifest import SPLITS, read_manifest
from zipper_jax.speech.tokenizers import Tokenizer, load_tokenizer
from zipper_jax.speech.vocoder import synthesize
from zipper_jax.tasks import MODALITIES, SPEECH, TEXT
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import AnyPath, files
from zipper_jax.vocabularies import UnitVocabulary, Vocabulary

_BINS = 10
_TEXT = MODALITIES[TEXT].field
_BAR = 40
_SHOWN = 24  # units of an example


def inspect(folder: AnyPath, examples: int = 3, out: Path | None = None, vocoder: bool = False) -> Iterator[str]:
    """Yield the lines that summarise ``folder``.

    Args:
        folder: A corpus, or a prepared folder, also of a bucket.
        examples: Number of training examples to show.
        out: Folder for lengths.png and the audio of the examples as WAV: the recordings of a corpus at 16 kHz, the
            vocoded units of a prepared folder.
        vocoder: For external units, run the command that their header names.

    Raises:
        UserError: ``folder`` is neither a corpus nor a prepared folder, or a corpus in a bucket.
    """
    if (folder / "header.json").is_file():
        yield from _prepared(folder, examples, out, vocoder)
    elif (folder / "manifest.jsonl").is_file():
        if not isinstance(folder, Path):
            raise UserError(
                f"{str(folder)!r} is a corpus in a bucket, which cannot be read there: copy it to this machine"
            )
        yield from _corpus(folder, examples, out)
    else:
        raise UserError(
            f"{str(folder)!r} is neither a corpus (no manifest.jsonl) nor a prepared folder (no header.json): check "
            "the path, or finish `zipper data import` or `zipper data prepare`"
        )


def _corpus(folder: Path, examples: int, out: Path | None) -> Iterator[str]:
    rows, header = read_manifest(folder), read_header(folder) or {}
    source = header.get("settings", {}).get("format") or header.get("engine") or "unknown"
    yield f"corpus {folder}, from {source}, {len(rows):,} rows"
    yield from summary({**header, **figures(rows, text_form(header))})
    lengths = {
        "seconds": [row["seconds"] for row in rows if row.get("seconds")],
        "words": [len(row[_TEXT].split()) for row in rows if row.get(_TEXT)],
    }
    yield from _lengths(lengths, out)
    for row in _spread([row for row in rows if row["split"] == "train"], examples):
        yield f"example {row['id']}: {json.dumps(row, ensure_ascii=False)}"
        if out is not None and "audio" in row:
            yield f"  {_write(out, row, load_audio(**part(folder, row)))}"


def _prepared(folder: AnyPath, examples: int, out: Path | None, vocoder: bool) -> Iterator[str]:
    header = prepared.read_header(folder)
    state = "" if header["complete"] else ", not finished"
    yield f"prepared folder {folder}{state}, settings {json.dumps(header['made_with']['settings'])}"
    yield f"text: {text_form(header).about()}"
    vocabularies = prepared.read_vocabularies(folder)
    for name, vocabulary in vocabularies.items():
        yield f"vocabulary {name}: {vocabulary.kind}, {vocabulary.size} tokens"
    task_set = prepared.read_task_set(folder)
    lengths: dict[str, list[int]] = {}
    for split in _ordered(prepared.splits(folder)):
        rows = list(prepared.read_examples(folder, split))
        once = [row for row in rows if not row["shift"]]
        hours = sum(row["seconds"] for row in once) / 3600
        yield f"{split}: {len(rows):,} examples, {hours:.2f} hours"
        yield from describe_dropped(split, header.get("dropped", {}).get(split, {}))
        for name, vocabulary in vocabularies.items():
            tokens = "units" if name == SPEECH else f"{name} tokens"
            found = _lengths_of(rows, task_set.field_of(name), vocabulary, f"{str(folder)!r}: {split}")
            lengths[tokens] = lengths.get(tokens, []) + found
            if name != SPEECH and not isinstance(vocabulary, UnitVocabulary):
                yield from describe_unknown(count_unknown(once, task_set.field_of(name), vocabulary), name)
    for name in files(folder / "rows"):
        meta = read_meta(folder / "rows" / name.removesuffix(META)) if name.endswith(f"/{META}") else None
        if meta is not None:
            yield f"rows {summary_of_rows(meta)}"
    yield from _lengths(lengths, out)
    if "train" not in prepared.splits(folder):
        return
    tokenizer = load_tokenizer(folder / "vocabularies" / SPEECH) if SPEECH in vocabularies else None
    for row in _spread(list(prepared.read_examples(folder, "train")), examples):
        trained = {name: _decoded(each, row[task_set.field_of(name)]) for name, each in vocabularies.items()}
        yield f"example {row['id']}: {trained.get(TEXT) or '(no text)'}"
        if row[_TEXT] and trained.get(TEXT) != row[_TEXT]:
            yield f"  its text, which the vocabulary cannot represent: {row[_TEXT]}"
        for name in vocabularies:
            if name not in (SPEECH, TEXT):
                yield f"  {task_set.field_of(name)}: {trained[name]}"
        if row["units"] is None or tokenizer is None:
            continue
        more = " …" if len(row["units"]) > _SHOWN else ""
        yield f"  {len(row['units'])} units: {' '.join(map(str, row['units'][:_SHOWN]))}{more}"
        if out is not None:
            try:
                yield f"  {_write(out, row, _sound(tokenizer, row['units'], vocoder), '_units')}"
            except UserError as error:  # show the remaining examples without audio
                yield f"  no audio: {error}"


def _decoded(vocabulary: Vocabulary, content: Any) -> Any:
    """Return the content as a model is trained on it: the decoded tokens."""
    return None if content is None else vocabulary.decode(vocabulary.encode(content))


def _sound(tokenizer: Tokenizer, units: np.ndarray, vocoder: bool) -> np.ndarray:
    command = getattr(tokenizer, "vocoder", "")
    return run_vocoder(command, units) if vocoder and command else synthesize(tokenizer, units)


def _write(out: Path, row: Mapping[str, Any], waveform: np.ndarray, kind: str = "") -> Path:
    path = out / f"{str(row['id']).replace('/', '-')}{kind}.wav"
    save_audio(path, waveform)
    return path


def _ordered(splits: Sequence[str]) -> list[str]:
    return sorted(splits, key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS))


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Return ``count`` of ``rows`` at equal distances."""
    return [rows[index * len(rows) // count] for index in range(min(count, len(rows)))] if rows else []


def _lengths_of(rows: Sequence[Mapping[str, Any]], field: str, vocabulary: Vocabulary, place: str) -> list[int]:
    """The number of tokens of each row that has the field."""
    found = []
    for row in rows:
        if row[field] is not None:
            try:
                found.append(len(vocabulary.encode(row[field])))
            except UserError as error:
                raise UserError(f"{place}, example {row['id']!r}: {error}") from error
    return found


def _lengths(lengths: Mapping[str, Sequence[float]], out: Path | None) -> Iterator[str]:
    """Yield histograms as text; with ``out``, also write lengths.png."""
    lengths = {name: values for name, values in lengths.items() if len(values)}
    for name, values in lengths.items():
        counts, edges = np.histogram(values, _BINS)
        yield f"{name} per example: {min(values):g} to {max(values):g}, median {np.median(values):g}"
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            yield f"  {low:8.1f} to {high:8.1f} {'#' * -(-_BAR * count // max(counts)):{_BAR}} {count:,}"
    if out is not None and lengths:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4 * len(lengths), 3), layout="constrained")
        for axes, (name, values) in zip(
            figure.subplots(1, len(lengths), squeeze=False)[0], lengths.items(), strict=True
        ):
            axes.hist(values, bins=40)
            axes.set_xlabel(f"{name} per example")
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / "lengths.png", dpi=120)
        yield f"{out / 'lengths.png'}"

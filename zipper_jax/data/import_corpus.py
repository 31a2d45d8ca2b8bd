"""Import the user's own data into a corpus folder: read, validate, split. Audio files are referenced, not copied.

    corpus/manifest.jsonl   one line per row: id, split, and text, audio (absolute), units, voice, start, seconds,
                            word_times
    corpus/corpus.json      source, settings, counts, hours, dropped rows by reason

Both are written at the end. Until then the folder holds only the journal of checked files and its previous content.
"""

import dataclasses
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from zipper_jax.data import alignments, check_audio, splits
from zipper_jax.data.sources import read_sources, units
from zipper_jax.data.sources.rows import FIELDS, NO_AUDIO, ImportSettings, Row
from zipper_jax.metrics.normalisers import TextForm, text_form
from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.speech.corpus import FORMAT_VERSION, read_header
from zipper_jax.speech.given_units import GivenUnits
from zipper_jax.speech.manifest import SPLITS
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes, write_json
from zipper_jax.utils.locks import locked, locked_file

logger = logging.getLogger(__name__)

_LATER_FIELDS = ("fields", "normaliser", "encode_text", "alignments")
_MADE_UP = ("text", "audio")
"""Formats whose ids are derived from file names: rows with equal ids may be different rows."""


def import_corpus(
    kind: str,
    paths: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    settings: ImportSettings = ImportSettings(),
    strict: bool = False,
    overwrite: bool = False,
    processes: int | None = None,
) -> dict[str, Any]:
    """Write the corpus folder ``out`` and return its ``corpus.json``.

    A rerun after an interruption validates only the remaining audio; on a complete corpus it does nothing.

    Args:
        kind: A format of `zipper_jax.data.sources`.
        paths: Files or folders of that format.
        out: Folder to write.
        settings: How the source is read.
        strict: Raise instead of dropping rows; nothing is written then.
        overwrite: Read the source again if ``out`` holds a corpus.
        processes: Worker processes that validate audio; None: one per core.

    Raises:
        UserError: The source is missing, empty or of another format; no row is usable; ``out`` holds another corpus.
    """
    with locked(out):
        return _import(kind, paths, Path(out), settings, strict, overwrite, processes)


def check_shard(
    kind: str,
    paths: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    settings: ImportSettings,
    shard: tuple[int, int],
    overwrite: bool = False,
    processes: int | None = None,
) -> None:
    """Check the audio of part (i, n) of the source, i from 0; `import_corpus` does not check it again.

    Shards may run at the same time, on any machines that see the source under the same paths and share ``out``, or
    whose journals are copied there.

    Raises:
        UserError: The source cannot be read, or another process checks this shard.
    """
    out = Path(out)
    if kind.startswith("tfds:"):
        raise UserError(f"--shard: audio of {kind} is extracted, not checked; import it in one part")
    if (read_header(out) or {}).get("complete") and not overwrite:
        logger.info(f"corpus {out} is complete; --overwrite reads the source again")
        return
    journal = check_audio.shard_journal(shard)
    rows = list(read_sources(kind, [Path(path) for path in paths], settings, out))
    out.mkdir(parents=True, exist_ok=True)
    with locked_file(out / journal):
        check_audio.check_audio(out, _parts(rows)[shard[0] :: shard[1]], processes, journal)
    logger.info(f"shard {shard[0]}/{shard[1]} is done")


def _import(
    kind: str,
    paths: Sequence[str | os.PathLike],
    out: Path,
    settings: ImportSettings,
    strict: bool,
    overwrite: bool,
    processes: int | None,
) -> dict[str, Any]:
    default = to_dict(ImportSettings())
    # Fields that older corpora lack count only if given.
    what = {name: v for name, v in to_dict(settings).items() if name not in _LATER_FIELDS or v != default[name]}
    what |= {"format": kind, "sources": [str(Path(path).absolute()) for path in paths]}
    found = read_header(out)
    there = out / "manifest.jsonl"
    is_source = {str(out.absolute()), str(there.absolute())} & set(what["sources"])
    if found is None and there.exists() and (is_source or not overwrite):
        raise UserError(f"--out = {str(out)!r}: it has a manifest.jsonl that no import wrote; give another --out")
    if found is not None and not overwrite:
        if found["settings"] != what:
            raise UserError(
                f"--out = {str(out)!r}: it holds a corpus with other settings; give --overwrite or another --out"
            )
        if found["complete"]:
            logger.info(f"corpus {out} is complete ({_counts(found['counts'])}); --overwrite reads the source again")
            return found
    logger.info(f"reading {kind}")
    rows = list(read_sources(kind, [Path(path) for path in paths], settings, out))
    given = _given_units(kind, paths, settings)
    rows = _mark_twice(rows, kind in _MADE_UP)
    rows, rates = _check(out, rows, settings, processes)
    if given is not None:
        rows = [row if row.problem else units.checked(row, given) for row in rows]
    form = settings.text_form
    good = splits.drop_leaks(splits.assign([row for row in rows if not row.problem], settings), form)
    good, unaligned = _aligned(good, settings)
    dropped = [row for row in [*rows, *good] if row.problem]
    kept = [piece for row in good if not row.problem for piece in _pieces(row, settings)]
    reasons = _reasons(dropped)
    if dropped and strict:
        raise UserError(f"--strict, and {len(dropped)} of {len(rows)} rows cannot be used: {_told(reasons)}")
    if unaligned and strict:
        raise UserError(f"--strict, and rows have no word times: {_told(unaligned)}")
    if not any(row.split == "train" for row in kept):
        sources = ", ".join(repr(str(path)) for path in paths) or kind
        raise UserError(
            f"{sources}: there is nothing to train on: {len(rows)} rows read, {len(dropped)} dropped"
            f"{f' ({_told(reasons)})' if reasons else ''}, {len(kept)} held out: check the source"
        )
    manifest = [_manifest_row(row) for row in kept]
    header = {"format_version": FORMAT_VERSION, "settings": what, "text_form": dataclasses.asdict(form)}
    header |= figures(manifest, form)
    header |= {"sample_rates": dict(rates), "dropped": reasons, "complete": True}
    if settings.alignments:
        header |= {"aligned": sum(row.word_times is not None for row in kept), "unaligned": unaligned}
    if given is not None:
        header["units"] = dataclasses.asdict(given)
    write_bytes(out / "manifest.jsonl", b"".join((json.dumps(row) + "\n").encode() for row in manifest))
    write_json(out / "corpus.json", header)
    check_audio.forget(out)
    for line in summary(header):
        logger.info(line)
    logger.info(f"corpus {out} is complete")
    return header


def summary(header: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that summarise a corpus."""
    for split, part in header["splits"].items():
        sizes = [f"{part['hours']:.2f} hours"] * bool(part["hours"])
        sizes += [f"{part[name]:,} {name}" for name in ("words", "units", "voices") if part[name]]
        yield f"{split}: {header['counts'][split]:,} rows, {', '.join(sizes)}"
    yield f"text: {text_form(header).about()}"
    yield from leaks(header)
    others = {rate: count for rate, count in header.get("sample_rates", {}).items() if rate != str(SAMPLE_RATE)}
    if others:
        listed = ", ".join(f"{count:,} at {rate} Hz" for rate, count in others.items())
        yield f"audio of other sample rates: {listed}; resampled to {SAMPLE_RATE} Hz when read"
    if "aligned" in header:
        yield f"word times: {header['aligned']:,} rows; without: {_told(header['unaligned']) or 'none'}"
    if "dropped" in header:
        yield f"dropped: {_told(header['dropped']) or 'none'}"


def _aligned(rows: Sequence[Row], settings: ImportSettings) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, those of text and speech with word times, and why some of these have none, as `_reasons` does.

    Raises:
        UserError: The alignments are of none of the rows.
    """
    if not settings.alignments:
        return list(rows), {}
    found, form = alignments.read(Path(settings.alignments)), settings.text_form
    result, lacking = [], []
    for row in rows:
        if not row.problem and row.text is not None and (row.audio is not None or row.units):
            times, problem = alignments.times_of(form.stored(row.text), found.get(row.id), row.seconds, form)
            lacking += [dataclasses.replace(row, problem=problem)] * bool(problem)
            row = row if problem else dataclasses.replace(row, word_times=times)
        result.append(row)
    if not any(row.word_times for row in result):
        raise UserError(
            f"alignments = {settings.alignments!r}: they are of none of the {len(result)} rows "
            f"({_told(_reasons(lacking)) or 'no row has text and speech'}); the first is called {next(iter(found))!r}"
        )
    return result, _reasons(lacking)


def _given_units(kind: str, paths: Sequence[str | os.PathLike], settings: ImportSettings) -> GivenUnits | None:
    """Return the header of a source of units; None for other formats."""
    headers = {units.header(Path(path), settings) for path in paths} if kind == "units" else set()
    if len(headers) > 1:
        raise UserError("the headers of these units differ: import units of one tokenizer at a time")
    return next(iter(headers), None)


def _mark_twice(rows: Sequence[Row], made_up: bool) -> list[Row]:
    """Return the rows with ids that are valid file names; a duplicate id becomes the row's problem.

    A duplicate id derived from a file name (shards of equal name, x/y.txt beside x-y.txt) gets a numeric suffix
    instead, unless the same place was read twice.
    """
    seen: Counter = Counter()
    places: set[str] = set()
    marked = []
    for row in rows:
        name = own = row.id.replace("/", "-")
        while made_up and own in seen and row.place not in places:
            seen[name] += 1
            own = f"{name}-{seen[name]}"
        twice = own in seen and not row.problem
        marked.append(dataclasses.replace(row, id=own, problem="id twice" if twice else row.problem))
        seen[own] = seen[own] or 1
        places.add(row.place)
    return marked


def _check(out: Path, rows: list[Row], settings: ImportSettings, processes: int | None) -> tuple[list[Row], Counter]:
    """The rows with seconds and problems of their audio, and how often each sample rate was met."""
    places, parts = [index for index, row in enumerate(rows) if _has_audio(row)], _parts(rows)
    rates: Counter = Counter()
    for index, (seconds, rate, problem) in zip(
        places, check_audio.check_audio(out, parts, processes) if parts else [], strict=True
    ):
        row = rows[index]
        if (row.text is not None or row.more) and seconds > settings.max_seconds:
            problem = f"longer than {settings.max_seconds:g} s"
        if row.text is not None and problem == "missing audio":
            problem = NO_AUDIO
        rates[str(rate)] += not problem
        rows[index] = dataclasses.replace(row, seconds=round(seconds, 4), problem=problem)
    return rows, Counter({rate: count for rate, count in sorted(rates.items()) if count})


def _has_audio(row: Row) -> bool:
    return row.audio is not None and not row.problem


def _parts(rows: Iterable[Row]) -> list[check_audio.Part]:
    """Return the parts of files that the rows have, in their order."""
    return [(str(row.audio), row.start or 0.0, row.seconds, row.channel) for row in rows if _has_audio(row)]


def _pieces(row: Row, settings: ImportSettings) -> Iterator[Row]:
    """Cut a long row of one modality into equal pieces; a pair stays whole, to keep its alignment.

    Piece 1 of x is x~1, because x-1 may be the id of another row.
    """
    if row.more:  # further fields cannot be cut at matching positions
        yield row
        return
    if row.text is None and row.audio is not None:
        assert row.seconds is not None
        count = math.ceil(row.seconds / settings.piece_seconds)
        for number in range(count):
            start, seconds = (row.start or 0.0) + number * row.seconds / count, row.seconds / count
            part = dataclasses.replace(row, start=round(start, 4), seconds=round(seconds, 4))
            yield dataclasses.replace(part, id=f"{row.id}~{number}") if count > 1 else row
        return
    words = [match.span() for match in re.finditer(r"\S+", row.text or "")] if row.text and not row.units else []
    count = math.ceil(len(words) / settings.piece_words) if settings.piece_words and not row.audio else 1
    if count < 2:
        yield row
        return
    cuts = [round(number * len(words) / count) for number in range(count + 1)]
    for number, (first, last) in enumerate(pairwise(cuts)):
        assert row.text is not None
        text = row.text[words[first][0] : words[last - 1][1]]
        yield dataclasses.replace(row, id=f"{row.id}~{number}", text=text)


def figures(rows: Iterable[Mapping[str, Any]], form: TextForm = TextForm()) -> dict[str, Any]:
    """Return the totals of a manifest (rows, hours, words, units, voices) and the overlap of held-out and training.

    Args:
        rows: Rows of the manifest; iterated twice.
        form: How sentences are compared.
    """
    sums = {split: Counter[str]() for split in SPLITS}
    seconds = dict.fromkeys(SPLITS, 0.0)
    voices: dict[str, set[str]] = {split: set() for split in SPLITS}
    held_out: set[str] = set()
    for row in rows:
        mine, split = sums[row["split"]], row["split"]
        mine["rows"] += 1
        seconds[split] += row.get("seconds") or 0.0
        mine["units"] += len(row.get("units") or ())
        if row.get("voice"):
            voices[split].add(row["voice"])
        if row.get("text"):
            mine["words"] += len(row["text"].split())
            if split != "train":
                held_out.add(form.key(row["text"]))
    shared: set[str] = set()
    if held_out:  # of training sentences only the shared ones are kept in memory
        training = (form.key(row["text"]) for row in rows if row["split"] == "train" and row.get("text"))
        shared = {key for key in training if key in held_out}
    parts = {
        split: {"hours": round(seconds[split] / 3600, 4), "words": mine["words"], "units": mine["units"]}
        | {"voices": len(voices[split])}
        for split, mine in sums.items()
        if mine["rows"]
    }
    held_out_voices = set().union(*(ones for split, ones in voices.items() if split != "train"))
    return {
        "counts": {split: mine["rows"] for split, mine in sums.items()},
        "hours": round(sum(part["hours"] for part in parts.values()), 4),
        "splits": parts,
        "shared_voices": len(voices["train"] & held_out_voices),
        "shared_sentences": len(shared),
    }


def leaks(header: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for sentences and for voices that `figures` found in both held-out and training rows."""
    for what in ("sentences", "voices"):
        if header.get(f"shared_{what}"):  # import drops such sentences; a manifest written by hand may have some
            yield f"{what}: {header[f'shared_{what}']} of the held-out ones are in training too"


def _manifest_row(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in FIELDS if getattr(row, name) is not None} | dict(row.more)


def _reasons(dropped: Sequence[Row]) -> dict[str, Any]:
    """Return problem -> count and place of its first row, in order of decreasing count."""
    counts = Counter(row.problem for row in dropped)
    first: dict[str, str] = {}
    for row in dropped:
        first.setdefault(row.problem, row.place)
    return {problem: {"count": count, "first": first[problem]} for problem, count in counts.most_common()}


def _told(reasons: dict[str, Any]) -> str:
    return "; ".join(f"{about['count']:,} {problem} (first: {about['first']})" for problem, about in reasons.items())


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items() if count)

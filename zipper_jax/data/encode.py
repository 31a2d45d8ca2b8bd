"""Encode the rows of a corpus as examples: audio to units, in worker processes; an interrupted split is resumed.

A row whose audio cannot be used, because it changed after the import, is skipped and recorded in ``<split>.dropped``.
"""

import contextlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec

from zipper_jax.speech.audio import SAMPLE_RATE, AudioError, load_audio
from zipper_jax.speech.tokenizers import load_units
from zipper_jax.speech.workers import parallel_map
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_text
from zipper_jax.utils.progress import progress
from zipper_jax.utils.storage import AnyPath

logger = logging.getLogger(__name__)


_DROPPED = ".dropped"


class _Key(msgspec.Struct):
    id: str
    shift: user_json.Natural = 0


class _Dropped(TypedDict):
    id: str
    reason: str
    message: str


class Encoded(NamedTuple):
    """The units of one row per shift, and its duration; or why it has none: in a few words, and in full."""

    variants: list[list[int]]
    seconds: float
    reason: str = ""
    message: str = ""


def part(corpus: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_audio` for a manifest row."""
    within = {name: row[name] for name in ("start", "seconds") if "start" in row}
    within |= {"channel": row["channel"]} if "channel" in row else {}
    return {"source": str(corpus / row["audio"]), **within}


def encode_split(
    path: Path,
    corpus: Path,
    tokenizer: Path,
    rows: Iterable[dict[str, Any]],
    fields: Sequence[str],
    shifts: int,
    processes: int | None,
) -> None:
    """Write ``path`` (``<split>.jsonl``) unless it exists; `read_dropped` tells which rows it lacks.

    Args:
        path: File to write.
        corpus: Corpus folder.
        tokenizer: Folder of the unit tokenizer.
        rows: Manifest rows of this split; iterated several times.
        fields: Fields that are copied unchanged.
        shifts: See `PrepareSettings`.
        processes: Worker processes; None: one per core.
    """
    if path.is_file():
        return
    begun, split = time.monotonic(), path.stem
    partial, dropped = path.with_name(f"{path.name}.partial"), dropped_path(path)
    known = read_dropped(path)

    def left(done: int) -> Iterator[dict[str, Any]]:
        return itertools.islice((row for row in rows if row["id"] not in known), done, None)

    done = _keep_whole_rows(partial, left(0))
    jobs = (part(corpus, row) for row in left(done) if _is_encoded(row))
    count, total = 0, sum(map(_is_encoded, left(done)))
    if done:
        logger.info(f"{split}: continuing behind {done} of {sum(1 for _ in left(0))} examples")
    encoded = parallel_map(f"{__name__}:make_encoder", {"tokenizer": str(tokenizer), "shifts": shifts}, jobs, processes)
    path.parent.mkdir(parents=True, exist_ok=True)
    if dropped.is_file():  # a killed process may have left half a line
        write_text(dropped, "".join(json.dumps(one) + "\n" for one in known.values()))
    with (
        contextlib.closing(encoded),
        partial.open("a", encoding="utf-8") as out,
        dropped.open("a", encoding="utf-8") as skipped,
    ):
        bar = progress(total=total, what=f"encoding {split}", unit="utterances")
        for row in left(done):
            count += 1
            variants: list[Any] = [row.get("units")]
            seconds = row.get("seconds") or 0.0
            if _is_encoded(row):
                variants, seconds, reason, message = next(encoded)
                bar.update()
                if reason:
                    skipped.write(json.dumps({"id": row["id"], "reason": reason, "message": message}) + "\n")
                    skipped.flush()
                    continue
            content = {field: row.get(field) or None for field in fields}
            about = {"id": row["id"], "split": split, **content, "voice": row.get("voice")}
            for shift, units in enumerate(variants):
                example = about | {"units": units, "seconds": round(seconds, 3), "shift": shift}
                out.write(json.dumps(example, ensure_ascii=False) + "\n")
            out.flush()
        bar.close()
    if not dropped.stat().st_size:
        dropped.unlink()
    os.replace(partial, path)
    logger.info(f"{split}: {count} examples in {time.monotonic() - begun:.1f} s")


def _is_encoded(row: Mapping[str, Any]) -> bool:
    """Whether the units of a row are made of its audio."""
    return "audio" in row and "units" not in row


def dropped_path(path: AnyPath) -> AnyPath:
    """File of the rows that the examples in ``path`` lack."""
    return path.with_suffix(_DROPPED)


def read_dropped(path: AnyPath) -> dict[str, dict[str, str]]:
    """Return id -> ``reason`` and ``message`` of the rows that the examples in ``path`` lack."""
    found: dict[str, dict[str, str]] = {}
    record = dropped_path(path)
    for line in record.read_bytes().split(b"\n") if record.is_file() else ():
        with contextlib.suppress(UserError):  # truncated line of a killed run
            one = user_json.convert(user_json.decode(line, "", ""), _Dropped, "", "")
            found[one["id"]] = {"id": one["id"], "reason": one["reason"], "message": one["message"]}
    return found


def count_dropped(found: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Return reason -> count and message of the first row."""
    counted: dict[str, dict[str, Any]] = {}
    for one in found.values():
        counted.setdefault(one["reason"], {"count": 0, "first": one["message"]})["count"] += 1
    return counted


def describe_dropped(split: str, counted: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line per reason."""
    for reason, one in counted.items():
        yield f"{split}: dropped {one['count']:,} {reason} (first: {one['first']}); --overwrite tries again"


def _keep_whole_rows(partial: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Return how many of the first ``rows`` are complete; truncate the last one, which may be incomplete."""
    if not partial.is_file():
        return 0
    expected = (row["id"] for row in rows)
    done, end, place, last, shift = 0, 0, 0, None, 0
    with partial.open("rb") as lines:
        for line in lines:
            try:
                found = user_json.convert(user_json.decode(line, "", ""), _Key, "", "")
            except UserError:  # truncated line
                break
            name, shift = found.id, shift + 1 if found.id == last else 0
            if found.shift != shift:  # a line is missing, or there twice
                break
            if name != last:
                if last is not None:  # the previous row is complete
                    done, end = done + 1, place
                if name != next(expected, None):
                    break
                last = name
            place += len(line)
    os.truncate(partial, end)
    return done


def make_encoder(tokenizer: str, shifts: int) -> Callable[[dict[str, Any]], Encoded]:
    """Return the function that a worker runs on the arguments of `load_audio`."""
    units = load_units(tokenizer)
    step = SAMPLE_RATE / units.rate_hz

    def encode(part: dict[str, Any]) -> Encoded:
        try:
            waveform = load_audio(**part)
        except AudioError as error:
            return Encoded([], 0.0, error.reason, str(error))
        starts = [int(step * shift / shifts) for shift in range(shifts)]
        variants = [units.encode(waveform[start:]).tolist() for start in starts if start < len(waveform)]
        return Encoded(variants, len(waveform) / SAMPLE_RATE)

    return encode

"""Encode the rows of a corpus as examples: audio to units, in worker processes; an interrupted split is resumed."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zipper_jax.speech.audio import SAMPLE_RATE, load_audio
from zipper_jax.speech.tokenizers import load_tokenizer
from zipper_jax.speech.workers import parallel_map
from zipper_jax.utils.progress import progress

logger = logging.getLogger(__name__)


def part(corpus: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_audio` for a manifest row."""
    within = {"start": row["start"], "seconds": row["seconds"]} if "start" in row else {}
    return {"source": str(corpus / row["audio"]), **within}


def encode_split(
    path: Path,
    corpus: Path,
    tokenizer: Path,
    rows: list[dict[str, Any]],
    fields: Sequence[str],
    shifts: int,
    processes: int | None,
) -> None:
    """Write ``path`` (``<split>.jsonl``) unless it exists.

    Args:
        path: File to write.
        corpus: Corpus folder.
        tokenizer: Folder of the unit tokenizer.
        rows: Manifest rows of this split.
        fields: Fields that are copied unchanged.
        shifts: See `PrepareSettings`.
        processes: Worker processes; None: one per core.
    """
    if path.is_file():
        return
    begun, split = time.monotonic(), path.stem
    partial = path.with_name(f"{path.name}.partial")
    done = _keep_whole_rows(partial, rows)
    if done:
        logger.info(f"{split}: continuing behind {done} of {len(rows)} examples")
    rows = rows[done:]
    jobs = [part(corpus, row) for row in rows if "audio" in row and "units" not in row]
    encoded = parallel_map(f"{__name__}:make_encoder", {"tokenizer": str(tokenizer), "shifts": shifts}, jobs, processes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(encoded), partial.open("a", encoding="utf-8") as out:
        bar = progress(total=len(jobs), what=f"encoding {split}", unit="utterances")
        for row in rows:
            variants, seconds = [row.get("units")], row.get("seconds") or 0.0
            if "audio" in row and "units" not in row:
                variants, seconds = next(encoded)
                bar.update()
            content = {field: row.get(field) or None for field in fields}
            about = {"id": row["id"], "split": split, **content, "voice": row.get("voice")}
            for shift, units in enumerate(variants):
                example = about | {"units": units, "seconds": round(seconds, 3), "shift": shift}
                out.write(json.dumps(example, ensure_ascii=False) + "\n")
            out.flush()
        bar.close()
    os.replace(partial, path)
    logger.info(f"{split}: {len(rows)} examples in {time.monotonic() - begun:.1f} s")


def _keep_whole_rows(partial: Path, rows: list[dict[str, Any]]) -> int:
    """Return how many of the first ``rows`` are complete; truncate the last one, which may be incomplete."""
    if not partial.is_file():
        return 0
    done, end, place, last = 0, 0, 0, None
    with partial.open("rb") as lines:
        for line in lines:
            try:
                name = json.loads(line)["id"]
            except (ValueError, KeyError, TypeError):  # truncated line
                break
            if name != last:
                if last is not None:  # the previous row is complete
                    done, end = done + 1, place
                if done >= len(rows) or name != rows[done]["id"]:
                    break
                last = name
            place += len(line)
    os.truncate(partial, end)
    return done


def make_encoder(tokenizer: str, shifts: int) -> Callable[[dict[str, Any]], tuple[list[list[int]], float]]:
    """Return the function that a worker runs: arguments of `load_audio` -> (units per shift, seconds)."""
    units = load_tokenizer(tokenizer)
    step = SAMPLE_RATE / units.rate_hz

    def encode(part: dict[str, Any]) -> tuple[list[list[int]], float]:
        waveform = load_audio(**part)
        starts = [int(step * shift / shifts) for shift in range(shifts)]
        variants = [units.encode(waveform[start:]).tolist() for start in starts if start < len(waveform)]
        return variants, len(waveform) / SAMPLE_RATE

    return encode

"""Pack the examples of seqio tasks into rows, and count the dropped ones."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.data import interleave
from zipper_jax.data.packed_rows import FORMAT_VERSION, describe, read_meta, write_rows
from zipper_jax.data.prepared import (
    PrepareSettings,
    read_examples,
    read_header,
    read_vocabularies,
    splits,
    write_examples,
)
from zipper_jax.packing import pack
from zipper_jax.sequences import Example, fill_template
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked
from zipper_jax.vocabularies import Vocabulary

logger = logging.getLogger(__name__)


def prepare(
    corpus: Any,
    folder: Any,
    settings: PrepareSettings = PrepareSettings(),
    overwrite: bool = False,
    processes: int | None = None,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Turn a corpus into a prepared folder; return (task, split) -> ``meta.json`` of its rows.

    A rerun skips finished stages and resumes after an interruption.

    Args:
      overwrite: start over what was made with other settings; without it that is an error.
      processes: for encoding audio, default one per core.

    Raises:
      UserError: a corpus that is missing or not finished, or other settings than the folder was made with.
    """
    began = time.monotonic()
    with locked(folder):
        write_examples(corpus, folder, settings, overwrite, processes)
        metas = write_all_rows(folder, settings, overwrite)
    logger.info(f"prepared {folder} in {time.monotonic() - began:.1f} s")
    return metas


def write_all_rows(folder: Any, settings: PrepareSettings, overwrite: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """Packs every task and split of a prepared folder that is not packed yet."""
    folder = Path(folder)
    header = read_header(folder)
    metas: dict[tuple[str, str], dict[str, Any]] = {}
    to_do = []
    for task in settings.tasks:
        for split in splits(folder):
            wanted = set(settings.task_set.tasks[task].modalities)
            kinds = header.get("modalities", {}).get(split)
            if kinds is not None and not any(wanted <= set(kind) for kind in kinds):
                logger.info(f"{task}/{split}: no rows, for no example has {' and '.join(sorted(wanted))}")
                continue
            home = folder / "rows" / task / split
            digest = _digest(header, settings, task)
            meta = read_meta(home)
            if meta is not None and meta.get("made_with") == digest:
                metas[task, split] = meta
                logger.info(summary(meta))
                continue
            if meta is not None and not overwrite:
                raise UserError(
                    f"rows in {str(home)!r} were packed with other settings (lengths {meta.get('lengths')}, now "
                    f"{_lengths(settings, task)}): give --overwrite or another --out"
                )
            to_do.append((task, split, home, digest))
    if not metas and not to_do:
        raise UserError(f"tasks: the corpus has no example for {', '.join(settings.tasks)}: give other --tasks")
    if to_do:
        task_set, names = settings.task_set, dict[str, str]()
        if any(task_set.tasks[task].interleaving is None for task, *_ in to_do):
            logger.info("loading seqio")
            from zipper_jax.data import tasks  # TensorFlow: only when there is something to do

            names = tasks.register(folder, prefix=f"prepare_{header['made_with']['corpus'][:12]}_")
        for task, split, home, digest in to_do:
            if task_set.tasks[task].interleaving is None:
                rows, counts = pack_examples(task, tasks.examples(names[task], split), settings)
            else:
                of_split = read_examples(folder, split)
                rows, counts = pack_interleaved(task, of_split, read_vocabularies(folder), header, split, settings)
            for leftover in home.parent.glob("*.partial"):  # of a killed run
                shutil.rmtree(leftover, ignore_errors=True)
            more = {**counts, "task": task, "split": split, "made_with": digest, "vocabularies": header["vocabularies"]}
            metas[task, split] = write_rows(home, rows, more)
            logger.info(summary(metas[task, split]))
    return metas


def pack_examples(
    task: str, contents: Iterable[Mapping[str, np.ndarray]], settings: PrepareSettings
) -> tuple[list[list[Example]], dict[str, Any]]:
    """Pack the examples of a task.

    Returns:
        The rows, and ``lengths``, ``dropped`` (by reason) and ``fill`` (share by modality).
    """
    config = settings.task_set.tasks[task]
    return _pack(task, (fill_template(config, content) for content in contents), settings)


def pack_interleaved(
    task: str,
    examples: Iterable[Mapping[str, Any]],
    vocabularies: Mapping[str, Vocabulary],
    header: Mapping[str, Any],
    split: str,
    settings: PrepareSettings,
) -> tuple[list[list[Example]], dict[str, Any]]:
    """`pack_examples` of an interleaved task, from the examples and the header of a prepared folder.

    Raises:
        UserError: No example of the split has word times.
    """
    rate_hz, shifts = float(header.get("rate_hz", 0.0)), settings.shifts if split == "train" else 1
    made, dropped = interleave.examples(task, settings.task_set, vocabularies, examples, rate_hz, shifts)
    rows, counts = _pack(task, made, settings)
    return rows, {**counts, "dropped": counts["dropped"] | dropped}


def _pack(task: str, made: Iterable[Example], settings: PrepareSettings) -> tuple[list[list[Example]], dict[str, Any]]:
    lengths = _lengths(settings, task)
    examples: list[Example] = []
    dropped = {"empty": 0, "too_long": 0}
    for example in made:
        if all(len(span.tokens) for span in example):
            examples.append(example)
        else:  # an empty span: no input, or no target
            dropped["empty"] += 1
    taken = np.array([_slots(example, lengths) for example in examples], np.int64).reshape(-1, len(lengths))
    packing = pack(taken, np.array(list(lengths.values())), settings.open_rows)
    dropped["too_long"] = len(packing.dropped)
    rows = [[examples[index] for index in row] for row in packing.rows]
    slots = describe(rows)["slots"]
    fill = {m: round(slots.get(m, 0) / (len(rows) * length), 4) if rows else 0.0 for m, length in lengths.items()}
    return rows, {"lengths": lengths, "dropped": dropped, "fill": fill}


def summary(meta: Mapping[str, Any]) -> str:
    """Return one line about a store: examples, tokens, rows, their fill, dropped examples by reason."""
    tokens = ", ".join(f"{count:,} {modality}" for modality, count in meta["tokens"].items()) or "no"
    fill = ", ".join(f"{modality} {share:.0%}" for modality, share in meta.get("fill", {}).items())
    dropped = ", ".join(
        f"{count} {reason.replace('_', ' ')}" for reason, count in meta.get("dropped", {}).items() if count
    )
    return (
        f"{meta.get('task')}/{meta.get('split')}: {meta['examples']:,} examples, {tokens} tokens, "
        f"{meta['rows']:,} rows (filled: {fill}), dropped: {dropped or 'none'}"
    )


def _lengths(settings: PrepareSettings, task: str) -> dict[str, int]:
    """Return modality -> positions of a row, for the modalities of the task."""
    return {modality: settings.row_lengths[modality] for modality in sorted(settings.task_set.tasks[task].modalities)}


def _slots(example: Example, lengths: Mapping[str, int]) -> list[int]:
    return [sum(len(span.tokens) + 2 for span in example if span.modality == modality) for modality in lengths]


def _digest(header: Mapping[str, Any], settings: PrepareSettings, task: str) -> str:
    """Return the SHA-256 of everything that determines the rows of a task."""
    interleaving = settings.task_set.tasks[task].interleaving
    decides = {
        "format": FORMAT_VERSION,
        "examples": [header["made_with"], header["dropped"]] if header.get("dropped") else header["made_with"],
        "template": settings.task_set.tasks[task].spans,
        **({} if interleaving is None else {"interleaving": to_dict(interleaving), "shifts": settings.shifts}),
        "lengths": _lengths(settings, task),
        "open_rows": settings.open_rows,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

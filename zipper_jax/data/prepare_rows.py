"""Pack the examples of a prepared folder into rows, and count the dropped ones; and all of `zipper data prepare`."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.data import interleave
from zipper_jax.data.packed_rows import FORMAT_VERSION, read_meta, write_rows
from zipper_jax.data.prepare_examples import join, write_examples
from zipper_jax.data.prepare_fit import fit, open_source
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.prepare_shards import encode_shard
from zipper_jax.data.prepared import (
    read_examples,
    read_header,
    read_task_set,
    read_vocabularies,
    splits,
    with_modalities,
)
from zipper_jax.packing import Packer
from zipper_jax.sequences import Example, fill_template
from zipper_jax.tasks import TaskConfig
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked
from zipper_jax.utils.storage import AnyPath, as_path

logger = logging.getLogger(__name__)

Metas = dict[tuple[str, str], dict[str, Any]]


def prepare(
    corpus: Any,
    folder: Any,
    settings: PrepareSettings = PrepareSettings(),
    overwrite: bool = False,
    processes: int | None = None,
    workers: int = 1,
) -> Metas:
    """Turn a corpus into a prepared folder; return (task, split) -> ``meta.json`` of its rows.

    A rerun skips finished stages and resumes after an interruption.

    Args:
      corpus: Corpus folder.
      folder: Folder to write.
      settings: How it is prepared.
      overwrite: start over what was made with other settings; without it that is an error.
      processes: for encoding audio, default one per core.
      workers: shards that are made at the same time, if more than 1 with one process for encoding each.

    Raises:
      UserError: a corpus that is missing or not finished, or other settings than the folder was made with.
    """
    began = time.monotonic()
    with locked(folder):
        write_examples(corpus, folder, settings, overwrite, processes, workers)
        metas = write_all_rows(folder, settings, overwrite)
    logger.info(f"prepared {folder} in {time.monotonic() - began:.1f} s")
    return metas


def prepare_fit(corpus: Any, folder: Any, settings: PrepareSettings, overwrite: bool = False) -> None:
    """The first step of `prepare`, for any number of shards."""
    with locked(folder):
        fit(open_source(corpus, settings), as_path(folder), overwrite)


def prepare_shard(
    corpus: Any, folder: Any, settings: PrepareSettings, shard: tuple[int, int], processes: int | None = None
) -> None:
    """The second step: shard (i, n), i from 0; in any order, at the same time, on any machines."""
    encode_shard(open_source(corpus, settings), as_path(folder), shard, processes)


def prepare_finish(corpus: Any, folder: Any, settings: PrepareSettings, overwrite: bool = False) -> Metas:
    """The third step: what `prepare` returns and writes, when all shards are there."""
    with locked(folder):
        join(open_source(corpus, settings), as_path(folder))
        return write_all_rows(folder, settings, overwrite)


def write_all_rows(folder: Any, settings: PrepareSettings, overwrite: bool) -> Metas:
    """Pack every task and split of a prepared folder that is not packed yet."""
    folder = as_path(folder)
    header = read_header(folder)
    metas: Metas = {}
    to_do = []
    for task in settings.tasks:
        for split in splits(folder):
            wanted = set(settings.task_set.tasks[task].modalities)
            kinds = header.get("modalities", {}).get(split)
            if kinds is not None and not any(wanted <= set(kind) for kind in kinds):
                logger.info(f"{task}/{split}: no rows, for no example has {' and '.join(sorted(wanted))}")
                continue
            if split != "train" and not _can_be_cut(folder, split, settings.task_set.tasks[task]):
                logger.info(f"{task}/{split}: no rows, for no example has word times")
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
    for task, split, home, digest in to_do:
        more = {"task": task, "split": split, "made_with": digest, "vocabularies": header["vocabularies"]}
        for leftover in home.parent.glob("*.partial") if isinstance(home, Path) else ():  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
        packed = Packed(task, examples_of(folder, task, split, settings), settings, more)
        metas[task, split] = write_rows(home, packed, packed.meta)
        logger.info(summary(metas[task, split]))
    return metas


def _can_be_cut(folder: AnyPath, split: str, task: TaskConfig) -> bool:
    """Return whether the split has word times, if the task needs some; held-out splits may have none."""
    return task.interleaving is None or any(row.get("word_times") for row in read_examples(folder, split))


def contents(
    folder: Any, modalities: Iterable[str], split: str, kept: Iterable[Mapping[str, Any]] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield modality -> content tokens of the examples of a split that have all of ``modalities``, see
    `prepared.with_modalities`. ``kept``: see `examples_of`.
    """
    vocabularies, task_set = read_vocabularies(folder), read_task_set(folder)
    fields = {modality: task_set.field_of(modality) for modality in modalities}
    rows = read_examples(folder, split) if kept is None else kept
    for example in with_modalities(rows, fields, task_set):
        yield {modality: vocabularies[modality].encode(example[field]) for modality, field in fields.items()}


def examples_of(
    folder: Any, task: str, split: str, settings: PrepareSettings, kept: Iterable[Mapping[str, Any]] | None = None
) -> Iterator[Example | None]:
    """Yield the examples of a task; None for what an interleaved one cannot cut.

    Args:
        folder: A prepared folder.
        task: A task of the settings.
        split: Of the folder.
        settings: With the tasks.
        kept: Rows of the split, from `read_examples`; None: all.

    Raises:
        UserError: An interleaved task, and no example has word times.
    """
    config = settings.task_set.tasks[task]
    if config.interleaving is None:
        return (fill_template(config, content) for content in contents(folder, config.modalities, split, kept))
    rate_hz, shifts = float(read_header(folder).get("rate_hz", 0.0)), settings.shifts if split == "train" else 1
    rows = read_examples(folder, split) if kept is None else kept
    return interleave.examples(task, settings.task_set, read_vocabularies(folder), rows, rate_hz, shifts)


class Packed:
    """The rows of a task's examples, packed while they are iterated over, once.

    Args:
        task: Its name.
        examples: From `examples_of`.
        settings: Tasks and lengths of rows.
        about: Further entries of `meta`.
    """

    def __init__(
        self,
        task: str,
        examples: Iterable[Example | None],
        settings: PrepareSettings,
        about: Mapping[str, Any] | None = None,
    ):
        self._lengths = _lengths(settings, task)
        self._examples, self._open_rows, self._about = examples, settings.open_rows, about or {}
        self._dropped = {"empty": 0, "too_long": 0}
        if settings.task_set.tasks[task].interleaving is not None:
            self._dropped[interleave.NOT_ALIGNED] = 0
        self._slots, self._rows = np.zeros(len(self._lengths), np.int64), 0

    def __iter__(self) -> Iterator[list[Example]]:
        packer = Packer[Example](np.array(list(self._lengths.values())), self._open_rows)
        for example in self._examples:
            if example is None:
                self._dropped[interleave.NOT_ALIGNED] += 1
                continue
            need = _slots(example, self._lengths)
            if not all(len(span.tokens) for span in example):  # an empty span: no input, or no target
                self._dropped["empty"] += 1
            elif not packer.fits(need):
                self._dropped["too_long"] += 1
            else:
                self._slots += need
                yield from self._counted(packer.add(example, need))
        yield from self._counted(packer.close())

    def _counted(self, rows: Iterable[list[Example]]) -> Iterator[list[Example]]:
        for row in rows:
            self._rows += 1
            yield row

    def meta(self) -> dict[str, Any]:
        """Return ``lengths``, ``dropped`` (by reason) and ``fill`` (share by modality) so far, and ``about``."""
        shares = self._slots / (max(self._rows, 1) * np.array(list(self._lengths.values())))
        fill = {modality: round(float(share), 4) for modality, share in zip(self._lengths, shares, strict=True)}
        return {"lengths": self._lengths, "dropped": self._dropped, "fill": fill, **self._about}


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

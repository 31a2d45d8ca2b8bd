"""The third step of `prepare`: join the shards' examples; and the three steps in one.

The files of one split, one behind another, are ``examples/<split>.jsonl``; one line is in memory at a time.
"""

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zipper_jax.data import prepared
from zipper_jax.data.encode import count_dropped, describe_dropped, dropped_path, read_dropped
from zipper_jax.data.prepare_fit import SHARDS, Source, fit, modalities_of, open_source
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.prepare_shards import DONE, Done, done_shards, encode_shard, read_fit
from zipper_jax.speech.workers import parallel_map
from zipper_jax.tasks import TaskSet
from zipper_jax.utils import user_json
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json, write_with
from zipper_jax.utils.storage import AnyPath, as_path, delete_folder, files

logger = logging.getLogger(__name__)

Shards = list[tuple[AnyPath, Done]]


def write_examples(
    corpus: Any,
    folder: Any,
    settings: PrepareSettings,
    overwrite: bool,
    processes: int | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Fit tokenizer and vocabularies and encode every split; skip what is done. Return the header.

    Raises:
        UserError: ``folder`` was made from another corpus or with other settings, and ``overwrite`` is False.
    """
    source, folder = open_source(corpus, settings), as_path(folder)
    fit(source, folder, overwrite)
    if workers == 1:
        encode_shard(source, folder, (0, 1), processes)
    else:
        setup = {"corpus": str(corpus), "folder": str(folder), "settings": settings}
        shards = [(index, workers) for index in range(workers)]
        made = parallel_map(f"{__name__}:make_shard_worker", setup, shards, workers)
        with contextlib.closing(made):
            for _ in made:
                pass
    return join(source, folder)


def make_shard_worker(corpus: str, folder: str, settings: PrepareSettings) -> Callable[[tuple[int, int]], None]:
    """Return the function that makes one shard, with one process for encoding."""
    source = open_source(corpus, settings)
    return lambda shard: encode_shard(source, as_path(folder), shard, processes=1)


def join(source: Source, folder: AnyPath) -> dict[str, Any]:
    """Write the examples of all shards and complete header.json, unless that is done; return the header.

    Raises:
        UserError: A shard is missing or damaged, or a split has no row left.
    """
    if prepared.is_complete(folder):
        header = prepared.read_header(folder)
        if header["made_with"] != source.made_with():
            raise UserError(f"{str(folder)!r} was prepared with other settings: give those, or another --out")
        delete_folder(folder / SHARDS)  # of a process that was killed behind header.json
        return header
    made, task_set = read_fit(source, folder), source.settings.task_set
    shards = done_shards(folder, made)
    delete_folder(folder / "examples")
    counts, kinds, dropped = dict[str, int](), dict[str, list[list[str]]](), dict[str, Any]()
    for split in made.splits:
        counts[split], kinds[split] = _join_split(folder, split, shards, task_set)
        lacking = read_dropped(prepared.examples_path(folder, split))
        if lacking and not counts[split]:
            _look_again(shards, split)
            first = next(iter(lacking.values()))
            raise UserError(
                f"split {split}: none of its {len(lacking)} rows can be used: mend their audio; first: "
                f"{first['message']}"
            )
        if lacking:
            dropped[split] = count_dropped(lacking)
            for line in describe_dropped(split, dropped[split]):
                logger.warning(line)
    header = prepared.read_header(folder) | {
        **made.about,
        "vocabularies": made.vocabularies,
        "examples": counts,
        "modalities": kinds,
        "dropped": dropped,
        "task_set": to_dict(task_set),
        "text_form": dataclasses.asdict(source.form),
        "complete": True,
    }
    write_json(folder / "header.json", header)
    delete_folder(folder / SHARDS)
    return header


def _join_split(folder: AnyPath, split: str, shards: Shards, task_set: TaskSet) -> tuple[int, list[list[str]]]:
    """Write the examples of a split; return their number without shifted copies, and their lists of modalities."""
    path, count = prepared.examples_path(folder, split), 0
    kinds: set[tuple[str, ...]] = set()

    def write(aside: Path) -> None:
        nonlocal count
        with aside.open("wb") as out:
            for line in _lines(shards, path.name):
                out.write(line)
                example = user_json.decode(line, f"an example of split {split}", "run the shard again")
                if not example.get("shift"):
                    count += 1
                    kinds.add(modalities_of(example, task_set))

    def write_dropped(aside: Path) -> None:
        aside.write_bytes(b"".join(_lines(shards, dropped_path(path).name)))

    write_with(path, write)
    if any(dropped_path(path).name in done.files for _, done in shards):
        write_with(dropped_path(path), write_dropped)
    return count, [list(kind) for kind in sorted(kinds)]


def _lines(shards: Shards, name: str) -> Iterator[bytes]:
    """Yield the lines of one file of every shard. Raises UserError behind a file whose content is another."""
    for home, done in shards:
        if name in done.files:
            digest = hashlib.sha256()
            with (home / name).open("rb") as file:
                for line in file:
                    digest.update(line)
                    yield line
            if digest.hexdigest() != done.files[name][1]:
                raise UserError(
                    f"{str(home / name)!r} is damaged: delete the folder of this shard and run the shard again"
                )


def _look_again(shards: Shards, split: str) -> None:
    """Make the shards try the rows of a split again when they are run the next time."""
    for home, _ in shards:
        (home / DONE).unlink()
        for name in files(home):
            if name.startswith(f"{split}."):
                (home / name).unlink()

"""The second step of `prepare`: encode one of n parts of a corpus, in any order, on any machine.

    prepared/shards/fit.json            of the first step
    prepared/shards/00003-of-00016/     of shard 3/16: <split>.jsonl, <split>.dropped; fit.sha256, fit.json's digest,
                                        is written first, done.json last

Shard i/n has the lines that begin in the i-th of n equal parts of the manifest, so the shards' files, one behind
another, are those of one shard, whatever n. A killed shard resumes; one that is done does nothing. Where the folder is
in a bucket, a shard is written on this machine and copied meanwhile (`utils.staging`).
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from zipper_jax.data import prepared
from zipper_jax.data.encode import encode_split
from zipper_jax.data.prepare_fit import FIT, SHARDS, Source
from zipper_jax.speech.manifest import Manifest, Split
from zipper_jax.speech.tokenizers import load_units
from zipper_jax.tasks import SPEECH
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json, write_text
from zipper_jax.utils.locks import LOCK, locked
from zipper_jax.utils.staging import staged
from zipper_jax.utils.storage import AnyPath, files, on_this_machine, sha256, subfolders

logger = logging.getLogger(__name__)

BEGUN, DONE = "fit.sha256", "done.json"
_DAMAGED = "it is damaged: delete the folder of this shard and run the shard again"
_MOST_NAMED = 20


class Fit(msgspec.Struct):
    """The content of ``fit.json``."""

    made_with: dict[str, Any]
    splits: list[Split]
    aligned: bool
    about: dict[str, Any]
    vocabularies: dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 (hex): what determines the examples of a shard, fitted units included."""
        return hashlib.sha256(json.dumps(msgspec.to_builtins(self), sort_keys=True).encode()).hexdigest()


class Done(msgspec.Struct):
    """The content of ``done.json``: the fit's digest; file -> size in bytes and SHA-256 (hex)."""

    fit: str
    files: dict[str, tuple[int, str]]


class Rows:
    """The rows of one split; each iteration reads the manifest."""

    def __init__(self, rows: Manifest, split: str):
        self._rows, self._split = rows, split

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for row in self._rows if row["split"] == self._split)


def read_fit(source: Source, folder: AnyPath) -> Fit:
    """Return what the first step made.

    Raises:
        UserError: It is missing, or was made from another corpus or with other settings.
    """
    path = folder / SHARDS / FIT
    if not path.is_file():
        raise UserError(
            f"{str(path)!r} does not exist: run the same command with --fit first, once, and give every machine what "
            "it wrote"
        )
    found = user_json.read_file(path, Fit, "it is damaged: delete it and run --fit again")
    if found.made_with != source.made_with():
        raise UserError(
            f"{str(path)!r} is of another corpus or other settings: give the same --corpus and options to --fit, "
            "--shard and --finish"
        )
    return found


def encode_shard(source: Source, folder: AnyPath, shard: tuple[int, int], processes: int | None) -> None:
    """Encode the rows of shard (i, n), i from 0; nothing is done if that is done.

    Raises:
        UserError: The first step is missing, or another process is writing this shard.
    """
    if prepared.is_complete(folder) and prepared.read_header(folder)["made_with"] == source.made_with():
        return
    fit, home = read_fit(source, folder), folder_of(folder, shard)
    if _done(home, fit) is not None:
        logger.info(f"shard {shard[0]}/{shard[1]} is done")
        return
    units = folder / "vocabularies" / SPEECH
    with locked(home), staged(home) as staging, on_this_machine(units) as units_here:
        if _done(home, fit) is not None:  # another process did it meanwhile
            return
        staging.fetch(*(name for name in files(home) if name != LOCK))
        here = staging.folder
        _begin(here, fit, home)
        staging.copy()  # the fit first
        modalities = source.settings.task_set.modalities
        if "tokenizer" in fit.about and load_units(units_here).digest != fit.about["tokenizer"]:
            raise UserError(f"{str(units)!r} has other units than {FIT}: copy both from the machine that ran --fit")
        fields = [modality.field for name, modality in modalities.items() if name != SPEECH]
        fields += ["word_times"] * fit.aligned
        for split in fit.splits:
            rows, shifts = Rows(source.rows(shard), split), source.settings.shifts if split == "train" else 1
            encode_split(here / f"{split}.jsonl", source.corpus, units_here, rows, fields, shifts, processes)
        made = sorted(path for path in here.iterdir() if path.name not in (LOCK, BEGUN, DONE))
        digests = {path.name: sha256(path) for path in made}
        staging.copy()  # all of it before the marker
        write_json(home / DONE, {"fit": fit.digest, "files": digests})
    if shard[1] > 1:
        logger.info(f"shard {shard[0]}/{shard[1]} is done")


def folder_of(folder: AnyPath, shard: tuple[int, int]) -> AnyPath:
    """Where a shard is written."""
    return folder / SHARDS / f"{shard[0]:05d}-of-{shard[1]:05d}"


def done_shards(folder: AnyPath, fit: Fit) -> list[tuple[AnyPath, Done]]:
    """Return folder and content of all n shards, in order, for an n of which all are done and whole.

    Raises:
        UserError: Shards are missing, damaged, or of another fit.
    """
    ends = (name.partition("-of-")[2] for name in subfolders(folder / SHARDS))
    numbers = {int(end) for end in ends if end.isdecimal()}
    fewest: list[int] | None = None
    of = 0
    for count in sorted(numbers):
        homes = [folder_of(folder, (index, count)) for index in range(count)]
        found = [(home, _done(home, fit)) for home in homes]
        missing = [index for index, (_, done) in enumerate(found) if done is None]
        if not missing:
            return [(home, done) for home, done in found if done is not None]
        if fewest is None or len(missing) < len(fewest):
            fewest, of = missing, count
    if fewest is None:
        raise UserError(f"{str(folder / SHARDS)!r} has no shard: run --shard 0/N to --shard N-1/N first")
    named = ", ".join(f"{index}/{of}" for index in fewest[:_MOST_NAMED])
    more = f" and {len(fewest) - _MOST_NAMED} more" if len(fewest) > _MOST_NAMED else ""
    raise UserError(
        f"{str(folder / SHARDS)!r}: {len(fewest)} of {of} shards are not done: run --shard {named}{more}, then --finish"
    )


def _begin(here: Path, fit: Fit, home: AnyPath) -> None:
    """Pin the fit of a shard, which is written into ``here``. Raises UserError where it was begun with another."""
    path = here / BEGUN
    if path.is_file() and path.read_text(errors="replace") != fit.digest:
        raise _of_another_fit(home)
    write_text(path, fit.digest)


def _of_another_fit(home: AnyPath) -> UserError:
    return UserError(
        f"{str(home)!r} was made with other units or vocabularies: --fit ran more than once; delete the folder and run "
        "the shard again with what this folder's --fit wrote"
    )


def _done(home: AnyPath, fit: Fit) -> Done | None:
    """Return what a shard wrote; None: it is not done. Raises UserError where it is damaged or of another fit."""
    path = home / DONE
    if not path.is_file():
        return None
    found = user_json.read_file(path, Done, _DAMAGED)
    if found.fit != fit.digest:
        raise _of_another_fit(home)
    there = set(files(home))
    for name, (size, _) in found.files.items():
        # The size of an object is known only by reading it, which --finish does; each was written whole.
        if name not in there or (isinstance(home, Path) and (home / name).stat().st_size != size):
            raise UserError(f"{str(home / name)!r} is missing or not whole: {_DAMAGED.removeprefix('it is damaged: ')}")
    return found

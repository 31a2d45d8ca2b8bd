"""Audio validation: decode every file of a source once, in worker processes, and journal the results."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from zipper_jax.speech.audio import TOO_SHORT, AudioError, is_silent, is_too_short, read_blocks
from zipper_jax.speech.workers import parallel_map
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.progress import progress

logger = logging.getLogger(__name__)

_JOURNAL = "checked.jsonl"
_SHARD_JOURNALS = "checked-*-of-*.jsonl"

Part = tuple[str, float, float | None, int | None]
"""(file, start in seconds, length in seconds or None for the rest of the file, channel or None for the mean)"""


class _Line(msgspec.Struct, array_like=True):
    """A line of the journal: key, and `Checked`."""

    key: str
    seconds: user_json.Number
    rate: user_json.Natural
    problem: str


class Checked(NamedTuple):
    """Result of decoding one part.

    Attributes:
        seconds: Duration.
        rate: Sample rate of the file in Hz.
        problem: Why the audio cannot be used; "" if it can.
    """

    seconds: float
    rate: int
    problem: str


def check_audio(out: Path, parts: Sequence[Part], processes: int | None, journal: str = _JOURNAL) -> list[Checked]:
    """One result per part, in order. Results go to a journal in ``out`` as they come, so that a rerun resumes.

    Known results are those of all journals there, so that shards of an import can check parts of them before.
    """
    known = {key: found for path in _journals(out) for key, found in _lines(path)}
    keys = [_key(part) for part in parts]
    missing = [index for index, key in enumerate(keys) if key not in known]
    if len(missing) < len(parts):
        logger.info(f"continuing: {len(parts) - len(missing)} of {len(parts)} files were checked before")
    jobs = [parts[index] for index in missing]
    results = parallel_map(f"{__name__}:make_checker", {}, jobs, processes)
    with contextlib.closing(results), (out / journal).open("a", encoding="utf-8", buffering=1) as file:
        file.write("\n")  # ends a line that an interruption left half written
        checked = progress(results, total=len(jobs), what="checking", unit="files")
        for index, result in zip(missing, checked, strict=True):
            known[keys[index]] = result
            file.write(json.dumps([keys[index], *result]) + "\n")
    return [known[key] for key in keys]


def forget(out: Path) -> None:
    """Remove the journals of a finished import."""
    for path in _journals(out):
        path.unlink()


def _journals(out: Path) -> list[Path]:
    return sorted(path for path in (out / _JOURNAL, *out.glob(_SHARD_JOURNALS)) if path.is_file())


def shard_journal(shard: tuple[int, int]) -> str:
    """Name of the journal of one shard."""
    return f"checked-{shard[0]:05d}-of-{shard[1]:05d}.jsonl"


def make_checker() -> Callable[[Part], Checked]:
    """Return the function that a worker process runs on each part."""

    def check(part: Part) -> Checked:
        samples, rate, silent = 0, 0, True
        try:
            for block, hertz in read_blocks(*part):
                samples, rate, silent = samples + len(block), hertz, silent and is_silent(block)
        except AudioError as error:
            return Checked(0.0, 0, error.reason)
        problem = "silent audio" if silent else ""
        problem = TOO_SHORT if is_too_short(samples, rate) else problem
        return Checked(samples / rate, rate, problem)

    return check


def _key(part: Part) -> str:
    """Return the journal key of a part; it changes when the file's size or modification time does."""
    try:
        about = Path(part[0]).stat()
        return json.dumps([*part, about.st_size, about.st_mtime_ns])
    except OSError:
        return json.dumps(part)


def _lines(journal: Path) -> Iterator[tuple[str, Checked]]:
    for line in journal.read_bytes().split(b"\n"):
        with contextlib.suppress(UserError):  # truncated line of a killed run
            found = user_json.convert(user_json.decode_list(line, "", ""), _Line, "", "")
            yield found.key, Checked(found.seconds, found.rate, found.problem)

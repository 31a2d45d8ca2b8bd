"""``zipper transcribe``: audio files or folders to text."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, TypedDict

import msgspec

from zipper_jax.cli import group
from zipper_jax.utils import user_json
from zipper_jax.utils.distributed import count, from_first, is_first, share
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import folder_path, require_parent
from zipper_jax.utils.progress import progress
from zipper_jax.utils.staging import growing
from zipper_jax.utils.storage import AnyPath

DESCRIPTION = """\
Transcribe audio files (WAV, FLAC, OGG, MP3; any sample rate, mono or stereo), or all of a folder. Prints a line per
file: path, tab, text; or, with --out, appends JSON lines {"audio", "text", "seconds", "truncated", "model", "beams"}.

  zipper transcribe --model runs/smoke/zipper hello.wav other.flac
  zipper transcribe --model runs/smoke/zipper recordings/ --out recordings.jsonl

A rerun with the same --out resumes: files that have a line are skipped. --out may be gs://BUCKET/FILE: lines are copied
there every 30 s. Files that cannot be read, are silent, or are longer than the model's training rows are named and
skipped; the exit status is then 1. The real-time factor is processing time over duration of the audio.

As a group every process transcribes its share of the files, and the first one writes the lines that one process would.
Where files were skipped, the status of a group is 2, so that it is not restarted.

  zipper launch --processes 4 -- transcribe --model runs/smoke/zipper recordings/ --out recordings.jsonl
"""


class _Line(msgspec.Struct):
    audio: str
    model: str
    beams: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("files", nargs="+", type=Path, help="audio files, or folders of them")
    parser.add_argument("--model", required=True, type=folder_path, help="run of a fused model, also of a bucket")
    parser.add_argument(
        "--out", type=folder_path, help="JSON lines to append to, also in a bucket (default: lines on standard output)"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="files decoded together (%(default)s)")
    parser.add_argument("--beams", type=int, default=1, help="beam width (%(default)s: greedy)")
    group.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Transcribe; return 0, or 1 (2 of a group) if files were skipped."""
    return group.run(args, partial(_run, args))


def _run(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise UserError(f"--batch_size = {args.batch_size}: give at least 1")
    listed = [str(path) for path in _files(args.files)]
    # A file that another process adds to a folder meanwhile must not shift the batches of one process.
    files = [Path(path) for path in from_first(listed if is_first() else None)]
    require_parent(args.out, "--out")
    with contextlib.nullcontext() if args.out is None or not is_first() else growing(args.out) as out:
        return _resume(args, files, out)


def _resume(args: argparse.Namespace, files: Sequence[Path], path: Path | None) -> int:
    """Transcribe the files that have no line yet in ``path``, which is --out or a copy of it; None: of another."""
    about = {"model": str(args.model), "beams": args.beams}
    done = set(from_first(sorted(_finished(path, args.out, about)) if path is not None else []))
    to_do = [path for path in files if str(path) not in done]
    if len(to_do) < len(files) and is_first():
        print(f"{args.out}: {len(files) - len(to_do)} of {len(files)} files are finished", file=sys.stderr)
    if not to_do:
        return 0
    from zipper_jax.api import load
    from zipper_jax.evaluation.outputs import require_same_input

    model = load(args.model)
    require_same_input(model, (), args.batch_size)
    with contextlib.ExitStack() as stack:
        out: IO[str] | None = None  # standard output
        if path is not None:
            out = stack.enter_context(path.open("a", encoding="utf-8"))
        bad = _transcribe(model, to_do, args.batch_size, about, out)
    for reason in bad.values() if is_first() else ():
        print(f"skipped: {reason}", file=sys.stderr)
    return (1 if count() == 1 else 2) if bad else 0


class _Found(TypedDict):
    """A transcript as processes exchange it; ``problem``: why there is none, else ""."""

    text: Any
    seconds: float
    truncated: bool
    problem: str


def _transcribe(
    model: Any, files: Sequence[Path], size: int, about: dict[str, Any], out: IO[str] | None
) -> dict[Path, str]:
    """Writes a line per file, batch by batch; returns the files that were skipped, and why."""

    def transcripts(paths: Sequence[Path]) -> list[_Found]:
        found = model.transcripts(paths, beams=about["beams"], batch_size=size)
        return [
            {"text": t.content, "seconds": t.seconds, "truncated": t.truncated, "problem": _problem(path, t.problem)}
            for path, t in zip(paths, found, strict=True)
        ]

    bad: dict[Path, str] = {}
    began, total = time.monotonic(), 0.0
    bar = progress(total=len(files) * is_first(), what="transcribing", unit="files")
    batches = [files[first : first + size] for first in range(0, len(files), size)]
    for paths, some in share(batches, transcripts):
        for path, found in zip(paths, some, strict=True):
            if found["problem"]:
                bad[path] = found["problem"]
                continue
            total += found["seconds"]
            line = {"audio": str(path), "text": found["text"], "seconds": round(found["seconds"], 3)}
            line |= {"truncated": found["truncated"], **about}
            if is_first():
                text = f"{path}\t{found['text']}" if out is None else json.dumps(line, ensure_ascii=False)
                print(text, file=out, flush=True)
        bar.update(len(paths))
    bar.close()
    spent = time.monotonic() - began
    if total and is_first():
        print(
            f"{len(files) - len(bad)} files, {total:.1f} s of audio in {spent:.1f} s: real-time factor "
            f"{spent / total:.3f}",
            file=sys.stderr,
        )
    return bad


def _problem(path: Path, problem: UserError | None) -> str:
    from zipper_jax.speech.audio import AudioError

    # An error of reading names the file itself.
    silent_or_long = isinstance(problem, AudioError) and str(path) not in str(problem)
    return "" if problem is None else f"{path}: {problem}" if silent_or_long else str(problem)


def _files(given: Sequence[Path]) -> Iterator[Path]:
    """Yield the files, and those in folders sorted by name; each once.

    Raises:
        UserError: A path does not exist, or a folder has no audio.
    """
    from zipper_jax.data.sources.rows import AUDIO_ENDINGS, audio_files

    seen = set()
    for path in given:
        if not path.exists():
            raise UserError(f"audio file or folder {str(path)!r} does not exist: check the path")
        found = [path]
        if path.is_dir():
            found = audio_files(path)
            if not found:
                raise UserError(f"folder {str(path)!r} holds no audio ({', '.join(AUDIO_ENDINGS)})")
        for file in found:
            if file not in seen:
                seen.add(file)
                yield file


def _finished(path: Path, out: AnyPath, about: dict[str, Any]) -> set[str]:
    """Return the files that have a line in ``path``, a copy of ``out``; an incomplete last line is removed.

    Raises:
        UserError: A line is not a transcript, or is of another model or beam width.
    """
    text = path.read_bytes() if path.is_file() else b""
    whole = text[: text.rfind(b"\n") + 1]
    done = set()
    fix = "give another --out"
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        place = f"--out = {out}: line {number}"
        found = user_json.decode(line, place, fix)
        done.add(user_json.convert(found, _Line, place, fix).audio)
        before = {name: found[name] for name in about}
        if before != about:
            raise UserError(f"{place} was made with {before}, now {about}; {fix}")
    if whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return done

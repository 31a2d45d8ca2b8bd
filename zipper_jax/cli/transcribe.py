"""``zipper transcribe``: audio files or folders to text."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked_file
from zipper_jax.utils.progress import progress

DESCRIPTION = """\
Transcribe audio files (WAV, FLAC, OGG, MP3; any sample rate, mono or stereo), or all of a folder. Prints a line per
file: path, tab, text; or, with --out, appends JSON lines {"audio", "text", "seconds", "truncated", "model", "beams"}.

  zipper transcribe --model runs/smoke/zipper hello.wav other.flac
  zipper transcribe --model runs/smoke/zipper recordings/ --out recordings.jsonl

A rerun with the same --out resumes: files that have a line are skipped. Files that cannot be read, are silent, or are
longer than the model's training rows are named and skipped; the exit status is then 1. The real-time factor is
processing time over duration of the audio.
"""


class _Line(msgspec.Struct):
    audio: str
    model: str
    beams: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("files", nargs="+", type=Path, help="audio files, or folders of them")
    parser.add_argument("--model", required=True, type=Path, help="run folder of a fused model")
    parser.add_argument("--out", type=Path, help="JSON lines to append to (default: lines on standard output)")
    parser.add_argument("--batch_size", type=int, default=16, help="files decoded together (%(default)s)")
    parser.add_argument("--beams", type=int, default=1, help="beam width (%(default)s: greedy)")


def run(args: argparse.Namespace) -> int:
    """Transcribe; return 0, or 1 if files were skipped."""
    if args.batch_size < 1:
        raise UserError(f"--batch_size = {args.batch_size}: give at least 1")
    files = list(_files(args.files))
    if args.out is not None and not args.out.absolute().parent.is_dir():
        raise UserError(f"--out = {args.out}: the folder does not exist")
    with contextlib.nullcontext() if args.out is None else locked_file(args.out):
        return _resume(args, files)


def _resume(args: argparse.Namespace, files: Sequence[Path]) -> int:
    about = {"model": str(args.model), "beams": args.beams}
    done = _finished(args.out, about) if args.out is not None else set()
    to_do = [path for path in files if str(path) not in done]
    if len(to_do) < len(files):
        print(f"{args.out}: {len(files) - len(to_do)} of {len(files)} files are finished", file=sys.stderr)
    if not to_do:
        return 0
    from zipper_jax.api import load

    model = load(args.model)
    with contextlib.ExitStack() as stack:
        out = None if args.out is None else stack.enter_context(args.out.open("a", encoding="utf-8"))
        bad = _transcribe(model, to_do, args.batch_size, about, out)
    for reason in bad.values():
        print(f"skipped: {reason}", file=sys.stderr)
    return 1 if bad else 0


def _transcribe(
    model: Any, files: Sequence[Path], size: int, about: dict[str, Any], out: IO[str] | None
) -> dict[Path, str]:
    """Writes a line per file, batch by batch; returns the files that were skipped, and why."""
    from zipper_jax.speech.audio import AudioError

    bad: dict[Path, str] = {}
    began, total = time.monotonic(), 0.0
    transcripts = model.transcripts(files, beams=about["beams"], batch_size=size)
    bar = progress(transcripts, total=len(files), what="transcribing", unit="files")
    for path, found in zip(files, bar, strict=True):
        if found.problem is not None:
            # An error of reading names the file itself.
            silent_or_long = isinstance(found.problem, AudioError) and str(path) not in str(found.problem)
            bad[path] = f"{path}: {found.problem}" if silent_or_long else str(found.problem)
            continue
        total += found.seconds
        line = {"audio": str(path), "text": found.content, "seconds": round(found.seconds, 3)}
        line |= {"truncated": found.truncated, **about}
        text = f"{path}\t{found.content}" if out is None else json.dumps(line, ensure_ascii=False)
        print(text, file=out, flush=True)
    spent = time.monotonic() - began
    if total:
        print(
            f"{len(files) - len(bad)} files, {total:.1f} s of audio in {spent:.1f} s: real-time factor "
            f"{spent / total:.3f}",
            file=sys.stderr,
        )
    return bad


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


def _finished(out: Path, about: dict[str, Any]) -> set[str]:
    """Return the files that have a line in ``out``; an incomplete last line is removed.

    Raises:
        UserError: A line is not a transcript, or is of another model or beam width.
    """
    text = out.read_bytes()
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
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return done

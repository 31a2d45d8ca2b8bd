"""``zipper transcribe``: audio files to text."""

import argparse
from pathlib import Path

DESCRIPTION = """\
Transcribe audio files (WAV, FLAC, OGG; any sample rate, mono or stereo). Prints a line per file: path, tab, text.

  zipper transcribe --model runs/smoke/zipper hello.wav other.flac
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("files", nargs="+", type=Path, help="audio files")
    parser.add_argument("--model", required=True, type=Path, help="run folder of a fused model")
    parser.add_argument("--beams", type=int, default=1, help="beam width (%(default)s: greedy)")


def run(args: argparse.Namespace) -> int:
    """Returns 0. Every file is read before the model is loaded, so that a bad one costs nothing."""
    from zipper_jax.speech.audio import SAMPLE_RATE, load_audio

    audio = [load_audio(path) for path in args.files]
    from zipper_jax.api import load

    texts = load(args.model).transcribe(audio, SAMPLE_RATE, beams=args.beams)
    for path, text in zip(args.files, texts, strict=True):
        print(f"{path}\t{text}")
    return 0

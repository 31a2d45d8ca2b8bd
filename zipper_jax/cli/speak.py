"""``zipper speak``: text to an audio file."""

import argparse
import sys
from pathlib import Path

from zipper_jax.utils.errors import UserError

DESCRIPTION = """\
Synthesise a sentence to an audio file (the suffix decides the format: .wav, .flac, .ogg).

  zipper speak "turn the kitchen light off" --model runs/smoke/zipper --out off.wav
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("text", help="the sentence")
    parser.add_argument("--model", required=True, type=Path, help="run folder of a fused model")
    parser.add_argument("--out", required=True, type=Path, help="audio file to write")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy decoding (%(default)s)")
    parser.add_argument("--top_p", type=float, default=1.0, help="sample from this much probability (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (%(default)s)")


def run(args: argparse.Namespace) -> int:
    if not args.text.strip():
        raise UserError("the text is empty: give a sentence")
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"--out = {args.out}: the folder does not exist")
    from zipper_jax.api import load
    from zipper_jax.decoding.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    speech = load(args.model).speak(args.text, sampling=sampling)
    if not len(speech.units):
        raise UserError("the model generated no unit: try another sentence, or --temperature 0.7 --seed 1")
    speech.save(args.out)
    cut = " (cut at the length limit)" if speech.truncated else ""
    print(f"{args.out}: {len(speech.waveform) / speech.sample_rate:.2f} s{cut}", file=sys.stderr)
    return 0

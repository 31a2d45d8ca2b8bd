"""``zipper eval``: word error rates, perplexities and controls of a zipper and a Single Decoder, with a report."""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from zipper_jax.cli import group
from zipper_jax.utils.distributed import is_first
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked
from zipper_jax.utils.paths import folder_path, require_different
from zipper_jax.utils.staging import staged
from zipper_jax.utils.storage import AnyPath, as_path

OUTPUTS = "outputs.jsonl"
"""`evaluation.outputs.FILE`, which takes seconds to import."""
DESCRIPTION = """\
Evaluate a fused run on held-out sentences: speech to text, text to speech (judged by an independent recogniser: the
grammar of a corpus of `zipper data synth`, else Whisper; --judge),
text-only and speech-only perplexity, each with controls that show whether the model uses its input. Writes
results.json, report.html and audio.

  zipper eval --run runs/smoke/zipper --single_decoder runs/smoke/single_decoder \\
      --data runs/smoke/prepared --corpus runs/smoke/corpus --out runs/smoke

With --split, only speech to text of one model on one split, with its controls: utterances.html shows every sentence
aligned with its hypothesis, worst first. Without --corpus, the page plays vocoded units instead of recordings.

  zipper eval --run runs/fused --data data/prepared --split test --out errors

With --pairs, how often a model finds the right one of two alternatives likelier (sWUGGY, sBLIMP, tStoryCloze, SALMon);
JSON lines {"good": SPANS, "bad": SPANS, "prompt": SPANS, "group": NAME}, spans as in `zipper generate`, speech also as
the path of a recording.

  zipper eval --run runs/fused --pairs swuggy.jsonl --out scores

Memory grows with --batch_size, not with the split; --out/outputs.jsonl holds what is finished, and the same command
resumes from it.

As a group every process decodes its share of the batches, with the whole model on its own device; the results are those
of one process, which the first one writes.

  zipper launch --processes 4 -- eval --run gs://bucket/fused --data gs://bucket/prepared --split test --out errors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("--run", required=True, type=folder_path, help="run folder of the zipper, also of a bucket")
    parser.add_argument("--single_decoder", type=folder_path, help="run folder of the Single Decoder, beside it")
    parser.add_argument("--other_form", type=folder_path, help="run of a zipper of the other form: perplexity only")
    parser.add_argument("--data", type=folder_path, help="prepared folder with the test splits (not with --pairs)")
    parser.add_argument(
        "--corpus", type=Path, help="corpus folder with the test splits' audio (with --split: optional)"
    )
    parser.add_argument("--pairs", type=Path, help="only the likelihoods of pairs, see above")
    parser.add_argument("--split", help="only speech to text on this split, sentence by sentence")
    parser.add_argument(
        "--out", required=True, type=folder_path, help="folder for results, report and audio, also of a bucket"
    )
    parser.add_argument("--sentences", type=int, default=100, help="per split, speech to text; 0: all (%(default)s)")
    parser.add_argument("--speech_sentences", type=int, default=60, help="text to speech; 0: all (%(default)s)")
    parser.add_argument("--beams", type=int, default=1, help="beam width of speech to text (%(default)s: greedy)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of text to speech (%(default)s: greedy)")
    parser.add_argument("--top_p", type=float, default=1.0, help="of text to speech (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of text to speech (%(default)s)")
    parser.add_argument(
        "--speech_seeds",
        type=int,
        default=1,
        help="samples per sentence of text to speech; above 1 the best is reported, too (%(default)s)",
    )
    parser.add_argument(
        "--judge",
        default="",
        help="recogniser of text to speech: grammar, whisper, whisper:FOLDER_OR_HUB_NAME, or command:PROGRAM, which "
        "gets WAV files as its last arguments and prints a line for each",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="sentences decoded together (%(default)s)")
    parser.add_argument(
        "--normaliser",
        help="of texts in error rates and controls: default, none, basic, whisper-english, or jiwer:TRANSFORM,...; "
        "without it that of the data, and of the judge's transcripts one that suits them",
    )
    parser.add_argument("--stages", type=Path, help="folder of <stage>.seconds files to add to the results")
    group.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and write the results; return 0, whatever the figures are."""
    return group.run(args, partial(_run, args))


def _run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    for name in ("run", "single_decoder", "other_form", "data", "corpus"):
        path = getattr(args, name)
        if path is not None and not path.is_dir():
            raise UserError(f"--{name} = {path}: there is no such folder")
    inputs = ("run", "single_decoder", "other_form", "data", "corpus")
    require_different(args.out, "--out", {f"--{name}": getattr(args, name) for name in inputs})
    if not is_first():  # and writes nothing
        return _evaluate(args, Path(args.out), began)
    with locked(args.out), staged(args.out) as staging:
        staging.fetch(OUTPUTS)
        status = _evaluate(args, staging.folder, began)
        staging.copy()
        return status


def _evaluate(args: argparse.Namespace, out: Path, began: float) -> int:
    """Evaluate and write into ``out``, which is copied to --out if that is in a bucket."""
    if args.pairs is not None:
        return _pairs(args, out)
    if args.data is None:
        raise UserError("--data is missing: give the prepared folder with the test splits, or --pairs")
    if args.split:
        return _split(args, out)
    if args.corpus is None:
        raise UserError(
            "--corpus is missing: the judge of text to speech needs the recordings; or give --split test, for "
            "speech to text only"
        )
    from zipper_jax.decoding.sampling import SamplingConfig
    from zipper_jax.evaluation.evaluator import EvalSettings, Sources

    runs = {"zipper": args.run, "single_decoder": args.single_decoder, "other_form": args.other_form}
    sources = Sources({name: path for name, path in runs.items() if path is not None}, args.data, args.corpus)
    sampling = SamplingConfig(temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    more = {"speech_seeds": args.speech_seeds, "judge": args.judge, **_text_and_batch(args)}
    settings = EvalSettings(args.sentences, args.speech_sentences, args.beams, sampling, **more)
    return _models(args, out, sources, settings, began)


def _models(args: argparse.Namespace, out: Path, sources: Any, settings: Any, began: float) -> int:
    from zipper_jax.evaluation.evaluator import evaluate
    from zipper_jax.reports.report import write_report
    from zipper_jax.utils.files import write_json

    results = evaluate(sources, out, settings)
    if not is_first():
        return 0
    seconds: dict[str, float | None] = {**_stage_seconds(args.stages)}
    resumed = results["seconds"]["evaluate"] is None
    seconds["evaluate"] = None if resumed else round(time.monotonic() - began, 1)
    known = [value for value in seconds.values() if value is not None]
    results["seconds"] = {**seconds, "total": None if resumed else round(sum(known), 1)}
    write_json(out / "results.json", results)
    report = write_report(out, {**_pretraining_runs(args.run), **sources.runs})
    print(f"{args.out / report.name}\n{args.out / 'results.json'}")
    return 0


def _pairs(args: argparse.Namespace, out: Path) -> int:
    from zipper_jax.api import load
    from zipper_jax.evaluation.pairs import FILE, evaluate_pairs, read_pairs
    from zipper_jax.metrics.error_rates import percent

    for name in ("data", "corpus", "split", "single_decoder", "other_form", "stages", "judge", "normaliser"):
        if getattr(args, name):
            raise UserError(f"--{name} cannot be combined with --pairs: omit one of them")
    model = load(args.run)
    results = evaluate_pairs(model, read_pairs(args.pairs, model), out, args.batch_size, args.seed)
    if not is_first():
        return 0
    print(f"{results['pairs']} pairs: how often the right one is likelier (chance {percent(results['chance'])})")
    print(f"{'':<28} {'by sum':>14} {'per token':>14}")
    for name, figure in results["accuracy"].items():
        print(f"{name:<28} {percent(figure):>14} {percent(results['accuracy_per_token'][name]):>14}")
    for name, own in results["groups"].items():
        print(f"  {name:<26} {percent(own['accuracy']):>14} {percent(own['accuracy_per_token']):>14}")
    print(args.out / FILE)
    return 0


def _split(args: argparse.Namespace, out: Path) -> int:
    from zipper_jax.evaluation.evaluator import EvalSettings
    from zipper_jax.evaluation.utterances import FILE, evaluate_split
    from zipper_jax.reports.utterances import write_utterances

    for name in ("single_decoder", "other_form", "stages", "judge"):
        if getattr(args, name):
            raise UserError(f"--{name} cannot be combined with --split: omit one of them")
    settings = EvalSettings(sentences=args.sentences, beams=args.beams, **_text_and_batch(args))
    results = evaluate_split(args.run, args.data, args.split, out, settings, args.corpus)
    if not is_first():
        return 0
    print(f"{args.out / write_utterances(out, results).name}\n{args.out / FILE}")
    return 0


def _text_and_batch(args: argparse.Namespace) -> dict[str, Any]:
    return {"batch_size": args.batch_size, "normaliser": args.normaliser}


def _stage_seconds(folder: Path | None) -> dict[str, float]:
    """Return stage -> seconds from the files of the launch script, in their order."""
    if folder is None or not folder.is_dir():
        return {}
    files = sorted(folder.glob("*.seconds"))
    seconds = {}
    for path in files:
        try:
            seconds[path.stem.split("_", 1)[-1]] = float(path.read_bytes())
        except ValueError:
            raise UserError(f"{str(path)!r} holds no number of seconds: remove it") from None
    return seconds


def _pretraining_runs(run: AnyPath) -> dict[str, AnyPath]:
    """Return the tower runs that initialised the zipper, for their loss curves."""
    from zipper_jax.checkpoint.run_format import read_config

    sources = read_config(run).get("train", {}).get("initialise_from") or {}
    folders = {f"{tower} tower": as_path(path) for tower, path in sources.items()}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}

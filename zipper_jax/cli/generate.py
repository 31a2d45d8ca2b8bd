"""``zipper generate``: continue prompts of any modalities, as JSON lines."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from zipper_jax.tasks import TEXT
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import folder_path, require_different, require_parent
from zipper_jax.utils.staging import growing

DESCRIPTION = """\
Continue prompts with any modalities. Each input line is a JSON object:

  {"prompt": [["text", "turn the light off"]], "outputs": ["speech"]}
  {"prompt": [["speech", [12, 7, 7, 301]]], "outputs": ["text", "speech"]}

A prompt is a list of [modality, content]: a sentence for text, unit numbers for speech; it may be empty. "outputs"
defaults to --outputs; "auto": the model chooses after each span which modality follows, or that the example ends, if it
was trained to (ZipperConfig.next_modality). Each output line repeats the input and adds "generated": a list of
{"modality", "content", "truncated", "log_prob"}; truncated: --max_new_tokens ended the span, or --max_spans the example
after it. With outputs "auto" each also has "next_modality": what the model chose to follow; null: the end.

  zipper generate --model runs/smoke/zipper --outputs text < prompts.jsonl > results.jsonl
"""


_FIX = 'give {"prompt": [[modality, content], ...], "outputs": [modality, ...] or "auto"}'


class _Request(msgspec.Struct):
    prompt: list[tuple[user_json.Name, str | list[user_json.Natural]]]
    outputs: Annotated[list[user_json.Name], msgspec.Meta(min_length=1)] | Literal["auto"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("--model", required=True, type=folder_path, help="run folder, also of a bucket")
    parser.add_argument("--input", type=Path, help="JSON lines (standard input)")
    parser.add_argument("--output", type=folder_path, help="JSON lines, also in a bucket (standard output)")
    parser.add_argument(
        "--outputs",
        default=TEXT,
        help="modalities, comma-separated: text | speech | text,speech; or auto (%(default)s)",
    )
    parser.add_argument("--max_spans", type=int, default=8, help="most spans with outputs auto (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts decoded together (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy decoding (%(default)s)")
    parser.add_argument("--top_k", type=int, default=0, help="sample among this many tokens; 0: all (%(default)s)")
    parser.add_argument("--top_p", type=float, default=1.0, help="sample from this much probability (%(default)s)")
    parser.add_argument("--beams", type=int, default=1, help="beam width (%(default)s)")
    parser.add_argument(
        "--max_new_tokens", type=int, help="maximum tokens per generated span (the model's row lengths)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (%(default)s)")


def run(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise UserError(f"--batch_size = {args.batch_size}: give at least 1")
    if args.max_spans < 1:
        raise UserError(f"--max_spans = {args.max_spans}: give at least 1")
    names = [name.strip() for name in args.outputs.split(",") if name.strip()]
    default: list[str] | str = "auto" if names == ["auto"] else names
    require_parent(args.output, "--output")
    if args.output is not None:
        require_different(args.output, "--output", {"--input": args.input})
    read = list(_read(args.input, default))
    from zipper_jax.api import load
    from zipper_jax.decoding.sampling import SamplingConfig

    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p, args.beams, seed=args.seed)
    model = load(args.model)
    for place, request in read:
        _check(model, request, place)
    max_new_tokens = dict.fromkeys(model.layout, args.max_new_tokens) if args.max_new_tokens else None
    with contextlib.ExitStack() as stack:
        out = sys.stdout
        if args.output is not None:
            path = stack.enter_context(growing(args.output))
            out = stack.enter_context(path.open("w", encoding="utf-8"))
        first = 0
        for batch in _batches((request for _, request in read), args.batch_size):
            prompts = [[(m, c) for m, c in request["prompt"]] for request in batch]
            rows = model.generate(
                prompts, batch[0]["outputs"], sampling=sampling, max_new_tokens=max_new_tokens,
                batch_size=args.batch_size * args.beams, first_row=first, max_spans=args.max_spans,
            )  # fmt: skip
            first += len(batch)
            for request, row in zip(batch, rows, strict=True):
                generated = [_plain(output, request["outputs"] == "auto") for output in row]
                print(json.dumps({**request, "generated": generated}), file=out, flush=True)
    return 0


def _read(path: Path | None, default: list[str] | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the request of every line, validated before the model is loaded."""
    name = "standard input" if path is None else str(path)
    try:
        lines = (sys.stdin.read() if path is None else path.read_text(encoding="utf-8")).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {name}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        request = {"outputs": default, **user_json.decode(line, place, _FIX)}
        user_json.convert(request, _Request, place, _FIX)
        yield place, request


def _check(model: Any, request: dict[str, Any], place: str) -> None:
    """Raise UserError for what the model lacks, or content of another type than the modality's."""
    from zipper_jax.decoding import auto

    choosing = request["outputs"] == "auto"
    try:
        for number, (modality, content) in enumerate(request["prompt"]):
            field = f"prompt[{number}]"
            model.require(modality)
            model.vocabularies[modality].encode(content)
        field = "outputs"
        if choosing:
            auto.check(model.config, [request["prompt"]])
        for number, modality in enumerate([] if choosing else request["outputs"]):
            field = f"outputs[{number}]"
            model.require(modality)
    except UserError as error:
        raise UserError(f"{place}: {field}: {error}") from error


def _batches(requests: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield batches of consecutive requests with the same outputs, at most ``size`` each; order is kept."""
    batch: list[dict[str, Any]] = []
    for request in requests:
        if batch and (len(batch) == size or request["outputs"] != batch[0]["outputs"]):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _plain(output: Any, choosing: bool) -> dict[str, Any]:
    content = output.content if isinstance(output.content, str) else [int(u) for u in output.content]
    log_prob = round(float(output.log_probs.sum()), 4)
    chosen = {"next_modality": output.next_modality} if choosing else {}
    return {
        "modality": output.modality, "content": content, "truncated": output.truncated, "log_prob": log_prob, **chosen,
    }  # fmt: skip

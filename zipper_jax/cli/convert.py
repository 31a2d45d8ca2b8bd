"""``zipper convert``: import and export of models of other frameworks."""

import argparse
from collections.abc import Sequence
from typing import Any

from zipper_jax.tasks import SPEECH, TEXT, stored_task_set
from zipper_jax.utils.configs import closest, to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import folder_text, path_text
from zipper_jax.utils.progress import progress
from zipper_jax.utils.storage import as_path

TAKES_GIN_FLAGS = True
DESCRIPTION = """\
  zipper convert from-hf PATH_OR_ID --out towers/text       convert a Hugging Face decoder to a tower
  zipper convert from-gguf FILE --out towers/text           convert a GGUF file of Llama's family to a tower
  zipper convert to-hf RUN --tower text --out hf_folder     convert a tower to a folder for transformers
  zipper convert from-t5x DIR --gin_file=M.gin --vocabulary spm.model --out towers/text
                                                            convert a T5X decoder-only checkpoint to a tower
  zipper convert export RUN --out folder [--bf16]           write a run's model as one safetensors file
  zipper convert verify RUN --against PATH --text FILE      compare logits; exit status 1 if they differ

Each prints its plan first; --dry_run stops there. Only verify, against a Hugging Face model, needs transformers.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    parser.description = DESCRIPTION
    commands = parser.add_subparsers(
        dest="what", required=True, metavar="from-hf|from-gguf|to-hf|from-t5x|export|verify"
    )

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    def out_and_dry_run(one: argparse.ArgumentParser) -> None:
        one.add_argument("--out", required=True, type=folder_text, help="the folder to write; must not exist")
        one.add_argument("--dry_run", action="store_true", help="print the plan and stop")

    def vocabulary(one: argparse.ArgumentParser) -> None:
        one.add_argument("--name", help="name of the tower and its modality (default: text; with --units: speech)")
        one.add_argument("--begin_token", help="token or id that begins a span; 'added': a new token")
        one.add_argument("--end_token", help="token or id that ends a span; 'added': a new token")
        one.add_argument("--units", type=int, help="number of units, for a unit model without a tokenizer")
        one.add_argument("--first_unit", type=int, default=0, help="id of unit 0 (default 0)")
        one.add_argument("--rate_hz", type=float, default=25.0, help="units per second (default 25)")

    one = command("from-hf", "convert a Hugging Face decoder to a tower")
    one.add_argument("source", type=path_text, help="a folder with config.json and *.safetensors, or a hub id")
    one.add_argument("--revision", help="branch, tag or commit of a hub id")
    vocabulary(one)
    one.add_argument("--ignore_field", action="append", default=[], help="a config.json field to ignore")
    out_and_dry_run(one)

    one = command("from-gguf", "convert a GGUF file of Llama's family to a tower, dequantised to float32")
    one.add_argument("source", type=path_text, help="a .gguf file")
    one.add_argument(
        "--tokenizer", type=path_text, help="a folder with the tokenizer's files (default: the file's own)"
    )
    vocabulary(one)
    out_and_dry_run(one)

    one = command("to-hf", "convert a tower to a folder for transformers")
    one.add_argument("run", type=folder_text, help="a run or model folder")
    one.add_argument("--tower", help="tower to convert (default: the only one)")
    one.add_argument("--step", type=int, help="checkpoint of a run (default: the newest valid one)")
    one.add_argument("--family", help="model_type to write (default: that of its source, else one that fits)")
    one.add_argument("--bf16", action="store_true", help="store bfloat16")
    out_and_dry_run(one)

    one = command("from-t5x", "convert a T5X decoder-only checkpoint to a tower")
    one.add_argument("source", type=path_text, help="a checkpoint folder (checkpoint_10000)")
    one.epilog = "--gin_file=FILE, --gin.NAME=VALUE: the model's gin (default: config.gin beside the checkpoint)"
    one.add_argument("--ignore_field", action="append", default=[], help="a TransformerConfig field to ignore")
    one.add_argument("--vocabulary", type=path_text, help="a sentencepiece model (.model); else give --units")
    vocabulary(one)
    out_and_dry_run(one)

    one = command("export", "write a run's model as one safetensors file, with its vocabularies")
    one.add_argument("run", type=folder_text, help="a run or model folder")
    one.add_argument("--step", type=int, help="checkpoint (default: the newest valid one)")
    one.add_argument("--bf16", action="store_true", help="store bfloat16")
    out_and_dry_run(one)

    one = command("verify", "compare a tower's logits with another model's")
    one.add_argument("run", type=folder_text, help="a run or model folder")
    one.add_argument(
        "--against", required=True, type=path_text, help="a Hugging Face folder or hub id, or a run or model folder"
    )
    one.add_argument("--tower", help="tower to compare (default: the only one)")
    one.add_argument("--text", type=path_text, help="a text file (default: random tokens)")
    one.add_argument("--length", type=int, default=256, help="tokens per row (default 256)")
    one.add_argument("--rows", type=int, default=32, help="maximum number of rows (default 32)")
    one.add_argument("--tolerance", type=float, default=1e-4, help="relative to the largest logit (default 1e-4)")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Run the subcommand; return 0, or 1 if verify found a difference beyond the tolerance."""
    from zipper_jax.cli import gin_flags
    from zipper_jax.utils.files import require_new

    if args.what == "from-t5x":
        args.gin = gin_flags.parse(extra)
    elif extra:
        known = [f"--{argument}" for argument in vars(args)]
        raise UserError(
            f"zipper convert {args.what} has no option {extra[0]!r}{closest(extra[0].split('=')[0], known)}"
        )
    if args.what != "verify" and not args.dry_run:
        require_new(args.out)
    return {
        "from-hf": _from_hf,
        "from-gguf": _from_gguf,
        "to-hf": _to_hf,
        "from-t5x": _from_t5x,
        "export": _export,
        "verify": _verify,
    }[args.what](args)


def _from_hf(args: argparse.Namespace) -> int:
    from zipper_jax.conversion import from_hf, hub
    from zipper_jax.vocabularies import tokenizer_files

    folder = hub.model_folder(args.source, args.revision)
    plan = from_hf.plan(folder, tuple(args.ignore_field))
    rows = plan.tower.vocab_size
    if args.units is None:
        vocabulary = tokenizer_files.text_vocabulary(folder, plan.config, rows, args.begin_token, args.end_token)
        return _write_tower(args, plan, vocabulary)
    return _write_tower(args, plan, _units(args, rows))


def _from_gguf(args: argparse.Namespace) -> int:
    from zipper_jax.conversion import from_hf, gguf
    from zipper_jax.vocabularies.tokenizer_files import made_vocabulary

    file = gguf.GGUFFile(args.source)
    plan = from_hf.plan_gguf(file)
    rows = plan.tower.vocab_size
    if args.units is not None:
        return _write_tower(args, plan, _units(args, rows))
    contents = gguf.tokenizer_files(file, args.tokenizer)
    what = args.tokenizer or args.source
    return _write_tower(
        args, plan, made_vocabulary(contents, str(what), plan.config, rows, args.begin_token, args.end_token)
    )


def _from_t5x(args: argparse.Namespace) -> int:
    from zipper_jax.conversion import t5x
    from zipper_jax.vocabularies import tokenizer_files

    if (args.units is None) == (args.vocabulary is None):
        raise UserError("a T5X checkpoint has no vocabulary: give either --vocabulary spm.model or --units NUMBER")
    plan = t5x.plan(args.source, args.gin.files, args.gin.bindings, tuple(args.ignore_field))
    rows = plan.tower.vocab_size
    if args.units is None:
        vocabulary = tokenizer_files.sentencepiece_vocabulary(args.vocabulary, rows, args.begin_token, args.end_token)
        return _write_tower(args, plan, vocabulary)
    return _write_tower(args, plan, _units(args, rows))


def _units(args: argparse.Namespace, rows: int) -> Any:
    from zipper_jax.vocabularies.tokenizer_files import unit_vocabulary

    return unit_vocabulary(rows, args.units, args.first_unit, args.rate_hz, args.begin_token, args.end_token)


def _write_tower(args: argparse.Namespace, plan: Any, vocabulary: Any) -> int:
    from zipper_jax.conversion.to_tower import write_tower

    for line in plan.lines():
        print(line)
    print(_vocabulary_line(vocabulary, plan.tower.vocab_size))
    name = args.name or (TEXT if args.units is None else SPEECH)
    if not args.dry_run:
        with progress(total=plan.count, what="converting", unit="parameters") as bar:
            write_tower(plan, args.out, name, vocabulary, str(args.source), bar.update)
        print(f"{args.out}: tower {name!r}, {plan.count:,} parameters")
    return 0


def _vocabulary_line(vocabulary: Any, rows: int) -> str:
    def where(token: int) -> str:
        return f"{token}" + (" (added beside the tower)" if token >= rows else "")

    return f"vocabulary: {vocabulary.kind}, begin {where(vocabulary.begin_id)}, end {where(vocabulary.end_id)}"


def _to_hf(args: argparse.Namespace) -> int:
    import ml_dtypes

    from zipper_jax.conversion import to_hf
    from zipper_jax.vocabularies import load_vocabulary

    model, weights, _ = _open(args.run, args.step)
    tower = _tower(model, args.tower)
    modality = next((m for m, place in model.modalities.items() if place.tower == tower), None)
    vocabulary = None if modality is None else load_vocabulary(as_path(args.run) / "vocabularies" / modality)
    dtype = ml_dtypes.bfloat16 if args.bf16 else None
    plan = to_hf.plan(weights, tower, model.towers[tower], vocabulary, args.family, dtype)
    for line in plan.lines():
        print(line)
    if model.added_tokens.get(tower):
        print(f"  added_embeddings/{tower}: skipped, {model.added_tokens[tower]} tokens that fusion added to the tower")
    if not args.dry_run:
        count = sum(_count(shape) for shape in plan.tensors.values())
        with progress(total=count, what="converting", unit="parameters") as bar:
            to_hf.write(plan, args.out, bar.update)
        print(f"{args.out}: {plan.family.architecture}")
    return 0


def _export(args: argparse.Namespace) -> int:
    import ml_dtypes
    import numpy as np

    from zipper_jax.checkpoint.model_folder import write_model_folder

    model, weights, header = _open(args.run, args.step)
    chosen = np.dtype(ml_dtypes.bfloat16) if args.bf16 else None
    leaves = {name: (chosen or np.dtype(weights.dtype(name)), weights.shape(name)) for name in weights.names}
    count = sum(_count(shape) for _, shape in leaves.values())
    for dtype in sorted({str(dtype) for dtype, _ in leaves.values()}):
        print(f"{args.run}: {len(leaves)} arrays, {count:,} parameters, {dtype}; without optimizer and loss statistics")
    if args.dry_run:
        return 0
    bar = progress(total=count, what="exporting", unit="parameters")

    def fill(writer: Any) -> None:
        for name, (dtype, _) in leaves.items():
            leaf = weights.read(name)
            writer.write(name, leaf.astype(dtype, copy=False))
            bar.update(leaf.size)
        bar.close()

    source = {"run": str(as_path(args.run).name)} | ({"step": str(args.step)} if args.step is not None else {})
    write_model_folder(
        args.out,
        model,
        leaves,
        fill,
        {m: as_path(args.run) / "vocabularies" / m for m in model.modalities},
        header.get("lengths"),
        source=source,
        task_set=to_dict(stored_task_set(header)),
        **{name: header[name] for name in ("text_form",) if name in header},
    )
    print(f"{args.out}: a model folder, for zipper_jax.load, initialise_from and RestoreCheckpointConfig.path")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from zipper_jax.api import load
    from zipper_jax.conversion import verify

    model = load(args.run)
    tower = _tower(model.config, args.tower)
    theirs = verify.reference(args.against, tower)
    rows = verify.rows_of_text(model, tower, args.text, args.length, args.rows)
    found = verify.compare(verify.our_logits(model, tower), theirs, rows)
    print(f"{args.run} (tower {tower!r}) against {args.against}, on {args.text or 'random tokens'}")
    for line in found.lines():
        print(f"  {line}")
    good = found.relative <= args.tolerance
    print(f"  {'the same' if good else 'DIFFERENT'}: the tolerance is {args.tolerance:g} of the largest logit")
    return 0 if good else 1


def _open(folder: str, step: int | None) -> tuple[Any, Any, dict[str, Any]]:
    """Return (model configuration, weights, config.json) of a run or model folder."""
    from zipper_jax.checkpoint.checkpoints import load_params
    from zipper_jax.checkpoint.model_folder import Loaded, is_model_folder
    from zipper_jax.checkpoint.run_format import read_model
    from zipper_jax.checkpoint.safetensors_files import Reader

    header, model = read_model(folder)
    if is_model_folder(folder) and step is None:
        return model, Reader(folder), header
    return model, Loaded(load_params(folder, step)[1]), header


def _tower(model: Any, name: str | None) -> str:
    if name is None and len(model.towers) == 1:
        return next(iter(model.towers))
    if name is None or name not in model.towers:
        raise UserError(f"--tower = {name}: give one of {', '.join(sorted(model.towers))}")
    return name


def _count(shape: tuple[int, ...]) -> int:
    import math

    return math.prod(shape)

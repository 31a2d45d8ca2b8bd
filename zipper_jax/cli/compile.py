"""``zipper compile``: ahead-of-time compilation of the training step for a TPU slice, on a machine without one."""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from zipper_jax.tasks import SPEECH
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json

TAKES_GIN_FLAGS = True
DESCRIPTION = """\
Compile the step that `zipper train` would run, for a TPU slice, on a machine without one (pip install --editable
'.[tpu]' in the checkout).
Prints memory per device and the chip's limit, communication between devices and its lower bound, and an estimated step
time. Exit status 1: it does not fit, or leaves less than --spare. --profile: a table by part of the model.

  zipper compile --gin_file=runs/paper/gecko_1b.gin --gin.FSDP=64 --topology v5e:8x8

DATA, MODEL_DIR and tower runs need not exist. Compiling takes minutes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments (gin flags are read from the rest)."""
    parser.description = DESCRIPTION
    parser.add_argument("--topology", required=True, help="GENERATION:AxB or AxBxC, in chips: v5e:16x16, v5p:4x4x4")
    parser.add_argument("--what", choices=("train", "decode"), default="train", help="a training step, or generation")
    parser.add_argument("--output", default=SPEECH, help="with --what decode: the modality (%(default)s)")
    parser.add_argument("--slices", type=int, default=1, help="number of such slices (default 1)")
    parser.add_argument("--spare", type=float, default=0.1, help="share of the memory to keep free (default 0.1)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also print where the time goes, by the compiler's own estimate of each operation (not a measurement)",
    )
    parser.add_argument(
        "--documents", type=int, default=1, help="with --profile: documents per packed row, for attention (%(default)s)"
    )
    parser.add_argument("--against", type=Path, help="with --profile: compare with the profile in this --json file")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Compile and print the report; return 0, or 1 if the memory does not suffice."""
    with tempfile.TemporaryDirectory() as dumped:
        return _run(args, extra, dumped)


def _run(args: argparse.Namespace, extra: Sequence[str], dumped: str) -> int:
    # Set before jax is imported, so that libtpu does not search for a TPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a program from the cache leaves no dump for the profile
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    from zipper_jax.aot import bundles, compile_decode, compile_train, profile, report, topology
    from zipper_jax.cli import gin_bindings, gin_flags

    flags = gin_flags.parse(extra)
    if not flags.files:
        raise UserError("zipper compile needs --gin_file=..., for example --gin_file=runs/paper/tiny_128m.gin")
    gin_flags.apply(flags, [f"{name} = 'not given'" for name in ("MODEL_DIR", "DATA", "TEXT_RUN", "SPEECH_RUN")])
    config = gin_bindings.train_config()
    if args.against is not None and not args.profile:
        raise UserError(f"--against = {args.against}: give --profile, too")
    if args.documents < 1:
        raise UserError(f"--documents = {args.documents}: give 1 or more")
    before = None if args.against is None else _stored(args.against)
    if args.profile:  # libtpu reads it when it is loaded, for the first topology
        flags_of_libtpu = (os.environ.get("LIBTPU_INIT_ARGS"), bundles.dump_flags(dumped))
        os.environ["LIBTPU_INIT_ARGS"] = " ".join(filter(None, flags_of_libtpu))
    if args.slices < 1 or not 0 <= args.spare < 1:
        raise UserError(f"--slices={args.slices}, --spare={args.spare}: give 1 or more, and a share below 1")
    devices = topology.devices(args.topology, args.slices)
    if args.what == "train":
        done = compile_train.compile_train(config, devices)
    else:
        done = compile_decode.compile_decode(config, args.output, devices)
    label = f"{args.topology}, {len(devices)} devices, {args.what}"
    per = "step" if args.what == "train" else "token"
    for line in report.lines(done, label, per):
        print(line)
    results = done.as_json()
    if args.profile:
        results["profile"] = _profile(done, per, dumped, args.documents)
    if args.json:
        write_json(args.json, results)
    if before is not None:
        for line in profile.compare(results["profile"], before):
            print(line)
    if done.limit is not None and done.peak > (1 - args.spare) * done.limit:
        print(f"--spare = {args.spare:g}: less memory than this share is free")
        return 1
    return 0


def _profile(done: Any, per: str, dumped: str, documents: int) -> dict[str, Any]:
    """Print the profile; return it as JSON."""
    from zipper_jax.aot import bundles, kernels, profile
    from zipper_jax.sharding.chips import chip

    known = chip(done.device)
    if known is None:
        raise UserError(f"--profile: no peak rates are known for {done.device!r}; give a --topology of v5e, v5p or v6e")
    costs = kernels.kernel_costs(done.hlo, bundles.schedules(dumped), known, documents)
    found = profile.profile(done.hlo, done.device, costs, turns=done.tokens)
    for line in profile.lines(found, known, done.model_flops, per):
        print(line)
    return profile.as_json(found, known)


def _stored(path: Path) -> Mapping[str, Any]:
    fix = "give a file that --profile --json wrote"
    found = user_json.decode(path.read_bytes(), f"--against = {str(path)!r}", fix)
    return user_json.convert(found, _Against, f"--against = {str(path)!r}", fix)["profile"]


class _Part(TypedDict):
    seconds: user_json.Number


class _Profile(TypedDict):
    device: str
    seconds: user_json.Number
    parts: dict[str, _Part]


class _Against(TypedDict):
    profile: _Profile

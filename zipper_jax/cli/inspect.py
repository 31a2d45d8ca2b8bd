"""``zipper inspect RUN``: summary of a run folder, without loading the model onto a device."""

import argparse
import math
from collections.abc import Iterator, Mapping
from typing import Any

from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import folder_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = "Show a run: its model, parameter counts, step, gate values and last losses."
    parser.add_argument("run", type=folder_text, help="a folder that `zipper train` wrote, or a model folder")
    parser.add_argument("--sharding", action="store_true", help="show how each array is sharded, and bytes per device")
    parser.add_argument("--devices", type=int, help="with --sharding: number of devices (default: this machine's)")
    parser.add_argument(
        "--mesh", default="", help="with --sharding: another mesh than the run's, for example fsdp=64,tensor=2"
    )
    parser.add_argument(
        "--kernels", action="store_true", help="show which implementation of attention each tower and zip uses"
    )
    parser.add_argument(
        "--platform", choices=("cpu", "gpu", "tpu"), help="with --kernels: the devices (default: this machine's)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the summary; returns 0."""
    if not args.sharding and (args.devices or args.mesh):
        raise UserError("--devices and --mesh need --sharding: add it")
    if args.platform and not args.kernels:
        raise UserError("--platform needs --kernels: add it")
    if args.kernels and args.sharding:
        raise UserError("--kernels and --sharding are two reports: give one")
    if args.sharding:
        lines = sharding(args.run, args.mesh, args.devices)
    else:
        lines = kernels(args.run, args.platform) if args.kernels else summary(args.run)
    for line in lines:
        print(line)
    return 0


def kernels(run_dir: str, platform: str | None = None) -> Iterator[str]:
    """Yield the lines of ``zipper inspect --kernels``: implementation of attention and reason, per tower and zip.

    Raises:
        UserError: Not a run folder.
    """
    from zipper_jax.checkpoint.run_format import read_model
    from zipper_jax.models.fusion import fusion_class
    from zipper_jax.ops.interval_attention.registry import Call, choose

    stored, model = read_model(run_dir)
    lengths = stored.get("lengths", {})
    if platform is None:
        import jax

        platform = jax.default_backend()
    yield f"kernels      on {platform}, ZipperConfig.attention = {model.attention!r}"

    def line(what: str, queries: int, keys: int, head_dim: int, bias: bool = False) -> str:
        chosen = choose(Call(platform, queries, keys, head_dim, bias), model.attention)
        shape = f"{queries} queries x {keys} keys, head_dim {head_dim}"
        return f"attention    {what}: {chosen.implementation} ({chosen.reason}); {shape}"

    for name, tower in sorted(model.towers.items()):
        if length := lengths.get(name):
            relative = tower.positions == "relative"
            yield line(f"tower {name}, training", length, length, tower.head_dim, relative)
            yield line(f"tower {name}, one token", 1, length, tower.head_dim, relative)
    for z in model.zips:
        for into in z.receivers:
            heads, head_dim = fusion_class(z.fusion).heads(z, model.towers[into])
            queries, keys = lengths.get(into), lengths.get(z.other(into))
            if heads and queries and keys:
                yield line(f"zip {z.name} into {into}, training", queries, keys, head_dim)
                yield line(f"zip {z.name} into {into}, one token", 1, keys, head_dim)
    if not lengths:
        yield "attention    the folder stores no lengths of rows: the choice depends on each call's shapes"


def sharding(run_dir: str, mesh: str = "", devices: int | None = None) -> Iterator[str]:
    """Yield the lines of ``zipper inspect --sharding``.

    Raises:
        UserError: Not a run folder, or no such mesh.
    """
    import dataclasses

    from zipper_jax.checkpoint.run_format import part_of, read_model
    from zipper_jax.sharding.mesh import MeshConfig
    from zipper_jax.training.optimizer import OptimizerConfig
    from zipper_jax.training.partition_tree import FreezeConfig
    from zipper_jax.training.sharding_report import sharding_lines
    from zipper_jax.utils.configs import closest

    stored, model = read_model(run_dir)
    changes: dict[str, Any] = {}
    for part in filter(None, mesh.split(",")):
        name, _, value = part.partition("=")
        known = [f.name for f in dataclasses.fields(MeshConfig) if f.name not in ("towers", "rules")]
        if name not in known:
            raise UserError(f"--mesh = {mesh!r}: there is no {name!r}{closest(name, known)}; known: {', '.join(known)}")
        try:
            changes[name] = value if name == "strategy" else int(value)
        except ValueError:
            raise UserError(f"--mesh = {mesh!r}: {name}={value!r} is not a number") from None
    if devices is None:
        import jax

        devices = jax.device_count()
    config = dataclasses.replace(part_of(stored, MeshConfig, run_dir, "train", "mesh"), **changes)
    freeze = part_of(stored, FreezeConfig, run_dir, "train", "freeze")
    optimizer = part_of(stored, OptimizerConfig, run_dir, "train", "optimizer")
    yield from sharding_lines(model, freeze, optimizer, config, devices)


def summary(run_dir: str) -> Iterator[str]:
    """Yield the lines of ``zipper inspect``.

    Raises:
        UserError: Not a run folder.
    """
    from zipper_jax.checkpoint import checkpoints, model_folder
    from zipper_jax.checkpoint.run_format import part_of, read_model
    from zipper_jax.training.monitor import read_metrics
    from zipper_jax.training.partition_tree import FreezeConfig

    stored, model = read_model(run_dir)
    done = checkpoints.steps(run_dir)
    train, rules = stored.get("train", {}), part_of(stored, FreezeConfig, run_dir, "train", "freeze")
    yield f"run          {run_dir} (format {stored['format_version']})"
    if model_folder.is_model_folder(run_dir):
        yield f"weights      {_weights(run_dir)}; no run: a model folder"
        for tower, source in stored.get("source", {}).items():
            yield f"source       {tower}: {source}"
        yield from model_lines(model, stored.get("lengths", {}))
        yield from parameter_lines(model, rules)
        return
    where = f"{done[-1]} of {train.get('steps', '?')}" if done else "no checkpoint yet"
    yield f"step         {where}; checkpoints: {', '.join(map(str, done)) or 'none'}"
    data = train.get("data", {})
    rates = ", ".join(f"{task} {rate:g}" for task, rate in data.get("rates", {}).items())
    yield f"data         {data.get('mixture', '?')}{f' ({rates})' if rates else ''} from {data.get('folder', '?')}"
    yield from model_lines(model, stored.get("lengths", {}))
    yield from parameter_lines(model, rules)
    lines = read_metrics(run_dir)
    for split in ("train", "validation"):
        last = next((line for line in reversed(lines) if line["split"] == split), None)
        if last is not None:
            yield f"{split:<12} step {last['step']}: loss {last['loss']:.4f}{_losses(last)}"
    gates: dict[str, Any] = next((line["gates"] for line in reversed(lines) if line.get("gates")), {})
    for name, values in gates.items():
        for gate, members in values.items():
            yield f"gate         {name}/{gate}: {' '.join(f'{v:+.4f}' for v in members)}"


def _weights(folder: str) -> str:
    from zipper_jax.checkpoint.safetensors_files import FILE, Reader

    reader = Reader(folder)
    return f"{FILE}, {', '.join(sorted({str(reader.dtype(name)) for name in reader.names}))}"


def model_lines(model: Any, lengths: Mapping[str, int]) -> Iterator[str]:
    """Yield lines about the towers, modalities, projections and zips of a ZipperConfig."""
    from zipper_jax.models.schedule import zip_pairs

    for name, t in sorted(model.towers.items()):
        yield (
            f"tower        {name}: {t.num_layers} layers x {t.embed_dim} wide, {t.num_heads} heads of {t.head_dim} "
            f"({t.num_kv_heads} key/value), mlp {t.mlp_dim}, vocabulary {t.vocab_size}"
            f"{f' + {model.added_tokens[name]} added' if name in model.added_tokens else ''}, "
            f"{lengths.get(name, '?')} positions per row{f' ({t.family})' if t.family else ''}"
        )
    for name, m in sorted(model.modalities.items()):
        yield f"modality     {name}: tokens {m.offset} to {m.offset + m.size - 1} of tower {m.tower}"
    for name, projection in sorted(model.input_projections.items()):
        yield f"projection   input of {name}: {projection.form}, depth {projection.depth}"
    if model.next_modality:
        yield f"choice       of {', '.join(sorted(model.modalities))} or the end, at each end token"
    for z in model.zips:
        pairs = " ".join(f"{a}-{b}" for a, b in zip_pairs(z, model.towers))
        by = "" if z.fusion == "gated_cross_attention" else f"; by {z.fusion}"
        yield f"zip          {z.name}: blocks {'-'.join(z.towers)}: {pairs}; into {', '.join(z.receivers)}{by}"


def parameter_lines(model: Any, rules: Any) -> Iterator[str]:
    """Yield the numbers of parameters per part that a FreezeConfig trains and freezes."""
    import numpy as np

    from zipper_jax.models import zipper
    from zipper_jax.training.partition_tree import split

    counts: dict[str, list[int]] = {}
    for place, part in enumerate(split(zipper.abstract_params(model), rules)):
        for key, leaf in part.items():
            counts.setdefault("/".join(key.split("/")[:2]), [0, 0])[place] += int(np.prod(leaf.shape))
    counts = dict(sorted(counts.items()))
    counts["total"] = [sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values())]
    for name, (trained, frozen) in counts.items():
        yield f"parameters   {name}: {trained:,} trained, {frozen:,} frozen"


def _losses(record: Mapping[str, Any]) -> str:
    text = ""
    for group in ("towers", "tasks", "next_modality"):
        parts = ", ".join(
            f"{k} {v['loss']:.4f} ({v.get('accuracy', math.nan):.1%} right)" for k, v in record.get(group, {}).items()
        )
        text += f"; {group.replace('_', ' ')}: {parts}" if parts else ""
    return text

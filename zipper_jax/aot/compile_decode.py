"""Ahead-of-time compilation of decoding one span.

Axis letters: B rows, S cache positions.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zipper_jax.aot.bounds import Bounds, held_bytes, itemsize
from zipper_jax.aot.report import Compiled, compiled, mesh_advice
from zipper_jax.decoding.generate import copied_bytes, decode_span, decoding_config, for_decoding
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.models import zipper
from zipper_jax.models.cache import Axes, Cache, cache_axes, init_cache
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.zipper import inference_dtype
from zipper_jax.sequences import Place
from zipper_jax.sharding.chips import chip
from zipper_jax.sharding.mesh import batch_ways, make_mesh
from zipper_jax.sharding.rules import Placement, param_shardings
from zipper_jax.training.config import TrainConfig
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.readable import size
from zipper_jax.utils.trees import flatten, unflatten


def compile_decode(config: TrainConfig, output: str, devices: list[Any]) -> Compiled:
    """Compile greedy decoding of one span: BATCH_SIZE rows, cache capacities of TASK_FEATURE_LENGTHS.

    Bytes sent and bounds are per decoding step, one token of every row.

    Args:
        config: The run.
        output: The modality of the span.
        devices: From ``topology.devices``.

    Raises:
        UserError: No such modality; mesh and batch size do not fit; or the program exceeds the devices' memory.
    """
    model = config.model
    if output not in model.modalities:
        raise UserError(f"--output={output!r}: the model has no such modality{closest(output, model.modalities)}")
    mesh = make_mesh(config.mesh, devices)
    if config.batch_size % batch_ways(mesh):
        raise UserError(f"batch_size={config.batch_size} rows must be a multiple of {batch_ways(mesh)}: data x fsdp")
    placer = Placement(mesh, config.mesh)
    shapes, known = flatten(zipper.abstract_params(model)), zipper.parameters(model)
    shardings, notes = param_shardings(shapes, known, mesh, config.mesh)
    params = {
        key: jax.ShapeDtypeStruct(s.shape, inference_dtype(model, known[key], s.dtype), sharding=shardings[key])
        for key, s in shapes.items()
    }
    device, held = mesh.devices.flat[0], sum(held_bytes(x) for x in params.values())
    known_chip = chip(device.device_kind)
    free = known_chip.memory - held if known_chip and known_chip.memory else None
    decoded = decoding_config(model, unflatten(params), device.platform, free)
    prepare = jax.jit(partial(for_decoding, decoded, placer=placer))
    prepared = prepare.lower(unflatten(params)).compile().output_shardings
    prepared = jax.tree.map(_like, prepare.eval_shape(unflatten(params)), prepared)
    rows = config.batch_size
    whole = NamedSharding(mesh, PartitionSpec())
    cache = _cache(jax.eval_shape(partial(init_cache, model, rows, config.data.lengths)), cache_axes(model), placer)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=whole)
    modality = model.modalities[output]
    place = Place(modality.tower, modality.offset, modality.size - 2, modality.size - 1, modality.size - 2)
    limit = config.data.lengths[place.tower] - 2
    decode = partial(decode_span, place=place, limit=limit, sampling=SamplingConfig())
    lowered = jax.jit(decode, donate_argnums=1).lower(prepared, cache, keys)
    advice = [mesh_advice(config), f"BATCH_SIZE (now {rows} rows) or TASK_FEATURE_LENGTHS lower"]
    done = compiled(lowered, advice, mesh, _bounds(model, place.tower, params, cache, config, mesh), notes, turns=1)
    if decoded.scan != model.scan:  # the stacked weights stay on the devices for prefill
        copied = copied_bytes(unflatten(params))
        copies = f"blocks are unrolled for the loop over tokens: {size(copied)} of the memory are copies of weights"
        done = replace(done, peak=done.peak + int(copied), notes=[*done.notes, copies])
    return replace(done, tokens=limit + 2)


def _like(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _cache(empty: Cache, axes: Cache, placer: Placement) -> Cache:
    """The shapes of a cache with their shardings, as in `init_cache`."""

    def of(axes: Axes | None, x: Any) -> Any:
        spec = PartitionSpec() if axes is None else placer.spec(x.shape, axes.tower, *axes.names)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(placer.mesh, spec))

    return jax.tree.map(of, axes, empty, is_leaf=lambda x: x is None)


def _bounds(
    model: ZipperConfig, tower: str, params: dict[str, Any], cache: Any, config: TrainConfig, mesh: Any
) -> Bounds:
    """Bounds of one token of every row: each kernel in use and each cache is read once."""
    item = itemsize(model)
    known = zipper.parameters(model)
    used = {key: shape for key, shape in params.items() if tower in known[key].tokens}
    weights = sum(float(np.prod(s.shape)) for s in used.values())
    held = sum(held_bytes(s) for s in used.values())
    incoming = [value for (_, into), value in cache.zips.items() if into == tower]
    caches = jax.tree.leaves((cache.towers[tower].key, cache.towers[tower].value, incoming))
    kept = sum(held_bytes(x) for x in caches)
    rows, ways = config.batch_size / batch_ways(mesh), mesh.shape["tensor"]
    sums = 2 * model.towers[tower].num_layers * rows * model.towers[tower].embed_dim * item
    fsdp = mesh.shape["fsdp"]
    cut = sum(float(np.prod(s.shape)) for s in used.values() if "fsdp" in s.sharding.spec) * item / ways
    network = 2 * sums * (ways - 1) / ways + cut * (fsdp - 1) / fsdp
    return Bounds(2 * weights * rows / ways, held + kept, network)

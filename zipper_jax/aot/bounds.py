"""Lower bounds on the cost of a training step, from configuration and shardings alone, to compare compiled steps with.

Per device and step, with work spread evenly (a replicated tower beside a sharded one is an exception: its work is
repeated on every device of ``tensor``). Memory traffic counts kernels, optimizer state, block inputs and outputs of
matrix products once per pass that needs them, and attention scores where they are built; on-chip memory is not counted.
Communication counts what the mesh requires: all-gathers of sharded parameters, reductions of gradients, and reductions
of partial products over ``tensor``.

Axis letters: B rows on a device, T positions, D embed_dim, M microbatches.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.fusion import fusion_class
from zipper_jax.models.schedule import positions_used, read_alone, zip_pairs
from zipper_jax.models.zipper import parameters
from zipper_jax.sharding.chips import Chip
from zipper_jax.sharding.mesh import BATCH_AXES, batch_ways
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.program import Program
from zipper_jax.utils.trees import base_path


class Bounds(NamedTuple):
    """Bounds per device.

    Attributes:
        flops: FLOPs, recomputation included.
        memory: Bytes read from and written to device memory.
        network: Bytes sent.
    """

    flops: float
    memory: float
    network: float


def bounds(config: TrainConfig, built: Program) -> Bounds:
    """The bounds of one training step, per device."""
    devices = built.mesh.size
    return Bounds(built.work_per_step / devices, _memory(config, built), _network(config, built))


def seconds(need: Bounds, chip: Chip, sent: float | None = None) -> dict[str, float]:
    """Seconds per resource, each alone and at its peak; ``sent``: bytes actually sent, instead of the bound."""
    assert chip.bandwidth
    assert chip.link
    network = need.network if sent is None else sent
    return {"compute": need.flops / chip.flops, "memory": need.memory / chip.bandwidth, "network": network / chip.link}


def itemsize(config: ZipperConfig) -> int:
    """Bytes per element in matrix products."""
    return 2 if config.dtype == "bfloat16" else 4


def _passes(config: ZipperConfig) -> int:
    """How often a block's kernels are used: forward, backward, and once more with full recomputation."""
    return 3 if config.remat == "full" else 2


def held_bytes(leaf: Any) -> float:
    """Bytes of one device's shard of a leaf, in the leaf's dtype."""
    return float(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def _memory(config: TrainConfig, built: Program) -> float:
    model, item, micro = config.model, itemsize(config.model), config.microbatches
    tensor = built.mesh.shape["tensor"]
    total = 0.0
    for key, leaf in {**built.like.trainable, **built.like.frozen}.items():
        whole = float(np.prod(leaf.shape)) * item / (tensor if "tensor" in leaf.sharding.spec else 1)
        total += micro * (_passes(model) + 1) * whole  # written once where it is gathered, read in each pass
        if key in built.like.trainable:
            # Parameter, gradient and the optimizer's state, each read and written; gradients once per microbatch.
            state = sum(held_bytes(s) for s in _state_of(built, key))
            total += 2 * (2 * held_bytes(leaf) + state) + 2 * (micro - 1) * held_bytes(leaf)
    rows = config.batch_size / batch_ways(built.mesh)
    for name, tower in model.towers.items():
        length = positions_used(model, name, config.data.lengths)
        # A tower that is read alone runs some blocks on its own tokens once more.
        slots = rows * (length + config.data.lengths[name] * read_alone(model).get(name, 0) / tower.num_layers)
        heads = (tower.num_heads + 2 * tower.num_kv_heads) * tower.head_dim
        wide = tower.mlp_dim * (3 if tower.gated_mlp else 2)
        per_slot = item * (4 * tower.embed_dim + (2 * heads + wide) / tensor)
        # Written, read by the next product, read again backward, and its gradient written and read.
        total += 5 * tower.num_layers * slots * per_slot
        scores = 4.0 * slots * length * tower.num_heads / tensor
        total += 8 * tower.num_layers * scores  # float32 scores and weights, forward, again, and backward
        own = rows * config.data.lengths[name]
        total += 4 * 4.0 * own * model.rows(name) / tensor  # float32 logits: written, read, their gradient
    for z in model.zips:
        for into in z.receivers:
            slots, seen = rows * config.data.lengths[into], config.data.lengths[z.other(into)]
            heads, _ = fusion_class(z.fusion).heads(z, model.towers[into])
            total += 8 * len(zip_pairs(z, model.towers)) * 4.0 * slots * seen * heads / tensor
    return total


def _state_of(built: Program, key: str) -> list[Any]:
    """The leaves of the optimizer state that belong to a parameter."""
    found = jax.tree_util.tree_leaves_with_path(built.like.opt_state)
    return [leaf for path, leaf in found if any(getattr(entry, "key", None) == key for entry in path)]


def _network(config: TrainConfig, built: Program) -> float:
    model, item, sizes, micro = config.model, itemsize(config.model), built.mesh.shape, config.microbatches
    fsdp, tensor = sizes["fsdp"], sizes["tensor"]
    copies = int(np.prod([sizes[a] for a in BATCH_AXES if a != "fsdp"]))
    total = 0.0
    gathers = 1 if model.remat == "none" else 2  # forward, and once for all that is done backward
    known = parameters(model)
    for key, leaf in {**built.like.trainable, **built.like.frozen}.items():
        found = known[base_path(key)]
        of_tensor = float(np.prod(leaf.shape)) / (tensor if "tensor" in leaf.sharding.spec else 1)
        in_use = of_tensor * (item if found.use in ("product", "lookup") else 4)
        cut = "fsdp" in leaf.sharding.spec
        if cut and (found.use != "lookup" or found.output):  # of other tables only some rows are read
            total += micro * gathers * _share(fsdp) * in_use
        if key in built.like.trainable and cut:
            total += micro * in_use * (_share(fsdp) + 2 * _share(copies) / fsdp)
        elif key in built.like.trainable:
            total += micro * 2 * _share(copies * fsdp) * in_use
    return total + micro * _activations(config, built, item, tensor)


def _activations(config: TrainConfig, built: Program, item: int, tensor: int) -> float:
    """Bytes of all-reduces over ``tensor``: after attention and MLP forward, before them backward; likewise in zips."""
    rows = config.batch_size / batch_ways(built.mesh) / config.microbatches
    known = parameters(config.model)
    leaves = {
        key: leaf
        for key, leaf in {**built.like.trainable, **built.like.frozen}.items()
        if "tensor" in leaf.sharding.spec
    }
    cut = {found.owner for key in leaves if (found := known[base_path(key)]).axes[:1] == ("layers",)}
    counts = {name: 2 * tower.num_layers for name, tower in config.model.towers.items()}
    for z in config.model.zips:
        for into in z.receivers:
            counts[into] += 2 * len(zip_pairs(z, config.model.towers))
    passes = _passes(config.model)
    states = sum(
        count * rows * config.data.lengths[name] * config.model.towers[name].embed_dim
        for name, count in counts.items()
        if name in cut
    )
    return 2 * _share(tensor) * passes * states * item


def _share(devices: int) -> float:
    """Fraction of an array that each device sends in a ring all-gather."""
    return (devices - 1) / devices

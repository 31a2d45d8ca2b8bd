"""Initial parameters of a run: random, or copied from other runs."""

import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from zipper_jax.checkpoint import checkpoints
from zipper_jax.checkpoint.model_folder import is_model_folder
from zipper_jax.checkpoint.orbax_trees import Leaf
from zipper_jax.checkpoint.run_format import read_model
from zipper_jax.checkpoint.safetensors_files import Reader
from zipper_jax.models import zipper
from zipper_jax.models.config import TowerConfig, ZipperConfig
from zipper_jax.training.config import RestoreCheckpointConfig
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten, require_match, unflatten

logger = logging.getLogger(__name__)

VOCABULARY_LEAVES = ("embedding/table", "head/table")
"""Leaves of a tower whose first axis is its vocabulary."""


def initial_leaves(
    model: ZipperConfig,
    seed: int,
    initialise_from: Mapping[str, str],
    restore: RestoreCheckpointConfig | None = None,
    allow_changes: bool = False,
) -> dict[str, Leaf]:
    """Initial parameters by path; leaves are read or drawn lazily, one at a time.

    Args:
        model: The model.
        seed: Of everything random.
        initialise_from: Tower to the run folder it is copied from; the run's tower of that name, or its only one.
            Where the vocabulary is larger than the source's (the Single Decoder), the source's rows come first and the
            rows behind them stay random.
        restore: Or another run's parameters, path by path.
        allow_changes: A tower may compute differently from its weights' source (another RoPE, other windows).

    Raises:
        UserError: A run folder has no such tower, its shapes do not fit (the message names the leaf), or an option that
            shapes do not show differs (the message names the field).
    """
    draw, known = zipper.initialisers(model, seed), zipper.parameters(model)
    leaves = {path: Leaf(known[path].shape, known[path].dtype, make) for path, make in draw.items()}
    for tower, run_dir in sorted(initialise_from.items()):
        _check_offsets(model, run_dir)
        _check_options(model, run_dir, [tower], allow_changes)
        stored = _stored(run_dir)
        there = checkpoints.tower_name(run_dir, {path.split("/")[1] for path in stored if path[:7] == "towers/"}, tower)
        own, added = (_below(stored, f"{top}/{there}/") for top in ("towers", "added_embeddings"))
        what = f"initialise_from {tower!r} = {run_dir!r}"
        if added and tower not in model.added_tokens:  # their ids follow the tower's own, so their rows do too
            own, added = _joined(own, added), {}
        for prefix, source in ((f"towers/{tower}/", own), (f"added_embeddings/{tower}/", added)):
            fitted = fit_tower(source, _below(leaves, prefix), what) if source else {}
            leaves |= {prefix + name: leaf for name, leaf in fitted.items()}
    if restore is not None:
        _check_offsets(model, restore.path)
        _check_options(model, restore.path, sorted(model.towers), allow_changes)
        leaves = assign(leaves, _stored(restore.path, restore.step), restore)
    return leaves


def initial_params(*args: Any, **options: Any) -> dict[str, Any]:
    """Evaluate all of `initial_leaves`: nested parameters on the host."""
    return unflatten({path: leaf.make() for path, leaf in initial_leaves(*args, **options).items()})


def _stored(run_dir: str, step: int | None = None) -> dict[str, Leaf]:
    """The leaves of a model folder or of a run's checkpoint, read lazily."""
    if is_model_folder(run_dir) and step is None:
        reader = Reader(run_dir)

        def read(name: str) -> Leaf:
            return Leaf(reader.shape(name), np.float32, lambda: reader.read(name).astype(np.float32, copy=False))

        return {name: read(name) for name in reader.names}
    return checkpoints.open_params(run_dir, step)


def _below(leaves: Mapping[str, Leaf], prefix: str) -> dict[str, Leaf]:
    return {path.removeprefix(prefix): leaf for path, leaf in leaves.items() if path.startswith(prefix)}


def check_sources(
    model: ZipperConfig,
    initialise_from: Mapping[str, str],
    restore: RestoreCheckpointConfig | None = None,
    allow_changes: bool = False,
) -> None:
    """Check from configurations alone, without reading weights, that `initial_params` can copy its towers.

    Raises:
        UserError: A folder is missing or has no weights, or its tower has another form.
    """
    for run_dir in [*initialise_from.values(), *([restore.path] if restore is not None else [])]:
        _check_offsets(model, run_dir)
        if not is_model_folder(run_dir):
            checkpoints.require_steps(run_dir)
    if restore is not None:
        _check_options(model, restore.path, sorted(model.towers), allow_changes)
    for tower, run_dir in sorted(initialise_from.items()):
        _check_options(model, run_dir, [tower], allow_changes)
        stored = read_model(run_dir)[1]
        name = checkpoints.tower_name(run_dir, stored.towers, tower)
        wanted, source = (zipper.abstract_params(m)["towers"][n] for m, n in ((model, tower), (stored, name)))
        added = 0 if tower in model.added_tokens else stored.added_tokens.get(name, 0)
        check_tower(flatten(source), flatten(wanted), f"initialise_from {tower!r} = {run_dir!r}", added)


def assign(
    wanted: dict[str, Leaf],
    source: Mapping[str, Leaf],
    restore: RestoreCheckpointConfig,
) -> dict[str, Leaf]:
    """``wanted`` with the leaves that ``restore`` finds in ``source``; see `RestoreCheckpointConfig`.

    Raises:
        UserError: A leaf has another shape, a rule matches nothing, or (``strict``) a leaf is missing.
    """
    what = f"RestoreCheckpointConfig.path = {restore.path!r}"
    rules = [(re.compile(pattern), target) for pattern, target in restore.assignment_map]
    for pattern, _ in rules:
        require_match(pattern, wanted, "RestoreCheckpointConfig.assignment_map")
    found: dict[str, Leaf] = {}
    missing = []
    for path in wanted:
        matches = ((rule.fullmatch(path), target) for rule, target in rules)
        match, target = next(((m, t) for m, t in matches if m), (None, path))
        if target is None:
            continue
        name = match.expand(target) if match else path
        if name in source:
            found[path] = _fit(path, source[name], wanted[path], what)
        else:
            missing.append(path if name == path else f"{path} (there: {name})")
    if missing and restore.strict:
        raise UserError(
            f"{what} lacks {_some(missing)}; give their source paths in assignment_map, map them to None to initialise "
            "them at random, or set RestoreCheckpointConfig.strict = False"
        )
    random = [path for path in wanted if path not in found]
    if random:
        logger.info(f"not restored from {restore.path}, so random: {_some(random)}")
    return {**wanted, **found}


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def fit_tower(source: Mapping[str, Leaf], wanted: Mapping[str, Leaf], what: str) -> dict[str, Leaf]:
    """Fit the source's leaves to the wanted shapes; vocabularies may grow, all other shapes must be equal.

    Raises:
        UserError: A leaf is missing, unexpected, or has another shape.
    """
    check_tower(source, wanted, what)
    return {name: _fit(name, leaf, wanted[name], what) for name, leaf in source.items()}


def check_tower(source: Mapping[str, Any], wanted: Mapping[str, Any], what: str, added: int = 0) -> None:
    """Check the shapes for `fit_tower`; ``added``: rows that follow the source's own vocabulary."""
    missing, extra = sorted(set(wanted) - set(source)), sorted(set(source) - set(wanted))
    if missing or extra:
        raise UserError(
            f"{what}: the source tower has another form (it lacks {missing} and also has {extra}); "
            "give the tower the same form in both configurations"
        )
    for name, leaf in source.items():
        rows = added if name.endswith(VOCABULARY_LEAVES) else 0
        _check_fit(name, (leaf.shape[0] + rows, *leaf.shape[1:]) if rows else leaf.shape, wanted[name].shape, what)


def _check_fit(name: str, have: tuple[int, ...], want: tuple[int, ...], what: str) -> None:
    grows = name.endswith(VOCABULARY_LEAVES) and have[1:] == want[1:] and have[0] < want[0]
    if have != want and not grows:
        raise UserError(
            f"{what}: {name} has shape {have} there, this model needs {want}; "
            "give the tower the same sizes in both configurations"
        )


def _fit(name: str, leaf: Leaf, want: Leaf, what: str) -> Leaf:
    """The leaf, followed by random rows of ``want`` where the vocabulary has grown."""
    _check_fit(name, leaf.shape, want.shape, what)

    def make() -> np.ndarray:
        own = np.asarray(leaf.make(), want.dtype)
        return own if leaf.shape == want.shape else np.concatenate([own, want.make()[len(own) :]])

    return Leaf(want.shape, want.dtype, make)


_SEEN_IN_SHAPES = (
    *("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
    *("tied_head", "query_key_norm", "attention_bias", "mlp_bias", "gated_mlp", "norm_placement"),
)
_SEEN_IN_NOTHING = ("family", "max_positions")


def _check_options(model: ZipperConfig, run_dir: str, towers: list[str], allow_changes: bool) -> None:
    """UserError when a tower of the source has an option that no shape shows (its windows) and this model not."""
    there = read_model(run_dir)[1].towers
    for name in [] if allow_changes else towers:
        source = there.get(name) or (next(iter(there.values())) if len(there) == 1 and len(towers) == 1 else None)
        for field in fields(TowerConfig) if source is not None else ():
            old, new = getattr(source, field.name), getattr(model.towers[name], field.name)
            if field.name not in (*_SEEN_IN_SHAPES, *_SEEN_IN_NOTHING) and old != new:
                raise UserError(
                    f"{run_dir!r}: its tower has {field.name} = {old!r}, here tower {name!r} has {new!r}, so the same "
                    "weights compute other outputs; make them equal, or set TrainConfig.allow_changes = True"
                )


def _joined(own: Mapping[str, Leaf], added: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """A tower with its added rows appended to its tables."""

    def join(first: Leaf, rows: Leaf) -> Leaf:
        shape = (first.shape[0] + rows.shape[0], *first.shape[1:])
        return Leaf(shape, first.dtype, lambda: np.concatenate([first.make(), rows.make()]))

    ends = {"embedding/table": "table", "head/table": "head_table"}
    return {name: join(leaf, added[ends[name]]) if name in ends else leaf for name, leaf in own.items()}


def _check_offsets(model: ZipperConfig, run_dir: str) -> None:
    """Raise UserError where a modality has another offset or size in the source: its rows would mean other tokens."""
    for name, there in read_model(run_dir)[1].modalities.items():
        here = model.modalities.get(name)
        if here is not None and (here.offset, here.size) != (there.offset, there.size):
            raise UserError(
                f"{run_dir!r}: modality {name!r} there has offset {there.offset} and size "
                f"{there.size}, here {here.offset} and {here.size}; use the same vocabulary at the same offset"
            )

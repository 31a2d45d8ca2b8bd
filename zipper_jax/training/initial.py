"""The parameters a run starts from: random, with towers copied from other runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zipper_jax.errors import UserError
from zipper_jax.models import zipper
from zipper_jax.models.config import ZipperConfig
from zipper_jax.training import checkpoints
from zipper_jax.training.partition_tree import Flat, flatten, unflatten

VOCABULARY_LEAVES = ("embedding/table", "head/table")
"""Leaves of a tower whose first axis is its vocabulary."""


def initial_params(model: ZipperConfig, seed: int, initialise_from: Mapping[str, str]) -> dict[str, Any]:
    """Nested parameters for step 0.

    Args:
        model: The model.
        seed: Of everything random.
        initialise_from: Tower to the run folder it is copied from; the run's tower of that name, or its only one.
            Where the vocabulary is larger than the source's (the Single Decoder), the source's rows come first and the
            rows behind them stay random.

    Raises:
        UserError: A run folder has no such tower, or its shapes do not fit; the message names the leaf.
    """
    params = flatten(zipper.init_params(model, seed))
    for tower, run_dir in sorted(initialise_from.items()):
        _check_offsets(model, run_dir)
        source = flatten(checkpoints.load_tower(run_dir, tower))
        prefix = f"towers/{tower}/"
        wanted = {key.removeprefix(prefix): leaf for key, leaf in params.items() if key.startswith(prefix)}
        for name, leaf in fit_tower(source, wanted, f"initialise_from {tower!r} = {run_dir!r}").items():
            params[prefix + name] = leaf
    return unflatten(params)


def fit_tower(source: Flat, wanted: Flat, what: str) -> Flat:
    """The source's leaves in the shapes wanted; vocabularies may grow, everything else must be equal.

    Raises:
        UserError: A leaf is missing, is too many, or has another shape.
    """
    missing, extra = sorted(set(wanted) - set(source)), sorted(set(source) - set(wanted))
    if missing or extra:
        raise UserError(
            f"{what}: that tower is built differently (it lacks {missing} and has {extra} besides); "
            "give the tower the same form in both configurations"
        )
    fitted: Flat = {}
    for name, leaf in source.items():
        want = wanted[name]
        if leaf.shape == want.shape:
            fitted[name] = leaf
        elif name in VOCABULARY_LEAVES and leaf.shape[1:] == want.shape[1:] and leaf.shape[0] < want.shape[0]:
            fitted[name] = np.concatenate([leaf, np.asarray(want)[leaf.shape[0] :]])
        else:
            raise UserError(
                f"{what}: {name} has shape {leaf.shape} there, this model wants {want.shape}; "
                "give the tower the same sizes in both configurations"
            )
    return fitted


def _check_offsets(model: ZipperConfig, run_dir: str) -> None:
    """UserError when a modality the source knows lies elsewhere in this model: its rows would land on other tokens."""
    for name, modality in checkpoints.read_config(run_dir)["model"]["modalities"].items():
        here = model.modalities.get(name)
        if here is not None and (here.offset, here.size) != (modality.get("offset", 0), modality["size"]):
            raise UserError(
                f"initialise_from {run_dir!r}: modality {name!r} there has offset {modality.get('offset', 0)} and size "
                f"{modality['size']}, here {here.offset} and {here.size}; use the same vocabulary at the same offset"
            )

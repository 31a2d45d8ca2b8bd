"""Batches whose update was not applied, stored in ``bad_batches/`` of the run folder for ``zipper replay``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.sequences import TowerBatch
from zipper_jax.training.skips import Skips
from zipper_jax.utils.arrays import read_archive
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_with
from zipper_jax.utils.storage import AnyPath

Batch = dict[str, Any]
_FIX = "it is no stored batch of `zipper train`: give a bad_batches/*.npz"


def path_of(run_dir: AnyPath, number: int) -> AnyPath:
    """The file of batch ``number``."""
    return run_dir / "bad_batches" / f"batch_{number}.npz"


def command(path: AnyPath) -> str:
    """The command that inspects it."""
    return f"zipper replay {path}"


def write(path: AnyPath, batch: Batch, number: int, step: int, skips: Skips) -> None:
    """Store a batch with its number, the updates applied before it, and the batches skipped until then."""
    arrays = {"task": np.asarray(batch["task"]), "number": np.int64(number), "step": np.int64(step)}
    arrays["skipped"] = np.array(skips.as_json(), np.int64).reshape(-1, 2)
    for name, tower in batch["towers"].items():
        known = {field: value for field, value in tower._asdict().items() if value is not None}
        arrays |= {f"towers/{name}/{field}": np.asarray(value) for field, value in known.items()}

    def save(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_with(path, save)


def read(path: AnyPath) -> tuple[Batch, int, int, Skips]:
    """Read a stored batch.

    Returns:
        The batch, its number, the updates applied before it, and the batches skipped until then.

    Raises:
        UserError: The file is missing or is no stored batch.
    """
    arrays = read_archive(path, _FIX)
    try:
        names = sorted({key.split("/")[1] for key in arrays if key.startswith("towers/")})
        towers = {n: _tower(arrays, f"towers/{n}/") for n in names}
        shapes = {value.shape for tower in towers.values() for value in tower if value is not None}
        rows = {shape[:1] for shape in shapes} | {arrays["task"].shape}
        number, step, skipped = int(arrays["number"]), int(arrays["step"]), Skips(arrays["skipped"].tolist())
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{str(path)!r} lacks what a batch has ({error}); {_FIX}") from error
    if not towers or len(rows) != 1 or any(len(shape) != 2 for shape in shapes) or number < 0 or step < 0:
        raise UserError(f"{str(path)!r} has arrays of other shapes; {_FIX}")
    return {"towers": towers, "task": arrays["task"]}, number, step, skipped


def _tower(arrays: Mapping[str, np.ndarray], prefix: str) -> TowerBatch:
    """One tower's batch; files of earlier versions lack ``next_modality``."""
    found = {path.removeprefix(prefix): value for path, value in arrays.items() if path.startswith(prefix)}
    return TowerBatch(**found)

"""Batches of a run by step number, from a prepared folder. No TensorFlow."""

from typing import Any, NamedTuple

import numpy as np

from zipper_jax.data.mixtures import RowMixture, batches
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.sequences import Layout, make_layout
from zipper_jax.training.config import TrainConfig
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import as_path, subfolders
from zipper_jax.vocabularies import load_vocabulary

VALIDATION_SEED = 0
"""Validation rows are the same in every run, whatever its seed."""


class DataSource(NamedTuple):
    """Training and validation batches of a run.

    Attributes:
        tasks: Task names; a batch's ``task`` is an index into them.
        batches: ``get(step)`` returns the batch of that step.
        validation: The same over the validation split; None without one.
        validation_batches: Batches per validation.
    """

    tasks: tuple[str, ...]
    batches: Any
    validation: Any
    validation_batches: int

    def only(self, rows: np.ndarray) -> "DataSource":
        """The same with these rows of each batch alone."""
        validation = None if self.validation is None else self.validation.only(rows)
        return self._replace(batches=self.batches.only(rows), validation=validation)


def open_data(config: TrainConfig) -> DataSource:
    """Open the rows of a run's mixture.

    Raises:
        UserError: Folder, task, rows or vocabulary are missing or do not fit the model.
    """
    folder = as_path(config.data.folder)
    if not folder.is_dir():
        raise UserError(f"data folder {config.data.folder!r} does not exist; write it with `zipper data prepare`")
    layout = open_layout(config)
    _check_folders(config)
    training = _mixture(config, "train", config.seed)
    assert training is not None
    validation = _mixture(config, "validation", VALIDATION_SEED) if config.eval_period else None
    rows = sum(len(store) for store in validation.stores.values()) if validation is not None else 0
    size, weights = config.batch_size, config.data.task_weights
    return DataSource(
        tasks=tuple(training.tasks),
        batches=batches(training, layout, config.data.lengths, size, weights),
        validation=batches(validation, layout, config.data.lengths, size, weights) if validation is not None else None,
        validation_batches=min(config.eval_batches, -(-rows // size)),
    )


def open_layout(config: TrainConfig) -> Layout:
    """The token layout of the model's modalities, with the prepared folder's vocabularies."""
    folder = as_path(config.data.folder) / "vocabularies"
    known = subfolders(folder)
    for name in config.model.modalities:
        if name not in known:
            raise UserError(
                f"{folder} has no vocabulary for modality {name!r} (there: {', '.join(known) or 'none'})"
                f"{closest(name, known)}; write it with `zipper data prepare`"
            )
    vocabularies = {m: load_vocabulary(folder / m) for m in config.model.modalities}
    return make_layout(config.model.modalities, vocabularies, str(folder))


def _mixture(config: TrainConfig, split: str, seed: int) -> RowMixture | None:
    """The run's mixture over one split; None when a task lacks that split (only training rows are required)."""
    stores: dict[str, RowStore] = {}
    for task in config.data.tasks:
        home = config.data.rows(task)
        if not home.is_dir():
            known = subfolders(home.parent)
            raise UserError(
                f"DataConfig (MIXTURE_OR_TASK_NAME): {home.parent} has no task {task!r} (there: "
                f"{', '.join(known) or 'none'}){closest(task, known)}"
            )
        if split == "train" or (home / split).is_dir():
            stores[task] = RowStore(home / split)
    if set(stores) != set(config.data.tasks):
        return None
    return RowMixture(stores, config.data.tasks, seed)


def _check_folders(config: TrainConfig) -> None:
    """Raise UserError when a task folder's vocabularies differ from those of ``DataConfig.folder``."""
    for task, folder in config.data.task_folders.items():
        for modality in config.model.modalities:
            here, there = (as_path(f) / "vocabularies" / modality for f in (config.data.folder, folder))
            if load_vocabulary(here).digest != load_vocabulary(there).digest:
                raise UserError(
                    f"DataConfig.task_folders[{task!r}] = {folder!r} has another {modality} vocabulary than "
                    f"{config.data.folder!r}: prepare it with that folder's (--tokenizer, --text_vocabulary)"
                )

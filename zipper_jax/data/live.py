"""Rows made in memory straight from a seqio task, for exploration: the same rows that `zipper data prepare` stores.

Give them to a `RowMixture` in place of a `RowStore`. Making them imports TensorFlow and takes the whole split
into memory, and nothing guards against the task changing under a resumed run: long runs read stored rows.
"""

from typing import Any

from zipper_jax.data.packed_rows import describe
from zipper_jax.data.prepare_rows import pack_examples
from zipper_jax.data.prepared import PrepareSettings
from zipper_jax.sequences import Example


class LiveRows:
    """Packs the split of a registered seqio task whose features are modalities (`zipper_jax.data.tasks.register`).

    meta: what a store's ``meta.json`` would say of them.
    """

    def __init__(
        self, name: str, split: str, settings: PrepareSettings = PrepareSettings(), template: str | None = None
    ):
        """Args:
        name: as registered with seqio.
        settings: lengths and ``open_rows``.
        template: the task's name in ``settings.task_set`` where ``name`` has a prefix or is another.
        """
        from zipper_jax.data import tasks  # TensorFlow

        task = template or name
        self._rows, counts = pack_examples(task, tasks.examples(name, split), settings)
        self.meta: dict[str, Any] = {**describe(self._rows), **counts, "task": task, "split": split}

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> list[Example]:
        """The examples of row ``index``, in order. Raises IndexError outside ``[0, len)``."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} rows")
        return self._rows[index]

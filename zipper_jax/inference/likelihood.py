"""Teacher-forced negative log likelihood of given targets, in nats per token.

Finer than an error rate: it still separates models of which all, or none, make errors.

Axis letters: B rows, T positions.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipper_jax.models import zipper
from zipper_jax.models.config import ZipperConfig
from zipper_jax.sequences import Example, Layout, fill_template, rows_to_towers, tower_lengths
from zipper_jax.tasks import TaskConfig

_ROWS = 32


class Likelihood:
    """``likelihood(params, task, contents)``; calls share one compiled program as long as examples fit ``lengths``.

    Args:
        config: The model.
        layout: Modality -> its slice of a tower's vocabulary.
        lengths: Tower -> row length in positions; longer where an example needs it.
    """

    def __init__(self, config: ZipperConfig, layout: Layout, lengths: Mapping[str, int]):
        self._layout, self._lengths = layout, lengths
        self._nats = jax.jit(partial(_nats, config))

    def __call__(
        self, params: Any, task: TaskConfig, contents: Sequence[Mapping[str, np.ndarray]]
    ) -> Float[np.ndarray, " n"]:
        """Mean nats per predicted token (end token included) of each example's target span, given its condition.

        Args:
            params: The model's parameters.
            task: Order of the spans, and which one is the target.
            contents: Modality -> content token ids, per example.
        """
        examples = [fill_template(task, content) for content in contents]
        needed = [tower_lengths(example, self._layout) for example in examples]
        slots = {tower: max(length, *(row[tower] for row in needed)) for tower, length in self._lengths.items()}
        found: list[np.ndarray] = []
        for first in range(0, len(examples), _ROWS):
            rows = [[example] for example in examples[first : first + _ROWS]]
            empty: list[list[Example]] = [[] for _ in range(_ROWS - len(rows))]
            towers = rows_to_towers([*rows, *empty], self._layout, slots)
            found.append(np.asarray(self._nats(params, towers))[: len(rows)])
        return np.concatenate(found)


def _nats(config: ZipperConfig, params: Any, towers: Any) -> Any:
    losses = zipper.bind_params(config, params).losses(towers)
    total = count = jnp.zeros(())
    for name, batch in towers.items():
        total, count = total + losses[name].nll.sum(axis=-1), count + batch.weights.sum(axis=-1)
    return total / jnp.maximum(count, 1.0)

"""Dropout and token noise of a training pass: off wherever a pass is not given any, in evaluation and decoding say.

What is dropped is a function of the key of its row, the tower, the block and the place in it. Rows have keys of their
own, so that neither gradient accumulation nor the mesh changes what is dropped; `training.step` makes them from seed
and step, so that a resumed run drops the same.

Axis letters: B rows, T positions, D embed_dim.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zipper_jax.sequences import TowerBatch

ATTENTION, MLP_OUTPUT, EMBEDDING = range(3)
"""The places of a block: two outputs that are added to the residual stream; and, of the first block, its input."""


class Dropout(NamedTuple):
    """Dropout of a pass.

    Attributes:
        rates: Tower -> the probability that an element is dropped; 0 where not named.
        keys: A key of ``jax.random`` per row.
        noise: Tower -> the probability that an input token is replaced, see `noisy`; 0 where not named.
    """

    rates: Mapping[str, float]
    keys: Any
    noise: Mapping[str, float] = {}

    def noisy(self, tower: str, batch: TowerBatch, size: int) -> TowerBatch:
        """The batch with some of its input tokens replaced by others, drawn evenly from 0 .. ``size`` - 1.

        Only tokens that the model would generate, those that are targets themselves: begin tokens and conditions stay.
        """
        rate = self.noise.get(tower, 0.0)
        if not rate:
            return batch
        generated = jnp.roll(batch.weights > 0, 1, 1).at[:, 0].set(False)
        keys = _fold(self.keys, zlib.crc32(f"noise {tower}".encode()))
        length = batch.tokens.shape[1]
        replaced = jax.vmap(lambda key: jax.random.bernoulli(key, rate, (length,)))(_fold(keys, 0))
        others = jax.vmap(lambda key: jax.random.randint(key, (length,), 0, size))(_fold(keys, 1))
        return batch._replace(tokens=jnp.where(generated & replaced, others, batch.tokens))

    def of(self, *names: str) -> "TowerDropout | None":
        """That of a tower, or of one of its streams; ``names[0]`` is the tower. None: nothing is dropped."""
        rate, keys = self.rates.get(names[0], 0.0), self.keys
        if not rate:
            return None
        for name in names:
            keys = _fold(keys, zlib.crc32(name.encode()))
        return TowerDropout(rate, keys)


class TowerDropout(NamedTuple):
    """Dropout of one stream of a tower's tokens, see `Dropout`."""

    rate: float
    keys: Any

    def at(self, number: Any) -> "TowerDropout":
        """That of block ``number``, which may be traced."""
        return self._replace(keys=_fold(self.keys, number))

    def __call__(self, x: Float[Array, "B T D"], place: int) -> Float[Array, "B T D"]:
        """``x`` with elements dropped and the others scaled by 1 / (1 - rate), at the given place of the block."""
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(_fold(self.keys, place))
        return jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype)


def row_keys(seed: int, step: Any, rows: int) -> Any:
    """The keys of the rows of an update: a pure function of the run's seed, the step and the row."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def _fold(keys: Any, number: Any) -> Any:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

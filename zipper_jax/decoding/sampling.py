"""Choosing the next token.

Axis letters: B rows, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zipper_jax.models.config import ZipperConfig
from zipper_jax.sequences import Place
from zipper_jax.utils.errors import UserError


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen.

    Attributes:
        temperature: 0: greedy; otherwise logits are divided by it.
        top_k: Sample from the k most likely tokens; 0: all.
        top_p: Sample from the smallest set of most likely tokens whose probability reaches p; 1: all.
        beams: Above 1: beam search (with temperature 0).
        length_penalty: A finished beam's score is divided by (its tokens) ** length_penalty.
        seed: Each row samples from (seed, its index), independently of the other rows.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, want in (
            ("temperature", self.temperature >= 0, "0 (greedy) or positive"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or positive"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("beams", self.beams >= 1, "at least 1"),
        ):
            if not good:
                raise UserError(f"sampling: {name} = {getattr(self, name)} must be {want}")
        if self.beams > 1 and self.temperature > 0:
            raise UserError(f"sampling: beam search with temperature = {self.temperature}; set temperature to 0")


def choose(logits: Float[Array, "B V"], keys: Array, temperature: float, top_k: int, top_p: float) -> Int[Array, " B"]:
    """Choose one token per row. Tokens at -inf are never chosen.

    Args:
        logits: Of the next token.
        keys: One random key per row.
        temperature, top_k, top_p: See `SamplingConfig`.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        probabilities = jax.nn.softmax(ordered, axis=-1)
        # Keep tokens for which the probability of all more likely ones is below p; always the first one.
        kept = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p
        smallest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def allowed_tokens(config: ZipperConfig, place: Place) -> Bool[Array, " V"]:
    """Mask of the modality's tokens except its begin token, which is never a target in training.

    Args:
        config: The model.
        place: The modality's slice of its tower's vocabulary.

    Returns:
        V: the tower's vocabulary, added tokens included.
    """
    ids = jnp.arange(config.rows(place.tower)) - place.offset
    return (ids >= 0) & (ids < place.size) & (ids != place.begin)

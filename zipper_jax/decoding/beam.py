"""Beam search for one span.

Axis letters: B rows, W beams, N = limit + 2, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from zipper_jax.decoding.sampling import allowed_tokens
from zipper_jax.models.cache import Cache, next_tokens
from zipper_jax.models.zipper import Zipper
from zipper_jax.sequences import Place

_NEVER = -1e30


def beam_span(
    model: Zipper,
    cache: Cache,
    *,
    place: Place,
    limit: int,
    beams: int,
    length_penalty: float,
    active: Bool[Array, " B"] | None = None,
    choosing: bool = False,
) -> tuple[Cache, tuple[Array, ...]]:
    """Beam search for one span, the ``beams`` best prefixes per row.

    Scores are sums of log probabilities under the tower's whole vocabulary. At the end each is divided by
    (tokens, end token included) ** length_penalty, and each row's best beam is kept, with its cache.

    Args:
        model: From `generate.for_decoding`.
        cache: Of the tokens before the span, B rows.
        place: The span's modality.
        limit: max_new_tokens: most content tokens, begin and end not counted.
        beams: Beams per row.
        length_penalty: See `SamplingConfig`.
        active, choosing: See `generate.decode_span`.

    Returns:
        See `generate.decode_span`.
    """
    rows, width = next(iter(cache.lengths.values())).shape[0], beams
    allowed, end = allowed_tokens(model.config, place), place.offset + place.end
    cache = cache.take_rows(jnp.repeat(jnp.arange(rows), width))

    def body(state: Any) -> Any:
        step, cache, token, active, total, out, scores, cut_off, at_end = state
        counts = active.reshape(-1).astype(jnp.int32)
        batch = next_tokens(cache, place.tower, token.reshape(-1, 1), counts)
        flat, states, cache = model.last_logits({place.tower: batch}, cache)
        logits = flat[place.tower].reshape(rows, width, -1)
        if choosing:  # the last token that a beam feeds is its end token
            at_end = jnp.where(active[..., None], states[place.tower].reshape(rows, width, -1), at_end)
        predicting = active & (token != end)
        log_probs = jnp.where(allowed, jax.nn.log_softmax(logits, axis=-1), _NEVER)
        forced = jnp.full_like(log_probs, _NEVER).at[..., end].set(log_probs[..., end])
        wanted = jnp.argmax(log_probs, axis=-1)
        log_probs = jnp.where(step >= limit, forced, log_probs)
        # A finished beam continues with the end token only, at log probability 0.
        stay = jnp.full_like(log_probs, _NEVER).at[..., end].set(0.0)
        gains = jnp.where(predicting[..., None], log_probs, stay)
        vocabulary = gains.shape[-1]
        total, best = jax.lax.top_k((total[..., None] + gains).reshape(rows, -1), width)
        parent, chosen = best // vocabulary, (best % vocabulary).astype(jnp.int32)

        def inherit(x: Array) -> Array:
            return jnp.take_along_axis(x, parent.reshape(parent.shape + (1,) * (x.ndim - 2)), axis=1)

        gain = jnp.take_along_axis(inherit(gains), chosen[..., None], axis=-1)[..., 0]
        predicting = inherit(predicting)
        out = inherit(out).at[:, :, step].set(jnp.where(predicting, chosen, end))
        scores = inherit(scores).at[:, :, step].set(jnp.where(predicting, gain, 0.0))
        cut_off = inherit(cut_off) | (predicting & (step >= limit) & (inherit(wanted) != end))
        at_end = inherit(at_end) if choosing else at_end
        cache = cache.take_rows((jnp.arange(rows)[:, None] * width + parent).reshape(-1))
        return step + 1, cache, chosen, predicting, total, out, scores, cut_off, at_end

    shape = (rows, width)
    first_only = jnp.where(jnp.arange(width) == 0, 0.0, _NEVER)
    dim, dtype = model.config.towers[place.tower].embed_dim, jnp.dtype(model.config.dtype)
    state = (
        jnp.int32(0),
        cache,
        jnp.full(shape, place.offset + place.begin, jnp.int32),
        jnp.ones(shape, bool) if active is None else jnp.broadcast_to(active[:, None], shape),
        jnp.broadcast_to(first_only, shape),
        jnp.full((*shape, limit + 2), end, jnp.int32),
        jnp.zeros((*shape, limit + 2), jnp.float32),
        jnp.zeros(shape, bool),
        jnp.zeros((*shape, dim) if choosing else (0,), dtype),
    )
    _, cache, _, _, total, out, scores, cut_off, at_end = jax.lax.while_loop(lambda s: jnp.any(s[3]), body, state)
    tokens = 1 + jnp.argmax(out == end, axis=-1)
    best = jnp.argmax(total / tokens.astype(jnp.float32) ** length_penalty, axis=-1)

    def pick(x: Array) -> Array:
        return jnp.take_along_axis(x, best.reshape((rows,) + (1,) * (x.ndim - 1)), axis=1)[:, 0]

    cache, spans = cache.take_rows(jnp.arange(rows) * width + best), (pick(out), pick(scores), pick(cut_off))
    if not choosing:
        return cache, spans
    return cache, (*spans, jax.nn.log_softmax(model.choose(place.tower, pick(at_end)[:, None])[:, 0]))

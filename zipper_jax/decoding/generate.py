"""Generation in any order of modalities: feed what is given, then decode one span after another (paper §3.2).

At a switch the end token, sampled or forced at the length limit, goes through its own tower before the next begin
token, so decoding sees exactly what training saw (docs/architecture.md, idea 1).

Axis letters: B rows, W beams, T tokens, V vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zipper_jax.decoding.beam import beam_span
from zipper_jax.decoding.cache import Cache, advance, init_cache
from zipper_jax.decoding.sampling import SamplingConfig, allowed_tokens, choose
from zipper_jax.errors import UserError
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.modules import Params
from zipper_jax.models.zipper import Placer, anywhere
from zipper_jax.sequences import Layout, Place

Given = tuple[str, np.ndarray]
"""A given span: (modality, content token ids)."""


class Generated(NamedTuple):
    """One generated span.

    modality: its name. tokens: content ids, int32 [n]. truncated: the limit ended it, not the model.
    log_probs: of each content token and, last, of the end token, under the tower's whole vocabulary, float32 [n + 1].
    """

    modality: str
    tokens: np.ndarray
    truncated: bool
    log_probs: np.ndarray


class Generator:
    """Compiled generation for one model; compiled once per shape (rows, padded lengths) and sampling setting.

    config, params: the model. layout: where its modalities lie. lengths: tower -> slots that a cache has at the least;
      with the row lengths of training most calls share one program. placer: where activations and caches lie
      (`training.partitioning.Placement`); the parameters lie where they are given.
    """

    def __init__(
        self,
        config: ZipperConfig,
        params: Params,
        layout: Layout,
        lengths: Mapping[str, int] | None = None,
        placer: Placer = anywhere,
    ):
        self.config, self.params, self.layout, self.lengths = config, params, dict(layout), dict(lengths or {})
        self.placer = placer
        self._feed = jax.jit(partial(_feed, config, placer), static_argnames=("tower",), donate_argnums=(1,))
        decode = partial(decode_span, config, placer=placer)
        self._decode = jax.jit(decode, static_argnames=("place", "limit", "sampling"), donate_argnums=(1,))
        beam = partial(beam_span, config, placer=placer)
        self._beam = jax.jit(beam, static_argnames=("place", "limit", "beams", "length_penalty"))

    def with_params(self, params: Params) -> "Generator":
        """The same compiled programs with other parameters of the same shapes."""
        other = copy.copy(self)
        other.params = params
        return other

    def __call__(
        self,
        given: Sequence[Sequence[Given]],
        outputs: Sequence[str],
        limits: Mapping[str, int],
        sampling: SamplingConfig | Mapping[str, SamplingConfig] = SamplingConfig(),
    ) -> list[list[Generated]]:
        """Continues each row of ``given`` with one span per name in ``outputs``.

        Args:
          given: per row, spans of any modalities in order; rows may differ in everything, also be empty.
          outputs: modalities to generate, in order.
          limits: modality -> most content tokens of a generated span; longer ones are ended and flagged.
          sampling: one setting, or one per output modality.

        Raises:
          UserError: unknown modality, missing limit, or a token outside its vocabulary.
        """
        self._check(given, outputs, limits, sampling)
        if not given:
            return []
        rows = len(given)
        cache = init_cache(self.config, rows, self._capacity(given, outputs, limits), self.placer)
        for index in range(max(len(spans) for spans in given)):
            cache = self._feed_spans(cache, [spans[index] if index < len(spans) else None for spans in given])
        results: list[list[Generated]] = [[] for _ in range(rows)]
        for number, modality in enumerate(outputs):
            setting = sampling if isinstance(sampling, SamplingConfig) else sampling[modality]
            place, limit = self.layout[modality], int(limits[modality])
            if setting.beams > 1:
                cache, spans = self._beam(
                    self.params, cache, place=place, limit=limit, beams=setting.beams,
                    length_penalty=setting.length_penalty,
                )  # fmt: skip
            else:
                key = jax.random.fold_in(jax.random.key(setting.seed), number)
                keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))
                cache, spans = self._decode(self.params, cache, keys, place=place, limit=limit, sampling=setting)
            for b, span in enumerate(_to_host(spans, place)):
                results[b].append(Generated(modality, *span))
        return results

    def _feed_spans(self, cache: Cache, spans: Sequence[Given | None]) -> Cache:
        """Feeds one given span of each row, tower by tower; rows without one of that tower are left as they are."""
        places = {self.layout[s[0]].tower for s in spans if s is not None}
        for tower in sorted(places):
            fed: list[np.ndarray] = []
            for span in spans:
                if span is None or self.layout[span[0]].tower != tower:
                    fed.append(np.zeros(0, np.int32))
                else:
                    place = self.layout[span[0]]
                    fed.append(np.concatenate([[place.begin], span[1], [place.end]]) + place.offset)
            counts = np.array([len(f) for f in fed], np.int32)
            tokens = np.zeros((len(fed), _bucket(int(counts.max()))), np.int32)
            for b, f in enumerate(fed):
                tokens[b, : len(f)] = f
            cache = self._feed(self.params, cache, tokens, counts, tower=tower)
        return cache

    def _capacity(self, given, outputs, limits) -> dict[str, int]:
        """Slots of each tower's cache: the longest row of what is given, plus the limits of what may come."""
        longest = dict.fromkeys(self.config.towers, 0)
        for spans in given:
            used = dict.fromkeys(self.config.towers, 0)
            for modality, tokens in spans:
                used[self.layout[modality].tower] += len(tokens) + 2
            longest = {tower: max(longest[tower], used[tower]) for tower in longest}
        for modality in outputs:
            longest[self.layout[modality].tower] += int(limits[modality]) + 2
        for tower, length in longest.items():
            self.config.towers[tower].check_length(length, f"tokens of tower {tower!r}, what is given and the limits")
        return {tower: _bucket(max(n, self.lengths.get(tower, 0))) for tower, n in longest.items()}

    def _check(self, given, outputs, limits, sampling):
        if not outputs:
            raise UserError("no output modality asked for; give at least one, for example 'text'")
        for modality in [*outputs, *(m for spans in given for m, _ in spans)]:
            if modality not in self.layout:
                raise UserError(f"unknown modality {modality!r}; this model knows: {', '.join(sorted(self.layout))}")
        for modality in outputs:
            if int(limits.get(modality, 0)) < 1:
                raise UserError(f"no length limit for output {modality!r}; give the most tokens it may have")
            if not isinstance(sampling, SamplingConfig) and modality not in sampling:
                raise UserError(f"no sampling setting for output {modality!r}; give one, or one for each output")
        for spans in given:
            for modality, tokens in spans:
                size = self.layout[modality].size
                if len(tokens) and not (np.min(tokens) >= 0 and np.max(tokens) < size):
                    raise UserError(
                        f"{modality} tokens must lie in 0..{size - 1}, got {np.min(tokens)}..{np.max(tokens)}"
                    )


def _bucket(n: int, step: int = 32) -> int:
    """Lengths are rounded up, so that few programs are compiled."""
    return max(step, -(-int(n) // step) * step)


def _feed(config, placer, params, cache, tokens, counts, *, tower):
    # Logits are not returned, so XLA drops the head.
    return advance(config, params, cache, tower, tokens, counts, placer)[1]


def decode_span(
    config, params, cache, keys, *, place: Place, limit: int, sampling: SamplingConfig, placer: Placer = anywhere
):
    """Begin token, then tokens until each row's end token has itself been fed. All rows step together."""
    rows = keys.shape[0]
    allowed = allowed_tokens(config, place)
    end = place.offset + place.end

    def body(state):
        step, cache, token, active, out, scores, cut_off = state
        counts = active.astype(jnp.int32)
        logits, cache = advance(config, params, cache, place.tower, token[:, None], counts, placer)
        logits = logits[:, 0]
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        masked = jnp.where(allowed, logits, -jnp.inf)
        chosen = choose(masked, step_keys, sampling.temperature, sampling.top_k, sampling.top_p)
        forced = step >= limit
        predicting = active & (token != end)
        cut_off |= predicting & forced & (chosen != end)
        chosen = jnp.where(forced, end, chosen)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        score = jnp.take_along_axis(log_probs, chosen[:, None], axis=-1)[:, 0]
        out = out.at[:, step].set(jnp.where(predicting, chosen, end))
        scores = scores.at[:, step].set(jnp.where(predicting, score, 0.0))
        return step + 1, cache, chosen, predicting, out, scores, cut_off

    state = (
        jnp.int32(0),
        cache,
        jnp.full((rows,), place.offset + place.begin, jnp.int32),
        jnp.ones((rows,), bool),
        jnp.full((rows, limit + 2), end, jnp.int32),
        jnp.zeros((rows, limit + 2), jnp.float32),
        jnp.zeros((rows,), bool),
    )
    _, cache, _, _, out, scores, cut_off = jax.lax.while_loop(lambda s: jnp.any(s[3]), body, state)
    return cache, (out, scores, cut_off)


def _fetch(arrays):
    """Arrays as numpy, whole in every process; where they lie on the devices of several, all make the same calls."""
    if all(array.is_fully_addressable for array in jax.tree.leaves(arrays)):
        return jax.device_get(arrays)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(arrays, tiled=True)


def _to_host(spans, place: Place):
    """(content ids, truncated, log probs) of each row."""
    out, scores, cut_off = _fetch(spans)
    for row, row_scores, truncated in zip(out - place.offset, scores, cut_off, strict=True):
        n = int(np.argmax(row == place.end))
        yield row[:n].astype(np.int32), bool(truncated), row_scores[: n + 1]

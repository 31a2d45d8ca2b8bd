"""Generation in any order of modalities: prefill the prompt, then decode one span after another (paper §3.2).

At a switch of modality the end token, sampled or forced at max_new_tokens, goes through its own tower before the next
begin token, so decoding matches training exactly (docs/architecture.md, idea 1).

The order is given, or the model's own (`decoding.auto`).

Axis letters: B rows, N = limit + 2, V vocabulary, C choices of the next modality.
"""

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from zipper_jax.decoding import auto
from zipper_jax.decoding.auto import MAX_SPANS
from zipper_jax.decoding.beam import beam_span
from zipper_jax.decoding.sampling import SamplingConfig, allowed_tokens, choose
from zipper_jax.decoding.spans import Generated, Given, Outputs, to_host
from zipper_jax.models.cache import Cache, init_cache, next_tokens
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.module import Params, Placer, unsharded
from zipper_jax.models.schedule import positions_used
from zipper_jax.models.zipper import Zipper, bind_params
from zipper_jax.sequences import Layout, Place, Span, TowerBatch, rows_to_towers, tower_lengths
from zipper_jax.utils.distributed import gather
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten

BATCH_SIZE = 32
"""Rows decoded together; the cache of keys and values, which grows with them, is most of the memory."""


class Batch(NamedTuple):
    """Rows that are decoded together.

    Attributes:
        rows: Their numbers.
        decode: Returns the spans of each.
    """

    rows: list[int]
    decode: Callable[[], list[list[Generated]]]


class Generator:
    """Compiled generation for one model; compiled once per shape (rows, padded lengths) and sampling setting.

    Args:
        config: The model.
        params: Its parameters; their sharding is kept.
        layout: Modality -> its slice of a tower's vocabulary.
        lengths: Tower -> least cache capacity; with the row lengths of training most calls share one program.
        placer: Shards activations and caches (`sharding.rules.Placement`).
    """

    def __init__(
        self,
        config: ZipperConfig,
        params: Params,
        layout: Layout,
        lengths: Mapping[str, int] | None = None,
        placer: Placer = unsharded,
    ):
        self.config, self.params, self.layout, self.lengths = config, params, dict(layout), dict(lengths or {})
        self.placer = placer
        self._feed = jax.jit(partial(_feed, config, placer), donate_argnums=(1,))
        self._prepare: dict[bool, Any] = {}  # by whether blocks are under scan
        self.feed_and_choose = jax.jit(partial(auto.feed_and_choose, config, placer), donate_argnums=(1,))
        fixed = ("place", "limit", "choosing")
        self._decode = jax.jit(decode_span, static_argnames=(*fixed, "sampling"), donate_argnums=(1,))
        self._beam = jax.jit(beam_span, static_argnames=(*fixed, "beams", "length_penalty"))
        self._prepared: Zipper | None = None

    def with_params(self, params: Params) -> "Generator":
        """The same compiled programs with other parameters of the same shapes."""
        other = copy.copy(self)
        other.params, other._prepared = params, None
        return other

    @property
    def _model(self) -> Zipper:
        """The model that spans are decoded with, made once."""
        if self._prepared is None:
            platform = jax.default_backend()
            free = None
            if platform == "tpu":
                here = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(self.params))
                free = _free_bytes(shared=not here)
            config = decoding_config(self.config, self.params, platform, free)
            if config.scan not in self._prepare:
                self._prepare[config.scan] = jax.jit(partial(for_decoding, config, placer=self.placer))
            self._prepared = self._prepare[config.scan](self.params)
        return self._prepared

    def __call__(
        self,
        given: Sequence[Sequence[Given]],
        outputs: Outputs,
        max_new_tokens: Mapping[str, int],
        sampling: SamplingConfig | Mapping[str, SamplingConfig] = SamplingConfig(),
        batch_size: int = BATCH_SIZE,
        first_row: int = 0,
        max_spans: int = MAX_SPANS,
    ) -> list[list[Generated]]:
        """Continue each row of ``given`` with one span per name in ``outputs``, or with those the model chooses.

        Memory grows with ``batch_size``, not with the number of rows.

        Args:
            given: Prompt of each row, spans of any modalities in order; rows may differ in length and modalities, and
                may be empty.
            outputs: Modalities to generate, in order; "auto": after each span, beginning with the prompt's last
                one, the most likely modality follows, until that is the end of the example. A row may get no span.
            max_new_tokens: Modality -> most content tokens of a generated span; longer ones are truncated and flagged.
            sampling: One setting, or one per output modality.
            batch_size: Most rows decoded together; beams count as rows.
            first_row: Number of the first row in a larger set: a row's draws depend on its number.
            max_spans: With outputs "auto", most spans of a row.

        Returns:
            The generated spans of each row, in order.

        Raises:
            UserError: An unknown modality, a missing max_new_tokens, a token outside its vocabulary, or a batch size
                below 1; with outputs "auto" a model that does not choose, or a row without a prompt.
        """
        results: list[list[Generated]] = [[] for _ in given]
        batches = self.batches(given, outputs, max_new_tokens, sampling, batch_size, (), first_row, max_spans)
        for batch in batches:
            for row, spans in zip(batch.rows, batch.decode(), strict=True):
                results[row] = spans
        return results

    def batches(
        self,
        given: Sequence[Sequence[Given]],
        outputs: Outputs,
        max_new_tokens: Mapping[str, int],
        sampling: SamplingConfig | Mapping[str, SamplingConfig] = SamplingConfig(),
        batch_size: int = BATCH_SIZE,
        done: Collection[int] = (),
        first_row: int = 0,
        max_spans: int = MAX_SPANS,
    ) -> list["Batch"]:
        """The batches of `__call__`, each decoded when its `Batch.decode` is called.

        Rows of similar length are decoded together, the longest first, so that too little memory shows at once. The
        batches are a function of the lengths alone: a run that resumes decodes the same ones.

        Args:
            given, outputs, max_new_tokens, sampling, batch_size, first_row, max_spans: See `__call__`.
            done: Rows that need no decoding; a batch with none left is skipped.
        """
        known = self._check(given, outputs, max_new_tokens, sampling, max_spans)
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: give at least 1")
        settings = [sampling] if isinstance(sampling, SamplingConfig) else [sampling[m] for m in known]
        size = max(1, batch_size // max(setting.beams for setting in settings))
        lengths = [sum(len(tokens) + 2 for _, tokens in spans) for spans in given]
        order = sorted(range(len(given)), key=lambda row: -lengths[row])

        def decode(rows: list[int]) -> list[list[Generated]]:
            # The last batch repeats its last row up to the size of the others, which are compiled.
            padded = [*rows, *rows[-1:] * (size - len(rows))] if len(order) > size else rows
            numbers = [first_row + row for row in padded]
            of = [given[row] for row in padded]
            if outputs == "auto":
                return auto.decode(self, of, max_new_tokens, sampling, numbers, max_spans)[: len(rows)]
            return self._batch(of, outputs, max_new_tokens, sampling, numbers)[: len(rows)]

        found = [order[first : first + size] for first in range(0, len(order), size)]
        return [Batch(rows, partial(decode, rows)) for rows in found if any(row not in done for row in rows)]

    def _batch(
        self, given: Sequence[Sequence[Given]], outputs: Sequence[str], max_new_tokens: Any, sampling: Any, numbers: Any
    ) -> list[list[Generated]]:
        """One batch; a row's draws depend on its number in the whole set, not on its batch."""
        rows = len(given)
        cache = init_cache(self.config, rows, self.capacity(given, outputs, max_new_tokens), self.placer)
        if towers := self.towers(given):
            cache = self._feed(self.params, cache, towers)
        results: list[list[Generated]] = [[] for _ in range(rows)]
        for number, modality in enumerate(outputs):
            cache, spans = self.span(cache, number, modality, max_new_tokens, sampling, numbers)
            for b, span in enumerate(to_host(spans, self.layout[modality])):
                results[b].append(Generated(modality, *span))
        return results

    def span(
        self, cache: Cache, number: int, modality: str, max_new_tokens: Any, sampling: Any, numbers: Any,
        active: Any = None,
    ) -> tuple[Cache, Any]:  # fmt: skip
        """Decode the ``number``-th span of each row; of ``active`` rows alone, then also what they choose after it."""
        setting = sampling if isinstance(sampling, SamplingConfig) else sampling[modality]
        place, limit = self.layout[modality], int(max_new_tokens[modality])
        rows: dict[str, Any] = {} if active is None else {"active": jnp.asarray(active), "choosing": True}
        if setting.beams > 1:
            return self._beam(
                self._model, cache, place=place, limit=limit, beams=setting.beams,
                length_penalty=setting.length_penalty, **rows,
            )  # fmt: skip
        key = jax.random.fold_in(jax.random.key(setting.seed), number)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(numbers))
        return self._decode(self._model, cache, keys, place=place, limit=limit, sampling=setting, **rows)

    def towers(self, given: Sequence[Sequence[Given]]) -> dict[str, TowerBatch]:
        """The batches of the prompts, one example per row; towers without tokens are omitted."""
        examples = [tuple(Span(modality, tokens, 0.0) for modality, tokens in spans) for spans in given]
        used = [tower_lengths(example, self.layout) for example in examples]
        longest = {tower: max(lengths[tower] for lengths in used) for tower in used[0]}
        lengths = {tower: _bucket(length) for tower, length in longest.items() if length}
        return rows_to_towers([[example] if example else [] for example in examples], self.layout, lengths)

    def capacity(self, given: Any, outputs: Sequence[str], max_new_tokens: Mapping[str, int]) -> dict[str, int]:
        """Capacity of each tower's cache: the longest prompt plus max_new_tokens of the outputs."""
        longest = dict.fromkeys(self.config.towers, 0)
        for spans in given:
            used = dict.fromkeys(self.config.towers, 0)
            for modality, tokens in spans:
                used[self.layout[modality].tower] += len(tokens) + 2
            longest = {tower: max(longest[tower], used[tower]) for tower in longest}
        for modality in outputs:
            longest[self.layout[modality].tower] += int(max_new_tokens[modality]) + 2
        for tower in longest:
            length = positions_used(self.config, tower, longest)
            self.config.towers[tower].check_length(length, f"positions of tower {tower!r}, prompt plus max_new_tokens")
        return {tower: _bucket(max(n, self.lengths.get(tower, 0))) for tower, n in longest.items()}

    def _check(
        self, given: Any, outputs: Outputs, max_new_tokens: Mapping[str, int], sampling: Any, max_spans: int
    ) -> Sequence[str]:
        """Raise UserError where `__call__` does; the modalities that may be generated."""
        if outputs == "auto":
            auto.check(self.config, given, max_spans)
            outputs = sorted(self.layout)
        if not outputs:
            raise UserError("outputs is empty; give at least one modality, for example 'text'")
        for modality in [*outputs, *(m for spans in given for m, _ in spans)]:
            if modality not in self.layout:
                raise UserError(f"unknown modality {modality!r}; this model has: {', '.join(sorted(self.layout))}")
        for modality in outputs:
            if int(max_new_tokens.get(modality, 0)) < 1:
                raise UserError(f"max_new_tokens has no entry of 1 or more for output {modality!r}; give one")
            if not isinstance(sampling, SamplingConfig) and modality not in sampling:
                raise UserError(f"no sampling setting for output {modality!r}; give one, or one for each output")
        for spans in given:
            for modality, tokens in spans:
                size = self.layout[modality].size
                if len(tokens) and not (np.min(tokens) >= 0 and np.max(tokens) < size):
                    raise UserError(
                        f"{modality} tokens must be in 0..{size - 1}, got {np.min(tokens)}..{np.max(tokens)}"
                    )
        return outputs


def _bucket(n: int, step: int = 32) -> int:
    """Round a length up, so that few programs are compiled."""
    return max(step, -(-int(n) // step) * step)


def _feed(config: ZipperConfig, placer: Placer, params: Params, cache: Cache, towers: dict[str, TowerBatch]) -> Cache:
    # The states are not returned, so XLA removes computations that only they need.
    return bind_params(config, params, placer).hidden(towers, cache)[1]


def decoding_config(config: ZipperConfig, params: Params, platform: str, free: float | None) -> ZipperConfig:
    """The configuration that spans are decoded with: on TPUs with memory for it, blocks are unrolled.

    Unrolled blocks have arrays of their own, which the compiler copies to the chip ahead of their use, so a token takes
    two thirds of the time (docs/performance.md); the stacked ones stay for prefill and scoring.

    Args:
        config: The model.
        params: Its parameters, or their shapes and shardings.
        platform: jax's, of the devices.
        free: Bytes free on a device beside the parameters; None: not known.
    """
    if platform != "tpu" or (free is not None and copied_bytes(params) > free / 2):  # the rest is for caches
        return config
    return replace(config, scan=False)


def copied_bytes(params: Params) -> float:
    """Bytes per device of the parameters that unrolling copies, those of blocks and zips."""
    copied = (x for key, x in flatten(params).items() if "/blocks/" in key or key.startswith("zips/"))
    return sum(float(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in copied)


def _free_bytes(shared: bool) -> float | None:
    """Bytes free on a device; ``shared``: the least of all processes, which decode by one program. None: not known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit, used = stats.get("bytes_limit"), stats.get("bytes_in_use")
    free = None if limit is None or used is None else float(limit - used)
    if shared:
        free = min(
            (known for text in gather(json.dumps(free)) if (known := json.loads(text)) is not None), default=None
        )
    return free


def for_decoding(config: ZipperConfig, params: Params, *, placer: Placer = unsharded) -> Zipper:
    """The model that spans are decoded with: what is the same for all of them is done, see `Zipper.for_decoding`."""
    return bind_params(config, params, placer).for_decoding()


def decode_span(
    model: Zipper,
    cache: Cache,
    keys: jax.Array,
    *,
    place: Place,
    limit: int,
    sampling: SamplingConfig,
    active: Bool[Array, " B"] | None = None,
    choosing: bool = False,
) -> tuple[Cache, tuple[Array, ...]]:
    """Decode one span: feed the begin token, then tokens until each row's end token has been fed.

    Args:
        model: From `for_decoding`.
        cache: Of the tokens before the span.
        keys: One random key per row.
        place: The span's modality.
        limit: max_new_tokens: most content tokens, begin and end not counted.
        sampling: How tokens are chosen.
        active: Rows that have such a span; None: all.
        choosing: Also return log probabilities of what comes after the span.

    Returns:
        (cache, (tokens, log probs, truncated)): token ids of the tower, padded with the end token, int32 [B, N];
        float32 [B, N]; bool [B]. With ``choosing`` also float32 [B, C], undefined in rows that are not active.
    """
    rows = keys.shape[0]
    allowed, end = allowed_tokens(model.config, place), place.offset + place.end

    def body(state: Any) -> Any:
        step, cache, token, active, out, scores, cut_off, at_end = state
        batch = next_tokens(cache, place.tower, token[:, None], active.astype(jnp.int32))
        all_logits, states, cache = model.last_logits({place.tower: batch}, cache)
        logits = all_logits[place.tower]
        if choosing:  # the last token that a row feeds is its end token
            at_end = jnp.where(active[:, None, None], states[place.tower], at_end)
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
        return step + 1, cache, chosen, predicting, out, scores, cut_off, at_end

    width, dtype = model.config.towers[place.tower].embed_dim, jnp.dtype(model.config.dtype)
    state = (
        jnp.int32(0),
        cache,
        jnp.full((rows,), place.offset + place.begin, jnp.int32),
        jnp.ones((rows,), bool) if active is None else active,
        jnp.full((rows, limit + 2), end, jnp.int32),
        jnp.zeros((rows, limit + 2), jnp.float32),
        jnp.zeros((rows,), bool),
        jnp.zeros((rows, 1, width) if choosing else (0,), dtype),
    )
    _, cache, _, _, out, scores, cut_off, at_end = jax.lax.while_loop(lambda s: jnp.any(s[3]), body, state)
    spans = out, scores, cut_off
    return cache, (*spans, jax.nn.log_softmax(model.choose(place.tower, at_end)[:, 0])) if choosing else spans

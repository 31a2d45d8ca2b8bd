"""Training of `mel_decoder`: the L1 distance to the log-mel frames of the audio that the units come from.

Axis letters: N samples, U units, C units of a crop, K number of units, P frames per unit, M mel bands.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.speech import features
from zipper_jax.speech.audio import normalise_level
from zipper_jax.speech.mel_decoder import MelDecoder, depth, forward, initial_parameters
from zipper_jax.speech.tokenizers import Tokenizer
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.progress import progress

logger = logging.getLogger(__name__)

_WEIGHT_DECAY, _WARM_UP = 0.01, 50
_NEIGHBOURS = 8
_UNKNOWN_WIDTH = 64  # features of units whose tokenizer gives none


@dataclass(frozen=True)
class MelDecoderSettings:
    """How to train.

    Attributes:
        steps: Updates; 0 keeps the first parameters.
        batch: Crops per update.
        crop: Units of a crop.
        learning_rate: Its peak; it falls to 0 along a cosine.
        jitter: Share of units replaced by one of the 8 most similar: other voices are encoded less exactly.
        dim: Width of the network.
        blocks: Its depth.
        voice: The voice to decode with; "": the one with most audio.
        seed: Of weights, crops and jitter.
    """

    steps: int = 800
    batch: int = 16
    crop: int = 128
    learning_rate: float = 2e-3
    jitter: float = 0.1
    dim: int = 192
    blocks: int = 4
    voice: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("batch", "crop", "dim", "blocks"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} = {getattr(self, field)}: give at least 1")
        if self.steps < 0:
            raise UserError(f"steps = {self.steps}: give 0 or more")
        if not 0 <= self.jitter < 1:
            raise UserError(f"jitter = {self.jitter}: give a share from 0 to below 1")


class Spoken(NamedTuple):
    """Units, the frames of their audio, and who speaks."""

    units: Int[np.ndarray, " U"]
    frames: Float[np.ndarray, "U PM"]
    voice: str


def pair(tokenizer: Tokenizer, waveform: Float[np.ndarray, " N"], voice: str = "") -> Spoken:
    """Encode 16 kHz audio, and compute the log-mel frames of each unit."""
    units = tokenizer.encode(waveform)
    size = len(units) * round(50 / tokenizer.rate_hz) * features.HOP
    level = normalise_level(np.asarray(waveform, np.float32))[:size]
    frames = features.log_mel(np.pad(level, (0, size - len(level))))
    return Spoken(units, frames.reshape(len(units), -1), voice)


def train(tokenizer: Tokenizer, spoken: Sequence[Spoken], settings: MelDecoderSettings) -> MelDecoder:
    """Train a decoder of the tokenizer's units.

    Raises:
        UserError: No audio, or none of the chosen voice.
    """
    import jax
    import jax.numpy as jnp
    import optax

    if not spoken:
        raise UserError("no audio to train the vocoder on: give a corpus whose training rows have audio")
    voices = sorted({one.voice for one in spoken})
    seconds = {v: sum(len(one.units) for one in spoken if one.voice == v) / tokenizer.rate_hz for v in voices}
    voice = settings.voice or max(voices, key=lambda v: seconds[v])
    if voice not in voices:
        raise UserError(f"voice = {voice!r}: the training audio has {', '.join(voices)}")
    rng = np.random.default_rng(settings.seed)
    embedding = _embedding(tokenizer, rng)
    mean = np.concatenate([one.frames for one in spoken]).mean(axis=0)
    size = spoken[0].frames.shape[1] // features.NUM_BANDS
    start = initial_parameters(embedding, len(voices), size, mean, rng, settings.dim, settings.blocks)
    reach = sum(len(start[f"{n}/depthwise"]) // 2 for n in range(depth(start)))
    similar = _similar(embedding)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, min(_WARM_UP, settings.steps // 2), max(1, settings.steps)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=_WEIGHT_DECAY))

    def loss(parameters: Any, units: Any, speakers: Any, frames: Any, weights: Any) -> Any:
        distance = jnp.abs(forward(jnp, parameters, units, speakers) - frames).mean(axis=-1)
        return (distance * weights).sum() / weights.sum()

    @jax.jit
    def update(parameters: Any, state: Any, *batch: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters, *batch)
        changes, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, changes), state, value

    parameters = {name: jnp.asarray(array) for name, array in start.items()}
    state = optimizer.init(parameters)
    recent: list[Any] = []
    for step in progress(range(settings.steps), total=settings.steps, what="training the vocoder", unit="steps"):
        batch = _batch(spoken, voices, similar, reach, len(embedding), settings, rng)
        parameters, state, value = update(parameters, state, *batch)
        recent = [*recent, value][-100:]
        if step % 250 == 249 or step + 1 == settings.steps:
            logger.info(f"vocoder, step {step + 1}: L1 {float(np.mean(recent)):.4f}")
    trained = {name: np.asarray(array) for name, array in parameters.items()}
    return MelDecoder(trained, voices, voice, tokenizer.digest)


def _batch(
    spoken: Sequence[Spoken],
    voices: Sequence[str],
    similar: Int[np.ndarray, "K _"],
    reach: int,
    none: int,
    settings: MelDecoderSettings,
    rng: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """Random crops with their context: units, voices, frames, and 1 where there is a unit."""
    size, wide = settings.crop, settings.crop + 2 * reach
    units = np.full((settings.batch, wide), none, np.int32)
    frames = np.zeros((settings.batch, size, spoken[0].frames.shape[1]), np.float32)
    weights, speakers = np.zeros((settings.batch, size), np.float32), np.zeros(settings.batch, np.int32)
    for row in range(settings.batch):
        one = spoken[int(rng.integers(len(spoken)))]
        start = int(rng.integers(max(1, len(one.units) - size + 1)))
        stop = min(len(one.units), start + size)
        first, last = max(0, start - reach), min(len(one.units), start + size + reach)
        seen = one.units[first:last]
        swapped = similar[seen, rng.integers(similar.shape[1], size=len(seen))]
        offset = first - start + reach
        units[row, offset : offset + len(seen)] = np.where(rng.random(len(seen)) < settings.jitter, swapped, seen)
        frames[row, : stop - start], weights[row, : stop - start] = one.frames[start:stop], 1.0
        speakers[row] = voices.index(one.voice)
    return units, speakers, frames, weights


def _embedding(tokenizer: Tokenizer, rng: np.random.Generator) -> Float[np.ndarray, "K E"]:
    """The tokenizer's features of its units, else random ones."""
    found = getattr(tokenizer, "unit_features", None)
    return rng.standard_normal((tokenizer.num_units, _UNKNOWN_WIDTH)) if found is None else found


def _similar(embedding: Float[np.ndarray, "K E"]) -> Int[np.ndarray, "K _"]:
    """The units most similar to each one."""
    squares = np.square(embedding).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * embedding @ embedding.T
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, : max(1, min(_NEIGHBOURS, len(embedding) - 1))]

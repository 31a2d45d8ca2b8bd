"""Audio of units that arrive one by one, in pieces, while memory and delay stay bounded.

The samples depend on the units alone, not on how they arrive. A piece of `mel_decoder.WINDOW` units is emitted once
`lookahead` further ones are known, or the units have ended. Griffin-Lim runs over the frames of a piece between frames
whose phases are settled and frames that are still to come; pieces are cross-faded over one frame.

Axis letters: U units, P frames per unit, L frames of 20 ms, M mel bands, K frequency bins, N samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Complex, Float

from zipper_jax.speech import features, vocoder
from zipper_jax.speech.mel_decoder import WINDOW, MelDecoder
from zipper_jax.speech.tokenizer import check_units

_SETTLED, _AHEAD = 6, 6  # frames on either side of a piece: a frame overlaps with the three before and after it


def lookahead(decoder: MelDecoder) -> int:
    """Units that must be known beyond a piece before it is emitted."""
    per_unit = decoder.frames_per_unit
    return decoder.reach + -(-_AHEAD // per_unit)


def stream(
    decoder: MelDecoder, units: Iterable[int], iterations: int = 32, seed: int = 0
) -> Iterator[Float[np.ndarray, " N"]]:
    """Yield 16 kHz audio of ``units``, ``320 * frames_per_unit`` samples for each.

    Args:
        decoder: The network.
        units: May be a generator; it is read `lookahead` units beyond what is yielded.
        iterations: Of Griffin-Lim, for each piece.
        seed: Of the phases at the start.

    Raises:
        UserError: A unit that the decoder does not have.
    """
    known: list[int] = []
    done, piece, source, ended = 0, 0, iter(units), False
    phases = np.zeros((0, features.FFT_SIZE // 2 + 1), np.complex64)
    fade = np.zeros(0, np.float32)
    ahead, kept = lookahead(decoder), (1 + -(-decoder.reach // WINDOW)) * WINDOW
    while True:
        while not ended and len(known) < done + WINDOW + ahead:
            following = next(source, None)
            ended = following is None
            known += [] if following is None else [int(check_units(np.array([following]), decoder.num_units)[0])]
        if done >= len(known):
            return
        stop = min(len(known), done + WINDOW)
        per_unit = decoder.frames_per_unit
        first, last = done * per_unit, stop * per_unit
        settled, beyond = min(_SETTLED, first), min(_AHEAD, len(known) * per_unit - last)
        frames = _frames(decoder, known, first - settled, last + beyond)
        rng = np.random.default_rng([seed, piece])
        waveform, phases = _griffin_lim(frames, phases[-settled:] if settled else phases[:0], iterations, rng)
        start = settled * features.HOP
        emitted = waveform[start : start + (last - first) * features.HOP].copy()
        if len(fade):
            ramp = np.linspace(0, 1, features.HOP, dtype=np.float32)
            emitted[: features.HOP] = ramp * emitted[: features.HOP] + (1 - ramp) * fade
        end = start + (last - first) * features.HOP
        fade = waveform[end : end + features.HOP]
        phases = phases[: settled + last - first]
        yield np.clip(emitted, -1.0, 1.0)
        done, piece = stop, piece + 1
        if done > kept:  # windows begin where they did
            del known[:WINDOW]
            done -= WINDOW


def _frames(decoder: MelDecoder, known: list[int], first: int, last: int) -> Float[np.ndarray, "L M"]:
    """Frames ``first`` to ``last``, of the windows that hold them."""
    per_unit = decoder.frames_per_unit
    window = first // per_unit // WINDOW
    begin = window * WINDOW
    needed = -(-last // per_unit)
    pieces = [decoder.window(known, start) for start in range(begin, needed, WINDOW)]
    return np.concatenate(pieces)[first - begin * per_unit : last - begin * per_unit]


def _griffin_lim(
    log_mel: Float[np.ndarray, "L M"], settled: Complex[np.ndarray, "_ K"], iterations: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " N"], Complex[np.ndarray, "L K"]]:
    """As `vocoder.griffin_lim`, but the first frames keep the phases ``settled``; returns the phases, too."""
    magnitudes = vocoder.linear_magnitudes(log_mel)
    angles = np.exp(2j * np.pi * rng.random(magnitudes.shape, dtype=np.float32)).astype(np.complex64)
    angles[: len(settled)] = settled
    return vocoder.iterate(magnitudes, angles, iterations, len(settled))

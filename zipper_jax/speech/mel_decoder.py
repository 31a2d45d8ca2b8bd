"""A learned way from units to log-mel frames: a small convolution network, stored beside the units' tokenizer.

Each output depends on the units within `MelDecoder.reach` on either side and on nothing else: units are decoded in
windows of one size, so that the frames are bitwise the same however the units arrive. `forward` serves training (JAX)
and decoding (NumPy: no device, no compilation, any process).

Axis letters: B rows, U units, T = U - 2 * reach, K number of units, E features of a unit, D width, H hidden width,
W kernel, S voices, P frames of 20 ms per unit, M mel bands, L = U * P frames.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.speech import features
from zipper_jax.utils.arrays import read_archive
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes
from zipper_jax.utils.storage import as_path

FILE_NAME = "mel_decoder.npz"
WINDOW = 64
"""Units that are decoded at a time."""
_FORMAT_VERSION = 1
_EPSILON = np.float32(1e-5)

Parameters = Mapping[str, Any]


def forward(xp: Any, p: Parameters, units: Int[Any, "B U"], voices: Int[Any, " B"]) -> Float[Any, "B T PM"]:
    """Return log-mel frames of the units that have all their context; ``xp``: numpy or jax.numpy.

    Args:
        xp: The module of the arrays.
        p: See `initial_parameters`.
        units: Units, K where there is none (outside the utterance).
        voices: Rows of the voice embedding.
    """
    x = p["embedding"][units] @ p["input"] + p["voices"][voices][:, None]
    for number in range(depth(p)):
        kernel = p[f"{number}/depthwise"]
        half, size = len(kernel) // 2, x.shape[1] - len(kernel) + 1
        y = sum(x[:, shift : shift + size] * kernel[shift] for shift in range(len(kernel)))
        y = y - y.mean(axis=-1, keepdims=True)
        y = y / xp.sqrt((y * y).mean(axis=-1, keepdims=True) + _EPSILON)
        y = y @ p[f"{number}/up"] + p[f"{number}/up_bias"]
        y = y / (1 + xp.exp(-y))  # SiLU
        x = x[:, half : half + size] + y @ p[f"{number}/down"] + p[f"{number}/down_bias"]
    return x @ p["output"] + p["output_bias"]


def depth(p: Parameters) -> int:
    """Number of blocks."""
    return sum(name.endswith("/depthwise") for name in p)


def initial_parameters(
    embedding: Float[np.ndarray, "K E"],
    voices: int,
    frames: int,
    mean: Float[np.ndarray, " PM"],
    rng: np.random.Generator,
    dim: int = 192,
    blocks: int = 4,
    kernel: int = 7,
) -> dict[str, np.ndarray]:
    """Return the parameters before training.

    Args:
        embedding: Features of each unit; similar units have similar ones.
        voices: S.
        frames: P.
        mean: Log-mel frames of a unit on average, the network's first output.
        rng: Source of randomness.
        dim: D; H is twice as large.
        blocks: Number of blocks.
        kernel: W, odd.
    """

    def draw(inputs: int, outputs: int) -> np.ndarray:
        return (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)

    scale = embedding.std() or 1.0
    none = np.zeros((1, embedding.shape[1]), np.float32)  # row K: no unit
    p = {
        "embedding": np.concatenate([(embedding / scale).astype(np.float32), none]),
        "input": draw(embedding.shape[1], dim),
        "voices": 0.1 * draw(voices, dim),
        "output": 0.1 * draw(dim, frames * features.NUM_BANDS),
        "output_bias": mean.astype(np.float32),
    }
    for number in range(blocks):
        p[f"{number}/depthwise"] = draw(kernel, dim)
        p[f"{number}/up"], p[f"{number}/up_bias"] = draw(dim, 2 * dim), np.zeros(2 * dim, np.float32)
        p[f"{number}/down"], p[f"{number}/down_bias"] = 0.5 * draw(2 * dim, dim), np.zeros(dim, np.float32)
    return p


class MelDecoder:
    """The network with its weights, and the voices that it speaks with.

    Args:
        parameters: See `initial_parameters`.
        voices: Names, in order of the voice embedding.
        voice: The one that `decode` speaks with.
        units: Digest of the tokenizer whose units it decodes.

    Raises:
        UserError: The arrays do not fit each other.
    """

    def __init__(self, parameters: Mapping[str, np.ndarray], voices: Sequence[str], voice: str, units: str):
        self.parameters = {name: np.ascontiguousarray(a, np.float32) for name, a in sorted(parameters.items())}
        self.voices, self.voice, self.units = tuple(voices), voice, units
        try:
            window = np.full((1, WINDOW + 2 * self.reach), self.num_units)
            shape = forward(np, self.parameters, window, np.zeros(1, int)).shape
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"the mel decoder's arrays do not fit each other ({error}): train it again") from error
        if shape[1] != WINDOW or shape[2] % features.NUM_BANDS or len(self.parameters["voices"]) != len(self.voices):
            raise UserError(f"the mel decoder's output has shape {shape}: train it again")
        if voice not in self.voices:
            raise UserError(f"voice = {voice!r}: the mel decoder has {', '.join(self.voices)}")

    @property
    def num_units(self) -> int:
        return len(self.parameters["embedding"]) - 1

    @property
    def reach(self) -> int:
        """Units on either side that an output depends on: the lookahead of decoding."""
        return sum(len(array) // 2 for name, array in self.parameters.items() if name.endswith("/depthwise"))

    @property
    def frames_per_unit(self) -> int:
        """P."""
        return self.parameters["output"].shape[1] // features.NUM_BANDS

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of weights and voices: equal digests mean equal frames for equal units."""
        total = hashlib.sha256(f"mel decoder {_FORMAT_VERSION} {self.units} {self.voices} {self.voice} ".encode())
        for name, array in self.parameters.items():
            total.update(f"{name} {array.shape} ".encode() + array.astype("<f4").tobytes())
        return total.hexdigest()

    def decode(self, units: Int[np.ndarray, " U"], voice: str | None = None) -> Float[np.ndarray, "L M"]:
        """Return log-mel frames, of one voice (by default the one chosen in training)."""
        known = np.asarray(units).tolist()
        parts = [self.window(known, start, voice) for start in range(0, len(known), WINDOW)]
        return np.concatenate(parts)[: len(known) * self.frames_per_unit]

    def window(self, units: Sequence[int], start: int, voice: str | None = None) -> Float[np.ndarray, "_ M"]:
        """Return the frames of `WINDOW` units from ``start`` on, of which those beyond the end mean nothing."""
        padded = np.full((1, WINDOW + 2 * self.reach), self.num_units)
        first = max(0, start - self.reach)
        seen = units[first : start + WINDOW + self.reach]
        offset = first - start + self.reach
        padded[0, offset : offset + len(seen)] = seen
        speaker = np.array([self.voices.index(self.voice if voice is None else voice)])
        return forward(np, self.parameters, padded, speaker).reshape(-1, features.NUM_BANDS)

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``folder/mel_decoder.npz`` atomically."""
        content = io.BytesIO()
        about: dict[str, Any] = {
            "voices": np.array(self.voices),
            "voice": np.array(self.voice),
            "units": np.array(self.units),
        }
        about |= {"format_version": np.array(_FORMAT_VERSION), "digest": np.array(self.digest)}
        weights: dict[str, Any] = {f"weights/{name}": array for name, array in self.parameters.items()}
        np.savez(content, **weights, **about)
        write_bytes(as_path(folder) / FILE_NAME, content.getvalue())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> MelDecoder:
        """Load the output of `save`. Raises UserError when it is missing, damaged or not what was saved."""
        path, fix = Path(folder) / FILE_NAME, "the mel decoder is damaged: train it again (zipper data vocoder)"
        arrays = dict(read_archive(path, fix))
        try:
            version, digest = int(arrays.pop("format_version")), str(arrays.pop("digest"))
            voices, voice, units = arrays.pop("voices").tolist(), str(arrays.pop("voice")), str(arrays.pop("units"))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{str(path)!r}: {fix} ({error})") from error
        if version > _FORMAT_VERSION:
            raise UserError(f"{str(path)!r} has format {version}, this version reads up to {_FORMAT_VERSION}: upgrade")
        loaded = cls({name.removeprefix("weights/"): array for name, array in arrays.items()}, voices, voice, units)
        if loaded.digest != digest:
            raise UserError(f"{str(path)!r} is not what was saved: {fix}")
        return loaded

"""Units that name sounds: k-means codes of a middle layer of Whisper's encoder, with a linear way back to log-mel.

The first layers of the encoder are stored with the units (float16; MIT), so that a folder is complete by itself. The
way back is a ridge regression from the units in a window to the log-mel frames of the centre unit, of the same audio.

Axis letters: N samples, L frames of 20 ms, U units, D width, F features of a unit, M mel bands.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.speech import features, whisper, whisper_encoder
from zipper_jax.speech.audio import normalise_level
from zipper_jax.speech.given_units import FILE_NAME
from zipper_jax.speech.kmeans import fit_kmeans, nearest_centroid
from zipper_jax.speech.tokenizer import check_units
from zipper_jax.utils.arrays import read_archive
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes, write_json
from zipper_jax.utils.storage import as_path

logger = logging.getLogger(__name__)

KIND = "whisper"
_ARRAYS = "whisper_units.npz"
_ENCODER = "encoder/"
_MOST_FIT_VECTORS = 60_000
_WINDOW = 5  # units on either side that the way back sees
_PARTS = 96  # principal components of the centroids, its input
_RIDGE = 10.0


class WhisperUnits:
    """Encodes 16 kHz audio as units, one per 20 ms or 40 ms, and decodes units to log-mel frames.

    Args:
        encoder: `whisper_encoder.encoder_weights` of ``layer`` layers.
        layer: Layers before the features are taken.
        pooled: Frames of 20 ms averaged per unit.
        centroids: Of these features.
        decoder: The way back, from the components of ``2 * 5 + 1`` units and a constant.
        weights: SHA-256 of the model.bin that the encoder comes from.

    Raises:
        UserError: The arrays do not fit each other.
    """

    def __init__(
        self,
        encoder: Mapping[str, np.ndarray],
        layer: int,
        pooled: int,
        centroids: Float[np.ndarray, "num_units D"],
        decoder: Float[np.ndarray, "F M"],
        weights: str,
    ):
        self.layer, self.pooled, self.weights = layer, pooled, weights
        self._stored = dict(encoder)
        self._encoder = whisper_encoder.as_float32(encoder)
        self._centroids = np.ascontiguousarray(centroids, np.float32)
        self._decoder = np.ascontiguousarray(decoder, np.float32)
        width = len(self._encoder["conv1/bias"])
        if self._centroids.ndim != 2 or self._centroids.shape[1] != width:
            raise UserError(f"centroids have shape {self._centroids.shape}: this encoder needs [units, {width}]")
        inputs = (2 * _WINDOW + 1) * self._parts.shape[1] + 1
        if self._decoder.shape != (inputs, pooled * features.NUM_BANDS):
            raise UserError(f"the way back has shape {self._decoder.shape}: these units need {inputs} inputs")

    @classmethod
    def fit(
        cls,
        waveforms: Sequence[Float[np.ndarray, " _"]],
        where: str = "",
        layer: int = 2,
        pooled: int = 2,
        num_units: int = 1024,
        seed: int = 0,
    ) -> WhisperUnits:
        """Fit units and the way back on audio.

        Args:
            waveforms: 16 kHz; a stated sample of the training audio.
            where: Weights, see `whisper.find_weights`.
            layer: See the class; 2 of tiny's 4 is purest in phones.
            pooled: 2: 25 units a second; 1: 50.
            num_units: Size of the codebook.
            seed: Of the sample of vectors and the first centroids.

        Raises:
            UserError: No weights, or less audio than units.
        """
        if pooled not in (1, 2):
            raise UserError(f"pooled = {pooled}: give 1 (50 units a second) or 2 (25)")
        found = whisper.find_weights(where)
        encoder = whisper_encoder.encoder_weights(found.folder, layer)
        used = whisper_encoder.as_float32(encoder)
        vectors = [_pool(whisper_encoder.encode(used, layer, waveform), pooled) for waveform in waveforms]
        rng, every = np.random.default_rng(seed), np.concatenate(vectors or [np.zeros((0, 1), np.float32)])
        if not 1 <= num_units <= len(every):
            raise UserError(
                f"num_units = {num_units}: the audio has {len(every)} pieces of {20 * pooled} ms; give more"
            )
        if len(every) > _MOST_FIT_VECTORS:
            every = every[np.sort(rng.choice(len(every), _MOST_FIT_VECTORS, replace=False))]
        centroids = fit_kmeans(every, num_units, rng, np.eye(every.shape[1], dtype=np.float32))
        parts = _components(centroids)
        inputs = (2 * _WINDOW + 1) * parts.shape[1] + 1
        a, b = np.zeros((inputs, inputs)), np.zeros((inputs, pooled * features.NUM_BANDS))
        for waveform, own in zip(waveforms, vectors, strict=True):
            seen = _inputs(parts, nearest_centroid(own, centroids))
            a, b = a + seen.T @ seen, b + seen.T @ _frames(waveform, len(own), pooled)
        decoder = np.linalg.solve(a + _RIDGE * np.eye(len(a)), b)
        return cls(encoder, layer, pooled, centroids, decoder, found.digest)

    def made_by(self, weights: whisper.Weights) -> bool:
        """Whether these weights are the encoder's, perhaps converted in another way."""
        if weights.digest == self.weights:
            return True
        theirs = whisper_encoder.read_container(weights.folder / "model.bin").get("encoder/conv1/weight")
        ours = self._encoder["conv1/weight"]  # never quantised
        return theirs is not None and theirs.shape == ours.shape and np.allclose(theirs, ours, atol=1e-2)

    @property
    def num_units(self) -> int:
        return len(self._centroids)

    @property
    def rate_hz(self) -> float:
        return 50 / self.pooled

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of encoder, centroids, layer and pooling: equal digests mean equal units."""
        total = hashlib.sha256(f"{KIND} {self.layer} {self.pooled} {self._centroids.shape} ".encode())
        total.update(self._centroids.astype("<f4").tobytes())
        for name, array in sorted(self._stored.items()):
            total.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def encode(self, waveform: Float[np.ndarray, " N"]) -> Int[np.ndarray, " U"]:
        """Return the units, ``U = ceil(N / (320 * pooled))``."""
        waveform = np.asarray(waveform, np.float32)
        if waveform.ndim != 1 or not waveform.size or not np.isfinite(waveform).all():
            raise UserError(f"waveform has shape {waveform.shape}, or NaN: give mono audio of at least one sample")
        return nearest_centroid(
            _pool(whisper_encoder.encode(self._encoder, self.layer, waveform), self.pooled), self._centroids
        )

    def decode(self, units: Int[np.ndarray, " U"]) -> Float[np.ndarray, "L M"]:
        """Return the log-mel frames of ``units``, ``pooled`` each."""
        units = check_units(units, self.num_units)
        return (_inputs(self._parts, units) @ self._decoder).reshape(-1, features.NUM_BANDS)

    @property
    def unit_features(self) -> Float[np.ndarray, "num_units F"]:
        """Features of each unit: similar units have similar ones."""
        return self._parts

    @functools.cached_property
    def _parts(self) -> Float[np.ndarray, "num_units F"]:
        return _components(self._centroids)

    def save(self, folder: str | os.PathLike) -> None:
        """Write the encoder's layers, the units and the way back."""
        content = io.BytesIO()
        encoder = {_ENCODER + name: array for name, array in self._stored.items()}
        arrays: dict[str, Any] = {**encoder, "centroids": self._centroids, "decoder": self._decoder}
        np.savez(content, **arrays)
        write_bytes(as_path(folder) / _ARRAYS, content.getvalue())
        about = {"layer": self.layer, "pooled": self.pooled, "weights": self.weights, "digest": self.digest}
        write_json(as_path(folder) / FILE_NAME, {"kind": KIND, **about})

    @classmethod
    def load(cls, folder: str | os.PathLike, about: Mapping[str, Any]) -> WhisperUnits:
        """Load the output of `save`; ``about`` is its tokenizer.json. Raises UserError when it is damaged."""
        path, fix = Path(folder) / _ARRAYS, "the speech tokenizer is damaged: prepare the data again"
        arrays = read_archive(path, fix)
        encoder = {n.removeprefix(_ENCODER): a for n, a in arrays.items() if n.startswith(_ENCODER)}
        loaded = cls(encoder, about["layer"], about["pooled"], arrays["centroids"], arrays["decoder"], about["weights"])
        if loaded.digest != about["digest"]:
            raise UserError(f"{str(path)!r} is not what was saved; {fix}")
        return loaded


def _pool(frames: Float[np.ndarray, "L D"], pooled: int) -> Float[np.ndarray, "U D"]:
    """Means of ``pooled`` frames; the last one is repeated where one is missing."""
    padded = np.pad(frames, ((0, -len(frames) % pooled), (0, 0)), mode="edge")
    return padded.reshape(-1, pooled, frames.shape[1]).mean(axis=1)


def _components(centroids: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "K F"]:
    """The centroids' principal components, at most 96; signs are those of each component's largest entry."""
    centred = centroids - centroids.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[: min(_PARTS, len(centroids) - 1)]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return (centred @ (axes * np.sign(largest)).T).astype(np.float32)


def _inputs(parts: Float[np.ndarray, "K F"], units: Int[np.ndarray, " U"]) -> Float[np.ndarray, "U _"]:
    padded = np.pad(parts[units], ((_WINDOW, _WINDOW), (0, 0)))
    windows = [padded[shift : shift + len(units)] for shift in range(2 * _WINDOW + 1)]
    return np.concatenate([*windows, np.ones((len(units), 1), np.float32)], axis=1)


def _frames(waveform: Float[np.ndarray, " N"], units: int, pooled: int) -> Float[np.ndarray, "U _"]:
    """The log-mel frames of each unit's audio."""
    size = units * pooled * features.HOP
    level = np.pad(normalise_level(np.asarray(waveform, np.float32)), (0, size - len(waveform)))
    return features.log_mel(level).reshape(units, -1)

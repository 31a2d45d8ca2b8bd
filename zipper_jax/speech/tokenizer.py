"""Speech units: k-means codes of two stacked 20 ms log-mel frames, 25 units per second.

A codebook suits the voices it was fitted on; audio of other voices is encoded much less faithfully.

Frames are compared by their liftered cepstra (the first coefficients of a discrete cosine transform along the bands),
which keep the spectral envelope that distinguishes sounds and discard the harmonics of the pitch. Compared with log-mel
distances (flite, 40 sentences): the same sentence at pitches 0.94 and 1.06 shares 77 % of its units instead of 31 %;
clean and with noise at 30 dB 85 % instead of 77 %; word errors of gold units are 1.2 % instead of 3.6 %.

Axis letters: N samples, U units, L = 2 U frames, M mel bands, D = 2 M, C cepstral coefficients, F = 2 C.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.speech import features
from zipper_jax.speech.audio import normalise_level
from zipper_jax.speech.kmeans import fit_kmeans, nearest_centroid
from zipper_jax.utils.arrays import read_archive
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes
from zipper_jax.utils.storage import as_path

STACKED_FRAMES = 2
SAMPLES_PER_UNIT = STACKED_FRAMES * features.HOP
RATE_HZ = features.SAMPLE_RATE // SAMPLES_PER_UNIT
FILE_NAME = "tokenizer.npz"
# Weight of each cepstral coefficient in distances: low for the level, rising for fine structure (which varies less),
# zero above the sixteenth, which carries the pitch.
LIFTER = np.sqrt(np.arange(1, 17, dtype=np.float32))
LIFTER[0] = 0.5
_FORMAT_VERSION = 2  # 1: no lifter, all coefficients weigh the same
_MOST_FIT_VECTORS = 60_000


class UnitTokenizer:
    """Encodes 16 kHz waveforms as int32 units in ``[0, num_units)``, and decodes units to log-mel frames."""

    def __init__(self, centroids: Float[np.ndarray, "num_units D"], lifter: Float[np.ndarray, " C"] = LIFTER):
        width = STACKED_FRAMES * features.NUM_BANDS
        if centroids.ndim != 2 or centroids.shape[1] != width or not len(centroids):
            raise UserError(f"tokenizer centroids have shape {centroids.shape}: expected [num_units, {width}]")
        if lifter.ndim != 1 or not 0 < len(lifter) <= features.NUM_BANDS:
            raise UserError(
                f"tokenizer lifter has shape {lifter.shape}: expected one weight for each of 1 to {features.NUM_BANDS} "
                "coefficients"
            )
        self._centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._lifter = np.ascontiguousarray(lifter, dtype=np.float32)
        self._projection = _projection(self._lifter)
        self._compared = self._centroids @ self._projection

    @classmethod
    def fit(
        cls,
        waveforms: Sequence[Float[np.ndarray, " _"]],
        num_units: int = 1024,
        seed: int = 0,
    ) -> UnitTokenizer:
        """Fit the codebook on at most 60,000 pieces of 40 ms of ``waveforms``, sampled with ``seed``."""
        if num_units < 1:
            raise UserError(f"num_units = {num_units}: give at least 1")
        vectors = np.concatenate([_stacked(w) for w in waveforms]) if len(waveforms) else np.empty((0, 1), np.float32)
        if len(vectors) < num_units:
            raise UserError(
                f"num_units = {num_units}: the audio has only {len(vectors)} pieces of 40 ms; give more audio or fewer "
                "units"
            )
        rng = np.random.default_rng(seed)
        if len(vectors) > _MOST_FIT_VECTORS:
            vectors = vectors[np.sort(rng.choice(len(vectors), _MOST_FIT_VECTORS, replace=False))]
        return cls(fit_kmeans(vectors, num_units, rng, _projection(LIFTER)))

    @property
    def num_units(self) -> int:
        return len(self._centroids)

    @property
    def unit_features(self) -> Float[np.ndarray, "num_units F"]:
        """Features of each unit: similar units have similar ones."""
        return self._compared

    @property
    def rate_hz(self) -> int:
        return RATE_HZ

    @property
    def digest(self) -> str:
        """SHA-256 of the codebook and the format: equal digests mean equal units."""
        header = f"zipper_jax log-mel k-means {_FORMAT_VERSION} {self._centroids.shape} {self._lifter.shape} ".encode()
        arrays = [array.astype("<f4").tobytes() for array in (self._centroids, self._lifter)]
        return hashlib.sha256(b"".join([header, *arrays])).hexdigest()

    def encode(self, waveform: Float[np.ndarray, " N"]) -> Int[np.ndarray, " U"]:
        """Return one unit per 40 ms of 16 kHz audio, ``U = ceil(N / 640)``."""
        return nearest_centroid(_stacked(waveform) @ self._projection, self._compared)

    def decode(self, units: Int[np.ndarray, " U"]) -> Float[np.ndarray, "L M"]:
        """Return the log-mel frames of ``units``."""
        return self._centroids[check_units(units, self.num_units)].reshape(-1, features.NUM_BANDS)

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``folder/tokenizer.npz`` atomically."""
        buffer = io.BytesIO()
        np.savez(buffer, format_version=_FORMAT_VERSION, centroids=self._centroids, lifter=self._lifter)
        write_bytes(as_path(folder) / FILE_NAME, buffer.getvalue())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> UnitTokenizer:
        """Load the output of `save`. Raises UserError when it is missing or damaged."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise UserError(
                f"speech tokenizer {str(path)!r} does not exist: check the folder, or prepare the data again"
            )
        data = read_archive(path, "the speech tokenizer is damaged: prepare the data again")
        try:
            version, centroids = int(data["format_version"]), data["centroids"]
            lifter = data["lifter"] if version > 1 else np.ones(features.NUM_BANDS, np.float32)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"speech tokenizer {str(path)!r} is damaged ({error}): prepare the data again") from error
        if version > _FORMAT_VERSION:
            raise UserError(
                f"speech tokenizer {str(path)!r} has format {version}, this version reads up to {_FORMAT_VERSION}: "
                "upgrade zipper_jax"
            )
        return cls(centroids, lifter)


def check_units(units: Int[np.ndarray, " U"], num_units: int) -> Int[np.ndarray, " U"]:
    """Return ``units`` as an array. Raises UserError where they are none, or not from 0 to ``num_units``."""
    units = np.asarray(units)
    if units.ndim != 1 or not units.size:
        raise UserError(f"units have shape {units.shape}: give a list of at least one unit")
    if not np.issubdtype(units.dtype, np.integer) or units.min() < 0 or units.max() >= num_units:
        raise UserError(f"units must be integers from 0 to {num_units - 1}, got {units.min()} to {units.max()}")
    return units


def _projection(lifter: Float[np.ndarray, " C"]) -> Float[np.ndarray, "D F"]:
    """Return the matrix from two stacked log-mel frames to liftered cepstra (orthonormal DCT-II times the lifter)."""
    band, coefficient = np.arange(features.NUM_BANDS)[:, None], np.arange(len(lifter))
    cosines = np.cos(np.pi * coefficient * (band + 0.5) / features.NUM_BANDS) * np.sqrt(2 / features.NUM_BANDS)
    cosines[:, 0] /= np.sqrt(2)
    return np.kron(np.eye(STACKED_FRAMES), cosines * lifter).astype(np.float32)


def _stacked(waveform: Float[np.ndarray, " N"]) -> Float[np.ndarray, "U D"]:
    """Return two log-mel frames per row, of level-normalised audio padded with silence to a whole number of units."""
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not waveform.size:
        raise UserError(f"waveform has shape {waveform.shape}: give mono audio of at least one sample (see load_audio)")
    if not np.isfinite(waveform).all():
        raise UserError("waveform holds NaN or infinite samples: load it with load_audio")
    padding = -len(waveform) % SAMPLES_PER_UNIT
    frames = features.log_mel(np.pad(normalise_level(waveform.astype(np.float32)), (0, padding)))
    return frames.reshape(-1, STACKED_FRAMES * features.NUM_BANDS)

"""Speech units: k-means codes of two stacked 20 ms log-mel frames, 25 units per second.

A codebook serves the voices it was fitted on; audio of other voices is encoded, but much less faithfully.

Axis letters: N samples, U units, L = 2 U frames, M mel bands, D = 2 M.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.errors import UserError
from zipper_jax.speech import features
from zipper_jax.speech.audio import normalise_level
from zipper_jax.speech.kmeans import fit_kmeans, nearest_centroid

STACKED_FRAMES = 2
SAMPLES_PER_UNIT = STACKED_FRAMES * features.HOP
RATE_HZ = features.SAMPLE_RATE // SAMPLES_PER_UNIT
FILE_NAME = "tokenizer.npz"
_FORMAT_VERSION = 1
_MOST_FIT_VECTORS = 60_000


class UnitTokenizer:
    """Turns 16 kHz waveforms into int32 units in ``[0, num_units)`` and units back into log-mel frames."""

    def __init__(self, centroids: Float[np.ndarray, "num_units D"]):
        width = STACKED_FRAMES * features.NUM_BANDS
        if centroids.ndim != 2 or centroids.shape[1] != width or not len(centroids):
            raise UserError(f"tokenizer centroids have shape {centroids.shape}: expected [num_units, {width}]")
        self._centroids = np.ascontiguousarray(centroids, dtype=np.float32)

    @classmethod
    def fit(
        cls,
        waveforms: Sequence[Float[np.ndarray, " _"]],
        num_units: int = 1024,
        seed: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> UnitTokenizer:
        """Fits the codebook on at most 60,000 unit-long pieces of ``waveforms`` drawn with ``seed``."""
        if num_units < 1:
            raise UserError(f"num_units is {num_units}: give at least 1")
        vectors = np.concatenate([_stacked(w) for w in waveforms]) if len(waveforms) else np.empty((0, 1), np.float32)
        if len(vectors) < num_units:
            raise UserError(
                f"num_units is {num_units} but the audio holds only {len(vectors)} pieces of 40 ms: "
                "give more audio or fewer units"
            )
        rng = np.random.default_rng(seed)
        if len(vectors) > _MOST_FIT_VECTORS:
            vectors = vectors[np.sort(rng.choice(len(vectors), _MOST_FIT_VECTORS, replace=False))]
        return cls(fit_kmeans(vectors, num_units, rng, progress))

    @property
    def num_units(self) -> int:
        return len(self._centroids)

    @property
    def rate_hz(self) -> int:
        return RATE_HZ

    @property
    def digest(self) -> str:
        """SHA-256 of the codebook and the format: equal digests give equal units."""
        header = f"zipper_jax log-mel k-means {_FORMAT_VERSION} {self._centroids.shape} ".encode()
        return hashlib.sha256(header + self._centroids.astype("<f4").tobytes()).hexdigest()

    def encode(self, waveform: Float[np.ndarray, " N"]) -> Int[np.ndarray, " U"]:
        """One unit per 40 ms of 16 kHz audio, ``U = ceil(N / 640)``."""
        return nearest_centroid(_stacked(waveform), self._centroids)

    def decode(self, units: Int[np.ndarray, " U"]) -> Float[np.ndarray, "L M"]:
        """The log-mel frames that ``units`` stand for."""
        units = np.asarray(units)
        if units.ndim != 1 or not units.size:
            raise UserError(f"units have shape {units.shape}: give a list of at least one unit")
        if not np.issubdtype(units.dtype, np.integer) or units.min() < 0 or units.max() >= self.num_units:
            raise UserError(
                f"units must be integers from 0 to {self.num_units - 1}, got {units.min()} to {units.max()}"
            )
        return self._centroids[units].reshape(-1, features.NUM_BANDS)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes ``folder/tokenizer.npz`` (made aside and renamed)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, format_version=_FORMAT_VERSION, centroids=self._centroids)
        aside = folder / f"{FILE_NAME}.{os.getpid()}.partial"
        aside.write_bytes(buffer.getvalue())
        os.replace(aside, folder / FILE_NAME)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> UnitTokenizer:
        """Reads what `save` wrote."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise UserError(
                f"speech tokenizer {str(path)!r} does not exist: check the folder, or prepare the data again"
            )
        try:
            with np.load(path, allow_pickle=False) as data:
                version, centroids = int(data["format_version"]), data["centroids"]
        except Exception as error:  # numpy reports a damaged archive with half a dozen unrelated exception types
            raise UserError(f"speech tokenizer {str(path)!r} is damaged ({error}): prepare the data again") from error
        if version != _FORMAT_VERSION:
            raise UserError(
                f"speech tokenizer {str(path)!r} has format {version}, this version reads {_FORMAT_VERSION}: "
                "upgrade zipper_jax"
            )
        return cls(centroids)


def _stacked(waveform: Float[np.ndarray, " N"]) -> Float[np.ndarray, "U D"]:
    """Two log-mel frames per row, of the audio at a standard level, padded with silence to a whole number of units."""
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not waveform.size:
        raise UserError(f"waveform has shape {waveform.shape}: give mono audio of at least one sample (see load_audio)")
    if not np.isfinite(waveform).all():
        raise UserError("waveform holds NaN or infinite samples: load it with load_audio")
    padding = -len(waveform) % SAMPLES_PER_UNIT
    frames = features.log_mel(np.pad(normalise_level(waveform.astype(np.float32)), (0, padding)))
    return frames.reshape(-1, STACKED_FRAMES * features.NUM_BANDS)

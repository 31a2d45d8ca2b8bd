"""HuBERT units from weights on disk: k-means codes of one layer's features. Needs torch and transformers.

    layer        1 is the output of the first block, as in the usual tables ("layer 6 of base"); 0 its input
    pooled       frames averaged per unit: 2 turns a 50 Hz model into 25 units per second
    centroids    .npy of shape [num_units, hidden_size], fitted on features of the same layer and pooling

The paper's setting, 1,024 units at 25 Hz, is 1,024 centroids and either a 25 Hz model (pooled = 1) or a 50 Hz one with
pooled = 2. The weights are referenced, not copied; their digest is stored, so that changed weights are detected.

Axis letters: N samples, L frames, U units, D hidden size.
"""

import functools
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.speech.given_units import FILE_NAME, check_vocoder, no_vocoder
from zipper_jax.speech.kmeans import nearest_centroid
from zipper_jax.utils import user_json
from zipper_jax.utils.arrays import read_array
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes, write_json
from zipper_jax.utils.storage import as_path

KIND = "hubert"
_CENTROIDS = "centroids.npy"


class HubertTokenizer:
    """Encodes 16 kHz waveforms as units; decoding needs an external ``vocoder`` command (see `given_units`)."""

    def __init__(
        self,
        model: str | os.PathLike,
        layer: int,
        centroids: Float[np.ndarray, "num_units D"],
        pooled: int = 1,
        vocoder: str = "",
    ):
        """Create a tokenizer.

        Args:
            model: Folder with config.json and weights.
            layer: Index of the hidden states; 0: the input of the first block.
            centroids: K-means centroids of these features.
            pooled: Frames averaged per unit.
            vocoder: Command that makes audio of units; "" for none.

        Raises:
            UserError: The folder is not a HuBERT, or an argument does not fit it.
        """
        self.model, self.layer, self.pooled, self.vocoder = Path(model).absolute(), layer, pooled, vocoder
        self._centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        config = _json(self.model / "config.json")
        try:
            depth, width = config["num_hidden_layers"], config["hidden_size"]
            self._stride = int(np.prod(config["conv_stride"])) * pooled
            kind = config["model_type"]
        except KeyError as error:
            raise UserError(f"{str(self.model / 'config.json')!r} lacks {error}: give a folder of a HuBERT") from error
        if kind != "hubert":
            raise UserError(f"{str(self.model)!r} is a {kind!r}, not a 'hubert'")
        if not 0 <= layer <= depth:
            raise UserError(f"layer = {layer}: this model has 0 (the input of its blocks) to {depth}")
        if pooled < 1:
            raise UserError(f"pooled = {pooled}: give at least 1")
        if self._centroids.ndim != 2 or self._centroids.shape[1] != width:
            raise UserError(f"centroids have shape {self._centroids.shape}: this model needs [units, {width}]")
        check_vocoder(vocoder)

    @property
    def num_units(self) -> int:
        return len(self._centroids)

    @property
    def rate_hz(self) -> float:
        return SAMPLE_RATE / self._stride

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of weights, centroids, layer and pooling: equal digests mean equal units."""
        total = hashlib.sha256(f"hubert {self.layer} {self.pooled} {self._centroids.shape} ".encode())
        total.update(self._centroids.astype("<f4").tobytes())
        for name in self._files():
            with (self.model / name).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def encode(self, waveform: Float[np.ndarray, " N"]) -> Int[np.ndarray, " U"]:
        """Return one unit per ``pooled`` frames; an incomplete last group is dropped; at least one unit."""
        import torch

        if self._normalise:
            waveform = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
        short = max(0, self._reach - len(waveform))
        samples = torch.from_numpy(np.pad(waveform, (0, short)).astype(np.float32))
        with torch.inference_mode():
            states = self._network(samples[None], output_hidden_states=True).hidden_states
        frames = states[self.layer][0].numpy()
        whole = len(frames) // self.pooled * self.pooled
        return nearest_centroid(frames[:whole].reshape(-1, self.pooled, frames.shape[1]).mean(axis=1), self._centroids)

    def decode(self, units: Int[np.ndarray, " U"]) -> Float[np.ndarray, "L M"]:
        raise no_vocoder(f"units of {str(self.model)!r}", self.vocoder)

    def save(self, folder: str | os.PathLike) -> None:
        """Write the centroids and a reference to the weights."""
        folder = as_path(folder)
        content = io.BytesIO()
        np.save(content, self._centroids)
        write_bytes(folder / _CENTROIDS, content.getvalue())
        about = {"model": str(self.model), "layer": self.layer, "pooled": self.pooled, "vocoder": self.vocoder}
        write_json(folder / FILE_NAME, {"kind": KIND, **about, "digest": self.digest})

    @classmethod
    def load(cls, folder: str | os.PathLike, about: dict[str, Any]) -> "HubertTokenizer":
        """Load the output of `save`; ``about`` is its tokenizer.json. Raises UserError for missing or other weights."""
        path = Path(folder) / FILE_NAME
        if not Path(about["model"]).is_dir():
            raise UserError(
                f"the HuBERT of these units, {about['model']!r}, does not exist: restore it, or write its new path to "
                f'"model" in {str(path)!r}'
            )
        centroids = read_centroids(Path(folder) / _CENTROIDS)
        loaded = cls(about["model"], about["layer"], centroids, about["pooled"], about["vocoder"])
        if loaded.digest != about["digest"]:
            raise UserError(
                f"the HuBERT in {about['model']!r} is not the one that {str(path)!r} was made with: restore its weights"
            )
        return loaded

    @functools.cached_property
    def _network(self) -> Any:
        try:
            from transformers import HubertModel
            from transformers.utils import logging
        except ImportError as error:
            raise UserError(
                f"HuBERT needs torch and transformers ({error}): pip install --editable '.[verify]'"
            ) from error
        logging.disable_progress_bar()  # there would be one per worker
        return HubertModel.from_pretrained(self.model, local_files_only=True).eval()

    @functools.cached_property
    def _normalise(self) -> bool:
        """Whether the model expects waveforms of mean 0 and variance 1."""
        there = self._preprocessing.is_file()
        return there and bool(_json(self._preprocessing).get("do_normalize", True))

    @property
    def _preprocessing(self) -> Path:
        return self.model / "preprocessor_config.json"

    @functools.cached_property
    def _reach(self) -> int:
        """Length of the shortest audio that gives one unit, in samples."""
        config, samples = _json(self.model / "config.json"), self.pooled
        for kernel, stride in zip(reversed(config["conv_kernel"]), reversed(config["conv_stride"]), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def _files(self) -> list[str]:
        """Return the names of the files that determine the features."""
        weights = [path.name for ending in ("*.safetensors", "*.bin") for path in sorted(self.model.glob(ending))]
        if not weights:
            raise UserError(f"{str(self.model)!r} holds no weights (*.safetensors, *.bin): give a folder of a HuBERT")
        return ["config.json", *(["preprocessor_config.json"] if self._preprocessing.is_file() else []), *weights]


def read_centroids(path: str | os.PathLike) -> Float[np.ndarray, "num_units D"]:
    """Read a k-means file, .npy of floats [num_units, hidden_size]; pickles are rejected, because they can run code."""
    centroids = read_array(
        Path(path),
        "give a .npy of k-means centroids, for example of scikit-learn's by "
        'numpy.save("km.npy", joblib.load("km.bin").cluster_centers_)',
    )
    numbers = np.issubdtype(centroids.dtype, np.floating) or np.issubdtype(centroids.dtype, np.integer)
    if centroids.ndim != 2 or not numbers or not centroids.size or not np.isfinite(centroids).all():
        raise UserError(f"k-means file {os.fspath(path)!r} holds no finite array of shape [units, width]")
    return centroids


def _json(path: Path) -> dict[str, Any]:
    try:
        return user_json.read_object(path, "get it again")
    except (OSError, UserError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error}): give a folder of a HuBERT (config.json, weights)"
        ) from error

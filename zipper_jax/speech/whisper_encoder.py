"""The first layers of Whisper's encoder in NumPy: features that name sounds, not speakers.

Middle layers tell phones apart best and speakers least; their k-means codes are `speech.whisper_units`. Features are
50 a second; frame i is centred on its own 20 ms of audio, samples [320 i, 320 (i + 1)).

Axis letters: N samples, L frames of 20 ms, D width, H heads, K kernel.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from zipper_jax.speech import whisper
from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.utils.errors import UserError

FRAME = SAMPLE_RATE // 50
WINDOW = 20 * SAMPLE_RATE
"""Samples of a long recording that are encoded at once, with `CONTEXT` on either side."""
CONTEXT = 2 * SAMPLE_RATE
_SILENCE = SAMPLE_RATE  # behind the audio, as the encoder knows it from training
_EPSILON = 1e-5  # of layer norms
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}

Arrays = Mapping[str, np.ndarray]


def read_container(path: Path) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 model.bin by name.

    Raises:
        UserError: It is no such file, or damaged.
    """
    content, place = path.read_bytes(), 0

    def take(form: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return value

    def name() -> str:
        nonlocal place
        length = take("H")
        place += length
        return content[place - length : place - 1].decode()

    try:
        version = take("I")
        if not 4 <= version < 100:  # 6 today; anything else is no such file
            raise ValueError(f"version {version}")
        name(), take("I")
        found = {}
        for _ in range(take("I")):
            key, shape = name(), [take("I") for _ in range(take("B"))]
            dtype, size = np.dtype(_DTYPES[take("B")]), take("I")
            found[key] = np.frombuffer(content, dtype, size // dtype.itemsize, place).reshape(shape)
            place += size
    except (struct.error, ValueError, KeyError) as error:
        raise UserError(
            f"{str(path)!r} is not a model.bin of CTranslate2, or damaged ({error}): get it again"
        ) from error
    return found


def encoder_weights(folder: Path, layers: int) -> dict[str, np.ndarray]:
    """What `encode` needs of a folder in CTranslate2's form, as float16.

    Raises:
        UserError: The file is damaged, quantised, not Whisper's, or has fewer layers.
    """
    stored = read_container(folder / "model.bin")
    wanted = ("encoder/conv", "encoder/position", "encoder/num_heads", *(f"encoder/layer_{n}/" for n in range(layers)))
    found = {name.removeprefix("encoder/"): array for name, array in stored.items() if name.startswith(wanted)}
    layer = re.compile(r"encoder/(layer_\d+)/")
    depth = len({match[1] for name in stored if (match := layer.match(name))})
    if not 0 <= layers <= depth or "conv1/weight" not in found:
        raise UserError(f"{str(folder)!r}: layer {layers} is not there: this encoder has {depth} layers")
    if any(array.dtype == np.int8 for array in found.values()):
        raise UserError(f"{str(folder)!r} has quantised weights: give a float16 or float32 conversion")
    return {name: array.astype(np.float16) if array.dtype.kind == "f" else array for name, array in found.items()}


def as_float32(weights: Arrays) -> dict[str, np.ndarray]:
    """The weights in the dtype that `encode` computes in."""
    return {name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in weights.items()}


def encode(weights: Arrays, layers: int, waveform: Float[np.ndarray, " N"]) -> Float[np.ndarray, "L D"]:
    """The hidden states behind ``layers`` blocks, one for each 20 ms of 16 kHz audio that has begun: L = ceil(N / 320).

    Audio above 20 s is encoded in windows of 20 s with 2 s of context, so that memory does not grow with its length.
    """
    parts = []
    for start in range(0, max(1, len(waveform)), WINDOW):
        first = max(0, start - CONTEXT)
        part = waveform[first : start + WINDOW + CONTEXT]
        wanted = -(-min(WINDOW, max(1, len(waveform) - start)) // FRAME)
        skipped = (start - first) // FRAME
        parts.append(_window(weights, layers, part)[skipped : skipped + wanted])
    return np.concatenate(parts)


def _window(w: Arrays, layers: int, waveform: np.ndarray) -> np.ndarray:
    frames = -(-(len(waveform) + _SILENCE) // FRAME)
    mel = whisper.log_mel(waveform, frames * FRAME, w["conv1/weight"].shape[1])
    x = _gelu(_convolution(mel, w["conv1/weight"], w["conv1/bias"], 1))
    x = _gelu(_convolution(x, w["conv2/weight"], w["conv2/bias"], 2))
    x = x + w["position_encodings/encodings"][: len(x)]
    for number in range(layers):
        block = {n.removeprefix(f"layer_{number}/"): a for n, a in w.items() if n.startswith(f"layer_{number}/")}
        x = x + _attention(block, _norm(block, "self_attention", x), int(w["num_heads"]))
        y = _gelu(_norm(block, "ffn", x) @ block["ffn/linear_0/weight"].T + block["ffn/linear_0/bias"])
        x = x + y @ block["ffn/linear_1/weight"].T + block["ffn/linear_1/bias"]
    return x


def _convolution(
    x: Float[np.ndarray, "L C"], kernel: Float[np.ndarray, "D C K"], bias: np.ndarray, stride: int
) -> Float[np.ndarray, "M D"]:
    padded = np.pad(x, ((1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2], axis=0)[::stride]
    return windows.reshape(len(windows), -1) @ kernel.reshape(len(kernel), -1).T + bias


def _attention(block: Arrays, x: Float[np.ndarray, "L D"], heads: int) -> Float[np.ndarray, "L D"]:
    both = x @ block["self_attention/linear_0/weight"].T + block["self_attention/linear_0/bias"]
    q, k, v = both.reshape(len(x), 3, heads, -1).transpose(1, 2, 0, 3)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[-1]))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ v
    y = mixed.transpose(1, 0, 2).reshape(len(x), -1)
    return y @ block["self_attention/linear_1/weight"].T + block["self_attention/linear_1/bias"]


def _norm(block: Arrays, part: str, x: Float[np.ndarray, "L D"]) -> Float[np.ndarray, "L D"]:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + _EPSILON)
    return scaled * block[f"{part}/layer_norm/gamma"] + block[f"{part}/layer_norm/beta"]


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return (0.5 * x * (1.0 + erf(x / np.float32(np.sqrt(2.0))))).astype(np.float32)

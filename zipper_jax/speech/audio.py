"""Waveforms in and out: files and arrays of any sample rate become float32 mono at 16 kHz.

Axis letters: N samples, C channels.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes

SAMPLE_RATE = 16_000
LEVEL = 0.1  # root mean square of normalised speech
_MOST_CHANNELS = 32
_BLOCK = SAMPLE_RATE // 100
_SILENCE = 1e-4  # of the loudest block's power (-40 dB): a quieter block of 10 ms is silence
_MUTE = 1e-3  # of full scale (-60 dB): audio that never gets louder is taken for silence
_LOST = 0.1  # seconds that a whole file may lack: some encoders' lengths are rounded to blocks
_BEYOND = 0.5  # seconds that a part may exceed its file by: hand-made times are rounded
_STREAMED = 2**31 - 2**16


class AudioError(UserError):
    """Audio that cannot be used; ``reason`` says why in a few words."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def load_audio(
    source: str | os.PathLike | np.ndarray,
    sample_rate: int | None = None,
    start: float = 0.0,
    seconds: float | None = None,
) -> Float[np.ndarray, " N"]:
    """Reads a file, or takes an array with its ``sample_rate``, and returns float32 mono at 16 kHz.

    Args:
      source: the path of any format libsndfile reads (WAV, FLAC, OGG, MP3), or an array ``[samples]`` or
        ``[samples, channels]``; integers are scaled by their type's range.
      sample_rate: of an array in Hz, required there; a file states its own, so it must be left out for one.
      start, seconds: the part of a file that is read; None: to its end.

    Raises:
      UserError: missing, unreadable, empty or non-finite audio; each message names the file (or "the array").
    """
    if isinstance(source, np.ndarray):
        name = "the audio array"
        if sample_rate is None or sample_rate <= 0:
            raise UserError(
                f"{name} needs its sample rate in Hz: load_audio(array, sample_rate=...), got {sample_rate}"
            )
        waveform, rate = _mono(_array_to_float(source, name), name), sample_rate
    else:
        name = _name(source)
        if sample_rate is not None:
            raise UserError(f"{name} states its own sample rate: leave out sample_rate={sample_rate}")
        waveform, rate = read_audio(source, start, seconds)
    if rate != SAMPLE_RATE:
        waveform = soxr.resample(waveform, rate, SAMPLE_RATE)
        if not waveform.size:
            raise UserError(f"{name} is shorter than one sample at {SAMPLE_RATE} Hz: give longer audio")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def read_audio(
    path: str | os.PathLike, start: float = 0.0, seconds: float | None = None
) -> tuple[Float[np.ndarray, " N"], int]:
    """A file, or a part of it, as float32 mono at its own rate, and that rate. Raises AudioError."""
    name = _name(path)
    try:
        if not Path(path).is_file():
            raise AudioError(f"{name} does not exist (or is not a file): check the path", "missing audio")
        with soundfile.SoundFile(path) as file:
            rate, whole = file.samplerate, _stated_frames(file)
            file.seek(min(round(start * rate), file.frames))
            left = max(0, whole - round(start * rate))
            wanted = left if seconds is None else round(seconds * rate)
            if wanted > left + _BEYOND * rate:
                raise AudioError(
                    f"{name} has {whole / rate:g} s, {start:g} to {start + wanted / rate:g} s are asked for: mend it",
                    "part beyond its end",
                )
            waveform = file.read(min(wanted, file.frames - file.tell()), dtype="float32")
            if len(waveform) < min(wanted, left) - _LOST * rate and not _is_guess(path, file.format):
                raise AudioError(
                    f"{name} ends {(min(wanted, left) - len(waveform)) / rate:.1f} s too early: get it again",
                    "corrupt audio",
                )
            return _mono(waveform, name), rate
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        # Not only libsndfile's: a name that is too long, is not UTF-8, or ends in .raw; a length that no memory holds.
        raise AudioError(f"{name} cannot be read ({error}): give WAV, FLAC, OGG or MP3", "corrupt audio") from error


def save_audio(path: str | os.PathLike, waveform: Float[np.ndarray, " N"], sample_rate: int = SAMPLE_RATE) -> None:
    """Writes mono, atomically (aside, then renamed); samples outside ±1 are clipped.

    Args:
      path: its ending decides the format; WAV and FLAC have 16 bits.

    Raises:
      UserError: an ending that names no format.
    """
    content = io.BytesIO()  # libsndfile would not say that a disk is full
    try:
        soundfile.write(content, np.clip(waveform, -1.0, 1.0), sample_rate, format=Path(path).suffix[1:])
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise UserError(f"cannot write {os.fspath(path)!r}: {error}; use an ending such as .wav or .flac") from error
    write_bytes(path, content.getvalue())


def is_silent(waveform: Float[np.ndarray, " N"]) -> bool:
    """Whether it never gets louder than -60 dB of full scale."""
    return bool(np.abs(waveform).max(initial=0.0) < _MUTE)


def trim_silence(waveform: Float[np.ndarray, " N"], keep_seconds: float = 0.04) -> Float[np.ndarray, " M"]:
    """Cuts leading and trailing silence, leaving ``keep_seconds`` at either end; all-zero audio stays as it is."""
    loud = np.flatnonzero(_loud_blocks(waveform))
    if not loud.size:
        return waveform
    keep = round(keep_seconds * SAMPLE_RATE)
    return waveform[max(0, loud[0] * _BLOCK - keep) : (loud[-1] + 1) * _BLOCK + keep]


def normalise_level(waveform: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Scales so that what is not silence has a root mean square of 0.1; all-zero audio is returned unchanged."""
    power = _block_power(waveform)[_loud_blocks(waveform)]
    return waveform * np.float32(LEVEL / np.sqrt(power.mean())) if power.size else waveform


def add_noise(waveform: Float[np.ndarray, " N"], snr_db: float, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Adds white noise at a signal-to-noise ratio of ``snr_db``, both mean powers of the whole waveform."""
    noise_power = np.square(waveform).mean() / 10 ** (snr_db / 10)
    return (waveform + np.sqrt(noise_power) * rng.standard_normal(len(waveform))).astype(np.float32)


def _block_power(waveform: np.ndarray) -> np.ndarray:
    """Mean power of each 10 ms, the last padded with zeros."""
    padded = np.pad(waveform, (0, -len(waveform) % _BLOCK))
    return np.square(padded.reshape(-1, _BLOCK)).mean(axis=1)


def _loud_blocks(waveform: np.ndarray) -> np.ndarray:
    """Which 10 ms blocks are not silence: none of an empty or all-zero waveform."""
    power = _block_power(waveform)
    return power > _SILENCE * power.max(initial=0.0)


def _name(path: str | os.PathLike) -> str:
    return f"audio file {os.fspath(path)!r}"


def _stated_frames(file: soundfile.SoundFile) -> int:
    """How long a file says that it is: libsndfile takes what is there of a WAV or AIFF that was cut off, and notes it.

    One that was streamed states the most there can be (about 2 or 4 GiB), which means nothing.
    """
    note = re.search(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    stated, there = map(int, note.groups()) if note else (1, 1)
    return file.frames if stated > _STREAMED or not there else round(file.frames * stated / there)


def _is_guess(path: str | os.PathLike, kind: str) -> bool:
    """Whether a file does not state its length: an MP3 without the header that has it, where libsndfile guesses."""
    return kind == "MP3" and not re.search(b"Xing|Info", Path(path).read_bytes())


def _mono(waveform: np.ndarray, name: str) -> np.ndarray:
    if not waveform.size:
        raise AudioError(f"{name} is empty (0 samples): give audio of at least one sample", "empty audio")
    if not np.isfinite(waveform).all():
        raise AudioError(f"{name} holds NaN or infinite samples: repair or re-export it", "samples that are no numbers")
    return waveform.mean(axis=1) if waveform.ndim == 2 else waveform


def _array_to_float(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > _MOST_CHANNELS):
        raise UserError(f"{name} has shape {array.shape}: give [samples] or [samples, channels]")
    if np.issubdtype(array.dtype, np.signedinteger):
        return array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    raise UserError(f"{name} has dtype {array.dtype}: give a float or a signed integer type")

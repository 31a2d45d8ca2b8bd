"""Audio input and output: files and arrays of any sample rate become float32 mono at 16 kHz.

Axis letters: N samples, C channels.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import re
from collections.abc import Iterator
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
_MUTE = 1e-3  # of full scale (-60 dB): audio whose peak is below counts as silent
_LOST = 0.1  # seconds that a complete file may be shorter than its header states: some encoders round to blocks
_BEYOND = 0.5  # seconds by which a segment may exceed its file: segment times are often rounded
_STREAMED = 2**31 - 2**16
_CHUNK = 6_000 * _BLOCK  # samples of all channels
_SHORTEST = 0.01  # seconds


TOO_SHORT = f"shorter than {_SHORTEST:g} s"
TOO_LONG = "too long for the memory"


class AudioError(UserError):
    """Audio that cannot be used; ``reason`` gives the cause in a few words."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def load_audio(
    source: str | os.PathLike | np.ndarray,
    sample_rate: int | None = None,
    start: float = 0.0,
    seconds: float | None = None,
    channel: int | None = None,
) -> Float[np.ndarray, " N"]:
    """Read a file, or convert an array, to float32 mono at 16 kHz.

    Args:
        source: Path of any format libsndfile reads (WAV, FLAC, OGG, MP3), or an array ``[samples]`` or
            ``[samples, channels]``; integers are scaled by the range of their dtype.
        sample_rate: Hz of an array; must be None for a file, which states its own.
        start: Start of the segment of a file, in seconds.
        seconds: Length of the segment; None: to the end of the file.
        channel: Channel of a file, from 0; None: the mean of all.

    Raises:
        AudioError: Missing, unreadable, empty or non-finite audio, or less than 10 ms of it; the message names the file
            (or "the audio array").
        UserError: A wrong argument.
    """
    if isinstance(source, np.ndarray):
        name = "the audio array"
        if sample_rate is None or sample_rate <= 0:
            raise UserError(
                f"sample_rate = {sample_rate}: {name} needs its sample rate in Hz, load_audio(array, sample_rate=...)"
            )
        waveform, rate = _mono(_array_to_float(source, name), name), sample_rate
    else:
        name = _name(source)
        if sample_rate is not None:
            raise UserError(f"sample_rate = {sample_rate}: {name} states its own; omit sample_rate")
        waveform, rate = read_audio(source, start, seconds, channel)
    if is_too_short(len(waveform), rate):
        raise AudioError(f"{name} is shorter than {_SHORTEST:g} s: give longer audio", TOO_SHORT)
    if rate != SAMPLE_RATE:
        waveform = soxr.resample(waveform, rate, SAMPLE_RATE)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def read_audio(
    path: str | os.PathLike, start: float = 0.0, seconds: float | None = None, channel: int | None = None
) -> tuple[Float[np.ndarray, " N"], int]:
    """Read a file, or a segment of it, as float32 mono at its own rate; return it and the rate in Hz.

    Raises:
        AudioError: The audio cannot be used.
    """
    try:
        content, rate = bytearray(), 0  # grows in place: joining a list of blocks would hold the recording twice
        for block, rate in read_blocks(path, start, seconds, channel):  # noqa: B007
            content += block.tobytes()
        return np.frombuffer(content, np.float32), rate
    except MemoryError as error:
        raise AudioError(
            f"{_name(path)} does not fit in memory: cut it into files of an hour or less", TOO_LONG
        ) from error


def read_blocks(
    path: str | os.PathLike, start: float = 0.0, seconds: float | None = None, channel: int | None = None
) -> Iterator[tuple[Float[np.ndarray, " N"], int]]:
    """Read as `read_audio`, by blocks of at most 960,000 samples; yield each with the rate in Hz. At least one block.

    Raises:
        AudioError: The audio cannot be used; where it is damaged, after the blocks before.
    """
    name = _name(path)
    try:
        if not Path(path).is_file():
            raise AudioError(f"{name} does not exist (or is not a file): check the path", "missing audio")
        with _Stream(path) as file:
            rate = file.samplerate
            read = 0
            for block in _frames(file, name, round(start * rate), None if seconds is None else round(seconds * rate)):
                read += len(block)
                yield _channel(block, channel, name), rate
            if not read and start:
                raise AudioError(f"{name} has no audio from {start:g} s on: fix the start", "part beyond its end")
            if not read:
                raise AudioError(f"{name} is empty (0 samples): give audio of at least one sample", "empty audio")
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        # The others: a name that is too long, not UTF-8, or ends in .raw.
        raise AudioError(f"{name} cannot be read ({error}): give WAV, FLAC, OGG or MP3", "corrupt audio") from error


def save_audio(path: str | os.PathLike, waveform: Float[np.ndarray, " N"], sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono audio atomically; samples outside ±1 are clipped.

    Args:
        path: File to write; its suffix decides the format. WAV and FLAC have 16 bits.
        waveform: Samples in [-1, 1].
        sample_rate: Hz.

    Raises:
        UserError: The suffix names no format.
    """
    content = io.BytesIO()  # in memory first, because libsndfile does not report a full disk
    try:
        soundfile.write(content, np.clip(waveform, -1.0, 1.0), sample_rate, format=Path(path).suffix[1:])
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise UserError(f"cannot write {os.fspath(path)!r}: {error}; use an ending such as .wav or .flac") from error
    write_bytes(path, content.getvalue())


def is_too_short(samples: int, rate: int) -> bool:
    """Return whether audio is shorter than 10 ms, which gives no unit that means anything."""
    return samples < _SHORTEST * rate


def is_silent(waveform: Float[np.ndarray, " N"]) -> bool:
    """Return whether the peak is below -60 dB of full scale."""
    return bool(max(waveform.max(initial=0.0), -waveform.min(initial=0.0)) < _MUTE)


def trim_silence(waveform: Float[np.ndarray, " N"], keep_seconds: float = 0.04) -> Float[np.ndarray, " M"]:
    """Cut leading and trailing silence, but ``keep_seconds`` at either end; all-zero audio is returned unchanged."""
    return waveform[not_silent(waveform, keep_seconds)]


def not_silent(waveform: Float[np.ndarray, " N"], keep_seconds: float = 0.04) -> slice:
    """Return the samples that `trim_silence` keeps."""
    loud = np.flatnonzero(_loud_blocks(waveform))
    if not loud.size:
        return slice(0, len(waveform))
    keep = round(keep_seconds * SAMPLE_RATE)
    return slice(max(0, int(loud[0]) * _BLOCK - keep), (int(loud[-1]) + 1) * _BLOCK + keep)


def normalise_level(waveform: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Scale the non-silent part to a root mean square of 0.1; all-zero audio is returned unchanged."""
    power = _block_power(waveform)[_loud_blocks(waveform)]
    return waveform * np.float32(LEVEL / np.sqrt(power.mean())) if power.size else waveform


def add_noise(waveform: Float[np.ndarray, " N"], snr_db: float, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Add white noise at a signal-to-noise ratio of ``snr_db`` (mean powers over the whole waveform)."""
    noise_power = np.square(waveform).mean() / 10 ** (snr_db / 10)
    return (waveform + np.sqrt(noise_power) * rng.standard_normal(len(waveform))).astype(np.float32)


def _block_power(waveform: np.ndarray) -> np.ndarray:
    """Return the mean power of each 10 ms block, the last padded with zeros."""
    parts = np.split(waveform, range(_CHUNK, len(waveform), _CHUNK))  # a recording is not copied as a whole
    padded = (np.pad(part, (0, -len(part) % _BLOCK)) for part in parts)
    return np.concatenate([np.square(part.reshape(-1, _BLOCK)).mean(axis=1) for part in padded])


def _loud_blocks(waveform: np.ndarray) -> np.ndarray:
    """Return a mask of the 10 ms blocks that are not silent; all False for an empty or all-zero waveform."""
    power = _block_power(waveform)
    return power > _SILENCE * power.max(initial=0.0)


def _name(path: str | os.PathLike) -> str:
    return f"audio file {os.fspath(path)!r}"


class _Stream(soundfile.SoundFile):
    """A file that is read from front to back: soundfile would seek behind every block that it reads.

    Where the header states no length such a seek fails.
    """

    def seekable(self) -> bool:
        return False


def _frames(file: _Stream, name: str, first: int, count: int | None) -> Iterator[np.ndarray]:
    """Yield blocks ``[frames]`` or ``[frames, channels]`` from frame ``first``, ``count`` in all or to the end."""
    whole, rate = _stated_frames(file), file.samplerate
    place, given = 0, 0  # frames that were read or passed over; that were yielded
    if whole is not None:
        if count is not None and first + count > max(first, whole) + _BEYOND * rate:
            raise _beyond(name, whole, first, count, rate)
        place = file.seek(min(first, file.frames))
    # Of a file whose header states no length, what can be decoded is read.
    last = first + count if count is not None else math.inf
    until = min(last, file.frames)
    while place < until:
        wanted = int(min(max(1, _CHUNK // file.channels), until - place))
        block = file.read(wanted, dtype="float32")
        skipped = max(0, first - place)
        place += len(block)
        if len(block) > skipped:
            given += len(block) - skipped
            yield block[skipped:]
        if len(block) < wanted:
            break
    if whole is None and count is not None and place + _BEYOND * rate < last:
        raise _beyond(name, place, first, count, rate)
    missing = 0 if whole is None else min(last, whole) - first - given  # a seek in a damaged file may miss its place
    if missing > _LOST * rate and not _is_guess(file):
        raise AudioError(f"{name} ends {missing / rate:.1f} s too early: download it again", "corrupt audio")


def _beyond(name: str, frames: int, first: int, count: int, rate: int) -> AudioError:
    span = f"{first / rate:g} to {(first + count) / rate:g} s"
    return AudioError(f"{name} has {frames / rate:g} s, {span} are asked for: fix it", "part beyond its end")


def _channel(waveform: np.ndarray, channel: int | None, name: str) -> Float[np.ndarray, " N"]:
    """Return one channel of ``waveform``, or the mean of all."""
    if channel is None:
        return _mono(waveform, name)
    channels = 1 if waveform.ndim == 1 else waveform.shape[1]
    if channel >= channels:
        raise AudioError(
            f"{name} has {channels} channels, there is no channel {channel}: count from 0", "no such channel"
        )
    return _mono(waveform if waveform.ndim == 1 else waveform[:, channel], name)


def _stated_frames(file: soundfile.SoundFile) -> int | None:
    """Return the number of frames that the header states; None if it states none, as a streamed FLAC may.

    For a truncated WAV or AIFF, libsndfile counts the existing frames and logs the stated size. The header of a
    streamed file states the maximum (about 2 or 4 GiB), which is ignored.
    """
    if file.frames >= 2**62:
        return None
    note = re.search(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    stated, there = map(int, note.groups()) if note else (1, 1)
    return file.frames if stated > _STREAMED or not there else round(file.frames * stated / there)


def _is_guess(file: soundfile.SoundFile) -> bool:
    """Return whether libsndfile only estimates the length: an MP3 without a Xing or Info header."""
    if file.format != "MP3":
        return False
    with open(file.name, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return not re.search(b"Xing|Info", content)


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

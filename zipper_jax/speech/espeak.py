"""espeak-ng from the ``espeakng-loader`` wheel, in a separate process.

espeak-ng is GPL-3: it is never loaded into this process. `espeak_worker.py` runs as a separate program, connected by
pipes.

Axis letters: N samples.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import soxr
from jaxtyping import Float

from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.speech.requests import check_request

_WORDS_PER_MINUTE = 175  # espeak's own rate
_WORKER = Path(__file__).with_name("espeak_worker.py")


class EspeakEngine:
    """American and British English with some of espeak-ng's speaker variants."""

    name = "espeak"
    voices = ("en-us", "en-us+f2", "en-us+f4", "en-us+m3", "en-us+m7", "gmw/en", "gmw/en+f2", "gmw/en+m3")
    default_voices = ("en-us+f2", "gmw/en+f2")
    default_rate = 1.2
    without_pitch = ()

    def __init__(self):
        # -P: without it the worker's folder comes first on sys.path, where a module could shadow a library's
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._lock = threading.Lock()
        self._owner = os.getpid()
        weakref.finalize(self, _end, self._process)

    def say(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Float[np.ndarray, " N"]:
        """See `synthesis.Engine.say`."""
        check_request(self.name, self.voices, text, voice, rate, pitch)
        request = {
            "text": text,
            "voice": voice,
            "words_per_minute": round(_WORDS_PER_MINUTE * rate),
            "pitch": round(50 + 50 * math.log2(pitch)),  # espeak's scale: 50 is the voice's own, 100 an octave higher
        }
        with self._lock:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            header = self._process.stdout.readline()
            if not header:
                raise RuntimeError(f"the espeak-ng worker ended (exit status {self._process.wait()})")
            answer = json.loads(header)
            samples = np.frombuffer(self._process.stdout.read(answer["bytes"]), "<i2")
        if answer["status"] or not samples.size:
            raise RuntimeError(
                f"espeak-ng could not synthesise {text!r} with voice {voice!r} (status {answer['status']})"
            )
        waveform = samples / np.float32(32768)
        return np.ascontiguousarray(soxr.resample(waveform, answer["sample_rate"], SAMPLE_RATE), dtype=np.float32)


@functools.cache
def is_available() -> bool:
    """Return whether the wheel is installed and the platform can fork (Linux, macOS)."""
    return hasattr(os, "fork") and importlib.util.find_spec("espeakng_loader") is not None


@functools.cache
def open_engine() -> EspeakEngine:
    """Start the worker, once per process."""
    return EspeakEngine()


def _end(process: subprocess.Popen) -> None:
    process.stdin.close()  # the worker exits at end of input
    process.stdout.close()
    process.wait()

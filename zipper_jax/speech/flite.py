"""flite (permissive licence) through ctypes on the libraries of the Debian package ``flite``.

Axis letters: N samples.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import NamedTuple

import numpy as np
import soxr
from jaxtyping import Float

from zipper_jax.speech.audio import SAMPLE_RATE
from zipper_jax.speech.requests import check_request
from zipper_jax.utils.errors import UserError

# Duration stretch that flite's registration sets per voice; ``rate`` divides it.
_STRETCH = {"slt": 1.0, "awb": 1.0, "kal16": 1.1, "rms": 1.0}


class _Wave(ctypes.Structure):
    """struct cst_wave of flite 2.x."""

    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _Voice(ctypes.Structure):
    """The first fields of struct cst_voice of flite 2.x."""

    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class _Segment(NamedTuple):
    """A phone or a pause, its times in seconds, and the address of the token that it is of, if any."""

    phone: str
    start: float
    end: float
    token: int | None


class FliteEngine:
    """The four usable voices of flite (``awb_time`` synthesises only times of day)."""

    name = "flite"
    voices = tuple(_STRETCH)
    default_voices = ("slt", "kal16")  # a female voice, and the only one that takes 2 ms a sentence (the others 35)
    default_rate = 1.4
    without_pitch = ("rms",)  # mixed excitation: flite ignores f0_shift for this voice

    def __init__(self, libflite: ctypes.CDLL, voices: dict[str, ctypes._Pointer]):
        self._libflite = libflite
        self._voices = voices
        self._libc = ctypes.CDLL(None)
        self._lock = threading.Lock()  # the random state and the voices' features are shared by the whole process

    def say(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Float[np.ndarray, " N"]:
        """See `synthesis.Engine.say`. The voice rms has no pitch control."""
        check_request(self.name, self.voices, text, voice, rate, pitch)
        if pitch != 1.0 and voice in self.without_pitch:
            raise UserError(f"pitch = {pitch}: flite's voice {voice!r} has no pitch control; give 1.0 or another voice")
        pointer = self._voices[voice]
        with self._lock:
            self._set(voice, rate, pitch)
            self._libc.srand(1)  # unvoiced sounds are drawn with rand(): the same noise for every utterance
            wave = self._libflite.flite_text_to_wave(text.encode(), pointer)
        if not wave:
            raise UserError(f"flite cannot synthesise {text!r} with voice {voice!r}: use plain English words")
        try:
            count, source_rate = wave.contents.num_samples, wave.contents.sample_rate
            samples = np.ctypeslib.as_array(wave.contents.samples, (count,)) / np.float32(32768)
        finally:
            self._libflite.delete_wave(wave)
        if source_rate != SAMPLE_RATE:
            samples = soxr.resample(samples, source_rate, SAMPLE_RATE)
        return np.ascontiguousarray(samples, dtype=np.float32)

    def word_times(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> list[tuple[float, float]]:
        """See `synthesis.WordTimes.word_times`: ends of flite's segments, grouped by the tokens they belong to."""
        times, last = list[tuple[float, float]](), None
        for segment in self._segments(text, voice, rate, pitch):
            if segment.token and segment.token == last:
                times[-1] = (times[-1][0], segment.end)
            elif segment.token:  # pauses belong to none
                times.append((segment.start, segment.end))
            last = segment.token or last
        return times if len(times) == len(text.split()) else []

    def phone_times(self, text: str, voice: str) -> list[tuple[str, float, float]]:
        """Phones of what `say` says at its own tempo and pitch, with their times in seconds; pauses are "pau"."""
        return [(segment.phone, segment.start, segment.end) for segment in self._segments(text, voice, 1.0, 1.0)]

    def _segments(self, text: str, voice: str, rate: float, pitch: float) -> list[_Segment]:
        check_request(self.name, self.voices, text, voice, rate, pitch)
        library, found, end = self._libflite, list[_Segment](), 0.0
        with self._lock:
            self._set(voice, rate, pitch)
            utterance = library.flite_synth_text(text.encode(), self._voices[voice])
            try:
                segment = library.relation_head(library.utt_relation(utterance, b"Segment"))
                while segment:
                    start, end = end, float(library.ffeature_float(segment, b"end"))
                    token = library.path_to_item(segment, b"R:SylStructure.parent.parent.R:Token.parent")
                    phone = library.ffeature_string(segment, b"name").decode()
                    found.append(_Segment(phone, start, end, token))
                    segment = library.item_next(segment)
            finally:
                library.delete_utterance(utterance)
        return found

    def _set(self, voice: str, rate: float, pitch: float) -> None:
        features = self._voices[voice].contents.features
        self._libflite.flite_feat_set_float(features, b"duration_stretch", _STRETCH[voice] / rate)
        self._libflite.flite_feat_set_float(features, b"f0_shift", pitch)


@functools.cache
def is_available() -> bool:
    """Return whether flite's library and the four voices are installed."""
    try:
        open_engine()
    except OSError:
        return False
    return True


@functools.cache
def open_engine() -> FliteEngine:
    """Load the libraries, once per process. Raises OSError when they are not installed."""
    # Global, because the voices' libraries resolve their symbols in these.
    libflite = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
    for library in ("libflite_usenglish.so.1", "libflite_cmulex.so.1"):
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    libflite.flite_text_to_wave.argtypes = (ctypes.c_char_p, ctypes.POINTER(_Voice))
    libflite.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
    libflite.flite_feat_set_float.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float)
    libflite.delete_wave.argtypes = (ctypes.POINTER(_Wave),)
    item, text = ctypes.c_void_p, ctypes.c_char_p
    for function, result, arguments in (
        ("flite_synth_text", item, (text, ctypes.POINTER(_Voice))),
        ("delete_utterance", None, (item,)),
        ("utt_relation", item, (item, text)),
        ("relation_head", item, (item,)),
        ("item_next", item, (item,)),
        ("path_to_item", item, (item, text)),
        ("ffeature_float", ctypes.c_float, (item, text)),
        ("ffeature_string", text, (item, text)),
    ):
        getattr(libflite, function).argtypes, getattr(libflite, function).restype = arguments, result
    libflite.flite_init()
    voices = {}
    for name in _STRETCH:
        register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
        register.argtypes, register.restype = (ctypes.c_char_p,), ctypes.POINTER(_Voice)
        voices[name] = register(None)
    return FliteEngine(libflite, voices)

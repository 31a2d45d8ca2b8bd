"""Speech synthesis: flite if its libraries are installed, else the espeak-ng wheel; neural voices where asked for.

All are deterministic: the same call gives the same samples in any order and any process. Licences: `LICENCES`.

Axis letters: N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from zipper_jax.speech import espeak, flite, neural_voices
from zipper_jax.utils.errors import UserError

ENGINES = {flite.FliteEngine.name: flite, espeak.EspeakEngine.name: espeak}
"""Those of "auto", in order of preference."""
NEURAL: dict[str, Callable[[str], Any]] = {
    neural_voices.PiperEngine.name: neural_voices.open_piper,
    neural_voices.KokoroEngine.name: neural_voices.open_kokoro,
}
"""Engine -> what opens the voices of a folder, or of its packages."""
LICENCES = {
    "flite": "BSD-like",
    "espeak": "GPL-3.0, in a process of its own",
    "piper": "runtime and lexicons MIT and Apache-2.0; voice joe: package MIT, recordings CC0, fine-tuned from lessac",
    "kokoro": "Apache-2.0; ONNX export MIT",
}
_HOW_TO_INSTALL = "install flite (Debian/Ubuntu: apt-get install flite) or espeak-ng (pip install espeakng-loader)"


@runtime_checkable
class Engine(Protocol):
    """One synthesiser."""

    name: str
    voices: tuple[str, ...]
    """Every voice it has."""
    default_voices: tuple[str, ...]
    """Default voices of a corpus: those with the lowest error rates of the judge."""
    default_rate: float
    """Default rate of a corpus."""
    without_pitch: tuple[str, ...]
    """Voices without pitch control."""

    def say(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Float[np.ndarray, " N"]:
        """Synthesise ``text`` as 16 kHz float32 audio; ``rate`` and ``pitch`` multiply the voice's own."""
        ...


@runtime_checkable
class WordTimes(Protocol):
    """An engine that knows when it says which word."""

    def word_times(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> list[tuple[float, float]]:
        """Start and end of each word of ``text``, by whitespace, in seconds of what ``say`` returns; []: not known."""
        ...


def available_engines() -> list[str]:
    """Return the names of the engines that "auto" can choose here, in order of preference."""
    return [name for name, module in ENGINES.items() if module.is_available()]


def available_voices() -> list[str]:
    """Return the names of the engines of neural voices whose packages are installed."""
    return [name for name in NEURAL if neural_voices.is_available(name)]


def find_engine(preferred: str = "auto", voice_files: str = "") -> Engine:
    """Return an engine.

    Args:
        preferred: Its name; "auto": the first of flite and espeak that is available.
        voice_files: Folder of the files of neural voices; "": those of their packages.

    Raises:
        UserError: An unknown engine, or one that is not available here.
    """
    known = (*ENGINES, *NEURAL)
    if preferred != "auto" and preferred not in known:
        raise UserError(f"engine = {preferred!r}: unknown; give one of auto, {', '.join(known)}")
    if preferred in NEURAL:
        return NEURAL[preferred](voice_files)
    if voice_files:
        raise UserError(f"voice_files = {voice_files!r}: {preferred} has its own voices; give --engine piper or kokoro")
    available = available_engines()
    if preferred == "auto" and available:
        preferred = available[0]
    if preferred not in available:
        raise UserError(f"speech engine {preferred!r} is not available here: {_HOW_TO_INSTALL}")
    return ENGINES[preferred].open_engine()

"""Speech synthesis without a model download: flite if its libraries are installed, else the espeak-ng wheel.

Both are deterministic: the same call gives the same samples in any order and any process.

Axis letters: N samples.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from zipper_jax.speech import espeak, flite
from zipper_jax.utils.errors import UserError

ENGINES = {flite.FliteEngine.name: flite, espeak.EspeakEngine.name: espeak}  # in order of preference
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
    """Default rate of a corpus: the fastest at which the judge still recognises vocoded units."""
    without_pitch: tuple[str, ...]
    """Voices without pitch control."""

    def say(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Float[np.ndarray, " N"]:
        """Synthesise ``text`` as 16 kHz float32 audio; ``rate`` and ``pitch`` multiply the voice's own."""
        ...


def available_engines() -> list[str]:
    """Return the names of the engines that are available, in order of preference."""
    return [name for name, module in ENGINES.items() if module.is_available()]


def find_engine(preferred: str = "auto") -> Engine:
    """Return the engine ``preferred`` ("flite" or "espeak"); "auto": the first that is available."""
    if preferred != "auto" and preferred not in ENGINES:
        raise UserError(f"engine = {preferred!r}: unknown; give one of auto, {', '.join(ENGINES)}")
    available = available_engines()
    if preferred == "auto" and available:
        preferred = available[0]
    if preferred not in available:
        raise UserError(f"speech engine {preferred!r} is not available here: {_HOW_TO_INSTALL}")
    return ENGINES[preferred].open_engine()

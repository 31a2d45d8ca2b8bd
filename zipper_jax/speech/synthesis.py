"""Speech synthesis that needs no download: flite where its libraries are installed, else the espeak-ng wheel.

Both are deterministic: the same call gives the same samples, whatever was said before, in whichever process.

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
    """The voices a corpus uses unless told otherwise: the few that the judge understands best."""
    default_rate: float
    """The rate a corpus uses unless told otherwise: the fastest at which the judge still understands the units."""
    without_pitch: tuple[str, ...]
    """Voices that can be given no pitch but their own."""

    def say(self, text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Float[np.ndarray, " N"]:
        """16 kHz float32 audio of ``text``; ``rate`` and ``pitch`` multiply the voice's own."""
        ...


def available_engines() -> list[str]:
    """Names of the engines that can run here, best first."""
    return [name for name, module in ENGINES.items() if module.is_available()]


def find_engine(preferred: str = "auto") -> Engine:
    """The engine called ``preferred`` ("flite" or "espeak"), or with "auto" the first that can run here."""
    if preferred != "auto" and preferred not in ENGINES:
        raise UserError(f"engine {preferred!r} is unknown: give one of auto, {', '.join(ENGINES)}")
    available = available_engines()
    if preferred == "auto" and available:
        preferred = available[0]
    if preferred not in available:
        raise UserError(f"speech engine {preferred!r} is not available here: {_HOW_TO_INSTALL}")
    return ENGINES[preferred].open_engine()

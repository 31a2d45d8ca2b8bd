"""Zip pretrained decoders of different modalities into one model that reads and writes both.

    import zipper_jax
    model = zipper_jax.load("runs/smoke/fusion")
    model.transcribe(audio, sample_rate)      # -> text
    model.speak("set the lamp to nine")       # -> audio

Importing the package imports neither jax nor TensorFlow.
"""

from typing import TYPE_CHECKING, Any

from zipper_jax.errors import UserError
from zipper_jax.version import __version__

if TYPE_CHECKING:
    from zipper_jax.api import load

__all__ = ["UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # on first use: it imports jax
        from zipper_jax.api import load

        return load
    raise AttributeError(f"module 'zipper_jax' has no attribute {name!r}")

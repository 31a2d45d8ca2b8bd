"""Zip pretrained decoders of different modalities into one model that reads and writes both.

    import zipper_jax
    model = zipper_jax.load("runs/smoke/zipper")
    model.transcribe(audio, sample_rate)      # -> text
    model.speak("set the lamp to nine")       # -> audio
    tower = zipper_jax.from_hf("folder or hub id")

Importing the package imports neither jax nor TensorFlow.
"""

from typing import TYPE_CHECKING, Any

from zipper_jax.utils.errors import UserError
from zipper_jax.version import __version__

if TYPE_CHECKING:
    from zipper_jax.api import from_hf, load

__all__ = ["UserError", "__version__", "from_hf", "load"]


def __getattr__(name: str) -> Any:
    if name in ("load", "from_hf"):  # on first use: it imports jax
        from zipper_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'zipper_jax' has no attribute {name!r}")

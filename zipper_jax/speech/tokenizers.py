"""Unit tokenizers of every kind, loaded from the folder that also holds the vocabulary."""

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.speech import given_units, hubert, mel_decoder, whisper_units
from zipper_jax.speech.mel_decoder import MelDecoder
from zipper_jax.speech.tokenizer import UnitTokenizer, check_units
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import as_path, is_bucket, on_this_machine


@runtime_checkable
class Tokenizer(Protocol):
    """Encoder of audio as units.

    Attributes:
        num_units: Number of units.
        rate_hz: Units per second.
        digest: SHA-256; equal digests mean equal units.
    """

    @property
    def num_units(self) -> int: ...

    @property
    def rate_hz(self) -> float: ...

    @property
    def digest(self) -> str: ...

    def encode(self, waveform: Float[np.ndarray, " N"]) -> Int[np.ndarray, " U"]:
        """Return the units of 16 kHz audio. Raises UserError when the tokenizer is not available."""
        ...

    def decode(self, units: Int[np.ndarray, " U"]) -> Float[np.ndarray, "L M"]:
        """Return log-mel frames for `zipper_jax.speech.vocoder`. Raises UserError when the units have none."""
        ...

    def save(self, folder: str | os.PathLike) -> None: ...


class VocodedTokenizer:
    """A tokenizer whose units a learned network decodes; units and digest are the tokenizer's.

    Args:
        base: The tokenizer.
        mel_decoder: Trained on its units.

    Raises:
        UserError: It was trained on other units.
    """

    def __init__(self, base: Tokenizer, mel_decoder: MelDecoder):
        if mel_decoder.units != base.digest:
            raise UserError(
                f"the mel decoder was trained on units {mel_decoder.units[:16]}, these are {base.digest[:16]}: train "
                "one of these (zipper data vocoder)"
            )
        self.base, self.mel_decoder = base, mel_decoder

    @property
    def num_units(self) -> int:
        return self.base.num_units

    @property
    def rate_hz(self) -> float:
        return self.base.rate_hz

    @property
    def digest(self) -> str:
        return self.base.digest

    def encode(self, waveform: Float[np.ndarray, " N"]) -> Int[np.ndarray, " U"]:
        """See `Tokenizer`."""
        return self.base.encode(waveform)

    def decode(self, units: Int[np.ndarray, " U"]) -> Float[np.ndarray, "L M"]:
        """See `Tokenizer`."""
        return self.mel_decoder.decode(check_units(units, self.num_units))

    def save(self, folder: str | os.PathLike) -> None:
        """Write the tokenizer and the network."""
        self.base.save(folder)
        self.mel_decoder.save(folder)


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Load a tokenizer of any kind, and its learned decoder if it has one.

    Raises:
        UserError: It is missing or damaged.
    """
    if is_bucket(folder):
        with on_this_machine(as_path(folder)) as copy:
            return load_tokenizer(copy)
    found = load_units(folder)
    there = (Path(folder) / mel_decoder.FILE_NAME).is_file()
    return VocodedTokenizer(found, MelDecoder.load(folder)) if there else found


def load_units(folder: str | os.PathLike) -> Tokenizer:
    """Load a tokenizer of any kind without its learned decoder, which encoding does not need.

    Raises:
        UserError: It is missing or damaged.
    """
    if is_bucket(folder):
        with on_this_machine(as_path(folder)) as copy:
            return load_units(copy)
    path = Path(folder) / given_units.FILE_NAME
    if not path.is_file():
        return UnitTokenizer.load(folder)
    try:
        about = user_json.read_object(path, "it is damaged: prepare the data again")
        kind = about.pop("kind")
        if kind == given_units.KIND:
            return given_units.GivenUnits.of(about, repr(str(path)))
        if kind == hubert.KIND:
            return hubert.HubertTokenizer.load(folder, about)
        if kind == whisper_units.KIND:
            return whisper_units.WhisperUnits.load(folder, about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"speech tokenizer {str(path)!r} is damaged ({error!r}): prepare the data again") from error
    raise UserError(f"speech tokenizer {str(path)!r} is of kind {kind!r}, which this version does not know: upgrade")

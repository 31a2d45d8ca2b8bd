"""Validation of synthesis requests, shared by the engines."""

from __future__ import annotations

import math

from zipper_jax.utils.errors import UserError

_RANGE = (0.4, 2.5)  # beyond, both engines clip silently or become unintelligible


def check_request(engine: str, voices: tuple[str, ...], text: str, voice: str, rate: float, pitch: float) -> None:
    """Raise UserError for an unknown voice, a text without a letter or digit, or an unusable rate or pitch."""
    if voice not in voices:
        raise UserError(f"voice = {voice!r}: {engine} has no such voice; give one of {', '.join(voices)}")
    if not any(character.isalnum() for character in text) or "\0" in text:
        raise UserError(f"text = {text!r}: there is nothing to synthesise; give at least one letter or digit")
    for field, value in (("rate", rate), ("pitch", pitch)):
        if not (math.isfinite(value) and _RANGE[0] <= value <= _RANGE[1]):
            raise UserError(
                f"{field} = {value}: give a factor from {_RANGE[0]} to {_RANGE[1]} (1.0 is the voice's own)"
            )

"""Units of an external tokenizer: name, number, rate, and optionally a vocoder command."""

import dataclasses
import hashlib
import math
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.speech.audio import load_audio
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.utils.storage import as_path

FILE_NAME = "tokenizer.json"
KIND = "given"
_FIX = "give num_units and rate_hz, optionally name and vocoder"


@dataclasses.dataclass(frozen=True)
class GivenUnits:
    """Description of external units.

    Attributes:
        num_units: Number of units.
        rate_hz: Units per second.
        name: Sets of equal name, number and rate are the same units.
        vocoder: Command with ``{units}`` (a file of unit numbers) and ``{wav}`` (the file to write). Only `run_vocoder`
            executes it.
    """

    num_units: int
    rate_hz: float
    name: str = ""
    vocoder: str = ""

    def __post_init__(self) -> None:
        if self.num_units < 1:
            raise UserError(f"num_units = {self.num_units}: give a whole number of at least 1")
        if not 0 < self.rate_hz < math.inf:
            raise UserError(f"rate_hz = {self.rate_hz:g}: give units per second, e.g. 25")
        check_vocoder(self.vocoder)

    @classmethod
    def read(cls, path: Path) -> "GivenUnits":
        """Read a header file. Raises UserError, which names the file."""
        if not path.is_file():
            raise UserError(
                f'{str(path)!r} does not exist: write {{"num_units": …, "rate_hz": …}} there, or give --header FILE'
            )
        place = repr(str(path))
        return cls.of(user_json.decode(path.read_bytes(), place, _FIX), place)

    @classmethod
    def of(cls, value: Any, place: str, field: str = "") -> "GivenUnits":
        """Build from decoded JSON, the ``field`` of the object at ``place`` or all of it.

        Raises:
            UserError: Missing, unknown or wrong fields.
        """
        return user_json.convert(value, cls, place, _FIX, field, known=[f.name for f in dataclasses.fields(cls)])

    @property
    def digest(self) -> str:
        """SHA-256 of name, number and rate: equal digests mean the same units, as far as the header tells."""
        return hashlib.sha256(f"given {self.name} {self.num_units} {float(self.rate_hz)!r}".encode()).hexdigest()

    def encode(self, waveform: Float[np.ndarray, " N"]) -> Int[np.ndarray, " U"]:
        raise UserError(
            f"the tokenizer of {self._called} is not available, so audio cannot be encoded: encode it elsewhere, and "
            'give the units (`zipper generate` takes ["speech", [UNITS]])'
        )

    def decode(self, units: Int[np.ndarray, " U"]) -> Float[np.ndarray, "L M"]:
        raise no_vocoder(self._called, self.vocoder)

    def save(self, folder: str | os.PathLike) -> None:
        write_json(as_path(folder) / FILE_NAME, {"kind": KIND, **dataclasses.asdict(self)})

    @property
    def _called(self) -> str:
        return f"these units ({self.name or 'without a name'}, {self.num_units} at {self.rate_hz:g} Hz)"


def check_vocoder(command: str) -> None:
    """Raise UserError for a command without ``{units}`` or ``{wav}``."""
    if command and not ("{units}" in command and "{wav}" in command):
        raise UserError(f"vocoder = {command!r}: give a command with {{units}} and {{wav}} in place of its files")


def no_vocoder(called: str, command: str) -> UserError:
    """Return the error to raise when audio is requested of units without a vocoder."""
    hint = f"; their header names the command {command}" if command else ""
    return UserError(f"{called} have no built-in vocoder: generate units (`zipper generate`) and vocode them{hint}")


def run_vocoder(command: str, units: Int[np.ndarray, " U"]) -> Float[np.ndarray, " N"]:
    """Return 16 kHz audio made by an external command, run without a shell. Raises UserError when it fails."""
    check_vocoder(command)
    with tempfile.TemporaryDirectory() as folder:
        places = {"units": str(Path(folder, "units.txt")), "wav": str(Path(folder, "speech.wav"))}
        Path(places["units"]).write_text(" ".join(map(str, units)) + "\n", encoding="utf-8")
        words = [
            word.replace("{units}", places["units"]).replace("{wav}", places["wav"]) for word in shlex.split(command)
        ]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UserError(
                f"the vocoder {words[0]!r} cannot be run ({error}): check the command {command!r}"
            ) from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no error output"])[-1]
            raise UserError(f"the vocoder {command!r} failed with exit status {done.returncode}: {last}")
        return load_audio(places["wav"])

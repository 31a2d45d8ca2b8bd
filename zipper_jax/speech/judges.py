"""Judges of generated speech by name: recognisers that are independent of the models under test.

grammar             pocketsphinx with the grammar of a corpus made by `zipper data synth`; snaps to its sentences
whisper[:WHERE]     Whisper, for any sentences (`speech.whisper`): a folder, a hub name, or an installed package
command:PROGRAM     any program: it gets WAV files as its last arguments, and prints one line per file, in order
"""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from zipper_jax.metrics.normalisers import ENGLISH_DIGITS
from zipper_jax.speech import judge as pocketsphinx_judge
from zipper_jax.speech import whisper
from zipper_jax.speech.audio import save_audio
from zipper_jax.speech.workers import parallel_map
from zipper_jax.utils.errors import UserError

NAMES = ("grammar", "whisper", "whisper:WHERE", "command:PROGRAM")


class Judge(ABC):
    """A recogniser.

    Attributes:
        normaliser: Policy that suits what it writes; None: that of the references.
    """

    normaliser: ClassVar[str | None] = None

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports print beside every rate."""

    @property
    def key(self) -> str:
        """What its transcripts depend on but the audio."""
        return self.name

    @abstractmethod
    def transcribe(self, waveforms: Sequence[np.ndarray], processes: int | None = None) -> list[str]:
        """Return one transcript per waveform of 16 kHz; "" for silence."""


@dataclass(frozen=True)
class GrammarJudge(Judge):
    """`speech.judge` with one grammar."""

    jsgf: str

    @property
    def name(self) -> str:
        return pocketsphinx_judge.NAME

    @property
    def key(self) -> str:
        return f"{self.name} {self.jsgf}"

    def transcribe(self, waveforms: Sequence[np.ndarray], processes: int | None = None) -> list[str]:
        return pocketsphinx_judge.transcribe_all(waveforms, self.jsgf, processes)


@dataclass(frozen=True)
class WhisperJudge(Judge):
    """`speech.whisper` with one set of weights."""

    normaliser = ENGLISH_DIGITS
    weights: whisper.Weights
    language: str = "en"

    @property
    def name(self) -> str:
        guard = f"mean log p < {whisper.LEAST_LOG_PROBABILITY:g}, compression > {whisper.MOST_COMPRESSION:g} or "
        guard += f"p(no speech) > {whisper.MOST_NO_SPEECH:g}"
        return f"Whisper, weights {self.weights.digest[:16]}, {self.language}; no text where {guard}"

    def transcribe(self, waveforms: Sequence[np.ndarray], processes: int | None = None) -> list[str]:
        setup = {"folder": str(self.weights.folder), "language": self.language}
        return list(parallel_map("zipper_jax.speech.whisper:make_recogniser", setup, waveforms, processes))


@dataclass(frozen=True)
class CommandJudge(Judge):
    """A program."""

    command: str

    @property
    def name(self) -> str:
        return f"command {self.command}"

    @property
    def key(self) -> str:
        """The command, and the content of the files that it names: another program or model is another judge."""
        words = shlex.split(self.command)
        files = [Path(shutil.which(words[0]) or words[0]), *map(Path, words[1:])]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
        return " ".join([self.name, *digests])

    def transcribe(self, waveforms: Sequence[np.ndarray], processes: int | None = None) -> list[str]:
        if not waveforms:
            return []
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder, f"{number:06}.wav")) for number in range(len(waveforms))]
            for path, waveform in zip(files, waveforms, strict=True):
                save_audio(path, waveform)
            try:
                done = subprocess.run([*shlex.split(self.command), *files], capture_output=True, check=False)
            except OSError as error:
                raise UserError(f"--judge command:{self.command} cannot be run: {error.strerror}") from error
        lines = done.stdout.decode(errors="replace").removesuffix("\n").split("\n") if done.stdout else []
        if done.returncode or len(lines) != len(files):
            said = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
            raise UserError(
                f"--judge command:{self.command} ended with status {done.returncode} and {len(lines)} lines for "
                f"{len(files)} files: {said or 'it must print one line per file'}"
            )
        return [line.strip() for line in lines]


def make_judge(name: str, jsgf: str | None) -> Judge:
    """The judge called ``name``.

    Args:
        name: See the module; "": "grammar" where there is one, else "whisper".
        jsgf: The grammar of the corpus; None: it has none.

    Raises:
        UserError: An unknown name, no grammar, or weights or packages that are missing.
    """
    kind, _, rest = (name or ("whisper" if jsgf is None else "grammar")).partition(":")
    if kind == "whisper":
        if importlib.util.find_spec("ctranslate2") is None:
            other = "" if name else "this corpus has no grammar, so the judge is whisper: "
            raise UserError(f"{other}whisper needs a package: pip install --editable '.[judge]' in the checkout")
        return WhisperJudge(whisper.find_weights(rest))
    if kind == "command" and rest.strip():
        try:
            shlex.split(rest)
        except ValueError as error:
            raise UserError(f"--judge command:{rest} cannot be split into words ({error}): mend its quotes") from error
        return CommandJudge(rest)
    if name and name != "grammar":
        raise UserError(f"--judge = {name!r} is unknown: give one of {', '.join(NAMES)}")
    if jsgf is None:
        raise UserError(
            "--judge grammar: this corpus was not made by `zipper data synth` and has no grammar; give --judge whisper"
        )
    return GrammarJudge(jsgf)

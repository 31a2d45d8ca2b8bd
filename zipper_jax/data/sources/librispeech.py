"""LibriSpeech layout: SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside one .flac (or .wav, …) per utterance.

The subset's name gives the split: train-*, dev-*, test-clean, test-other.
"""

from collections.abc import Iterator
from pathlib import Path

from zipper_jax.data.sources import lines
from zipper_jax.data.sources.rows import (
    NO_TEXT,
    NOT_UTF8,
    ImportSettings,
    Row,
    audio_files,
    beside,
    files_below,
    require_folder,
)
from zipper_jax.utils.errors import UserError

_DEPTH = 3  # SUBSET/SPEAKER/CHAPTER


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield the rows below ``path``: the folder of the subsets, one above it, or one subset."""
    folder = require_folder(path, "LibriSpeech's subsets, such as train-clean-100 and dev-clean")
    transcripts = [file for file in files_below(folder) if file.name.endswith(".trans.txt")]
    if not transcripts:
        raise UserError(f"{str(path)!r} holds no *.trans.txt: give LibriSpeech's folder (SUBSET/SPEAKER/CHAPTER/…)")
    named = set()
    for transcript in transcripts:
        split, speaker = transcript.parts[-_DEPTH - 1], transcript.parts[-_DEPTH]
        for number, line in lines.lines(transcript):
            place = f"{transcript}:{number}"
            if line is None:
                yield Row(place, place, split, problem=NOT_UTF8)
                continue
            name, _, text = line.strip().partition(" ")
            if name:
                audio = beside(transcript.parent / f"{name}.flac")
                named.add(audio)
                problem = "" if text.strip() else NO_TEXT
                yield Row(name, place, split, text.strip(), str(audio), voice=speaker, problem=problem)
    for audio in audio_files(folder):
        if audio not in named:
            yield Row(audio.stem, str(audio), audio.parts[-_DEPTH - 1], problem=NO_TEXT)

"""A folder of audio without text, for a speech tower: every audio file below it, as in Libri-Light.

The first folder of a file's relative path is its speaker (SPEAKER/BOOK/FILE.flac).
"""

from collections.abc import Iterator
from pathlib import Path

from zipper_jax.data.sources.rows import ImportSettings, Row, audio_files, id_of, require_folder
from zipper_jax.utils.errors import UserError


def read(path: Path, settings: ImportSettings) -> Iterator[Row]:
    """Yield rows without text; long ones are cut later, when their duration is known."""
    folder, empty = require_folder(path, "audio files"), True
    for file in audio_files(folder):
        empty = False
        folders = file.relative_to(folder).parts[:-1]
        yield Row(id_of(file, folder), str(file), audio=str(file), voice=folders[0] if folders else None)
    if empty:
        raise UserError(f"{str(path)!r} holds no audio file (.wav, .flac, .ogg, .mp3, …): check the folder")

"""Lines of text files, compressed or not."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zipper_jax.utils.errors import UserError

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = tuple(_OPENERS)


def ending(path: Path) -> str:
    """Return the suffix without that of compression: ``.txt`` for a.txt and for a.txt.gz."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def stem(path: Path) -> str:
    """Return the stem without that of compression: ``a`` for a.txt and for a.txt.gz."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).stem


def lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Yield (number from 1, line without its newline); None for a line that is not UTF-8.

    Raises:
        UserError: The file does not exist or cannot be decompressed.
    """
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist (or is not a file): check the path")
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    yield number, None if b"\0" in line else line.rstrip(b"\r\n").decode()  # zero bytes mean UTF-16
                except UnicodeDecodeError:
                    yield number, None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{str(path)!r} cannot be unpacked ({error}): get it again") from error
    except OSError as error:
        if error.errno is None:  # bz2 reports damaged data this way
            raise UserError(f"{str(path)!r} cannot be unpacked ({error}): get it again") from error
        raise

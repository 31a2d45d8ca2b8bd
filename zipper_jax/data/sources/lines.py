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
    """``.txt`` of a.txt and of a.txt.gz."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def stem(path: Path) -> str:
    """``a`` of a.txt and of a.txt.gz."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).stem


def lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """(number, line without its end) from 1 on; None for a line that is not UTF-8.

    Raises:
      UserError: no such file, or one that does not unpack.
    """
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist (or is not a file): check the path")
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    yield number, None if b"\0" in line else line.rstrip(b"\r\n").decode()  # a zero byte: UTF-16
                except UnicodeDecodeError:
                    yield number, None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{str(path)!r} cannot be unpacked ({error}): get it again") from error
    except OSError as error:
        if error.errno is None:  # bz2's word for damage
            raise UserError(f"{str(path)!r} cannot be unpacked ({error}): get it again") from error
        raise

"""Files that are either whole or not there: written aside, then renamed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes ``path`` atomically; folders are made."""
    write_with(path, lambda aside: aside.write_bytes(data))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` as readable JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_with(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Calls ``write(aside)`` and renames ``aside`` to ``path``; after an error or Ctrl-C nothing of it stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)

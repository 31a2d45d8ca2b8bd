"""Paths as users write them: ``~`` is expanded, and what is not a path of this machine is refused by name."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from zipper_jax.utils.errors import UserError

# One slash suffices: Path("gs://bucket/run") is "gs:/bucket/run", and would be a folder here.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def cache_home() -> Path:
    """``~/.cache/zipper_jax``, or its like under XDG_CACHE_HOME. Raises RuntimeError if there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zipper_jax"


def local_path(path: str | os.PathLike, field: str) -> str:
    """``path`` with ``~`` expanded.

    Args:
        path: As the user wrote it.
        field: The option, macro or field that holds it, for the message.

    Raises:
        UserError: It is empty, a URL, or names the home folder of a user that does not exist.
    """
    text = os.fspath(path)
    if not text:
        raise UserError(f"{field} is empty: give a path")
    if _URL.match(text):
        raise UserError(
            f"{field} = {text!r}: URLs and object stores are not supported; give a path on this machine, for example "
            "of a mounted bucket"
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{field} = {text!r}: there is no such user; write ./{text} for a folder of that name")
    return expanded


def require_different(out: str | os.PathLike, field: str, sources: Mapping[str, str | os.PathLike | None]) -> None:
    """Raise UserError where ``out`` is one of the sources (field -> path), links resolved: no input is overwritten."""
    for source_field, source in sources.items():
        # A source that is missing is reported as such, by whoever reads it.
        if source is not None and os.path.exists(source) and os.path.realpath(source) == os.path.realpath(out):
            raise UserError(f"{field} = {os.fspath(out)!r} is {source_field}, which is only read: give another {field}")


def path_text(text: str) -> str:
    """Type of a command-line option that is a path and is used as a string; `Path` where it is used as one."""
    return text

"""Paths as users write them: ``~`` is expanded, and what is not a path of this machine is refused by name."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import AnyPath, as_path, is_bucket

# One slash suffices: Path("gs://bucket/run") is "gs:/bucket/run", and would be a folder here.
_BUCKET = re.compile(r"(gs|s3)://[a-z0-9][a-z0-9._-]+(/(?!\.{1,2}(/|$))[^/\x00-\x1f]+)+/?")
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
            f"{field} = {text!r}: URLs and object stores are not supported here; give a path on this machine, "
            "to which you copied it"
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{field} = {text!r}: there is no such user; write ./{text} for a folder of that name")
    return expanded


def any_path(path: str | os.PathLike, field: str) -> str:
    """As `local_path`, but a folder of a bucket, ``gs://BUCKET/PATH`` or ``s3://BUCKET/PATH``, is one too."""
    text = os.fspath(path)
    if not is_bucket(text):
        if _URL.match(text):
            raise UserError(
                f"{field} = {text!r}: of URLs only folders of buckets are supported; give gs://BUCKET/FOLDER, "
                "s3://BUCKET/FOLDER or a path on this machine"
            )
        return local_path(text, field)
    if not _BUCKET.fullmatch(text):
        raise UserError(f"{field} = {text!r} is no folder of a bucket; write it as gs://BUCKET/FOLDER/SUBFOLDER")
    return text.rstrip("/")


def require_different(out: str | os.PathLike, field: str, sources: Mapping[str, str | os.PathLike | None]) -> None:
    """Raise UserError where ``out`` is one of the sources (field -> path), links resolved: no input is overwritten."""

    def real(path: str | os.PathLike) -> str:
        return os.fspath(path).rstrip("/") if is_bucket(path) else os.path.realpath(path)

    for source_field, source in sources.items():
        # A source that is missing is reported as such, by whoever reads it.
        there = source is not None and (is_bucket(source) or os.path.exists(source))
        if there and source is not None and real(source) == real(out):
            raise UserError(f"{field} = {os.fspath(out)!r} is {source_field}, which is only read: give another {field}")


def require_parent(file: AnyPath | None, field: str) -> None:
    """Raise UserError where a file of this machine is to be written into a folder that does not exist."""
    if isinstance(file, Path) and not file.absolute().parent.is_dir():
        raise UserError(f"{field} = {file}: the folder does not exist")


def folder_text(text: str) -> str:
    """Type of a command-line option that is a folder, of a bucket too (`any_path`), and is used as a string."""
    return text


def folder_path(text: str) -> AnyPath:
    """As `folder_text`, used as a path."""
    return as_path(text)


def path_text(text: str) -> str:
    """Type of a command-line option that is a path and is used as a string; `Path` where it is used as one."""
    return text

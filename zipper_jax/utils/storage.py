"""Folders on this machine and in buckets (``gs://``, ``s3://``) behind one type of path.

A bucket has no folders, no renames and no file locks. It has objects that appear whole, and writes under a condition
on an object's *generation*. So on a bucket one object is written by one request; a folder is complete once its last
object, a marker, is there (`MARKER`, Orbax's name of it); and a lock is an object with a lease (`utils.leases`).

All traffic goes through TensorStore, which Orbax needs anyway and which has no cache that could be stale. Orbax and
`etils.epath` reach objects through `fsspec`, where `Buckets` below takes the place of gcsfs and s3fs.

Credentials: gs://: application default credentials; s3://: those of the AWS SDK. ``TENSORSTORE_GCS_HTTP_URL`` and
``AWS_ENDPOINT_URL`` name other servers.

Every function raises `ServiceError` where the service fails.
"""

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from zipper_jax.utils.errors import ServiceError, UserError

try:
    from etils import epath

    AnyPath: TypeAlias = Path | epath.Path
    """A path on this machine, or in a bucket."""
except ImportError:  # `zipper doctor` reports it
    AnyPath = Path  # type: ignore[assignment, misc]

MARKER = "commit_success.txt"
"""Name of the object that is written last into a folder of a bucket, and deleted first."""

PARTIAL = ".partial"
"""Name of the object that is written first into a folder of a bucket, and deleted after the marker was written."""

RETRIES = 6
"""Of a request, after pauses of 1, 2, 4, … seconds: about a minute."""

ABSENT = b"\x02"
"""TensorStore's generation of an object that does not exist, for `write`."""

_URL = re.compile(r"(gs|s3):/+")  # Path("gs://bucket/run") is "gs:/bucket/run"

_SHORTER = re.compile(r"OUT_OF_RANGE|Unexpected Content-Range")
"""What servers answer to a request for bytes behind the end of an object."""


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether the path names a bucket rather than this machine."""
    return _URL.match(os.fspath(path)) is not None


def as_path(path: str | os.PathLike) -> AnyPath:
    """The path as an object: `pathlib.Path`, or `epath.Path` of a bucket."""
    text = os.fspath(path)
    if not is_bucket(text):
        return Path(text)
    _register()
    return epath.Path(_URL.sub(r"\1://", text))


def absolute(path: str | os.PathLike) -> AnyPath:
    """`as_path`, a path on this machine made absolute."""
    found = as_path(path)
    return found.absolute() if isinstance(found, Path) else found


# Objects.


def read(path: str | os.PathLike, start: int = 0, stop: int | None = None) -> bytes:
    """The content of an object, or its bytes from ``start`` to ``stop``.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is shorter.
    """
    return read_version(path, start, stop)[0]


def read_version(path: str | os.PathLike, start: int = 0, stop: int | None = None) -> tuple[bytes, bytes]:
    """As `read`, with the object's generation for `write`."""
    store, key = _locate(path)
    if key and start == 0 and stop is None:
        found = _done(path, lambda: store.read(key))
    else:
        found = _done(path, lambda: store.read(key, byte_range=slice(start, stop)))
    if found.state != "value":
        raise FileNotFoundError(2, "No such object", str(path))
    return bytes(found.value), found.stamp.generation


def read_spans(path: str | os.PathLike, spans: list[tuple[int, int]]) -> list[tuple[bytes, bytes]]:
    """As `read_version` for several ranges of bytes, read at the same time."""
    store, key = _locate(path)
    begun = [store.read(key, byte_range=slice(start, stop)) for start, stop in spans]
    results = _done(path, lambda: _All(begun))
    if any(found.state != "value" for found in results):
        raise FileNotFoundError(2, "No such object", str(path))
    return [(bytes(found.value), found.stamp.generation) for found in results]


def write(path: str | os.PathLike, data: bytes | None, only_if: bytes | None = None) -> bytes | None:
    """Write an object whole, or delete it (``data`` is None).

    Args:
        path: The object.
        data: Its content.
        only_if: The generation that it must have now, `ABSENT` where it must not exist; None: any.

    Returns:
        Its new generation; None: it did not have the generation ``only_if``, and nothing was done.
    """
    store, key = _locate(path)
    more = {} if only_if is None else {"if_equal": only_if}
    return _done(path, lambda: store.write(key, data, **more)).generation or None


def keys(folder: str | os.PathLike) -> list[str]:
    """The paths of all objects below a folder, relative to it, sorted.

    Raises:
        UserError: The name of one would, as a file's, be in another folder.
    """
    store, key = _locate(folder)
    prefix = f"{key}/" if key else ""
    found = _done(folder, lambda: store.list(_below(prefix), strip_prefix_length=len(prefix)))
    names = sorted(name.decode() for name in found if name and not name.endswith(b"/"))
    for name in names:
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise UserError(f"{os.fspath(folder)!r}: object {name!r}: no file can have that name; delete the object")
    return names


def delete_tree(folder: str | os.PathLike) -> None:
    """Delete all objects below a folder of a bucket: its marker first, then the rest."""
    store, key = _locate(folder)
    _done(folder, lambda: store.write(f"{key}/{MARKER}", None))
    _done(folder, lambda: store.delete_range(_below(f"{key}/")))


def copy_tree(source: AnyPath, target: str | os.PathLike, without: tuple[str, ...] = ()) -> None:
    """Copy the files below ``source``, of this machine or of a bucket, into a folder of either; its marker last.

    Files and folders whose name is in ``without`` are left out.

    One file is in memory at a time: TensorStore writes an object at once, and does not tell its size.
    """
    for name in sorted(files(source), key=lambda name: (name == MARKER, name)):
        if not set(name.split("/")).isdisjoint(without):
            continue
        there = as_path(target) / name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes((source / name).read_bytes())


def upload(source: Path, target: AnyPath) -> None:
    """Copy a folder of this machine to a new folder of a bucket, which is complete when its marker is there."""
    write(target / PARTIAL, b"")
    for left_over in keys(target):
        if left_over != PARTIAL:
            write(target / left_over, None)
    copy_tree(source, target)
    write(target / MARKER, b"")
    write(target / PARTIAL, None)


def is_partial(folder: AnyPath) -> bool:
    """Whether a folder of a bucket was left by a process that was stopped while it wrote it."""
    return is_bucket(folder) and (folder / PARTIAL).is_file() and not (folder / MARKER).is_file()


def is_complete(folder: AnyPath) -> bool:
    """Whether a folder is complete: on this machine it exists, for it was renamed; in a bucket it has its marker."""
    return (folder / MARKER).is_file() if is_bucket(folder) else folder.is_dir()


def complete_subfolders(folder: AnyPath) -> list[str]:
    """Names of the complete folders in a folder, which may be missing."""
    if is_bucket(folder):
        found = [name.split("/") for name in keys(folder)]
        return [parts[0] for parts in found if len(parts) == 2 and parts[1] == MARKER]
    return subfolders(folder)


def subfolders(folder: AnyPath) -> list[str]:
    """Names of the folders in a folder, which may be missing; of a bucket, those of which an object is left too.

    In a bucket not those that begin with a point: the locks of folders that are written.
    """
    if is_bucket(folder):
        return sorted({name.split("/", 1)[0] for name in keys(folder) if "/" in name and name[0] != "."})
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def files(folder: AnyPath) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted."""
    return keys(folder) if is_bucket(folder) else _files(Path(folder))


def sha256(path: AnyPath) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex) of a file."""
    if isinstance(path, Path):
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    data = read(path)
    return len(data), hashlib.sha256(data).hexdigest()


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _locate(path: str | os.PathLike) -> tuple[Any, str]:
    """The bucket's store and the key in it."""
    scheme, rest = _URL.sub(r"\1 ", os.fspath(path)).split(" ", 1)
    bucket, _, key = rest.partition("/")
    return _open(scheme, bucket), key.rstrip("/")


@cache
def _open(scheme: str, bucket: str) -> Any:
    import tensorstore

    driver = "gcs" if scheme == "gs" else "s3"
    spec: dict[str, Any] = {"driver": driver, "bucket": bucket}
    spec["context"] = {f"{driver}_request_retries": {"max_retries": RETRIES}}
    if scheme == "s3" and (server := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")):
        spec |= {"endpoint": server, "aws_region": os.environ.get("AWS_DEFAULT_REGION", "us-east-1")}
    return _done(f"{scheme}://{bucket}", lambda: tensorstore.KvStore.open(spec))


def _below(prefix: str) -> Any:
    import tensorstore

    return tensorstore.KvStore.KeyRange(prefix, f"{prefix[:-1]}0" if prefix else "")  # "0" follows "/"


class _All(NamedTuple):
    """Several requests, as one."""

    begun: list[Any]

    def result(self) -> list[Any]:
        return [one.result() for one in self.begun]


def _done(path: str | os.PathLike, begin: Callable[[], Any]) -> Any:
    """The result of a request; a failure of the service becomes a ServiceError that names the path.

    A request for more bytes than there are raises ValueError.
    """
    try:
        return begin().result()
    except (ValueError, RuntimeError, PermissionError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:200]
        if _SHORTER.search(why):
            raise ValueError("it is shorter than it was") from error
        raise ServiceError(
            f"{os.fspath(path)!r}: the bucket cannot be used ({why}); check its name, your credentials and their rights"
        ) from error


# What Orbax and epath see.


@cache
def _register() -> None:
    """Take the place of gcsfs and s3fs in this process, for all that reaches buckets through fsspec in it."""
    import fsspec
    from etils.epath import gpath

    # TensorFlow's own client, which epath prefers where it is installed, has neither conditions nor other servers.
    os.environ.setdefault("EPATH_USE_TF", "false")
    gpath._is_tf_installed.cache_clear()

    class Buckets(fsspec.AbstractFileSystem):
        """Objects as files; folders exist as far as there are objects in them."""

        scheme = ""

        def _url(self, path: str) -> str:
            return f"{self.scheme}://{self._strip_protocol(path)}"

        def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
            here = self._strip_protocol(path)
            found = {}
            for name in keys(self._url(path)):
                first, _slash, rest = name.partition("/")
                found[first] = "directory" if rest else "file"
            if not found and not self._is_object(path):
                raise FileNotFoundError(2, "No such folder", path)
            if not found:
                return [self.info(path)] if detail else [here]
            return [
                {"name": f"{here}/{n}", "type": t, "size": 0} if detail else f"{here}/{n}" for n, t in found.items()
            ]

        def _is_object(self, path: str) -> bool:
            import tensorstore

            store, key = _locate(self._url(path))
            only = tensorstore.KvStore.KeyRange(key, f"{key}\0")
            return bool(key and _done(path, lambda: store.list(only)))

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            here = self._strip_protocol(path)
            if self._is_object(path):
                # A listing has no sizes: the object is read, which callers do next anyway.
                return {"name": here, "type": "file", "size": len(read(self._url(path)))}
            if "/" not in here or keys(self._url(path)):
                return {"name": here, "type": "directory", "size": 0}
            raise FileNotFoundError(2, "No such object or folder", path)

        def exists(self, path: str, **_: Any) -> bool:
            return self._is_object(path) or self.isdir(path)

        def isfile(self, path: str) -> bool:
            return self._is_object(path)

        def isdir(self, path: str) -> bool:
            return "/" not in self._strip_protocol(path) or bool(keys(self._url(path)))

        def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            if "w" not in mode or "b" in mode:
                return super().open(path, mode, **options)
            how = {name: options[name] for name in ("encoding", "errors", "newline") if name in options}
            return _WrittenText(self._open(path, "wb"), **how)

        def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
            if "r" in mode:
                return io.BytesIO(read(self._url(path)))
            if "a" in mode:
                raise NotImplementedError("objects cannot be appended to")
            return _Written(self._url(path))

        def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None: ...

        def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

        def rmdir(self, path: str) -> None: ...

        def _rm(self, path: str) -> None:
            write(self._url(path), None)

        def rm_file(self, path: str) -> None:
            self._rm(path)

        def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
            for one in [path] if isinstance(path, str | os.PathLike) else path:
                if recursive:
                    delete_tree(self._url(os.fspath(one)))
                self._rm(os.fspath(one))

        def cp_file(self, path1: str, path2: str, **_: Any) -> None:
            write(self._url(path2), read(self._url(path1)))

    for names in (("gs", "gcs"), ("s3",)):
        cls = type(f"Buckets_{names[0]}", (Buckets,), {"protocol": names, "scheme": names[0], "cachable": True})
        for name in names:
            fsspec.register_implementation(name, cls, clobber=True)


class _Written(io.BytesIO):
    """A file being written, which becomes an object when it is closed; not by an exception or the garbage collector."""

    def __init__(self, url: str):
        super().__init__()
        self._url = url

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        self.discard()

    def discard(self) -> None:
        super().close()

    def close(self) -> None:
        if not self.closed:
            write(self._url, self.getvalue())
        super().close()


class _WrittenText(io.TextIOWrapper):
    """As `_Written`, of text."""

    buffer: _Written

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.buffer.discard()
        self.close()

    def __del__(self) -> None:
        self.buffer.discard()


@contextlib.contextmanager
def on_this_machine(folder: AnyPath) -> Iterator[Path]:
    """The folder itself, or a copy of one in a bucket, which is removed afterwards."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="zipper-") as aside:
        copy_tree(folder, Path(aside))
        yield Path(aside)

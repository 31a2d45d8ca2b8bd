"""Objects in buckets (``gs://``, ``s3://``): each appears whole, and is written under a condition on its *generation*.

A bucket has no folders, no renames and no file locks. All traffic goes through TensorStore, which Orbax needs anyway
and which has no cache that could be stale.

Credentials: gs://: application default credentials; s3://: those of the AWS SDK. ``TENSORSTORE_GCS_HTTP_URL`` and
``AWS_ENDPOINT_URL`` name other servers.

Every function raises `ServiceError` where the service fails.
"""

import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from zipper_jax.utils.errors import ServiceError, UserError

MARKER = "commit_success.txt"
"""Name of the object that is written last into a folder of a bucket, and deleted first."""

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


def url(path: str | os.PathLike) -> str:
    """The URL of a path in a bucket: ``Path("gs://bucket/run")`` is ``gs:/bucket/run``."""
    return _URL.sub(r"\1://", os.fspath(path))


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


def exists(path: str | os.PathLike) -> bool:
    """Whether there is an object with this name."""
    import tensorstore

    store, key = _locate(path)
    only = tensorstore.KvStore.KeyRange(key, f"{key}\0")
    return bool(key and _done(path, lambda: store.list(only)))


def delete_tree(folder: str | os.PathLike) -> None:
    """Delete all objects below a folder of a bucket: its marker first, then the rest."""
    store, key = _locate(folder)
    _done(folder, lambda: store.write(f"{key}/{MARKER}", None))
    _done(folder, lambda: store.delete_range(_below(f"{key}/")))


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

"""Buckets as a file system of `fsspec`, through which Orbax and `etils.epath` reach objects.

It takes the place of gcsfs and s3fs: objects appear whole, and nothing is cached. See `utils.objects`.
"""

import io
import os
from functools import cache
from typing import Any

import fsspec

from zipper_jax.utils import objects


@cache
def register() -> None:
    """Take the place of gcsfs and s3fs in this process, for all that reaches buckets through fsspec in it."""
    from etils.epath import gpath

    # TensorFlow's own client, which epath prefers where it is installed, has neither conditions nor other servers.
    os.environ.setdefault("EPATH_USE_TF", "false")
    gpath._is_tf_installed.cache_clear()
    for names in (("gs", "gcs"), ("s3",)):
        cls = type(f"Buckets_{names[0]}", (Buckets,), {"protocol": names, "scheme": names[0], "cachable": True})
        for name in names:
            fsspec.register_implementation(name, cls, clobber=True)


class Buckets(fsspec.AbstractFileSystem):
    """Objects as files; folders exist as far as there are objects in them."""

    scheme = ""

    def _url(self, path: str) -> str:
        return f"{self.scheme}://{self._strip_protocol(path)}"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        here = self._strip_protocol(path)
        found = {}
        for name in objects.keys(self._url(path)):
            first, _slash, rest = name.partition("/")
            found[first] = "directory" if rest else "file"
        if not found and not self._is_object(path):
            raise FileNotFoundError(2, "No such folder", path)
        if not found:
            return [self.info(path)] if detail else [here]
        return [{"name": f"{here}/{n}", "type": t, "size": 0} if detail else f"{here}/{n}" for n, t in found.items()]

    def _is_object(self, path: str) -> bool:
        return objects.exists(self._url(path))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        here = self._strip_protocol(path)
        if self._is_object(path):
            # A listing has no sizes: the object is read, which callers do next anyway.
            return {"name": here, "type": "file", "size": len(objects.read(self._url(path)))}
        if "/" not in here or objects.keys(self._url(path)):
            return {"name": here, "type": "directory", "size": 0}
        raise FileNotFoundError(2, "No such object or folder", path)

    def exists(self, path: str, **_: Any) -> bool:
        return self._is_object(path) or self.isdir(path)

    def isfile(self, path: str) -> bool:
        return self._is_object(path)

    def isdir(self, path: str) -> bool:
        return "/" not in self._strip_protocol(path) or bool(objects.keys(self._url(path)))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" not in mode or "b" in mode:
            return super().open(path, mode, **options)
        how = {name: options[name] for name in ("encoding", "errors", "newline") if name in options}
        return _WrittenText(self._open(path, "wb"), **how)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if "r" in mode:
            return io.BytesIO(objects.read(self._url(path)))
        if "a" in mode:
            raise NotImplementedError("objects cannot be appended to")
        return _Written(self._url(path))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None: ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def rmdir(self, path: str) -> None: ...

    def _rm(self, path: str) -> None:
        objects.write(self._url(path), None)

    def rm_file(self, path: str) -> None:
        self._rm(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        for one in [path] if isinstance(path, str | os.PathLike) else path:
            if recursive:
                objects.delete_tree(self._url(os.fspath(one)))
            self._rm(os.fspath(one))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        objects.write(self._url(path2), objects.read(self._url(path1)))


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
            objects.write(self._url, self.getvalue())
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

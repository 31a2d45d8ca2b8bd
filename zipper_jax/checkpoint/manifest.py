"""Digests of a checkpoint's arrays and files. Our own, because Orbax loads an array with a flipped bit silently.

Two independent checks:

* a digest per array, computed on the devices from the saved arrays and again from the restored ones. It covers the
  whole path from memory to memory, on any mesh, and costs one pass over the arrays.
* a sha256 per file (``files.json``), computed once the step is on disk. It finds flipped bytes and missing or truncated
  files without loading arrays.

The array digest is 128 bits: four sums modulo 2^32, over all elements, of a bijection of (element's bits XOR a hash of
its index). Integer sums do not depend on their order, so the digest is the same for any sharding. A change of one
element always changes it; it detects accidents, not forgery.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from zipper_jax.utils import storage, user_json
from zipper_jax.utils.errors import DamagedError, UserError
from zipper_jax.utils.files import write_text
from zipper_jax.utils.storage import AnyPath

FILES = "files.json"
_LANES = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)  # the first digits of pi

ArrayTable = dict[str, dict[str, Any]]
"""Path -> {"shape", "dtype", "digest"}, as stored in JSON."""


def table(flat: Mapping[str, Any]) -> ArrayTable:
    """Shape, dtype and digest of every array. Every process of a group must call it with the same paths."""
    paths = sorted(flat)
    sums: Any = np.asarray(_digests([flat[path] for path in paths])) if paths else []
    return {
        path: {
            "shape": list(flat[path].shape),
            "dtype": str(flat[path].dtype),
            "digest": "".join(f"{int(lane):08x}" for lane in lanes),
        }
        for path, lanes in zip(paths, sums, strict=True)
    }


def name_of(arrays: ArrayTable) -> str:
    """Digest of a table of arrays, 64 hex digits."""
    return hashlib.sha256(json.dumps(arrays, sort_keys=True).encode()).hexdigest()


def check_arrays(flat: Mapping[str, Any], stored: ArrayTable, what: str) -> None:
    """Raise DamagedError unless every array has its stored digest."""
    found = table(flat)
    wrong = [f"array {path} is not what was saved" for path in stored if found.get(path) != stored[path]]
    if wrong:
        raise DamagedError(what, wrong)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON content with its sha256, for :func:`unsealed`."""
    return {"content": dict(content), "sha256": _sha256_of_json(content)}


def unsealed(stored: Any, what: str) -> dict[str, Any]:
    """The content of :func:`sealed`; raises DamagedError if it does not match its sha256."""
    if not isinstance(stored, Mapping) or "content" not in stored:
        raise DamagedError(what, ["its manifest is truncated"])
    if _sha256_of_json(stored["content"]) != stored.get("sha256"):
        raise DamagedError(what, ["its manifest is not what was saved"])
    return dict(stored["content"])


def seal_files(folder: AnyPath) -> None:
    """Write ``files.json`` atomically: size and sha256 of every file below ``folder``."""
    names = [name for name in storage.files(folder) if name.rsplit("/", 1)[-1] != FILES]
    digests = {name: storage.sha256(folder / name) for name in names}
    found = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in digests.items()}
    write_text(folder / FILES, json.dumps(sealed(found), indent=1, sort_keys=True))


def is_sealed(folder: AnyPath) -> bool:
    """Whether :func:`seal_files` has completed for this folder."""
    return (folder / FILES).is_file()


def sealed_bytes(folder: AnyPath) -> int:
    """Bytes of all files below a sealed folder, as :func:`seal_files` found them."""
    return sum(one["bytes"] for one in unsealed(user_json.read_object(folder / FILES, ""), FILES).values())


def check_files(folder: AnyPath, below: Collection[str] | None = None) -> list[str]:
    """The differences from ``files.json``, a line per file; empty if there are none. ``below``: only these folders."""
    try:
        stored = unsealed(user_json.read_object(folder / FILES, ""), FILES)
    except FileNotFoundError:
        return [f"{FILES} is missing"]
    except UserError:
        return [f"file {FILES} is not what was saved"]
    problems = []
    for name, want in sorted(stored.items()):
        path = folder / name
        if below is not None and Path(name).parts[0] not in below:
            continue
        try:
            size, digest = storage.sha256(path)
        except (FileNotFoundError, IsADirectoryError):
            problems.append(f"file {name} is missing")
            continue
        if size != want["bytes"]:
            problems.append(f"file {name} has {size} bytes, not {want['bytes']}")
        elif digest != want["sha256"]:
            problems.append(f"file {name} is not what was saved")
    return problems


def _sha256_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@jax.jit
def _digests(arrays: list[Array]) -> UInt32[Array, "N 4"]:
    return jnp.stack([_digest(array) for array in arrays])


def _digest(array: Array) -> UInt32[Array, "4"]:
    bits = _bits(array)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    lanes = jnp.asarray(_LANES, jnp.uint32).reshape(len(_LANES), *(1 for _ in bits.shape))
    mixed = _mix(bits[None] ^ _mix(index[None] + lanes))
    return jnp.sum(mixed, axis=tuple(range(1, mixed.ndim)), dtype=jnp.uint32)


def _bits(array: Array) -> UInt32[Array, "..."]:
    """The array's bits as uint32; eight-byte elements give two."""
    array = jnp.asarray(array)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    size = array.dtype.itemsize
    to: Any = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[size]
    return jax.lax.bitcast_convert_type(array, to).astype(jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A mixing bijection of 32 bits (the finaliser of MurmurHash3, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

"""Reads T5X checkpoints leaf by leaf, without t5x: its native format (msgpack and zarr) and Orbax's.

Native: ``checkpoint_NNN/checkpoint`` is a msgpack tree whose leaves are arrays or references to zarr folders beside it.
Orbax: ``checkpoint_NNN/state`` is one store (OCDBT, in older ones plain folders) of zarr arrays.

Nothing in a checkpoint is executed, and only the folder name of a reference is used, so that all leaves are read from
within the checkpoint. zarr treats a missing chunk as filled with a default, so missing chunks are checked for; damaged
chunks are detected by gzip's checksum.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.conversion.tensor_map import Shape
from zipper_jax.utils.errors import UserError

TARGET = "target/"
"""Prefix of the parameters in a T5X checkpoint."""

LEFT_OUT = {
    "state": "the optimizer's, not the model's",
    "version": "of the file format",
}
"""First part of a leaf's name outside `TARGET` -> why it is skipped."""

_READ_BYTES = 2**30
_REFERENCE = {"driver", "kvstore"}
_UNFINISHED = re.compile(r"\.(orbax-checkpoint-)?tmp-")


@dataclass(frozen=True)
class _Zarr:
    """Location of an array, and the shape given by the reference to it."""

    kvstore: dict[str, Any]
    shape: Sequence[int] | None = None


class Reader:
    """The parameters of one checkpoint folder. The constructor reads shapes, and arrays inside the msgpack file.

    Args:
        folder: ``checkpoint_NNN``.

    Raises:
        UserError: No such checkpoint; it is damaged or incomplete; a leaf is stored outside the folder or in a format
            that T5X does not use; or a leaf outside ``target`` is unknown.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.left_out: dict[str, str] = {}
        self._leaves: dict[str, Any] = {}  # numpy arrays and TensorStores: both have shape, dtype and slices
        self._layers: tuple[str, int, int, np.ndarray] | None = None  # (name, axis, first layer, layers) read last
        for name, leaf in self._tree().items():
            self._take(name, leaf)
        if not self._leaves:
            raise UserError(f"{str(self.folder)!r} has no parameters ({TARGET}...): give a training checkpoint of T5X")

    @property
    def names(self) -> list[str]:
        """Names of all leaves below ``target``, sorted."""
        return sorted(self._leaves)

    def shape(self, name: str) -> Shape:
        return tuple(self._leaves[name].shape)

    def dtype(self, name: str) -> np.dtype:
        found = self._leaves[name].dtype
        return found if isinstance(found, np.dtype) else np.dtype(found.numpy_dtype)

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(math.prod(self.shape(name)) for name in self._leaves)

    def read(self, name: str) -> np.ndarray:
        """Read one leaf.

        Raises:
            UserError: It is damaged.
        """
        return self._read(name, ())

    def read_layer(self, name: str, axis: int, layer: int) -> np.ndarray:
        """Read one layer of a leaf whose layers are stacked on ``axis``.

        Chunks usually hold several layers, so about a gigabyte of layers is read at once and cached for the next call.

        Raises:
            UserError: The leaf is damaged.
        """
        shape = self.shape(name)
        if self._layers is None or self._layers[:2] != (name, axis) or not self._layer_is_kept(layer):
            self._layers = None  # freed before the next read
            one = math.prod(shape) // shape[axis] * self.dtype(name).itemsize
            last = min(layer + max(1, _READ_BYTES // max(one, 1)), shape[axis])
            part = self._read(name, (slice(None),) * axis + (slice(layer, last),))
            self._layers = (name, axis, layer, part)
        return self._layers[3].take(layer - self._layers[2], axis=axis)

    def _layer_is_kept(self, layer: int) -> bool:
        assert self._layers is not None
        _, axis, first, part = self._layers
        return first <= layer < first + part.shape[axis]

    def _read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        leaf = self._leaves[name]
        if isinstance(leaf, np.ndarray):
            return leaf[index]
        try:
            return leaf[index].read().result() if index else leaf.read().result()
        except (ValueError, OSError, RuntimeError) as error:
            raise self._damaged(name, error) from error

    def _tree(self) -> dict[str, Any]:
        """Leaf -> array, its location (`_Zarr`), or T5X's unresolved reference; other values are rejected later."""
        if not self.folder.is_dir():
            raise UserError(f"folder {str(self.folder)!r} does not exist; copy checkpoints of gs:// to a disk first")
        if _UNFINISHED.search(self.folder.name):
            raise UserError(f"{str(self.folder)!r} is an unfinished checkpoint of T5X: give an earlier one")
        if (self.folder / "checkpoint").is_file():
            return self._native(self.folder / "checkpoint")
        for state in (self.folder / "state", self.folder):
            if (state / "manifest.ocdbt").is_file():
                return self._orbax({"driver": "ocdbt", "base": _file(state)})
            if (state / "_METADATA").is_file():
                return self._orbax(_file(state))
        steps = [path.name for path in self.folder.glob("checkpoint_*") if path.is_dir()]
        steps.sort(key=lambda name: (len(name), name))
        raise UserError(
            f"{str(self.folder)!r} is no T5X checkpoint: it has neither the file checkpoint nor the folder state"
            + (f"; give one of the checkpoints in it, e.g. {str(self.folder / steps[-1])!r}" if steps else "")
        )

    def _native(self, path: Path) -> dict[str, Any]:
        from flax.serialization import msgpack_restore  # builds plain types and arrays only

        raw = path.read_bytes()
        if raw.startswith(b"model_checkpoint_path"):
            raise UserError(
                f"{str(self.folder)!r} is a TensorFlow checkpoint; restore it with T5X and save it in T5X's format"
            )
        try:
            tree = msgpack_restore(raw)
        except Exception as error:  # of msgpack, or of numpy on malformed arrays
            raise UserError(f"{str(path)!r} is damaged ({_line(error)}); download it again") from error
        if not isinstance(tree, dict) or not isinstance(tree.get("optimizer", tree), dict):
            raise UserError(f"{str(path)!r} is no T5X checkpoint: it holds no tree of leaves")
        flat: dict[str, Any] = {}
        _flatten(tree, "", flat)
        return {name.removeprefix("optimizer/"): leaf for name, leaf in flat.items()}

    def _reference(self, name: str, spec: Mapping[str, Any]) -> _Zarr:
        """Resolve a leaf's TensorStore spec, using only its folder name and shape."""
        kvstore, metadata = spec["kvstore"], spec.get("metadata")
        kvstore = kvstore if isinstance(kvstore, dict) else {"driver": str(kvstore).split(":")[0]}
        kinds = (spec["driver"], kvstore.get("driver"))
        if kinds[0] != "zarr" or kinds[1] not in ("file", "gfile", "gcs"):
            raise UserError(f"{str(self.folder)!r}: {name} is stored as {kinds}, not as zarr files: not read")
        path = kvstore.get("path", spec.get("path"))
        folder = path.removesuffix("/") if isinstance(path, str) else ""
        if folder in ("", ".", "..") or Path(folder).name != folder or "\\" in folder or "\0" in folder:
            raise UserError(f"{str(self.folder)!r}: {name} refers to {path!r}, which is not in this folder: not read")
        shape = metadata.get("shape") if isinstance(metadata, dict) else None
        return _Zarr(_file(self.folder / folder), shape if isinstance(shape, list | tuple) else None)

    def _orbax(self, store: dict[str, Any]) -> dict[str, Any]:
        import tensorstore

        try:
            keys = tensorstore.KvStore.open(store).result().list().result()
            arrays = [key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")]
        except (ValueError, OSError, RuntimeError) as error:
            raise self._damaged("its store", error) from error
        return {name.replace(".", "/"): _Zarr(_within(store, name)) for name in arrays}

    def _take(self, name: str, leaf: Any) -> None:
        if not name.startswith(TARGET):
            first = name.split("/")[0]
            if first not in LEFT_OUT:
                raise UserError(f"{str(self.folder)!r}: unknown leaf {name!r}: not converted")
            self.left_out[first] = LEFT_OUT[first]
            return
        if isinstance(leaf, dict):
            leaf = self._reference(name, leaf)
        if isinstance(leaf, _Zarr):
            leaf = self._open(name, leaf)
        elif not isinstance(leaf, np.ndarray):
            raise UserError(f"{str(self.folder)!r}: {name} is {type(leaf).__name__}, not an array; download it again")
        self._leaves[name.removeprefix(TARGET)] = leaf

    def _open(self, name: str, zarr: _Zarr) -> Any:
        import tensorstore

        try:
            store = tensorstore.open({"driver": "zarr", "kvstore": zarr.kvstore}, open=True, read=True).result()
            layout, there = store.spec().to_json()["metadata"], set(store.kvstore.list().result())
        except (ValueError, OSError, RuntimeError) as error:
            raise self._damaged(name, error) from error
        if zarr.shape is not None and list(zarr.shape) != layout["shape"]:
            raise UserError(
                f"{str(self.folder)!r}: {name} has shape {layout['shape']}, but the file checkpoint has "
                f"{list(zarr.shape)}: files of two checkpoints are mixed; download it again"
            )
        grid = [range(-(-size // chunk)) for size, chunk in zip(layout["shape"], layout["chunks"], strict=True)]
        for place in itertools.product(*grid):
            chunk = layout.get("dimension_separator", ".").join(map(str, place)) or "0"
            if chunk.encode() not in there:
                raise UserError(f"{str(self.folder)!r}: {name} lacks chunk {chunk}: copy the complete checkpoint")
        return store

    def _damaged(self, name: str, error: Exception) -> UserError:
        return UserError(f"{str(self.folder)!r}: {name} is damaged ({_line(error)}); download it again")


def _file(folder: Path) -> dict[str, Any]:
    return {"driver": "file", "path": f"{folder.resolve()}/"}


def _within(store: dict[str, Any], name: str) -> dict[str, Any]:
    return {**store, "path": f"{store.get('path', '')}{name}/"}


def _flatten(tree: Mapping[Any, Any], prefix: str, flat: dict[str, Any]) -> None:
    for key, child in tree.items():
        if isinstance(child, dict) and not child.keys() >= _REFERENCE:
            _flatten(child, f"{prefix}{key}/", flat)
        else:
            flat[f"{prefix}{key}"] = child


def _line(error: Exception) -> str:
    """The first line of a message, without the source positions and the spec that TensorStore appends."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.split(" [")[0][:200]

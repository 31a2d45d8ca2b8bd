"""Safetensors files: read tensor by tensor from one file or an indexed set, written slice by slice.

Neither needs the whole model in memory. Such files cannot execute code. The library is imported lazily: training and
decoding do not need it.
"""

import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ml_dtypes
import msgspec
import numpy as np

from zipper_jax.utils import storage, user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import AnyPath, as_path

DTYPES: dict[str, Any] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The format's name -> dtype, for the supported floating dtypes."""

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


class Tensor(NamedTuple):
    """A tensor's file, dtype and shape; dtype None: not one of `DTYPES` (masks, quantised weights)."""

    path: AnyPath
    dtype: np.dtype | None
    shape: tuple[int, ...]
    start: int = 0
    """Of a file in a bucket: where the tensor's bytes begin."""


class Reader:
    """The tensors of ``model.safetensors``, or of the files named in ``model.safetensors.index.json``.

    Raises:
        UserError: No such files, a damaged one, or an index that names files outside the folder or tensors that a file
            does not contain.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = as_path(folder)
        self._tensors: dict[str, Tensor] = {}
        for path, wanted in self._files().items():
            found = _tensors(path)
            missing = wanted - found.keys() if wanted is not None else set()
            if missing:
                one = sorted(missing)[0]
                raise UserError(f"{self.folder / INDEX}: {path.name} does not contain {one!r}; get it again")
            self._tensors |= found if wanted is None else {name: found[name] for name in wanted}

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype | None:
        """Dtype of a tensor; None: not one of `DTYPES`."""
        return self._tensors[name].dtype

    @property
    def count(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self._tensors.values())

    def read(self, name: str) -> np.ndarray:
        """Read one tensor. The file is reopened for each: pages of an open file would stay in this process's memory."""
        import safetensors

        path, dtype, shape, start = self._tensors[name]
        if not isinstance(path, Path):
            assert dtype is not None, name
            size = math.prod(shape) * dtype.itemsize
            try:
                return np.frombuffer(storage.read(path, start, start + size) if size else b"", dtype).reshape(shape)
            except ValueError as error:
                raise UserError(f"{path} is damaged ({name!r}: {error}); get it again") from error
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    def _files(self) -> dict[AnyPath, set[str] | None]:
        """File -> tensors to read from it; None: all."""
        index = self.folder / INDEX
        if (self.folder / FILE).is_file():
            return {self.folder / FILE: None}
        if not index.is_file():
            raise UserError(self._nothing())
        weight_map = read_weight_map(index, "it is damaged: get it again")
        files = sorted(set(weight_map.values()))
        for name in files:
            if Path(name).name != name or name in (".", ".."):
                raise UserError(f"{index} names the file {name!r}, which is not in this folder: not read")
            if not (self.folder / name).is_file():
                raise UserError(f"{str(self.folder)!r} lacks {name}, which {INDEX} names; get the rest of the model")
        return {self.folder / f: {name for name, file in weight_map.items() if file == f} for f in files}

    def _nothing(self) -> str:
        if not self.folder.is_dir():
            return f"folder {str(self.folder)!r} does not exist"
        names = sorted(path.name for path in self.folder.iterdir())
        if known := other_layout(str(self.folder), names):
            return known
        if pickles := [name for name in names if Path(name).suffix in (".bin", ".pt", ".pth", ".ckpt")]:
            return (
                f"{str(self.folder)!r} has {pickles[0]}, a torch pickle, which can run code when it is read, and no "
                "safetensors file; where you trust it, turn it into one: transformers.AutoModelForCausalLM"
                f".from_pretrained({str(self.folder)!r}).save_pretrained(NEW_FOLDER, safe_serialization=True)"
            )
        return f"{str(self.folder)!r} has neither {FILE} nor {INDEX}: give the folder that has; it has {listed(names)}"


def other_layout(where: str, names: Collection[str]) -> str:
    """What a folder without `FILE` and `INDEX` is, and what to do; "" where it is nothing known.

    Args:
        where: The folder or hub id, for the message.
        names: Names of its files.
    """
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    shards = [name for name in weights if re.fullmatch(r".*-\d{5}-of-\d{5}\.safetensors", name)]
    if ADAPTER in names:
        return (
            f"{where!r} is an adapter ({ADAPTER}), the change of a model: merge it into its model first: "
            f"peft.AutoPeftModelForCausalLM.from_pretrained({where!r}).merge_and_unload().save_pretrained(NEW_FOLDER)"
        )
    if any(name.startswith("consolidated") for name in names):
        found = next(name for name in sorted(names) if name.startswith("consolidated"))
        return (
            f"{where!r} has {found}, the weights in their maker's own layout, and no {FILE}: give transformers' form "
            "of the model (often the same one on the hub, or its name with -hf)"
        )
    if shards:
        return (
            f"{where!r} has {len(shards)} shards ({shards[0]}, ...) and no {INDEX}, which lists what they hold: get "
            "that file from where the shards are from"
        )
    if weights:
        return (
            f"{where!r} has {listed(weights)} and neither {FILE} nor {INDEX}: rename the file to {FILE} if it is the "
            "whole model"
        )
    return ""


def read_weight_map(index: AnyPath, fix: str) -> dict[str, str]:
    """Tensor -> file, from an index. Raises UserError with ``fix`` if it is damaged."""
    return user_json.convert(user_json.read_object(index, fix), _Index, repr(str(index)), fix).weight_map


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def listed(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "no file") + more


class Writer:
    """Write a file slice by slice, atomically.

    A context manager: when its block succeeds, the file is synced and renamed into place, and an unwritten slice is an
    error; otherwise the partial file is removed.

    Args:
        path: The file.
        tensors: Name -> (dtype, shape), in the order of the file.
        metadata: Strings for the file's header.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[Any, tuple[int, ...]]], metadata: Mapping[str, str]):
        names = {dtype: name for name, dtype in DTYPES.items()}
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0
        for name, (dtype, shape) in tensors.items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            header[name] = {"dtype": names[np.dtype(dtype)], "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._path, self._aside = path, path.with_name(f".{path.name}.partial")
        self._tensors, self._missing = dict(tensors), {name: _slices(shape) for name, (_, shape) in tensors.items()}
        self._starts = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in tensors}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._aside.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(8 + len(text) + end)

    def write(self, name: str, array: np.ndarray, index: int | None = None) -> None:
        """Write the whole tensor, or ``tensor[index]``."""
        dtype, shape = self._tensors[name]
        data = np.asarray(array, order="C")
        assert data.dtype == dtype, (name, data.dtype, dtype)
        assert data.shape == (shape if index is None else shape[1:]), (name, data.shape, shape)
        self._file.seek(self._starts[name] + (0 if index is None else index * data.nbytes))
        self._file.write(data.tobytes())
        self._missing[name] -= _slices(shape) if index is None else 1

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                unwritten = [name for name, left in self._missing.items() if left]
                assert not unwritten, unwritten
                self._file.flush()
                os.fsync(self._file.fileno())
                self._aside.replace(self._path)
        finally:
            self._file.close()
            self._aside.unlink(missing_ok=True)


def _slices(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _tensors(path: AnyPath) -> dict[str, Tensor]:
    """The tensors of a file; the library checks its header against the file's size."""
    import safetensors

    if not isinstance(path, Path):
        return _tensors_in_bucket(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {
                name: Tensor(path, DTYPES.get(part.get_dtype()), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); get it again") from error


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], int]


def _tensors_in_bucket(path: AnyPath) -> dict[str, Tensor]:
    """As `_tensors`, from the header alone."""
    fix = "get it again"
    try:
        length = int.from_bytes(storage.read(path, 0, 8), "little")
        if length > 100_000_000:  # the format's own limit
            raise ValueError(f"a header of {length} bytes")
        header = user_json.decode(storage.read(path, 8, 8 + length), repr(str(path)), fix)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); {fix}") from error
    header.pop("__metadata__", None)
    found = {}
    for name, entry in user_json.convert(header, dict[str, _Entry], repr(str(path)), fix).items():
        dtype, shape, (begin, end) = DTYPES.get(entry.dtype), tuple(entry.shape), entry.data_offsets
        if dtype is not None and end - begin != math.prod(shape) * dtype.itemsize:
            raise UserError(f"{path} is damaged ({name!r} has {end - begin} bytes); {fix}")
        found[name] = Tensor(path, dtype, shape, 8 + length + begin)
    return found

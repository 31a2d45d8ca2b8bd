"""Packed rows on disk or in a bucket, read by training. No TensorFlow; memory-mapped, or read in blocks as they are
needed (`data.bucket_arrays`), so opening takes the same time for any size.

A row is a list of examples (linear sequences), stored without begin and end tokens and independent of towers: the same
rows serve every model whose rows are long enough.

    tokens.npy  content tokens of all spans, concatenated, in the smallest unsigned type that holds them
    spans.npy   one record per span: segment (number of its example in the row, from 1), modality, weight, start, length
    rows.npy    [R + 1]: row r has the spans rows[r] to rows[r + 1]
    meta.json   format, modalities, counts, and the writer's own entries

A folder is written under a temporary name and renamed: if it exists, it is complete. In a bucket ``meta.json`` is
written last.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from zipper_jax.data.bucket_arrays import BucketArray
from zipper_jax.sequences import Example, Span
from zipper_jax.utils import storage, user_json
from zipper_jax.utils.arrays import read_array
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.utils.storage import AnyPath, as_path

FORMAT_VERSION = 1
META = "meta.json"
_ARRAYS = ("tokens.npy", "spans.npy", "rows.npy")
_BLOCK = 1 << 20
"""Elements of an array that are in memory at a time."""
_SPAN = np.dtype([("segment", "<u4"), ("modality", "u1"), ("weight", "<f4"), ("start", "<i8"), ("length", "<i4")])


class _Meta(msgspec.Struct):
    """The fields of ``meta.json`` that readers use."""

    format_version: int
    modalities: list[str]
    rows: user_json.Natural
    examples: user_json.Natural
    tokens: dict[str, user_json.Natural]
    slots: dict[str, user_json.Natural] = {}
    longest: dict[str, user_json.Natural] = {}
    lengths: dict[str, user_json.Natural] = {}
    fill: dict[str, float] = {}
    dropped: dict[str, user_json.Natural] = {}
    task: str = ""
    split: str = ""
    made_with: str = ""


def write_rows(
    folder: str | os.PathLike, rows: Iterable[Sequence[Example]], meta: Mapping[str, Any] | Callable[[], Mapping]
) -> dict[str, Any]:
    """Write ``rows`` into ``folder``, replacing its content, and return the ``meta.json`` written.

    One row is in memory at a time.

    Args:
        folder: Folder to write.
        rows: Examples of each row.
        meta: JSON-serialisable entries, stored beside the counts of `Counts`; a function: called behind the last row.

    Raises:
        UserError: A token is negative.
    """
    folder = as_path(folder)
    in_bucket = not isinstance(folder, Path)
    aside = Path(tempfile.mkdtemp(prefix="zipper-")) if in_bucket else _aside(Path(folder))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        written = _write_arrays(aside, rows)
        written = {"format_version": FORMAT_VERSION, **written, **(meta() if callable(meta) else meta)}
        write_json(aside / META, written)
        if in_bucket:
            storage.write(folder / META, None)
            for name in (*_ARRAYS, META):
                storage.write(folder / name, (aside / name).read_bytes())
        else:
            if folder.exists():  # a rename cannot replace a folder; a crash in between leaves none, not a partial one
                shutil.rmtree(folder)
            os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return written


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{os.getpid()}.partial")


def _write_arrays(folder: Path, rows: Iterable[Sequence[Example]]) -> dict[str, Any]:
    """Write the three arrays; return their counts and the type of tokens."""
    counts, numbers, largest, start, spans_before = Counts(), dict[str, int](), 0, 0, 0
    with contextlib.ExitStack() as stack:
        # The type of tokens, and the numbers of modalities, are known at the end.
        tokens, spans, offsets = (stack.enter_context((folder / f"{name}.raw").open("wb")) for name in _ARRAYS)
        offsets.write(np.zeros(1, np.int64).tobytes())
        for row in rows:
            records = []
            for segment, example in enumerate(row, start=1):
                for span in example:
                    content = np.asarray(span.tokens, np.int64)
                    if len(content) and content.min() < 0:
                        raise UserError(f"a {span.modality} span holds token {content.min()}: tokens are 0 or more")
                    number = numbers.setdefault(span.modality, len(numbers))
                    records.append((segment, number, span.weight, start, len(content)))
                    tokens.write(content.tobytes())
                    largest, start = max(largest, int(content.max(initial=0))), start + len(content)
            spans.write(np.array(records, _SPAN).tobytes())
            spans_before += len(records)
            offsets.write(np.array(spans_before, np.int64).tobytes())
            counts.add(row)
    described, token_type = counts.describe(), np.min_scalar_type(largest)
    order = np.array([described["modalities"].index(name) for name in numbers], np.uint8)

    def renumber(block: np.ndarray) -> np.ndarray:
        block["modality"] = order[block["modality"]]
        return block

    _to_npy(folder / "tokens.npy", np.dtype(np.int64), token_type, lambda block: block.astype(token_type))
    _to_npy(folder / "spans.npy", _SPAN, _SPAN, renumber)
    _to_npy(folder / "rows.npy", np.dtype(np.int64), np.dtype(np.int64), lambda block: block)
    return {**described, "token_dtype": str(token_type)}


def _to_npy(path: Path, raw: np.dtype, stored: np.dtype, convert: Callable[[np.ndarray], np.ndarray]) -> None:
    """Turn the array in ``path.raw`` into the file that `numpy.save` writes, block by block."""
    source = path.with_name(f"{path.name}.raw")
    about = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False}
    with source.open("rb") as file, path.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {**about, "shape": (source.stat().st_size // raw.itemsize,)})
        while len(block := np.fromfile(file, raw, _BLOCK)):
            convert(block).tofile(out)
    source.unlink()


def _array(path: AnyPath) -> "np.ndarray | BucketArray":
    fix = "prepare the rows again"
    return read_array(path, fix, mapped=True) if isinstance(path, Path) else BucketArray(path, fix)


class Counts:
    """Counts of rows, added one by one."""

    def __init__(self) -> None:
        self._rows, self._examples = 0, 0
        self._tokens: dict[str, int] = {}
        self._slots: dict[str, int] = {}
        self._longest: dict[str, int] = {}

    def add(self, row: Sequence[Example]) -> None:
        used: dict[str, int] = {}
        for example in row:
            for span in example:
                self._tokens[span.modality] = self._tokens.get(span.modality, 0) + len(span.tokens)
                used[span.modality] = used.get(span.modality, 0) + len(span.tokens) + 2
        for name, taken in used.items():
            self._slots[name] = self._slots.get(name, 0) + taken
            self._longest[name] = max(self._longest.get(name, 0), taken)
        self._rows, self._examples = self._rows + 1, self._examples + len(row)

    def describe(self) -> dict[str, Any]:
        """Return the counts.

        Returns:
            modalities (sorted names); rows and examples (numbers); tokens (modality -> content tokens); slots (modality
            -> positions used, begin and end tokens included); longest (the same of the fullest row).
        """
        return {
            "modalities": sorted(self._tokens),
            "rows": self._rows,
            "examples": self._examples,
            "tokens": dict(sorted(self._tokens.items())),
            "slots": dict(sorted(self._slots.items())),
            "longest": dict(sorted(self._longest.items())),
        }


def read_meta(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return ``meta.json`` of a complete store, or None if there is none. Raises UserError when it cannot be read."""
    path = as_path(folder) / META
    if not path.is_file():
        return None
    fix = "it is damaged: delete the folder and prepare the rows again"
    meta = user_json.read_object(path, fix)
    version = user_json.convert(meta, _Meta, repr(str(path)), fix).format_version
    if version != FORMAT_VERSION:
        raise UserError(
            f"{str(path)!r} has format {version}, this version reads {FORMAT_VERSION}: prepare the rows again"
        )
    return meta


def position_scales(folder: str | os.PathLike, task: str) -> dict[str, float]:
    """Return ``ZipConfig.position_scales`` of a task's pairs in a prepared folder; towers are named like modalities.

    The one with the fewest tokens has 1, another its mean number of those tokens per token of its own.

    Raises:
        UserError: There are no pairs.
    """
    rows = as_path(folder) / "rows" / task / "train"
    tokens = (read_meta(rows) or {}).get("tokens", {})
    if not tokens or min(tokens.values()) == 0:
        raise UserError(f"DATA = {str(folder)!r}: {rows} holds no pairs; prepare rows of the task {task!r}")
    return {modality: min(tokens.values()) / count for modality, count in tokens.items()}


class RowStore:
    """The rows of one task and split. Thread-safe.

    Attributes:
        meta: The stored ``meta.json``.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = as_path(folder)
        meta = read_meta(folder)
        if meta is None:
            raise UserError(f"there are no packed rows in {str(folder)!r}: write them with `zipper data prepare`")
        self.meta: dict[str, Any] = meta
        try:
            self._tokens, self._spans, self._rows = (
                _array(self.folder / f"{name}.npy") for name in ("tokens", "spans", "rows")
            )
            if self._spans.dtype != _SPAN or self._rows.dtype != np.int64 or self._tokens.dtype.kind not in "ui":
                raise ValueError("arrays of other types")
            last = self._spans[-1] if len(self._spans) else np.zeros((), _SPAN)
            whole = (
                self._tokens.ndim == self._spans.ndim == self._rows.ndim == 1
                and len(self._rows) == meta["rows"] + 1
                and meta["modalities"] == sorted(meta["tokens"])
                and int(self._rows[0]) == 0
                and int(self._rows[-1]) == len(self._spans)
                and int(last["start"]) + int(last["length"]) == len(self._tokens)
            )
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"packed rows {str(folder)!r} are damaged ({error}): prepare the rows again") from error
        if not whole:
            raise UserError(f"packed rows {str(folder)!r} are damaged (sizes do not agree): prepare the rows again")
        self._modalities: list[str] = meta["modalities"]

    def __len__(self) -> int:
        return len(self._rows) - 1

    def fetch(self, indices: Sequence[int]) -> None:
        """Read these rows from a bucket at the same time, so that `row` need not wait; on a disk nothing is done."""
        if isinstance(self._rows, BucketArray) and isinstance(self._spans, BucketArray):
            self._rows.fetch((index, index + 2) for index in indices)
            ranges = [(int(self._rows[index]), int(self._rows[index + 1])) for index in indices]
            self._spans.fetch(ranges)
            if isinstance(self._tokens, BucketArray):
                ends = [(self._spans[a], self._spans[b - 1]) for a, b in ranges if 0 <= a < b <= len(self._spans)]
                self._tokens.fetch((int(a["start"]), int(b["start"]) + int(b["length"])) for a, b in ends)

    def row(self, index: int) -> list[Example]:
        """Return the examples of row ``index``, in order. Raises IndexError outside ``[0, len)``."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} rows in {self.folder}")
        begin, end = int(self._rows[index]), int(self._rows[index + 1])
        if not 0 <= begin <= end <= len(self._spans):
            raise self._damaged(index)
        spans = self._spans[begin:end].tolist()
        if not spans:
            return []
        # Spans lie in the order of their tokens, so a row is read, and converted, at once.
        first, last = spans[0][3], spans[-1][3] + spans[-1][4]
        tokens = np.array(self._tokens[first:last], dtype=np.int32)
        examples: list[list[Span]] = []
        place = first if 0 <= first <= last <= len(self._tokens) else -1
        for segment, modality, weight, start, length in spans:
            if segment > len(examples):
                examples.append([])
            # A damaged span would be other tokens, or those of another row, without any error.
            if start != place or length < 0 or not 0 < segment == len(examples) or modality >= len(self._modalities):
                raise self._damaged(index)
            place += length
            content = tokens[start - first : start - first + length]
            examples[-1].append(Span(self._modalities[modality], content, weight))
        return [tuple(example) for example in examples]

    def _damaged(self, index: int) -> UserError:
        return UserError(f"packed rows {str(self.folder)!r}: row {index} is damaged: prepare the rows again")

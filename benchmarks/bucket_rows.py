"""Packed rows read from a bucket in training's order: our row stores against ArrayRecord files of the same rows.

    python benchmarks/bucket_rows.py --out benchmarks/results/bucket_rows.json           measure
    python benchmarks/bucket_rows.py --out benchmarks/results/bucket_rows.json --table   print the table

Rows of 1,280 tokens are read in batches of 64 as training reads them: a mixture of one task, in random order. The
bucket is a server on loopback which answers every request after 20 ms and the time that its bytes take at 100 MB/s,
any number of them at a time; it counts the bytes that it sent, of which a client that asks for more than it reads, as
ArrayRecord does, leaves some in buffers. ArrayRecord (PyPI array-record, Apache-2.0) has 8 files, a record is a row,
and is read by its `ArrayRecordDataSource`, or by 64 threads of it, one record each, as Grain does. A measurement is a
process of its own with an empty cache, which has read other files of the same kind before; all arms read the same
tokens (checked). Arms take turns; medians of the repeats; peak memory above what the process has before it opens the
rows, pages of mapped files included.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http import server
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from zipper_jax.data import bucket_arrays
from zipper_jax.data.mixtures import RowMixture
from zipper_jax.data.packed_rows import RowStore, write_rows
from zipper_jax.sequences import Example, Span

SECONDS, BYTES_PER_SECOND, CHUNK = 0.020, 100e6, 1 << 16
SIZES = (20_000, 100_000)
FILES, BATCH, FIRST, ALL, WARM_UP = 8, 64, 4, 16, 256
GROUPS = (1, 16)
"""Records that an ArrayRecord file compresses, and reads, together."""
ARMS = {
    "row store": "rows",
    "row store, blocks of 32 KiB": "rows 32",
    **{f"ArrayRecord, groups of {group}": f"source {group}" for group in GROUPS},
    "ArrayRecord, groups of 1, 64 threads": "threads 1",
}
MODALITIES = ("speech", "text")


def rows(count: int) -> list[list[Example]]:
    """Rows of four pairs of 270 units and 50 text tokens."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        units, text = rng.integers(0, 1024, (4, 270), np.int32), rng.integers(0, 254, (4, 50), np.int32)
        made.append([(Span("speech", u, 0.0), Span("text", t, 1.0)) for u, t in zip(units, text, strict=True)])
    return made


def record(row: list[Example]) -> bytes:
    """A row as bytes: number of spans, then segment, modality, weight and length of each, then the tokens."""
    spans = [(n, MODALITIES.index(s.modality), s.weight, len(s.tokens)) for n, e in enumerate(row) for s in e]
    tokens = np.concatenate([span.tokens for example in row for span in example]).astype(np.uint16)
    return np.uint32(len(spans)).tobytes() + np.array(spans, np.float32).tobytes() + tokens.tobytes()


def decoded(content: bytes) -> list[Example]:
    """The row of a record."""
    count = int(np.frombuffer(content, np.uint32, 1)[0])
    spans = np.frombuffer(content, np.float32, 4 * count, 4).reshape(count, 4).tolist()
    tokens = np.frombuffer(content, np.uint16, offset=4 + 16 * count).astype(np.int32)
    examples: list[list[Span]] = []
    begin = 0
    for segment, modality, weight, length in spans:
        if segment == len(examples):
            examples.append([])
        examples[-1].append(Span(MODALITIES[int(modality)], tokens[begin : begin + int(length)], weight))
        begin += int(length)
    return [tuple(example) for example in examples]


def write(folder: Path, count: int) -> None:
    """The same rows in every form."""
    from array_record.python.array_record_module import ArrayRecordWriter

    made = rows(count)
    write_rows(folder / "rows", made, {})
    for group in GROUPS:
        (folder / f"group{group}").mkdir()
        for file in range(FILES):
            writer = ArrayRecordWriter(str(folder / f"group{group}" / f"{file}.array_record"), f"group_size:{group}")
            for row in made[count * file // FILES : count * (file + 1) // FILES]:
                writer.write(record(row))
            writer.close()


class ArrayRecordRows:
    """Rows in ArrayRecord files, with the interface of `RowStore`."""

    def __init__(self, folder: str, how: str):
        from absl import flags
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        flags.FLAGS.mark_as_parsed()
        self.meta: dict[str, Any] = {}
        self._source = ArrayRecordDataSource([f"{folder}/{file}.array_record" for file in range(FILES)])
        self._threads = ThreadPoolExecutor(BATCH) if how == "threads" else None
        self._there: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._source)

    def fetch(self, indices: Sequence[int]) -> None:
        """Read these records at the same time."""
        if self._threads is None:
            found = self._source.__getitems__(list(indices))
        else:
            found = list(self._threads.map(self._source.__getitem__, indices))
        self._there = dict(zip(indices, found, strict=True))

    def row(self, index: int) -> list[Example]:
        """A row that was fetched."""
        return decoded(self._there[index])


def memory(field: str) -> float:
    """A figure of this process's memory, MiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0]) / 1024


def opened(folder: str, kind: str, value: str) -> RowStore | ArrayRecordRows:
    """The rows of an arm."""
    if kind == "rows":
        bucket_arrays.BLOCK = int(value or 256) << 10
        return RowStore(f"{folder}/rows")
    return ArrayRecordRows(f"{folder}/group{value}", kind)


def measure(arm: str, folder: str, endpoint: str) -> dict[str, Any]:
    """Read batches of an arm; ``folder`` in the bucket."""
    kind, _, value = ARMS[arm].partition(" ")

    def served() -> dict[str, int]:
        with urllib.request.urlopen(f"{endpoint}/served") as answer:
            return json.load(answer)

    def read(folder: str, batches: int) -> tuple[list[tuple[float, dict[str, int]]], str, int]:
        digest, count, marks = hashlib.sha256(), 0, []
        mixture = RowMixture({"asr": opened(folder, kind, value)}, {"asr": 1.0}, 0)
        for step in range(batches):
            for row in mixture.examples(range(step * BATCH, (step + 1) * BATCH))[1]:
                for example in row:
                    for span in example:
                        digest.update(span.tokens.tobytes())
                        count += len(span.tokens)
            if step + 1 in (FIRST, batches):
                marks.append((time.perf_counter(), served()))
        return marks, digest.hexdigest(), count

    read("gs://bucket/warm", 2)
    before, start, began = memory("VmRSS"), served(), time.perf_counter()
    marks, digest, count = read(folder, ALL)
    found: dict[str, Any] = {"digest": digest, "tokens_per_row": count / (ALL * BATCH), "peak_mib": 0.0}
    found["peak_mib"] = memory("VmHWM") - before
    for name, batches, (at, so_far) in zip(("first", "all"), (FIRST, ALL), marks, strict=True):
        found[name] = {
            "rows_per_s": batches * BATCH / (at - began),
            "requests": so_far["requests"] - start["requests"],
            "mb": (so_far["bytes"] - start["bytes"]) / 1e6,
        }
    return found


def serve(folder: Path) -> None:
    """Objects of ``gs://bucket`` in files of a folder, over JSON; prints the port."""
    counts, lock = {"requests": 0, "bytes": 0}, threading.Lock()

    class Handler(server.BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/served":
                with lock:
                    self.answer(200, json.dumps(counts).encode(), counted=False)
                return
            key = re.fullmatch(r"(?:/download)?/storage/v1/b/bucket/o(?:/(.*))?|/bucket/(.*)", parts.path)
            if key is None:
                self.answer(404, b"")
            elif (name := key[1] or key[2]) is None:
                asked = {one: values[0] for one, values in parse_qs(parts.query).items()}
                every = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
                first, end = asked.get("startOffset", ""), asked.get("endOffset", "\U0010ffff")
                self.answer(200, json.dumps({"items": [{"name": n} for n in every if first <= n < end]}).encode())
            elif not (path := folder / unquote(name)).is_file():
                self.answer(404, b"")
            else:
                size = path.stat().st_size
                wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
                assert wanted is not None
                begin = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
                end_ = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
                partial = {"Content-Range": f"bytes {begin}-{end_ - 1}/{size}"} if "Range" in self.headers else {}
                content = np.memmap(path, np.uint8, "r")[begin:end_]
                self.answer(206 if partial else 200, content, {**partial, "x-goog-generation": "1"})

        def answer(self, status: int, content: Any, headers: Any = (), counted: bool = True) -> None:
            if counted:
                time.sleep(SECONDS)
                with lock:
                    counts["requests"] += 1
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for begin in range(0, len(content), CHUNK):  # a client may close before it has read all it asked for
                    sent = self.wfile.write(content[begin : begin + CHUNK])
                    if counted:
                        time.sleep(sent / BYTES_PER_SECOND)
                        with lock:
                            counts["bytes"] += sent
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def handle(self) -> None:
            with contextlib.suppress(ConnectionResetError):
                super().handle()

        def log_message(self, *_: Any) -> None: ...

    # With a short queue the kernel drops connections that come at the same time, which are then tried after a second.
    queue = {"request_queue_size": 1024, "daemon_threads": True}
    served = type("Server", (server.ThreadingHTTPServer,), queue)(("127.0.0.1", 0), Handler)
    print(served.server_address[1], flush=True)
    served.serve_forever()


def run(repeats: int) -> dict[str, Any]:
    """Measure every arm on every size."""
    found: dict[str, Any] = {str(size): {arm: [] for arm in ARMS} for size in SIZES}
    with tempfile.TemporaryDirectory() as home:
        for name, count in (("warm", WARM_UP), *((str(size), size) for size in SIZES)):
            (Path(home) / name).mkdir()
            write(Path(home) / name, count)
        serving = subprocess.Popen([sys.executable, __file__, "--serve", home], stdout=subprocess.PIPE, text=True)
        try:
            assert serving.stdout is not None
            endpoint = f"http://127.0.0.1:{serving.stdout.readline().strip()}"
            names = {"TENSORSTORE_GCS_HTTP_URL": endpoint, "CLOUD_STORAGE_EMULATOR_ENDPOINT": endpoint}
            more = {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "XDG_CACHE_HOME": f"{home}/cache"}
            for size in found:
                for _ in range(repeats):
                    for arm, results in found[size].items():
                        command = [sys.executable, __file__, "--one", arm, f"gs://bucket/{size}", endpoint]
                        output = subprocess.check_output(command, env={**os.environ, **names, **more}, timeout=600)
                        results.append(json.loads(output.splitlines()[-1]))
                        print(size, arm, results[-1], file=sys.stderr)
            sizes = {
                size: {
                    kind: sum(f.stat().st_size for f in (Path(home) / size / kind).iterdir()) / 1e6
                    for kind in ("rows", *(f"group{group}" for group in GROUPS))
                }
                for size in found
            }
        finally:
            serving.kill()
            serving.wait()
    for size, arms in found.items():
        assert len({one["digest"] for results in arms.values() for one in results}) == 1, "the arms read other tokens"
        found[size] = {
            arm: {
                "peak_mib": statistics.median(one["peak_mib"] for one in results),
                **{
                    part: {name: statistics.median(one[part][name] for one in results) for name in results[0][part]}
                    for part in ("first", "all")
                },
                "spread_of_all": [min(x := [one["all"]["rows_per_s"] for one in results]), max(x)],
            }
            for arm, results in arms.items()
        }
    about = {"seconds_per_request": SECONDS, "bytes_per_second": BYTES_PER_SECOND, "batch": BATCH, "repeats": repeats}
    return {**about, "batches": [FIRST, ALL], "mb": sizes, "rows": found, "machine": platform.machine()}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    first, every = found["batches"]
    lines = [
        f"| rows | | rows/s, first {first} batches | all {every} | requests | MB moved | peak memory, MiB |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for size, arms in found["rows"].items():
        for arm, one in arms.items():
            lines.append(
                f"| {int(size):,} | {arm} | {one['first']['rows_per_s']:,.0f} | {one['all']['rows_per_s']:,.0f} "
                f"| {one['first']['requests']:,.0f}, {one['all']['requests']:,.0f} "
                f"| {one['first']['mb']:,.1f}, {one['all']['mb']:,.1f} | {one['peak_mib']:.0f} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the results, JSON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only print the results as a table")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    if args.one:
        print(json.dumps(measure(*args.one)))
        return 0
    if args.out is None:
        parser.error("give --out")
    if not args.table:
        args.out.write_text(json.dumps(run(args.repeats), indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

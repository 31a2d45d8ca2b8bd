"""Corpora without audio, and a folder that another process holds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_HOLD = """
import sys, time
from zipper_jax.utils.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def text_corpus(folder: Path, count: int) -> Path:
    """A manifest of ``count`` training sentences."""
    folder.mkdir(parents=True)
    rows = ({"id": f"t{n}", "split": "train", "text": f"sentence number {n}"} for n in range(count))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the lock of ``folder``."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

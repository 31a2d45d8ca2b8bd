"""Fixtures of buckets on loopback: emulators run as processes, and the environment names them. Import what you use."""

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

EMULATORS = Path(__file__).resolve().parents[1] / ".cache" / "emulators"
"""Where .ci/run installs them: moto needs other versions of packages that we have."""
HERE = Path(__file__).resolve().parent / "emulators"


def _require(package: str) -> None:
    if not (EMULATORS / package).is_dir():
        pytest.skip(f"{package} is not installed in .cache/emulators (.ci/run does it)")


def _port(file: Path, process: subprocess.Popen) -> int:
    deadline = time.monotonic() + 180
    while not file.is_file():
        assert process.poll() is None, "the emulator ended"
        assert time.monotonic() < deadline, "the emulator does not start"
        time.sleep(0.05)
    return int(file.read_text())


@cache
def _serve(script: str) -> tuple[int, Path]:
    """Port and folder of an emulator, started once in this process: TensorStore keeps the server that it used first."""
    folder = Path(tempfile.mkdtemp())
    environment = {**os.environ, "PYTHONPATH": str(EMULATORS)}
    with (folder / "log").open("w") as log:
        command = [sys.executable, str(HERE / script), str(folder)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def end() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return _port(folder / "port", process), folder


@contextlib.contextmanager
def failing(pattern: str, status: int = 403) -> Iterator[None]:
    """While the block runs, requests to ``gs://`` of which "METHOD PATH" matches get a status; 0: no answer."""
    _, folder = _serve("gcs_server.py")
    (folder / "fail.partial").write_text(f"{status} {pattern}")
    (folder / "fail.partial").rename(folder / "fail")
    try:
        yield
    finally:
        (folder / "fail").unlink()


@pytest.fixture
def gcs() -> str:
    """A Google Cloud Storage with a bucket; ``gs://bucket``."""
    _require("gcp_storage_emulator")
    port, _ = _serve("gcs_server.py")
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    return "gs://bucket"


@pytest.fixture
def s3() -> str:
    """An S3 with a bucket; ``s3://bucket``."""
    _require("moto")
    endpoint = f"http://127.0.0.1:{_serve('s3_server.py')[0]}"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).read()
    return "s3://bucket"


@pytest.fixture
def folder(gcs: str) -> str:
    """A fresh folder of the ``gs://`` bucket."""
    return f"{gcs}/{uuid.uuid4().hex}"


@pytest.fixture(params=["gs", "s3"])
def any_folder(request: pytest.FixtureRequest) -> str:
    """A fresh folder of a bucket of each kind."""
    return f"{request.getfixturevalue({'gs': 'gcs', 's3': 's3'}[request.param])}/{uuid.uuid4().hex}"

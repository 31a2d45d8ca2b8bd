"""Fixtures of buckets on loopback: emulators run as processes, and the environment names them. Import what you use."""

import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

EMULATORS = Path(__file__).resolve().parents[1] / ".cache" / "emulators"
"""Where .ci/run installs them: moto needs other versions of packages that we have."""
HERE = Path(__file__).resolve().parent / "emulators"


def _require(package: str) -> None:
    if not (EMULATORS / package).is_dir():
        pytest.skip(f"{package} is not installed in .cache/emulators (.ci/run does it)")


def _port(file: Path, process: subprocess.Popen) -> int:
    deadline = time.monotonic() + 60
    while not file.is_file():
        assert process.poll() is None, "the emulator ended"
        assert time.monotonic() < deadline, "the emulator does not start"
        time.sleep(0.05)
    return int(file.read_text())


def _serve(folder: Path, script: str) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, str(HERE / script), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(EMULATORS)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    return process, _port(folder / "port", process)


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Google Cloud Storage with a bucket; ``gs://bucket``."""
    _require("gcp_storage_emulator")
    process, port = _serve(tmp_path_factory.mktemp("gcs"), "gcs_server.py")
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    yield "gs://bucket"
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 with a bucket; ``s3://bucket``."""
    _require("moto")
    process, port = _serve(tmp_path_factory.mktemp("s3"), "s3_server.py")
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).read()
    yield "s3://bucket"
    process.kill()
    process.wait()


@pytest.fixture
def folder(gcs: str) -> str:
    """A fresh folder of the ``gs://`` bucket."""
    return f"{gcs}/{uuid.uuid4().hex}"


@pytest.fixture(params=["gs", "s3"])
def any_folder(request: pytest.FixtureRequest) -> str:
    """A fresh folder of a bucket of each kind."""
    return f"{request.getfixturevalue({'gs': 'gcs', 's3': 's3'}[request.param])}/{uuid.uuid4().hex}"

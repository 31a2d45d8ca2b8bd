"""``zipper compile`` for a small TPU slice, through the front door. Needs libtpu: installed, or in .cache/libtpu."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBTPU = ROOT / ".cache" / "libtpu"
needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None and not LIBTPU.is_dir(), reason="no libtpu: pip install --editable '.[tpu]'"
)

SMALL = """
include 'runs/base.gin'
include 'models/zipper.gin'
include 'tasks/asr_tts.gin'
include 'hardware/accelerator.gin'
TRAIN_STEPS = 10
BATCH_SIZE = 8
TASK_FEATURE_LENGTHS = {"text": 128, "speech": 128}
FreezeConfig.towers = ("text",)
ZIP_PAIRS = ((1, 1),)
text/TowerConfig.vocab_size = 256
speech/TowerConfig.vocab_size = 256
text/ModalityConfig.size = 256
speech/ModalityConfig.size = 256
text/ModalityConfig.tower = "text"
speech/ModalityConfig.tower = "speech"
text/TowerConfig.num_layers = 2
speech/TowerConfig.num_layers = 2
TowerConfig.embed_dim = 128
TowerConfig.num_heads = 2
TowerConfig.num_kv_heads = 2
TowerConfig.head_dim = 64
TowerConfig.mlp_dim = 256
"""


def zipper(*arguments: str, without: bool = False, seconds: int = 900) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": ""}
    if find_spec("libtpu") is None and not without:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(LIBTPU), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "zipper_jax.cli.main", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=seconds, check=False
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("gin") / "small.gin"
    path.write_text(SMALL)
    return f"--gin_file={path}"


@needs_libtpu
@pytest.mark.parametrize("what", ["train", pytest.param("decode", marks=pytest.mark.slow)])
def test_a_small_slice(small, tmp_path, what):
    found = tmp_path / "found.json"
    done = zipper(
        "compile", small, "--gin_file=xla/tpu.gin", "--topology=v5e:2x2", "--gin.FSDP=4", f"--json={found}",
        f"--what={what}", "--output=text",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 devices" in done.stdout
    assert "of 15.8 GiB" in done.stdout
    result = json.loads(found.read_text())
    assert result["mesh"] == {"slices": 1, "data": 1, "fsdp": 4, "tensor": 1}
    assert 0 < result["peak"] < 0.1 * result["limit"]
    asked = result["bounds"]["network"]
    if what == "train":  # so few rows are sometimes cheaper to gather than a kernel's gradients are to add up
        assert 0.5 * asked < result["sent"] < 2.5 * asked


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_names_the_largest_buffers_and_the_way_out(small):
    done = zipper("compile", small, "--topology=v5e:2x2", "--gin.FSDP=4", "--gin.BATCH_SIZE=65536")
    assert done.returncode == 2
    assert "exceeds available HBM" in done.stderr or "Exceeded hbm capacity" in done.stderr
    for way in ("MeshConfig.fsdp (now 4)", "TrainConfig.microbatches (now 1)", "ZipperConfig.remat = 'full'"):
        assert way in done.stderr


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v5e:3x3"], "--topology='v5e:3x3': "),
        (["--topology=v9:2x2"], "give GENERATION:AxB"),
        (["--topology=v5e:2x2", "--gin.FSDP=3"], "there are 4"),
        (["--topology=v5e:2x2", "--what=decode", "--output=txt"], "did you mean 'text'"),
    ],
)
def test_what_cannot_be_compiled_is_refused_at_once(small, arguments, words):
    done = zipper("compile", small, *arguments)
    assert done.returncode == 2
    assert words in done.stderr, done.stderr


def test_without_libtpu_the_error_says_how_to_install_it(small):
    if find_spec("libtpu") is not None:
        pytest.skip("libtpu is installed")
    done = zipper("compile", small, "--topology=v5e:2x2", without=True)
    assert done.returncode == 2
    assert "pip install --editable '.[tpu]'" in done.stderr

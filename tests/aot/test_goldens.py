"""The committed figures of the shipped TPU configurations, compiled again: memory and what is sent within 5 %.

Hours in all: `pytest -m slow tests/aot/test_goldens.py -k "tiny_128m and v5e"` compiles one.
"""

import json
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec, module_from_spec, spec_from_file_location

import pytest
from test_compile import LIBTPU, ROOT, zipper

FOUND = json.loads((ROOT / "benchmarks" / "results" / "pods.json").read_text())


def libtpu_version() -> str:
    """Of the libtpu that `zipper compile` loads in tests."""
    try:
        return version_of("libtpu")
    except PackageNotFoundError:
        (folder,) = LIBTPU.glob("libtpu-*.dist-info")
        return folder.name.removeprefix("libtpu-").removesuffix(".dist-info")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None and not LIBTPU.is_dir(), reason="no libtpu")
@pytest.mark.parametrize("name", FOUND)
def test_memory_and_what_is_sent(name, tmp_path):
    golden, path = FOUND[name], tmp_path / "found.json"
    if not (version := libtpu_version()).startswith(golden["libtpu"]):
        pytest.skip(f"the figures are of libtpu {golden['libtpu']}, here is {version}; see benchmarks/pods.py")
    done = zipper(*golden["command"].split()[1:], f"--json={path}", seconds=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["peak"] == pytest.approx(golden["peak"], rel=0.05)
    assert found["sent"] == pytest.approx(golden["sent"], rel=0.05)


def test_every_shipped_configuration_leaves_a_tenth_of_the_memory():
    assert FOUND
    for name, golden in FOUND.items():
        assert golden["peak"] <= 0.9 * golden["limit"], name


def test_every_case_that_is_shipped_has_its_row():
    """Each row was compiled by the command that its case has now."""
    spec = spec_from_file_location("pods", ROOT / "benchmarks" / "pods.py")
    pods = module_from_spec(spec)
    spec.loader.exec_module(pods)
    shipped = {case.name: f"zipper {' '.join(case.arguments)}" for case in pods.CASES}
    assert {name: golden["command"] for name, golden in FOUND.items()} == shipped


PROFILES = json.loads((ROOT / "benchmarks" / "results" / "profiles_tpu.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None and not LIBTPU.is_dir(), reason="no libtpu")
@pytest.mark.parametrize("name", [name for name in PROFILES if name.startswith("decode")])
def test_the_time_of_a_token(name, tmp_path):
    """By the compiler's cycles; a step takes tens of minutes to compile and is left to benchmarks/profiles_tpu.py."""
    golden, path = PROFILES[name], tmp_path / "found.json"
    if not (version := libtpu_version()).startswith(golden["libtpu"]):
        pytest.skip(f"the figures are of libtpu {golden['libtpu']}, here is {version}; see benchmarks/profiles_tpu.py")
    options = ["--gin_file=benchmarks/gemma2_2b_decode.gin", f"--gin.BATCH_SIZE={name.split()[1]}"]
    options += ["--what=decode", "--output=text", "--topology=v5e:1x1", "--profile"]
    done = zipper("compile", *options, f"--json={path}", seconds=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(path.read_text())["profile"]["seconds"] == pytest.approx(golden["profile"]["seconds"], rel=0.03)

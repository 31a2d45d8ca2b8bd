"""`zipper doctor` here, where all is well, and in a Python that lacks what is needed."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from zipper_jax.cli import environment
from zipper_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_all_is_well_here_and_every_dependency_has_a_line(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == environment.version_line()
    assert lines[-1] == "all that is needed is here"
    found = {line.split()[1]: line.split()[:1] + line.split()[2:3] for line in lines[1:-1]}
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "seqio", "sentencepiece", "pocketsphinx", "tensorflow"):
        assert found[name] == ["ok", metadata.version(name)], name
    assert found["devices"] == ["ok", "8"]
    assert re.fullmatch(r"\d+", found["cores"][1])
    assert {"Python", "synthesis", "memory", "free", "torch", "transformers", "libtpu"} <= set(found)
    text = "\n".join(lines)
    for name, (licence, _) in environment.OPTIONAL.items():  # whatever is installed is named with its licence
        assert (f"({licence})" in next(line for line in lines if line.split()[1] == name)) == (found[name][0] == "ok")
    assert "voices" in text or "ok       misaki" in text


def test_it_imports_neither_tensorflow_nor_without_devices_jax():
    code = (
        "import sys; from zipper_jax.cli.main import main; main(['doctor', '--no_devices']);"
        "assert not {'jax', 'tensorflow', 'seqio', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_every_missing_dependency_is_reported(tmp_path):
    """The package and packaging alone on the path: each dependency is reported missing, with what to do."""
    (tmp_path / "zipper_jax").symlink_to(ROOT / "zipper_jax")
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    import packaging

    shutil.copytree(Path(packaging.__file__).parent, tmp_path / "packaging")
    code = "import sys; from zipper_jax.cli.main import main; sys.exit(main(['doctor']))"
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert re.search(r"missing  jax +not installed; pip install 'jax>=0\.10'", run.stdout)
    assert re.search(r"missing  tensorflow +not installed; for `zipper data prepare`", run.stdout)
    assert re.search(r"missing  devices +No module named 'jax'", run.stdout)
    assert re.search(r"note     torch +not installed; for `zipper convert verify", run.stdout)
    assert re.search(r"\d+ missing\n$", run.stdout)


@pytest.mark.parametrize(
    ("needs", "line"),
    [
        ("numpy>=99", r"missing', name='numpy', found='\d.*, >=99 is needed', advice=\"pip install 'numpy>=99'\""),
        ("numpy>=1; python_version < '3'", ""),
    ],
)
def test_versions_and_markers_count(monkeypatch, needs, line):
    monkeypatch.setattr(environment, "requirements", lambda: ([needs], ">=3.11"))
    found = [str(finding) for finding in environment.packages() if finding.name == "numpy"]
    assert bool(found) == bool(line)
    assert all(re.search(line, text) for text in found)


def test_an_old_python_and_little_disk_space_are_reported(monkeypatch):
    monkeypatch.setattr(environment, "requirements", lambda: ([], ">=9"))
    assert environment.python().state == "missing"
    monkeypatch.setattr(environment, "LEAST_DISK", float("inf"))
    states = {finding.name: finding.state for finding in environment.room()}
    assert states["free disk"] == "note"

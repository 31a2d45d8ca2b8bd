"""What the wheel holds, and the lock."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gin

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def test_every_package_is_listed():
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "zipper_jax").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"zipper_jax.gin_files"}


def test_every_module_is_in_a_package():
    for path in (ROOT / "zipper_jax").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks __init__.py"


def test_our_gin_folder_does_not_shadow_gin_config():
    assert not (ROOT / "gin" / "__init__.py").exists()
    assert hasattr(gin, "configurable")


def test_the_lock_names_versions_and_hashes_and_nothing_of_this_machine():
    requirements = re.split(r"\n(?=\S)", LOCK.strip())
    for requirement in requirements:
        assert re.match(r"[a-z0-9][a-z0-9-]*==[^\s;]+", requirement), requirement[:80]
        assert "--hash=sha256:" in requirement, requirement[:80]
    assert not re.search(r"://|--index-url|--find-links|file:|\s/", LOCK)


def test_the_lock_has_every_direct_dependency():
    project = PROJECT["project"]
    # Neither torch, gradio nor weights are in the lock (pyproject.toml says why), nor is what needs them.
    extras = {
        n: extra
        for n, extra in project["optional-dependencies"].items()
        if n not in ("verify", "demo", "judge", "gguf", "voices", "wandb")
    }
    named = project["dependencies"] + [d for extra in extras.values() for d in extra]
    locked = set(re.findall(r"^([a-z0-9-]+)==", LOCK, re.MULTILINE))
    for dependency in named:
        assert re.match(r"[\w-]+", dependency)[0].lower().replace("_", "-") in locked, dependency


def test_every_module_imports():
    """An annotation with a name that is not there fails here, not at a user's."""
    extras = [name for extra in PROJECT["project"]["optional-dependencies"].values() for name in extra]
    optional = {"t5x", *(re.match(r"[\w-]+", name)[0].replace("-", "_") for name in extras)}
    code = (
        "import importlib, pkgutil, sys, zipper_jax\n"
        "for module in pkgutil.walk_packages(zipper_jax.__path__, 'zipper_jax.'):\n"
        "    try:\n"
        "        importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        if error.name.partition('.')[0] not in sys.argv[1:]:\n"
        "            raise\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *sorted(optional)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr

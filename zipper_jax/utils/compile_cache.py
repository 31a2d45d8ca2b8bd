"""Where jax keeps compiled programs, so that the next start of the same command does not compile them again."""

import hashlib
import os
import platform
from pathlib import Path

from zipper_jax.utils.paths import cache_home

FOLDER = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled_programs() -> None:
    """Let jax, not yet imported, keep programs in ``~/.cache/zipper_jax``, one folder for each kind of processor.

    What the user has set for jax stays; ``JAX_ENABLE_COMPILATION_CACHE=false`` turns the cache off. Where the folder
    cannot be made, nothing is kept.
    """
    if FOLDER in os.environ:
        return
    try:
        cache = cache_home()
        folder = cache / f"compiled_{_processor()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is read-only, missing or unknown
        return
    if os.access(folder, os.W_OK):
        os.environ[FOLDER] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _processor() -> str:
    """A digest of its instruction sets: programs for the CPU use all of them, and homes are shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        sets = next(line for line in lines if line.split(":")[0].strip() in ("flags", "Features"))
    except (OSError, StopIteration):
        sets = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {sets}".encode()).hexdigest()[:12]

"""What every test runs under: 8 virtual CPU devices, shapes checked on every call, a warm compilation cache."""

import os
from pathlib import Path

# Before anything imports jax. Tests that spawn processes hand these down.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes longer than running here: at level 0 XLA takes two thirds of the time. The slow tier's runs and the
# smoke run, which start commands of their own, compile as users do.
for _flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if _flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Every annotated signature of the package is checked while tests run (and only then).
install_import_hook("zipper_jax", "shape_checks.check")

_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=50, **_common)
settings.register_profile("ci", max_examples=50, derandomize=True, **_common)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Models of options.VARIANTS run in the slow tier."""
    from options import VARIANTS

    for item in items:
        params = getattr(item, "callspec", None)
        if params and VARIANTS & {value for value in params.params.values() if isinstance(value, str)}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def _few_mappings():
    """Every compiled program maps some files and pages; a process that reaches 65,530 of them (Linux) crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()

"""Every parameter of many models against golden_parameters.json: path, shape, dtype, logical axes, initial values.

Checkpoints name parameters by these paths, and a run repeats only while a seed gives the same values. After an intended
change write the file again and review its diff:

    python tests/models/test_golden_parameters.py
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(path) for path in (TESTS, TESTS / "conversion") if str(path) not in sys.path]

from options import OPTIONS  # noqa: E402
from tiny_hf import CASES  # noqa: E402

from zipper_jax.conversion.hugging_face import FAMILIES, read_tower  # noqa: E402
from zipper_jax.models.config import ModalityConfig, ZipperConfig  # noqa: E402
from zipper_jax.models.zipper import abstract_params, init_params, param_axes  # noqa: E402
from zipper_jax.utils.trees import flatten  # noqa: E402

GOLDEN = Path(__file__).with_name("golden_parameters.json")
SEEDS = (0, 7)


def converted(name: str) -> ZipperConfig:
    """The model of one tower that `zipper convert from-hf` makes of a tiny Hugging Face model; no torch."""
    case = CASES[name]
    family = next(family for family in FAMILIES.values() if family.architecture == case.model)
    _, tower = read_tower({"model_type": family.model_type, **case.fields}, name)
    return ZipperConfig(towers={"text": tower}, modalities={"text": ModalityConfig("text", tower.vocab_size)})


MODELS = {f"options: {name}": config for name, config in OPTIONS.items()} | {
    f"family: {name}": converted(name) for name in CASES
}


def described(config: ZipperConfig) -> dict[str, str]:
    """path -> shape, dtype, logical axes, and one digest of the values of all seeds."""
    shapes, axes = flatten(abstract_params(config)), flatten(param_axes(config))
    digests = {path: hashlib.sha256() for path in shapes}
    for seed in SEEDS:
        params = flatten(init_params(config, seed))
        assert params.keys() == shapes.keys() == axes.keys()
        for path, leaf in params.items():
            assert (leaf.shape, leaf.dtype) == (shapes[path].shape, shapes[path].dtype), path
            digests[path].update(leaf.tobytes())
    return {
        path: f"{leaf.dtype}{list(leaf.shape)} {axes[path]} {digests[path].hexdigest()[:12]}"
        for path, leaf in shapes.items()
    }


def read_golden() -> dict[str, dict[str, str]]:
    """model -> path -> description, as `described` gives them."""
    golden = json.loads(GOLDEN.read_text())
    found: dict[str, dict[str, str]] = {name: {} for name in golden["models"]}
    for leaf, numbers in golden["leaves"].items():
        path, _, description = leaf.partition(": ")
        for number in numbers.split():
            found[golden["models"][int(number)]][path] = description
    return found


def write_golden() -> None:
    """One line per distinct leaf, with the numbers of the models that have it: most leaves are in several."""
    leaves: dict[str, list[str]] = {}
    for number, config in enumerate(MODELS.values()):
        for path, description in described(config).items():
            leaves.setdefault(f"{path}: {description}", []).append(str(number))
    golden = {"models": list(MODELS), "leaves": {leaf: " ".join(leaves[leaf]) for leaf in sorted(leaves)}}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


@pytest.fixture(scope="module")
def golden():
    return read_golden()


@pytest.fixture(scope="module")
def drawn():
    """In a process of its own: compiled as users compile, which rounds otherwise than the tests do (conftest.py)."""
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, __file__, "--print"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_recorded(name, golden, drawn):
    assert drawn[name] == golden[name]


def test_the_recorded_models_are_all_options_and_families(golden):
    assert golden.keys() == MODELS.keys()
    assert {case.model for case in CASES.values()} == {family.architecture for family in FAMILIES.values()}


if __name__ == "__main__" and "--print" in sys.argv:
    print(json.dumps({name: described(config) for name, config in MODELS.items()}))
elif __name__ == "__main__":
    write_golden()

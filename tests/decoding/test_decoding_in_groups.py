"""Generation by several processes over one mesh: each of them gets what one device generates."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import group_member
import numpy as np
import pytest
from tiny import pair, random_params

import zipper_jax
from zipper_jax.checkpoint.model_folder import write_model_folder
from zipper_jax.utils.trees import flatten
from zipper_jax.vocabularies import UnitVocabulary

CONFIG = pair()


def write_model(folder: Path) -> None:
    params = flatten(random_params(CONFIG, seed=5))

    def fill(writer):
        for name, array in params.items():
            writer.write(name, array)

    vocabularies = {m: UnitVocabulary(config.size - 2, 25.0) for m, config in CONFIG.modalities.items()}
    write_model_folder(folder, CONFIG, {n: (a.dtype, a.shape) for n, a in params.items()}, fill, vocabularies)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_every_process_gets_the_tokens_of_one_device(count, tmp_path):
    """Tokens equal, log probabilities within 2e-5."""
    write_model(tmp_path / "model")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(zipper_jax.__file__).parents[1]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
    }
    where = f"127.0.0.1:{random.SystemRandom().randint(20_000, 50_000)}"
    command = [sys.executable, group_member.__file__, where, str(count)]
    members = [
        subprocess.Popen([*command, str(index), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for index in range(count)
    ]
    alone = group_member.generated(zipper_jax.load(tmp_path / "model"))
    said = [member.communicate(timeout=600)[1] for member in members]
    for index, member in enumerate(members):
        assert member.returncode == 0, said[index]
        together = pickle.loads((tmp_path / f"{index}.pickle").read_bytes())
        for ours, theirs in zip(alone, together, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                for a, b in zip(one, other, strict=True):
                    np.testing.assert_array_equal(a.tokens, b.tokens)
                    np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-5)

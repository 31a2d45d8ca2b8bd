"""One process of a group that decodes over one mesh of four devices: ``group_member.py HOST:PORT COUNT INDEX FOLDER``.

It leaves what it generated in ``FOLDER/INDEX.pickle``.
"""

import pickle
import sys
from pathlib import Path

import numpy as np

from zipper_jax import load
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.inference.model import Model
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.utils.distributed import Group, join

MESH = MeshConfig(data=1, fsdp=2, tensor=2)


def generated(model: Model) -> list:
    """Rows of unequal lengths, one empty, continued as text and then speech: by beams and sampling, and greedily."""
    random = np.random.default_rng(0)
    given = [[("speech", random.integers(0, 17, n).astype(np.int32))] for n in (1, 5, 9, 2, 0, 3)]
    settings = (
        {"text": SamplingConfig(beams=2), "speech": SamplingConfig(temperature=1.0, top_p=0.9, seed=3)},
        SamplingConfig(),
    )
    max_new_tokens = {"text": 4, "speech": 4}
    return [
        model.generate_tokens(given, ("text", "speech"), sampling=s, max_new_tokens=max_new_tokens) for s in settings
    ]


if __name__ == "__main__":
    where, count, index, folder = sys.argv[1:]
    join(Group(where, int(count), int(index), heartbeat_seconds=10, join_seconds=100))
    results = generated(load(Path(folder) / "model", mesh=MESH))
    (Path(folder) / f"{index}.pickle").write_bytes(pickle.dumps(results))

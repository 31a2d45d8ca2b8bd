"""Generation over a mesh: the tokens of one device, rows and heads sharded, no cache gathered."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from passes import advance
from tiny import PAIR_LAYOUT, pair, random_params

from zipper_jax.aot.hlo import collectives
from zipper_jax.decoding.generate import Generator
from zipper_jax.models import zipper
from zipper_jax.models.cache import init_cache
from zipper_jax.sharding.mesh import MeshConfig, make_mesh
from zipper_jax.sharding.rules import Placement, param_shardings
from zipper_jax.utils.trees import flatten, unflatten

CONFIG = pair()
LIMITS = {"text": 4, "speech": 4}


def placed(config, mesh_config):
    mesh = make_mesh(mesh_config)
    params = jax.tree.map(jnp.asarray, random_params(config, seed=5))
    shapes, known = flatten(params), zipper.parameters(config)
    shardings, _ = param_shardings(shapes, known, mesh, mesh_config)
    return unflatten(jax.device_put(shapes, shardings)), Placement(mesh, mesh_config)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=4, tensor=2, strategy="tensor"),
        pytest.param(MeshConfig(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, fsdp=4, tensor=2), marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=8), marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, fsdp=8), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_generation_is_that_of_one_device(mesh):
    """Rows of unequal lengths, two modalities; greedy tokens equal, log probabilities within 2e-5."""
    random = np.random.default_rng(0)
    given = [[("speech", random.integers(0, 17, n).astype(np.int32))] for n in (1, 5, 9, 2, 0, 3, 7, 4)]
    alone = Generator(CONFIG, jax.tree.map(jnp.asarray, random_params(CONFIG, seed=5)), PAIR_LAYOUT)
    params, placer = placed(CONFIG, mesh)
    together = Generator(CONFIG, params, PAIR_LAYOUT, placer=placer)
    outputs = ("text", "speech")
    for one, other in zip(alone(given, outputs, LIMITS), together(given, outputs, LIMITS), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-5)


def test_caches_are_sharded_and_never_gathered():
    mesh = MeshConfig(data=4, tensor=2, strategy="tensor")
    params, placer = placed(CONFIG, mesh)
    cache = init_cache(CONFIG, 8, {"text": 64, "speech": 64}, placer)
    key = cache.towers["text"].key
    assert key.addressable_shards[0].data.shape[1] == 2, "8 rows over 4 devices"
    step = jax.jit(partial(advance, CONFIG, placer=placer), static_argnames="tower")
    tokens, counts = jnp.ones((8, 1), jnp.int32), jnp.ones((8,), jnp.int32)
    compiled = step.lower(params, cache, tower="text", tokens=tokens, counts=counts).compile()
    found = collectives(compiled.as_text(), 8)
    shard = key.addressable_shards[0].data.nbytes
    assert all(c.size < shard for c in found), found[:3]
    out = step(params, cache, tower="text", tokens=tokens, counts=counts)[1]
    assert out.towers["text"].key.sharding.is_equivalent_to(key.sharding, key.ndim)

"""Optimizers and schedules against hand-written formulas and plain optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
    multipliers,
)
from zipper_jax.utils.errors import UserError

AXES = {
    "towers/t/blocks/mlp/up/kernel": ("layers", "embed", "mlp"),
    "towers/t/blocks/attention_norm/scale": ("layers", "embed"),
    "zips/a-t/into_t/attention_gate": ("zips",),
    "towers/t/embedding/table": ("vocab", "embed"),
}
SHAPES = {
    "towers/t/blocks/mlp/up/kernel": (3, 8, 6),
    "towers/t/blocks/attention_norm/scale": (3, 8),
    "zips/a-t/into_t/attention_gate": (2,),
    "towers/t/embedding/table": (5, 8),
}


def tree(seed: int) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    return {key: jnp.asarray(random.normal(size=shape), jnp.float32) for key, shape in SHAPES.items()}


def run(config: OptimizerConfig, steps: int = 3) -> dict[str, jax.Array]:
    return apply(make_optimizer(config, AXES, steps), tree, steps)


def apply(optimizer, gradients, steps: int):
    """``gradients(0)`` are the parameters to start from, ``gradients(n)`` the gradient of update n."""

    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def update(gradient, state, params):
        updates, state = optimizer.update(gradient, state, params, grad_norm=optax.tree.norm(gradient))
        return optax.apply_updates(params, updates), state

    params = gradients(0)
    state = jax.jit(optimizer.init)(params)
    for step in range(steps):
        params, state = update(gradients(step + 1), state, params)
    return params


def test_adam_is_optax_adam():
    reference = apply(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2, 0.9, 0.99)), tree, 3)
    for key, leaf in run(OptimizerConfig(learning_rate=1e-2)).items():
        np.testing.assert_allclose(leaf, reference[key], rtol=1e-6, atol=1e-7)


def test_adafactor_treats_each_layer_of_a_stack_as_a_leaf_of_its_own():
    config = OptimizerConfig(name="adafactor", learning_rate=1e-2, clip_norm=0.0, factored_min_size=4)
    got = run(config)
    key = "towers/t/blocks/mlp/up/kernel"
    for layer in range(3):
        alone = apply(optax.adafactor(1e-2, min_dim_size_to_factor=4), lambda n, i=layer: tree(n)[key][i], 3)
        np.testing.assert_allclose(got[key][layer], alone, rtol=1e-5, atol=1e-6)


def test_multipliers_scale_the_update_of_what_they_name():
    config = OptimizerConfig(learning_rate=1e-2, clip_norm=0.0)
    faster = OptimizerConfig(learning_rate=1e-2, clip_norm=0.0, learning_rate_multipliers={".*gate": 10.0})
    once, ten, start = run(config, 1), run(faster, 1), tree(0)
    for key in SHAPES:
        factor = 10.0 if key.endswith("gate") else 1.0
        np.testing.assert_allclose(ten[key] - start[key], factor * (once[key] - start[key]), rtol=1e-4, atol=1e-7)


def test_multipliers_apply_to_slices():
    config = OptimizerConfig(learning_rate_multipliers={".*/kernel": 0.5})
    assert multipliers(config, {"towers/t/blocks/k/kernel@0:2": 0, "towers/t/x": 0}) == {
        "towers/t/blocks/k/kernel@0:2": 0.5,
        "towers/t/x": 1.0,
    }


def test_weight_decay_spares_norms_and_gates():
    decayed = run(OptimizerConfig(learning_rate=1e-2, weight_decay=0.5), 1)
    plain = run(OptimizerConfig(learning_rate=1e-2), 1)
    changed = {key for key in SHAPES if not np.array_equal(decayed[key], plain[key])}
    assert changed == {"towers/t/blocks/mlp/up/kernel", "towers/t/embedding/table"}


def test_schedules():
    def rates(**fields):
        schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, **fields), 10)
        return np.array([schedule(step) for step in range(10)])

    np.testing.assert_allclose(rates(), 1.0)
    np.testing.assert_allclose(rates(schedule="linear_warmup", warmup_steps=4)[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    cosine = rates(schedule="cosine", warmup_steps=2, final_fraction=0.1)
    np.testing.assert_allclose(cosine[[0, 1, 5, 9]], [0.5, 1.0, 0.55, 0.1], rtol=1e-6)
    np.testing.assert_allclose(rates(schedule="rsqrt", warmup_steps=4)[[0, 3, 8]], [0.25, 1.0, 2 / 3], rtol=1e-6)


@given(st.sampled_from(("linear_warmup", "rsqrt", "cosine")), st.integers(0, 30), st.integers(1, 60), st.floats(0, 1))
def test_schedules_are_their_formulas(schedule, warmup, more, floor):
    """Of the update's own number n, from 1, in float64; optax computes in float32."""
    steps = warmup + more
    config = OptimizerConfig(learning_rate=3e-3, schedule=schedule, warmup_steps=warmup, final_fraction=floor)
    n, w = np.arange(1, steps + 1, dtype=np.float64), max(warmup, 1)
    rise = np.minimum(n / w, 1.0)
    down = {
        "linear_warmup": 1.0,
        "rsqrt": np.sqrt(w / np.maximum(n, w)),
        "cosine": floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * np.clip((n - warmup) / more, 0, 1))),
    }
    # Of one length in all examples, so that each operation is compiled once.
    found = jax.vmap(learning_rate_schedule(config, steps))(jnp.arange(90))[:steps]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 3e-3 * rise * down[schedule], rtol=2e-6, atol=3e-9)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "adm"}, ["'adm'", "adam"]),
        ({"schedule": "cosin"}, ["'cosin'", "cosine"]),
        ({"learning_rate": 0.0}, ["learning_rate", "positive"]),
        ({"b2": 1.0}, ["b2"]),
        ({"warmup_steps": 5}, ["constant", "linear_warmup"]),
        ({"learning_rate_multipliers": {".*": -1.0}}, ["-1.0"]),
    ],
)
def test_a_wrong_field_is_named(fields, words):
    with pytest.raises(UserError) as error:
        OptimizerConfig(**fields)
    assert all(word in str(error.value) for word in words), error.value


def test_a_multiplier_that_matches_nothing_names_the_closest_path():
    config = OptimizerConfig(learning_rate_multipliers={"zips/a-t/into_t/atention_gate": 2.0})
    with pytest.raises(UserError, match="zips/a-t/into_t/attention_gate"):
        make_optimizer(config, AXES, 10)


def test_a_warm_up_longer_than_a_cosine_run_is_refused():
    with pytest.raises(UserError, match="warmup_steps=10"):
        learning_rate_schedule(OptimizerConfig(schedule="cosine", warmup_steps=10), 10)

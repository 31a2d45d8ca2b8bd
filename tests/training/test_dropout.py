"""Dropout and token noise: they depend on seed, step and row alone, and there is neither outside of training."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import log, params, run
from test_step import assert_close, random_params, start
from tiny_models import LENGTHS, decoder_model

from zipper_jax.models.config import ZipConfig
from zipper_jax.models.dropout import Dropout, row_keys
from zipper_jax.models.zipper import bind_params
from zipper_jax.sharding.mesh import MeshConfig, put_batch
from zipper_jax.training import data_source
from zipper_jax.training.config import DataConfig, SaveCheckpointConfig
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.step import loss_and_gradients
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import unflatten

RATES = {"text": 0.1, "speech": 0.3}
SHARED = ZipConfig(("speech", "text"), {"text": 1, "speech": 2}, fusion="shared_attention")
PROJECTOR = ZipConfig(("speech", "text"), pairs=((3, 2),), fusion="projector")


def test_masks_have_the_rate_and_differ_by_row_step_tower_block_and_place():
    x = jnp.ones((4, 50, 40))

    def masks(step=7, tower="text", block=1, place=0, seed=0):
        dropout = Dropout({"text": 0.25, "speech": 0.25}, row_keys(seed, step, 4)).of(tower, "own")
        return np.asarray(dropout.at(block)(x, place))

    first = masks()
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (first == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(masks(), first)
    others = [masks(step=8), masks(tower="speech"), masks(block=2), masks(place=1), masks(seed=1), first[[1, 2, 3, 0]]]
    for other in others:
        assert ((other == 0) & (first == 0)).mean() == pytest.approx(0.25**2, abs=0.02), "independent"
    assert Dropout({"text": 0.25}, row_keys(0, 0, 4)).of("speech", "own") is None


@pytest.mark.parametrize(
    "zips",
    [
        pytest.param(None, id="paper"),
        pytest.param(SHARED, id="shared attention", marks=pytest.mark.slow),
        pytest.param(PROJECTOR, id="projector", marks=pytest.mark.slow),
    ],
)
def test_accumulation_and_mesh_drop_the_same(zipper_run, zips):
    """Rule 5: the loss and gradients of one device and one batch, with every block and stream dropping."""
    model = zipper_run().model
    model = model if zips is None else replace(model, zips=(zips,))
    config = zipper_run(model=model, dropout=RATES, token_noise={"text": 0.3})
    whole = _gradients(config)
    loss, _, gradients = _gradients(replace(config, microbatches=2, mesh=MeshConfig(data=2, fsdp=2, tensor=2)))
    np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
    assert_close(gradients, whole[2], 2e-5)


@pytest.mark.parametrize("task", ["asr", "asr_tts", "text_lm"])
def test_noise_replaces_only_tokens_that_the_model_generates(zipper_run, text_run, task):
    """Not begin tokens, conditions and padding; and no target."""
    config = text_run() if task == "text_lm" else zipper_run()
    rates = {"asr": 1.0} if task == "asr" else config.data.rates
    config = replace(config, data=replace(config.data, rates=rates))
    batches = data_source.open_data(config).batches.get(0)["towers"]
    noise = Dropout({}, row_keys(0, 5, config.batch_size), {"text": 0.5, "speech": 0.25})
    for tower, batch in batches.items():
        size = config.model.towers[tower].vocab_size
        noisy = jax.device_get(noise.noisy(tower, jax.tree.map(jnp.asarray, batch), size))
        for name in set(batch._fields) - {"tokens", "next_modality"}:
            np.testing.assert_array_equal(getattr(noisy, name), getattr(batch, name), err_msg=name)
        asked = np.zeros(batch.tokens.shape, bool)
        asked[:, 1:] = (batch.weights[:, :-1] > 0) & (batch.segment_ids[:, :-1] == batch.segment_ids[:, 1:])
        np.testing.assert_array_equal(batch.targets[:, :-1][asked[:, 1:]], batch.tokens[:, 1:][asked[:, 1:]])
        changed = noisy.tokens != batch.tokens
        assert not changed[~asked].any()
        assert asked.any() == (tower in ("text",) if task == "asr" else True)
        if asked.any():
            wanted = noise.noise[tower] * (1 - 1 / size)
            assert changed[asked].mean() == pytest.approx(wanted, abs=4 * (wanted / asked.sum()) ** 0.5)
            assert len(np.unique(noisy.tokens[changed])) > min(size, changed.sum()) / 3
            assert noisy.tokens.min() >= 0
            assert noisy.tokens.max() < size


def _gradients(config):
    built, state = start(config, random_params(config.model))
    batch = put_batch(data_source.open_data(config).batches.get(0), built.mesh)
    keys = row_keys(config.dropout_seed, 5, config.batch_size)
    compute = jax.jit(partial(loss_and_gradients, built.losses, num_tasks=2, microbatches=config.microbatches))
    return jax.device_get(compute(state.trainable, state.frozen, batch, keys=keys))


@pytest.mark.parametrize("field", ["dropout", "token_noise"])
def test_each_update_drops_others(text_run, field):
    """The same batch and (nearly) the same parameters in two updates; and the first one again."""
    config = text_run(**{field: {"text": 0.3}}, optimizer=OptimizerConfig(learning_rate=1e-30))
    batch = data_source.open_data(config).batches.get(0)
    built, state = start(config, random_params(config.model))
    again = built.start(unflatten(random_params(config.model)))
    losses = []
    for _ in range(2):
        state, metrics = built.train_step(state, put_batch(batch, built.mesh))
        losses.append(float(metrics.loss))
    assert abs(losses[0] - losses[1]) > 1e-3
    assert float(built.train_step(again, put_batch(batch, built.mesh))[1].loss) == losses[0]


def test_a_single_decoder_with_dropout_and_noise_resumes_bitwise_and_is_evaluated_without(text_run, prepared, tmp_path):
    """Rule 6. Validation of step 0's parameters is that of a run without dropout, training is not."""
    lengths = {"decoder": sum(LENGTHS.values())}
    data = DataConfig(str(prepared), "asr_tts", lengths, {"asr": 1.0, "tts": 1.26})
    config = text_run(model=decoder_model(), data=data, steps=4, dropout={"decoder": 0.1}, eval_period=1)
    config = replace(config, token_noise={"decoder": 0.2}, save=SaveCheckpointConfig(period=2))
    run(config)
    parts = replace(config, model_dir=str(tmp_path / "parts"))
    run(replace(parts, steps=2))
    run(parts)
    assert log(parts) == log(config)
    for path, leaf in params(config).items():
        np.testing.assert_array_equal(params(parts)[path], leaf, err_msg=path)

    still = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-30), steps=1)
    still = replace(still, dropout={}, token_noise={})
    kinds = {"none": {}, "dropout": {"dropout": config.dropout}, "noise": {"token_noise": config.token_noise}}
    logs = [replace(still, model_dir=str(tmp_path / name), **fields) for name, fields in kinds.items()]
    for each in logs:
        run(each)
    plain, *others = map(log, logs)
    for other in others:
        assert [line["split"] for line in other] == ["train", "validation"]
        assert other[0]["loss"] != plain[0]["loss"]
        assert other[1] == plain[1]


def test_a_pass_without_dropout_draws_nothing(zipper_run):
    """Evaluation and decoding give a pass none; a tower of rate 0 draws nothing either."""
    config = zipper_run()
    towers = data_source.open_data(config).batches.get(0)["towers"]

    def traced(dropout):
        def losses(params):
            return bind_params(config.model, params).losses(towers, 0.0, dropout)

        return str(jax.make_jaxpr(losses)(unflatten(random_params(config.model))))

    keys = row_keys(0, 0, 8)
    assert "random_bits" in traced(Dropout({"text": 0.1}, keys))
    assert "random_bits" not in traced(None)
    assert "random_bits" in traced(Dropout({}, keys, {"text": 0.1}))
    assert "random_bits" not in traced(Dropout({"text": 0.0}, keys, {"text": 0.0}))


def test_rates_are_checked(zipper_run):
    with pytest.raises(UserError, match=r"TrainConfig.dropout\['text'\]=1.0: give 0 \(none\) or more, below 1"):
        zipper_run(dropout={"text": 1.0})
    with pytest.raises(UserError, match=r"TrainConfig.token_noise\['text'\]=-0.1: give 0 \(none\) or more, below 1"):
        zipper_run(token_noise={"text": -0.1})
    with pytest.raises(UserError, match=r"TrainConfig.dropout: the model has no tower 'txt'; did you mean 'text'"):
        zipper_run(dropout={"txt": 0.1})

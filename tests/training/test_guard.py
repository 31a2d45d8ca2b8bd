"""Bad updates are skipped, and after too many the run returns to a checkpoint; all of it bitwise reproducible."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from running import Stopping, log, params, run

from zipper_jax.checkpoint import checkpoints
from zipper_jax.cli.main import main
from zipper_jax.training.config import DataConfig, GuardConfig, SaveCheckpointConfig
from zipper_jax.training.monitor import read_metrics
from zipper_jax.training.skips import Skips
from zipper_jax.training.step import new_guard, observe, spike_limit
from zipper_jax.utils.errors import UserError


class Poisoned:
    """Batches of which some have infinite loss weights."""

    def __init__(self, batches, *numbers: int):
        self.batches, self.numbers = batches, numbers

    def get(self, step: int):
        batch = self.batches.get(step)
        if step not in self.numbers:
            return batch
        tower = batch["towers"]["text"]
        weights = np.where(tower.weights > 0, np.float32(np.inf), tower.weights)
        return {**batch, "towers": {"text": tower._replace(weights=weights)}}


def poisoned(*numbers: int):
    return lambda batches: Poisoned(batches, *numbers)


def skipping(config, *ranges):
    """The same run in another folder, with batches skipped from the start."""
    return replace(config, model_dir=config.model_dir + "_skipping", data=replace(config.data, skip_batches=ranges))


def losses(config) -> list[dict]:
    return [line for line in log(config) if line["split"] in ("train", "validation")]


def assert_same_run(config, other) -> None:
    assert losses(config) == losses(other)
    for key, leaf in params(other).items():
        np.testing.assert_array_equal(params(config)[key], leaf)


@pytest.fixture
def guarded(text_run):
    return text_run(steps=9, eval_period=3, guard=GuardConfig(skips_in_a_row=3, rollbacks=2))


def test_a_bad_batch_is_left_out_as_if_it_were_not_in_the_data(guarded):
    result, shown = run(guarded, wrap_batches=poisoned(4))
    assert (result.status, result.step) == ("finished", 9)
    assert "batch 4 is skipped" in shown
    assert "1 batches skipped" in shown
    assert checkpoints.steps(guarded.model_dir) == [6, 9], "a skipped batch is no update"
    told = [line for line in log(guarded) if line["split"] == "skipped"]
    assert [(line["step"], line["batch"]) for line in told] == [(4, 4)]
    other = skipping(guarded, (4, 5))
    run(other)
    assert_same_run(guarded, other)
    straight = replace(guarded, model_dir=guarded.model_dir + "_straight")
    run(straight)
    assert losses(straight)[:4] == losses(guarded)[:4]
    assert losses(straight) != losses(guarded), "the batch does matter"


def test_too_many_bad_batches_in_a_row_roll_the_run_back(guarded):
    """Step 3 is saved; batches 5, 6, 7 are bad: batches 3 to 7 are skipped from there."""
    result, shown = run(guarded, wrap_batches=poisoned(5, 6, 7))
    assert result.status == "finished"
    assert "back to step 3, skipping batches 3 to 7" in shown
    assert [line["batches"] for line in log(guarded) if line["split"] == "rollback"] == [[3, 8]]
    other = skipping(guarded, (3, 8))
    run(other)
    assert_same_run(guarded, other)
    progress = checkpoints.read_manifest(guarded.model_dir, 9)["progress"]
    assert (progress["skipped"], progress["rollbacks"]) == ([[3, 8]], 1)


def test_a_return_does_not_change_later_skip_ranges(guarded):
    """Ranges that are configured for much later stay as they are."""
    config = replace(guarded, data=replace(guarded.data, skip_batches=((100, 110),)))
    _, shown = run(config, wrap_batches=poisoned(5, 6, 7))
    assert "skipping batches 3 to 7" in shown


def test_a_return_goes_to_a_step_that_was_periodic_when_it_was_saved(guarded):
    """Another period since then, or a pruned folder, must not send it back to the start."""
    run(replace(guarded, steps=6))
    longer = replace(guarded, save=SaveCheckpointConfig(period=20))
    _, shown = run(longer, wrap_batches=poisoned(6, 7, 8))
    assert "back to step 6, skipping batches 6 to 8" in shown
    assert 6 in checkpoints.steps(guarded.model_dir)


def test_before_the_first_checkpoint_it_goes_back_to_the_start(guarded):
    result, shown = run(guarded, wrap_batches=poisoned(0, 1, 2))
    assert result.status == "finished"
    assert "back to step 0, skipping batches 0 to 2" in shown
    other = skipping(guarded, (0, 3))
    run(other)
    assert_same_run(guarded, other)


@pytest.mark.parametrize(
    ("numbers", "stop_at"),
    [((5, 6, 7), 6), ((5, 6, 7), 9), ((4, 5), 4), ((4, 5), 5)],
)
def test_a_run_stopped_among_bad_batches_goes_on_like_the_undisturbed_one(guarded, numbers, stop_at):
    """Also when the stop saved a step that the undisturbed run has not: a return does not go there."""
    guarded = replace(guarded, guard=GuardConfig(skips_in_a_row=len(numbers)))
    straight = replace(guarded, model_dir=guarded.model_dir + "_straight")
    run(straight, wrap_batches=poisoned(*numbers))
    result, _ = run(
        guarded, wrap_batches=lambda batches: Stopping(Poisoned(batches, *numbers), stop_at, signal.SIGTERM)
    )
    assert result.status == "interrupted"
    result, _ = run(guarded, wrap_batches=poisoned(*numbers))
    assert result.status == "finished"
    assert log(guarded) == log(straight), "skips and returns included"
    assert_same_run(guarded, straight)


def test_a_run_that_stays_bad_gives_up_and_keeps_its_checkpoint(guarded):
    with pytest.raises(UserError, match=r"stayed bad.*after 2 rollbacks.*checkpoint of step 3 is good.*zipper replay"):
        run(guarded, wrap_batches=poisoned(*range(4, 100)))
    assert checkpoints.steps(guarded.model_dir) == [3]
    assert checkpoints.verify(guarded.model_dir, 3) == []


def test_a_spike_is_skipped_and_its_batch_counts_as_skipped(guarded):
    """With a spike threshold so low that ordinary losses exceed it; the same run with that skip list from the start."""
    strict = replace(guarded, guard=GuardConfig(spike_deviations=0.5, window=2, skips_in_a_row=100))
    run(strict)
    skipped = [line for line in log(strict) if line["split"] == "skipped"]
    assert skipped
    assert all(line["loss"] > line["limit"] for line in skipped)
    other = skipping(strict, *((line["batch"], line["batch"] + 1) for line in skipped))
    run(other)
    assert_same_run(strict, other)
    assert not [line for line in log(other) if line["split"] == "skipped"]


def test_a_resumed_run_tells_spikes_as_the_undisturbed_one_does(guarded):
    """The statistics are part of the state."""
    strict = replace(guarded, guard=GuardConfig(spike_deviations=0.5, window=2, skips_in_a_row=100))
    straight = replace(strict, model_dir=strict.model_dir + "_straight")
    run(straight)
    assert any(line["split"] == "skipped" and line["step"] >= 5 for line in log(straight))
    run(strict, wrap_batches=lambda batches: Stopping(batches, 4, signal.SIGINT))
    result, _ = run(strict)
    assert result.status == "finished"
    assert log(strict) == log(straight)


def test_spike_statistics_are_those_of_their_definition():
    random = np.random.default_rng(0)
    losses = random.normal(3.0, 0.2, 40).astype(np.float32)
    config, guard = GuardConfig(spike_deviations=4.0, window=10), new_guard()
    mean, variance = 0.0, 0.0
    for n, loss in enumerate(losses.astype(np.float64), start=1):
        assert np.isinf(spike_limit(guard, config)) == (n <= 10)
        guard = observe(guard, jnp.float32(loss), config.window)
        share = 1.0 / min(n, 10)
        variance = (1 - share) * (variance + share * (loss - mean) ** 2)  # West 1979
        mean += share * (loss - mean)
        np.testing.assert_allclose([guard.mean, guard.variance], [mean, variance], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(spike_limit(guard, config), mean + 4.0 * np.sqrt(variance), rtol=1e-4)
    still = observe(new_guard(), jnp.float32(2.0), 1)
    np.testing.assert_allclose(spike_limit(still, GuardConfig(spike_deviations=5.0, window=1)), 2.1, rtol=1e-6)


def test_a_batch_is_found_from_the_updates_and_the_skipped_ranges():
    skips = Skips([(3, 5), (10, 11), (5, 6), (0, 1)])
    assert skips.ranges == ((0, 1), (3, 6), (10, 11))
    left = [n for n in range(40) if not any(a <= n < b for a, b in skips.ranges)]
    assert [skips.batch(step) for step in range(20)] == left[:20]
    assert [skips.after(n) for n in left[:19]] == left[1:20]
    assert len(skips) == 5
    with pytest.raises(UserError, match="skip_batches"):
        DataConfig("x", "y", {"text": 8}, skip_batches=((4, 4),))


def test_replay_runs_the_batch_with_the_parameters_of_the_time(guarded, capsys):
    """A spike can be replayed to the same loss; the checkpoint is two updates older."""
    strict = replace(guarded, guard=GuardConfig(spike_deviations=0.5, window=2, skips_in_a_row=100))
    run(strict)
    told = next(line for line in read_metrics(strict.model_dir) if line["split"] == "skipped")
    before = sorted(path.name for path in Path(strict.model_dir).rglob("*"))
    assert main(["replay", f"{strict.model_dir}/bad_batches/batch_{told['batch']}.npz"]) == 0
    shown = capsys.readouterr().out
    assert f"skipped after {told['step']} updates" in shown
    assert f"loss {told['loss']:.6g} (a spike above {told['limit']:.4g})" in shown
    assert sorted(path.name for path in Path(strict.model_dir).rglob("*")) == before
    assert main(["replay", f"{strict.model_dir}/config.json"]) == 2
    assert "is no stored batch" in capsys.readouterr().err


def test_best_checkpoints_stay(text_run):
    config = text_run(
        steps=8, eval_period=1, save=SaveCheckpointConfig(period=1, keep=1, keep_best=2, best_metric="loss")
    )
    run(config)
    values = {line["step"]: line["loss"] for line in read_metrics(config.model_dir) if line["split"] == "validation"}
    best = sorted(values, key=values.get)[:2]
    assert checkpoints.steps(config.model_dir) == sorted({*best, 8})
    with pytest.raises(UserError, match="keep_best=1 needs a validation"):
        text_run(eval_period=2, save=SaveCheckpointConfig(period=3, keep_best=1))


@pytest.mark.slow
def test_replay_after_a_return_knows_what_was_skipped(guarded, capsys):
    """The return is in no checkpoint yet when the next bad batch comes."""
    run(guarded, wrap_batches=poisoned(5, 6, 7, 9))
    told = next(line for line in read_metrics(guarded.model_dir) if line["split"] == "skipped" and line["batch"] == 9)
    assert told["step"] == 4
    for step in (6, 9):
        shutil.rmtree(Path(guarded.model_dir, "checkpoints", str(step)), ignore_errors=True)
    assert main(["replay", f"{guarded.model_dir}/bad_batches/batch_9.npz"]) == 0
    shown = capsys.readouterr().out
    assert "skipped after 4 updates" in shown
    assert "loss nan" in shown or "loss inf" in shown


def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path):
    from zipper_jax.checkpoint import manifest

    for step, loss in ((1, float("nan")), (2, 0.5), (3, 0.4)):
        folder = tmp_path / "checkpoints" / str(step) / "manifest"
        folder.mkdir(parents=True)
        (folder / "metadata").write_text(json.dumps(manifest.sealed({"metrics": {"loss": loss}})))
    assert checkpoints.best_steps(tmp_path, SaveCheckpointConfig()) == [3, 2]


def test_metrics_lines_are_json_for_any_loss(guarded):
    run(guarded, wrap_batches=poisoned(4))
    for line in (Path(guarded.model_dir) / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

"""The runs that experiments/*.py describe can be built: their arms are made only when a sweep runs them."""

from pathlib import Path

import pytest

from zipper_jax.sweep.plan import Places, load_sweep, rows, train_config

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.py"))


@pytest.mark.parametrize("size", ["cpu", "gpu", "gpu_trial"])
@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_arm_is_a_run(file, size, prepared, tmp_path):
    (tmp_path / "prepared").symlink_to(prepared)
    sweep = load_sweep(file, size)
    for row in rows(sweep):
        assert train_config(sweep, row, Places(tmp_path)).seed == row.seed

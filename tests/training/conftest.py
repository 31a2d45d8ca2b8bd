"""A tiny prepared folder and tiny unequal towers: everything here compiles and runs in seconds."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_models import LENGTHS, ONE_DEVICE, SPEECH, TEXT, text_model, zipper_model

from zipper_jax.data.packed_rows import write_rows
from zipper_jax.sequences import fill_template
from zipper_jax.tasks import TASKS
from zipper_jax.training.config import DataConfig, SaveCheckpointConfig, TrainConfig
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.vocabularies import UnitVocabulary


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every task: units repeat each text token, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("prepared")
    UnitVocabulary(num_units=TEXT - 2, rate_hz=25.0).save(folder / "vocabularies" / "text")
    UnitVocabulary(num_units=SPEECH - 2, rate_hz=25.0).save(folder / "vocabularies" / "speech")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 6)):
        for task in ("text_lm", "speech_lm", "asr", "tts"):
            rows = []
            for _ in range(count):
                texts = [random.integers(0, TEXT - 2, n).astype(np.int32) for n in (3, 4)]
                rows.append([fill_template(TASKS[task], {"text": t, "speech": np.repeat(t, 2)}) for t in texts])
            write_rows(folder / "rows" / task / split, rows, {"task": task})
    return folder


@pytest.fixture
def text_run(prepared: Path, tmp_path: Path):
    """Makes TrainConfigs of a lone text tower in a fresh run folder; keyword arguments replace fields."""
    defaults = {
        "model": text_model(),
        "data": DataConfig(str(prepared), "text_lm", {"text": 16}),
        "model_dir": str(tmp_path / "run"),
        "steps": 6,
        "batch_size": 2,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "mesh": ONE_DEVICE,
        "log_period": 1,
        "save": SaveCheckpointConfig(period=3),
    }
    return partial(_make, defaults)


@pytest.fixture
def zipper_run(prepared: Path, tmp_path: Path):
    """The same for a zipper on ASR + TTS."""
    defaults = {
        "model": zipper_model(),
        "data": DataConfig(str(prepared), "asr_tts", LENGTHS, {"asr": 1.0, "tts": 1.26}),
        "model_dir": str(tmp_path / "run"),
        "steps": 4,
        "batch_size": 8,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "mesh": ONE_DEVICE,
        "log_period": 1,
    }
    return partial(_make, defaults)


def _make(defaults: dict, **changes) -> TrainConfig:
    return TrainConfig(**{**defaults, **changes})

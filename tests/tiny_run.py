"""A real run folder in seconds: a tiny zipper of text and speech, trained for two steps, with its audio tokenizer."""

from pathlib import Path

import numpy as np
import soundfile

from zipper_jax.data.packed_rows import write_rows
from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.sequences import fill_template
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.tasks import TASKS
from zipper_jax.training.config import DataConfig, TrainConfig
from zipper_jax.training.loop import train
from zipper_jax.vocabularies import ByteVocabulary, UnitVocabulary, load_vocabulary

UNITS = 12
SENTENCES = ("on", "off", "go on")


def write_run(root: Path) -> Path:
    """Writes ``root/prepared`` and ``root/run``, and returns the latter."""
    vocabularies = root / "prepared" / "vocabularies"
    ByteVocabulary().save(vocabularies / "text")
    UnitVocabulary(UNITS, 25.0).save(vocabularies / "speech")
    noise = np.random.default_rng(0).standard_normal(16_000 * 2).astype(np.float32) * 0.1
    UnitTokenizer.fit([noise], num_units=UNITS).save(vocabularies / "speech")
    text = load_vocabulary(vocabularies / "text")
    rows = [
        [fill_template(TASKS[task], {"text": text.encode(s), "speech": np.arange(5) % UNITS})]
        for s in SENTENCES
        for task in ("asr",)
    ]
    write_rows(root / "prepared" / "rows" / "asr" / "train", rows, {"task": "asr"})
    sizes = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 16}
    model = ZipperConfig(
        towers={
            "text": TowerConfig(text.size, 2, 16, **sizes),
            "speech": TowerConfig(UNITS + 2, 3, 24, **sizes),
        },
        modalities={"text": ModalityConfig("text", text.size), "speech": ModalityConfig("speech", UNITS + 2)},
        zips=(ZipConfig(("speech", "text"), pairs=((1, 1),), feed_forward="where_visible"),),
        input_projections={"text": ProjectionConfig(form="residual")},
    )
    lengths = {"text": 16, "speech": 64}
    config = TrainConfig(
        model=model,
        data=DataConfig(str(root / "prepared"), "asr", lengths),
        model_dir=str(root / "run"),
        steps=2,
        batch_size=2,
        mesh=MeshConfig(data=1),
    )
    train(config)
    return root / "run"


def tone(path: Path, rate: int, channels: int) -> Path:
    """A second of a tone."""
    wave = 0.2 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path

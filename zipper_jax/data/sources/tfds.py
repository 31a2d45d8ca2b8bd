"""Datasets that TFDS has prepared on this machine: tfds:librispeech, tfds:libritts, tfds:ljspeech, or any other.

Their audio is stored in records, so it is extracted to OUT/audio/…/ID.flac. `read` imports TensorFlow.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.data.sources.columns import warn_unused
from zipper_jax.data.sources.rows import NO_TEXT, NOT_UTF8, ImportSettings, Row
from zipper_jax.data.tensorflow_logging import quiet_stderr
from zipper_jax.speech.audio import AudioError, load_audio, save_audio
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.interrupts import interruptible

_TEXT = ("text_normalized", "text", "sentence", "transcript")
_VOICE = ("speaker_id", "speaker", "client_id")


def read(name: str, data_dir: Path | None, settings: ImportSettings, out: Path) -> Iterator[Row]:
    """Yield the rows of every split. Audio that an interrupted import extracted is reused."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with interruptible(), quiet_stderr():
        import tensorflow as tf
        import tensorflow_datasets as tfds

        tf.config.set_visible_devices([], "GPU")
    builder = _builder(tfds, name, data_dir)
    features = builder.info.features
    audio = _feature(name, "audio", settings.audio_field, _audio_features(tfds, features), features)
    text = _feature(name, "text", settings.text_field, [one for one in _TEXT if one in features], features, need=False)
    voice = _feature(name, "voice", settings.voice_field, [v for v in _VOICE if v in features], features, need=False)
    rate = getattr(features[audio], "sample_rate", None) or (builder.info.metadata or {}).get("sample_rate")
    rate = settings.sample_rate or rate
    if not rate:
        raise UserError(f"tfds:{name} does not state its sample rate: give --sample_rate, in Hz")
    warn_unused(f"tfds:{name}", features, [one for one in ("id", audio, text, voice) if one], "features")
    for split in sorted(builder.info.splits):
        home = out / "audio" / f"{builder.info.full_name.replace('/', '-')}-{audio}-{rate}" / split
        for number, example in enumerate(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))):
            own = _string(example["id"]) if "id" in example else f"{split}-{number}"
            file = home / f"{(own or str(number)).replace('/', '-')}.flac"
            sentence = _string(example[text]) if text else None
            problem = "" if not text or sentence else NOT_UTF8 if sentence is None else NO_TEXT
            if not problem and not file.is_file():
                problem = _write(file, example[audio], rate)
            speaker = _string(example[voice]) if voice else None
            place = f"tfds:{name} {split} {own}"
            yield Row(f"{own}", place, split, sentence, str(file.resolve()), voice=speaker, problem=problem)


def _builder(tfds: Any, name: str, data_dir: Path | None) -> Any:
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, FileNotFoundError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            f"tfds:{name}: TFDS has no such dataset here{closest(name, known)}: check the name and DATA_DIR"
        ) from error
    if not builder.info.splits:
        raise UserError(
            f"tfds:{name} is not prepared in {str(builder.data_path.parent.parent)!r}: run `tfds build {name}` first "
            "(it downloads), or give DATA_DIR after the format"
        )
    return builder


def _audio_features(tfds: Any, features: Any) -> list[str]:
    return [name for name in features if isinstance(features[name], tfds.features.Audio)]


def _feature(name: str, what: str, asked: str, found: list[str], features: Any, need: bool = True) -> str | None:
    if asked and asked not in features:
        raise UserError(
            f"tfds:{name} has no feature {asked!r} (features: {', '.join(features)}){closest(asked, features)}: give "
            f"another --{what}_field"
        )
    if not asked and not found and need:
        raise UserError(f"tfds:{name} has no {what} feature: give one of {', '.join(features)} as --{what}_field")
    return asked or next(iter(found), None)


def _string(value: Any) -> str | None:
    """Return ``value`` as a stripped string; None for bytes that are not UTF-8."""
    try:
        return (value.decode() if isinstance(value, bytes) else str(value)).strip()
    except UnicodeDecodeError:
        return None


def _write(file: Path, samples: np.ndarray, rate: int) -> str:
    """Write ``file``; return the problem, or ""."""
    if np.issubdtype(samples.dtype, np.integer):
        # TFDS stores 16-bit samples in wider types.
        samples = samples.astype(np.int16 if np.abs(samples).max(initial=0) <= 2**15 else np.int32)
    try:
        waveform = load_audio(samples, int(rate))
    except AudioError as error:
        return error.reason
    save_audio(file, waveform)
    return ""

"""Training of the learned decoder from units to log-mel frames on a corpus's training audio (`zipper data vocoder`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.data.encode import part
from zipper_jax.speech import mel_decoder
from zipper_jax.speech.audio import AudioError, load_audio
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.speech.mel_decoder_training import MelDecoderSettings, Spoken, pair, train
from zipper_jax.speech.tokenizers import load_units
from zipper_jax.speech.workers import parallel_map
from zipper_jax.tasks import SPEECH
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked
from zipper_jax.utils.progress import progress

logger = logging.getLogger(__name__)


def train_vocoder(
    folder: str | Path,
    corpus: str | Path,
    settings: MelDecoderSettings = MelDecoderSettings(),
    most_seconds: float = 3600.0,
    overwrite: bool = False,
    processes: int | None = None,
) -> Path:
    """Train a decoder of the units of ``folder`` (prepared data, a run, a tokenizer's folder) and store it there.

    Args:
        folder: With vocabularies/speech.
        corpus: Whose training audio to use, in random order.
        settings: Of the training.
        most_seconds: Audio to use at most.
        overwrite: Replace a decoder that is there.
        processes: Worker processes that encode audio, default one per core.

    Raises:
        UserError: No tokenizer, one that cannot encode, no audio, or a decoder that is there.
    """
    home = Path(folder) / "vocabularies" / SPEECH
    if (home / mel_decoder.FILE_NAME).is_file() and not overwrite:
        raise UserError(f"{str(home / mel_decoder.FILE_NAME)!r} exists: give --overwrite to train another")
    tokenizer = load_units(home)
    rows = [row for row in read_manifest(corpus, "train") if "audio" in row]
    chosen, seconds = [], 0.0
    for place in np.random.default_rng(settings.seed).permutation(len(rows)):
        if seconds >= most_seconds:
            break
        row = rows[place]
        chosen.append((part(Path(corpus), row), row.get("voice", "")))
        seconds += row.get("seconds", 0.0) or 1.0  # an imported row may not state it
    with locked(folder):
        begun = time.monotonic()
        pairs = parallel_map("zipper_jax.data.train_vocoder:make_pairer", {"home": str(home)}, chosen, processes)
        spoken = [p for p in progress(pairs, total=len(chosen), what="encoding", unit="utterances") if p is not None]
        made = train(tokenizer, spoken, settings)
        made.save(home)
    units = sum(len(one.units) for one in spoken)
    logger.info(
        f"{home / mel_decoder.FILE_NAME}: {len(made.voices)} voices, speaks as {made.voice or 'the only one'!r}; "
        f"{units / tokenizer.rate_hz / 60:.1f} minutes of audio, trained in {time.monotonic() - begun:.0f} s"
    )
    return home / mel_decoder.FILE_NAME


def make_pairer(home: str) -> Callable[[tuple[dict[str, Any], str]], Spoken | None]:
    """Return the function that a worker runs on the arguments of `load_audio` and a voice; None: audio is unusable."""
    tokenizer = load_units(home)

    def pairer(job: tuple[dict[str, Any], str]) -> Spoken | None:
        try:
            return pair(tokenizer, load_audio(**job[0]), job[1])
        except AudioError:
            return None

    return pairer

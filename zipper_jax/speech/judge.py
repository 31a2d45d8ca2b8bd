"""Independent speech recogniser for generated audio: pocketsphinx with the grammar of the corpus.

It knows the grammar but no test sentence, and uses one configuration for all audio. A closed grammar maps any sound to
a valid sentence, so an error rate means nothing without its controls (reversed audio, noise, another sentence's audio).

Axis letters: N samples.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from zipper_jax.speech.audio import LEVEL, SAMPLE_RATE, normalise_level
from zipper_jax.speech.workers import parallel_map
from zipper_jax.utils.errors import UserError

NAME = "pocketsphinx en-us, corpus grammar"
_SILENCE = round(0.25 * SAMPLE_RATE)  # added at either end: the recogniser expects speech to begin and end in silence
# Faint noise on all audio, 60 dB below speech: exact digital silence causes recognition errors. It reduces word errors
# of espeak's en-us+f4 from 21 % to 1 % at rate 0.95 (20 sentences), but not at rate 1.2 (18 %), so that voice is no
# default.
_DITHER = 1e-3 * LEVEL
# Decoded before every utterance. The recogniser keeps the mixture components of the last frame it decoded, so that one
# in thirty hypotheses of a model's sentences would depend on the previous utterance.
_FORGET = LEVEL * np.random.default_rng(1).standard_normal(SAMPLE_RATE // 5)


class Judge:
    """Recognises sentences of one JSGF grammar in 16 kHz audio."""

    def __init__(self, grammar_jsgf: str):
        import pocketsphinx  # here, because it takes 0.3 s and 30 MB

        with tempfile.TemporaryDirectory() as folder:
            grammar = Path(folder, "sentences.gram")
            grammar.write_text(grammar_jsgf, encoding="utf-8")
            dictionary = Path(folder, "words.dict")
            dictionary.write_text(_cut_dictionary(grammar_jsgf), encoding="utf-8")
            try:
                self._decoder = pocketsphinx.Decoder(
                    hmm=pocketsphinx.get_model_path("en-us/en-us"),
                    dict=str(dictionary),
                    jsgf=str(grammar),
                    lm=None,
                    loglevel="FATAL",
                )
            except RuntimeError as error:
                raise UserError(f"the judge cannot use this JSGF grammar ({error}): check its syntax") from error

    def transcribe(self, waveform: Float[np.ndarray, " N"]) -> str:
        """Return the best hypothesis of the grammar; "" without one, and for empty, silent or non-finite audio."""
        waveform = np.asarray(waveform, np.float32)
        if not waveform.any() or not np.isfinite(waveform).all():
            return ""
        samples = np.pad(normalise_level(waveform), _SILENCE)
        samples = np.clip(samples + _DITHER * np.random.default_rng(0).standard_normal(len(samples)), -1, 1)
        self._hear(_FORGET)
        self._hear(samples)
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""

    def _hear(self, samples: Float[np.ndarray, " N"]) -> None:
        self._decoder.start_utt()
        # The whole utterance at once, so that its features are normalised over this utterance only.
        self._decoder.process_raw((samples * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()


def transcribe_all(
    waveforms: Sequence[Float[np.ndarray, " _"]], grammar_jsgf: str, processes: int | None = None
) -> list[str]:
    """Return `Judge.transcribe` of every waveform, in order, in ``processes`` processes (None: one per core)."""
    return list(
        parallel_map("zipper_jax.speech.judge:make_listener", {"grammar_jsgf": grammar_jsgf}, waveforms, processes)
    )


def make_listener(grammar_jsgf: str) -> Callable[[np.ndarray], str]:
    """Return the function that a worker runs on each waveform."""
    return Judge(grammar_jsgf).transcribe


def _cut_dictionary(grammar_jsgf: str) -> str:
    """Return the dictionary's lines of the grammar's words; loading and searching all 134,860 takes far longer."""
    text = re.sub(r"#JSGF[^;]*;|grammar [^;]*;|public |<[^>]*>|//.*", " ", grammar_jsgf)
    words = sorted(set(re.findall(r"[a-z']+", text.lower())))
    if not words:
        raise UserError("the judge's JSGF grammar has no words: give a grammar with at least one")
    pronunciations = _pronunciations()
    unknown = [word for word in words if word not in pronunciations]
    if unknown:
        raise UserError(f"the judge cannot pronounce {', '.join(unknown)}: use words of the CMU dictionary")
    return "".join(line for word in words for line in pronunciations[word])


@functools.cache
def _pronunciations() -> dict[str, list[str]]:
    """Return word -> its lines of the dictionary file ("word PH ON", "word(2) PH ON")."""
    import pocketsphinx

    lines: dict[str, list[str]] = {}
    with open(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as file:
        for line in file:
            lines.setdefault(line.split(maxsplit=1)[0].split("(")[0], []).append(line)
    return lines

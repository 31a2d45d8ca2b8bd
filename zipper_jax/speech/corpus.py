"""Synthetic corpus of aligned speech and text: sentences of a grammar or of a file, synthesised.

    corpus/corpus.json      settings, engine, voices, counts, "complete"
    corpus/manifest.jsonl   one line per utterance (written last, so a folder that has it is complete)
    corpus/audio/<id>.flac

Every sentence is in one split only. ``test_other`` has harder audio: the training voices at unseen rates and pitches,
with white noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import soundfile

from zipper_jax.metrics.normalisers import TextForm, read_text_form
from zipper_jax.speech import grammar, word_times
from zipper_jax.speech import sentences as sentence_files
from zipper_jax.speech.audio import SAMPLE_RATE, add_noise, save_audio, trim_silence
from zipper_jax.speech.manifest import SPLITS
from zipper_jax.speech.synthesis import Engine, find_engine
from zipper_jax.speech.workers import parallel_map
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes, write_json
from zipper_jax.utils.locks import locked
from zipper_jax.utils.progress import progress

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
LATER_FIELDS = {"grammar": "home", "text_file": "", "text_only": "", "voice_files": "", "word_times": "none"}
"""Field that older folders lack -> its value there."""


class _Header(msgspec.Struct):
    """The fields of corpus.json that a reader needs; users may write one to describe given units."""

    format_version: int = FORMAT_VERSION
    settings: dict[str, Any] = {}
    counts: dict[str, int] = {}
    complete: bool = False
    engine: str = ""
    text_form: TextForm = TextForm()


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """What to synthesise. Each sentence is synthesised once, so numbers of utterances are numbers of sentences."""

    train: int = 4000
    """-1: every sentence of ``text_file`` that is not held out."""
    validation: int = 100
    test: int = 200
    test_other: int = 200
    engine: str = "auto"
    voices: tuple[str, ...] = ()
    """Assigned to sentences round-robin; empty: the engine's default voices."""
    rate: float = 0.0
    """Tempo as a multiple of the voice's own; 0: the engine's default. Faster means shorter sequences."""
    rates: tuple[float, ...] = (0.9, 1.0, 1.1)
    """Multiples of ``rate``, assigned round-robin. A model trained on a single tempo makes nearly three times the
    errors at any other."""
    pitches: tuple[float, ...] = (1.0,)
    """Multiples of the voice's own pitch, assigned round-robin. The units of `tokenizer` hardly depend on it."""
    other_rates: tuple[float, ...] = (0.94, 1.06)
    """test_other: multiples of ``rate``, none of them in ``rates``."""
    other_pitches: tuple[float, ...] = (0.97, 1.03)
    """test_other: multiples of the voice's own pitch, none of them in ``pitches``."""
    other_snr_db: float = 30.0
    """test_other: signal-to-noise ratio of the white noise added."""
    seed: int = 0
    grammar: str = "home"
    """Grammar of the sentences: "home" (75 words) or "wide" (700); see `zipper_jax.speech.grammar`."""
    text_file: str = ""
    """File of sentences, one per line; empty: sentences of the grammar."""
    text_only: str = ""
    """File of further text for training, one document per line; lines that hold a held-out sentence are dropped."""
    voice_files: str = ""
    """Folder of the files of neural voices; empty: the installed packages'."""
    word_times: Literal["none", "engine"] = "none"
    """Times of the words, for interleaved tasks: none, or those of the engine (flite)."""

    def __post_init__(self):
        if self.grammar not in grammar.GRAMMARS:
            known = ", ".join(grammar.GRAMMARS)
            raise UserError(f"corpus settings: grammar = {self.grammar!r}: give one of {known}")
        for split in SPLITS:
            if getattr(self, split) < (-1 if split == "train" and self.text_file else 0):
                raise UserError(f"corpus settings: {split} = {getattr(self, split)}: give 0 or more")
        if not self.train:
            raise UserError("corpus settings: train = 0: give at least 1 sentence")
        if self.text_file and self.grammar != grammar.HOME:
            raise UserError(f"corpus settings: grammar = {self.grammar!r}: the sentences are those of a file; omit it")
        for field in ("rates", "pitches", "other_rates", "other_pitches"):
            if not getattr(self, field):
                raise UserError(f"corpus settings: {field} is empty: give at least one factor, (1.0,) for no change")


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One planned utterance, with everything that determines its audio."""

    id: str
    split: str
    text: str
    voice: str
    rate: float
    pitch: float
    snr_db: float | None

    @property
    def audio(self) -> str:
        """Audio file, relative to the corpus folder."""
        return f"audio/{self.id}.flac"


def synthesise_corpus(
    out: str | os.PathLike,
    settings: CorpusSettings = CorpusSettings(),
    processes: int | None = None,
) -> Path:
    """Write the corpus into the folder ``out`` and return that folder.

    A rerun after an interruption keeps finished files and resumes; on a complete corpus it does nothing.

    Args:
      processes: worker processes, default one per core.

    Raises:
        UserError: No engine is available, a setting is out of range, or ``out`` holds a corpus of other settings.
    """
    with locked(out):
        return _synthesise(Path(out), settings, processes)


def _synthesise(out: Path, settings: CorpusSettings, processes: int | None) -> Path:
    wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
    found, complete = read_header(out), False
    if found is not None:
        _check_same(out, found["settings"], wanted)
        complete = found["complete"] and (out / "manifest.jsonl").is_file()
        if complete and not (settings.text_file or settings.text_only):
            logger.info(f"corpus {out} is complete: {sum(found['counts'].values())} utterances")
            return out
    engine = find_engine(settings.engine, settings.voice_files)
    if settings.word_times == "engine":
        word_times.require(engine)
    if found is not None and found["engine"] != engine.name:
        raise UserError(
            f"corpus folder {str(out)!r} was begun with engine {found['engine']!r}, which is not {engine.name!r}: "
            f"install {found['engine']}, or give another folder"
        )
    utterances = plan(settings, engine)
    held_out = [u.text for u in utterances if u.split != "train"]
    texts = sentence_files.text_without(settings.text_only, held_out) if settings.text_only else []
    digest = _digest([*(f"{u.id} {u.text}" for u in utterances), *texts])
    if found is not None and found.get("texts", digest) != digest:
        raise UserError(f"corpus folder {str(out)!r} was begun with other sentences in its files: give another folder")
    if found is not None and complete:
        logger.info(f"corpus {out} is complete: {sum(found['counts'].values())} utterances")
        return out
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for leftover in (out / "audio").glob("*.partial"):
        leftover.unlink()
    header = {
        "format_version": FORMAT_VERSION,
        "settings": wanted,
        "engine": engine.name,
        "voices": sorted({u.voice for u in utterances}),
        "sample_rate": SAMPLE_RATE,
        "texts": digest,
        "counts": {split: sum(u.split == split for u in utterances) for split in SPLITS},
        "text_form": dataclasses.asdict(TextForm()),
        "complete": False,
    }
    write_json(out / "corpus.json", header)
    _speak(out, engine.name, settings.voice_files, utterances, processes)
    seconds = {u.id: soundfile.info(out / u.audio).duration for u in utterances}
    rows = [_manifest_row(u, seconds[u.id]) for u in utterances]
    if settings.word_times == "engine":
        rows = word_times.added(rows, engine.name, processes)
    lines = [json.dumps(row) for row in rows]
    # Text alone is training text.
    lines += [json.dumps({"id": f"text_{i:06d}", "split": "train", "text": text}) for i, text in enumerate(texts)]
    write_bytes(out / "manifest.jsonl", ("\n".join(lines) + "\n").encode())
    write_json(out / "corpus.json", header | {"complete": True, "hours": sum(seconds.values()) / 3600})
    also = f", and {len(texts)} lines of text" if settings.text_only else ""
    minutes = sum(seconds.values()) / 60
    logger.info(f"corpus {out} is complete: {len(utterances)} utterances, {minutes:.1f} minutes{also}")
    return out


def read_header(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return ``corpus.json`` with the fields of `_Header`, or None if there is none. Raises UserError if it is bad."""
    path = Path(folder) / "corpus.json"
    if not path.is_file():
        return None
    fix = "repair it, or delete the folder and make the corpus again"
    header = user_json.read_object(path, fix)
    found = user_json.convert(header, _Header, repr(str(path)), fix)
    form = read_text_form(header, repr(str(path)), fix)
    header = msgspec.structs.asdict(found) | header | {"text_form": dataclasses.asdict(form)}
    version = header["format_version"]
    if version != FORMAT_VERSION:
        raise UserError(f"{str(path)!r} has format {version}, this version writes {FORMAT_VERSION}: use another folder")
    return header


def plan(settings: CorpusSettings, engine: Engine) -> list[Utterance]:
    """Return every utterance of the corpus: a pure function of the settings and the engine."""
    voices = settings.voices or engine.default_voices
    unknown = [voice for voice in voices if voice not in engine.voices]
    if unknown:
        raise UserError(
            f"corpus settings: voices has {unknown[0]!r}, which {engine.name} lacks: "
            f"give some of {', '.join(engine.voices)}"
        )
    rate = settings.rate or engine.default_rate
    chosen = _sentences(settings)
    utterances = []
    for split in SPLITS:
        for index, text in enumerate(chosen[split]):
            other = split == "test_other"
            rates = settings.other_rates if other else settings.rates
            pitches = settings.other_pitches if other else settings.pitches
            # Voices vary fastest, pitches slowest, so that every combination occurs.
            turn = index // len(voices)
            voice, pitch = voices[index % len(voices)], pitches[turn // len(rates) % len(pitches)]
            if pitch != 1.0 and voice in engine.without_pitch:
                raise UserError(
                    f"corpus settings: {'other_pitches' if other else 'pitches'} has {pitch}, but {engine.name}'s "
                    f"voice {voice!r} has no pitch control: give (1.0,), or other voices"
                )
            utterances.append(
                Utterance(
                    id=f"{split}_{index:06d}",
                    split=split,
                    text=text,
                    voice=voice,
                    rate=round(rate * rates[turn % len(rates)], 4),
                    pitch=pitch,
                    snr_db=settings.other_snr_db if other else None,
                )
            )
    return utterances


def make_speaker(folder: str, engine: str, voice_files: str = "") -> Callable[[Utterance], None]:
    """Return the function that a worker runs: synthesise one utterance into its file under ``folder``."""
    synthesiser = find_engine(engine, voice_files)

    def speak(utterance: Utterance) -> None:
        waveform = synthesiser.say(utterance.text, utterance.voice, utterance.rate, utterance.pitch)
        waveform = trim_silence(waveform)
        if utterance.snr_db is not None:
            # Seeded by the utterance's id, so that a resumed corpus has the same noise.
            waveform = add_noise(waveform, utterance.snr_db, np.random.default_rng(zlib.crc32(utterance.id.encode())))
        save_audio(Path(folder) / utterance.audio, waveform)

    return speak


def _sentences(settings: CorpusSettings) -> dict[str, list[str]]:
    """Return split -> its sentences, of the grammar or the file."""
    counts = {split: getattr(settings, split) for split in SPLITS}
    if not settings.text_file:
        drawn = _unique_sentences(sum(counts.values()), settings)
        return {split: [next(drawn) for _ in range(counts[split])] for split in SPLITS}
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, text in sentence_files.assign(sentence_files.read_sentences(settings.text_file), counts):
        chosen[split].append(text)
    return chosen


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _unique_sentences(count: int, settings: CorpusSettings) -> Iterator[str]:
    most = grammar.num_sentences(settings.grammar) // 2  # rejection sampling of nearly all sentences would be slow
    if count > most:
        raise UserError(f"corpus settings ask for {count} sentences, the grammar gives {most} at most: ask for fewer")
    rng = random.Random(settings.seed)
    sentences: dict[str, None] = {}  # an ordered set
    while len(sentences) < count:
        sentences[grammar.sample(rng, settings.grammar)] = None
    # Templates with few sentences are exhausted early; shuffling gives every split the same mixture.
    shuffled = list(sentences)
    rng.shuffle(shuffled)
    return iter(shuffled)


def _speak(out: Path, engine: str, voice_files: str, utterances: list[Utterance], processes: int | None) -> None:
    # Files are renamed into place when whole, so a file that exists is complete.
    missing = [u for u in utterances if not (out / u.audio).is_file()]
    if len(missing) < len(utterances):
        logger.info(f"continuing: {len(utterances) - len(missing)} of {len(utterances)} utterances are already there")
    setup = {"folder": str(out), "engine": engine, "voice_files": voice_files}
    spoken = parallel_map("zipper_jax.speech.corpus:make_speaker", setup, missing, processes)
    with contextlib.closing(spoken):
        for _ in progress(spoken, total=len(missing), what="synthesising", unit="utterances"):
            pass


def _manifest_row(utterance: Utterance, seconds: float) -> dict[str, Any]:
    row = dataclasses.asdict(utterance) | {"audio": utterance.audio, "seconds": round(seconds, 4)}
    return {key: value for key, value in row.items() if value is not None}


def _check_same(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for field, value in wanted.items():
        if found.get(field, LATER_FIELDS.get(field)) != value:
            raise UserError(
                f"corpus folder {str(out)!r} was made with {field} = {found.get(field)!r}, now {value!r} is given: "
                "use another folder, or delete this one"
            )

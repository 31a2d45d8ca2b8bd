"""The prepared folder: vocabularies, the unit tokenizer, and every example as text and units. No TensorFlow.

    prepared/header.json                    settings, corpus, digests
    prepared/vocabularies/<modality>/       vocabulary.json (+ sentencepiece.model, tokenizer.npz)
    prepared/examples/<split>.jsonl         {"id", "split", "text", "units", "voice", "seconds", "shift"}
    prepared/rows/<task>/<split>/           see packed_rows

Vocabulary and tokenizer are fitted on the training split alone. A stage is finished when its file is there (each is
written aside and renamed); header.json pins the settings and the corpus that the stages were made with.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from zipper_jax.configs import to_dict
from zipper_jax.errors import UserError
from zipper_jax.files import write_bytes, write_json
from zipper_jax.sequences import TEMPLATES
from zipper_jax.speech.audio import SAMPLE_RATE, load_audio
from zipper_jax.speech.corpus import read_manifest
from zipper_jax.speech.tokenizer import SAMPLES_PER_UNIT, UnitTokenizer
from zipper_jax.speech.workers import parallel_map
from zipper_jax.version import __version__
from zipper_jax.vocabularies import ByteVocabulary, UnitVocabulary, Vocabulary, load_vocabulary, train_sentencepiece

FORMAT_VERSION = 1
Say = Callable[[str], None]
_FIT_SECONDS = 3600.0  # of audio: the tokenizer uses at most 60,000 units, 2,400 s, of what it is given
_SECONDS_BETWEEN_LINES = 2.0


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """How a corpus becomes rows.

    text_length, speech_length: slots of a packed row, begin and end tokens included.
    text_vocabulary: "sentencepiece" (trained on the training sentences), "bytes", or a folder that holds a text
      vocabulary: a run, a model folder (`zipper convert from-hf`), a prepared folder.
    text_vocabulary_size: ids in all; sentencepiece only.
    num_units: codes of the unit tokenizer. seed: of its fit.
    speech_vocabulary: "" (units from id 0 on, then begin and end), or a folder that holds a vocabulary of as many
      units, whose ids are taken: that of a unit model from elsewhere.
    shifts: starting points, spread over one unit's 40 ms, from each of which training audio is turned into units: as
      many examples, which differ in where the frames happened to fall. Test splits are encoded as they are.
    tasks: of which rows are written. open_rows: see `zipper_jax.packing.pack`.
    """

    text_length: int = 64
    speech_length: int = 512
    text_vocabulary: str = "sentencepiece"
    text_vocabulary_size: int = 256
    num_units: int = 1024
    speech_vocabulary: str = ""
    seed: int = 0
    shifts: int = 1
    tasks: tuple[str, ...] = ("text_lm", "speech_lm", "asr", "tts")
    open_rows: int = 64

    def __post_init__(self) -> None:
        for name in ("text_length", "speech_length"):
            if getattr(self, name) < 3:
                raise UserError(f"{name} is {getattr(self, name)}: begin, one token and end take 3")
        for name in ("text_vocabulary_size", "num_units", "shifts", "open_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give at least 1")
        for task in self.tasks:
            if task not in TEMPLATES:
                raise UserError(f"tasks: {task!r} is unknown: give some of {', '.join(TEMPLATES)}")

    @property
    def lengths(self) -> dict[str, int]:
        """modality -> slots of a row."""
        return {"text": self.text_length, "speech": self.speech_length}

    def of_examples(self) -> dict[str, Any]:
        """The settings that decide vocabularies and examples (the others decide rows only)."""
        names = ["text_vocabulary", "text_vocabulary_size", "num_units", "seed", "shifts"]
        names += ["speech_vocabulary"] * bool(self.speech_vocabulary)  # folders from before it was a setting go on
        return {name: getattr(self, name) for name in names}


def read_header(folder: Any) -> dict[str, Any]:
    """``header.json``. Raises UserError when there is none or it cannot be read."""
    header = _header_or_none(Path(folder))
    if header is None:
        raise UserError(
            f"{str(folder)!r} is no prepared folder (no header.json): run `zipper data prepare --out {folder}`"
        )
    return header


def read_examples(folder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The examples of ``split``, in the corpus's order; ``units`` as int32."""
    path = _examples(Path(folder), split)
    if not path.is_file():
        known = ", ".join(splits(folder)) or "none"
        raise UserError(f"{str(path)!r} does not exist (splits there: {known}): run `zipper data prepare`")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            example = json.loads(line)
            example["units"] = np.array(example["units"], np.int32)
            example.setdefault("shift", 0)
            yield example


def splits(folder: Any) -> list[str]:
    """Splits with examples, by name."""
    return sorted(path.stem for path in (Path(folder) / "examples").glob("*.jsonl"))


def read_vocabularies(folder: Any) -> dict[str, Vocabulary]:
    """modality -> vocabulary, of a prepared folder or a run."""
    root = Path(folder) / "vocabularies"
    found = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not found:
        raise UserError(f"{str(root)!r} holds no vocabulary: finish `zipper data prepare` first, or check the folder")
    return {name: load_vocabulary(root / name) for name in found}


def write_examples(
    corpus: Any, folder: Any, settings: PrepareSettings, overwrite: bool, say: Say, processes: int | None = None
) -> dict[str, Any]:
    """Fits tokenizer and vocabulary, encodes every split; skips what is finished. Returns the header.

    Raises:
      UserError: ``folder`` was made from another corpus or with other settings, and ``overwrite`` is False.
    """
    corpus, folder = Path(corpus), Path(folder)
    rows = read_manifest(corpus)
    if settings.text_vocabulary not in ("sentencepiece", "bytes"):
        _given_vocabulary("text", settings.text_vocabulary)  # before the audio is encoded
    if settings.speech_vocabulary:
        _given_units(settings)
    named = sorted({row["split"] for row in rows})
    if "train" not in named:
        raise UserError(f"corpus {str(corpus)!r} has no training split (splits: {', '.join(named) or 'none'})")
    _begin(corpus, folder, settings, overwrite, say)
    tokenizer = _tokenizer(corpus, folder, [row for row in rows if row["split"] == "train"], settings, say)
    text = _text_vocabulary(folder, [row["text"] for row in rows if row["split"] == "train"], settings, say)
    for split in named:
        shifts = settings.shifts if split == "train" else 1
        _encode_split(corpus, folder, split, [row for row in rows if row["split"] == split], shifts, say, processes)
    header = read_header(folder) | {
        "num_units": tokenizer.num_units,
        "rate_hz": tokenizer.rate_hz,
        "tokenizer": tokenizer.digest,
        "vocabularies": {"text": text.digest, "speech": load_vocabulary(folder / "vocabularies" / "speech").digest},
        "examples": {split: sum(row["split"] == split for row in rows) for split in named},
        "complete": True,
    }
    write_json(folder / "header.json", header)
    return header


def _begin(corpus: Path, folder: Path, settings: PrepareSettings, overwrite: bool, say: Say) -> None:
    """Pins settings and corpus in header.json; clears the folder when they changed and ``overwrite`` says so."""
    about = corpus / "corpus.json"
    made_with = {
        "corpus": hashlib.sha256((corpus / "manifest.jsonl").read_bytes()).hexdigest(),
        "settings": to_dict(settings.of_examples()),
    }
    header = _header_or_none(folder)
    if header is not None and header["made_with"] != made_with:
        before = header["made_with"]["settings"]
        changes = [
            f"{name} was {before.get(name)}, now {value}"
            for name, value in made_with["settings"].items()
            if before.get(name) != value
        ]
        if header["made_with"]["corpus"] != made_with["corpus"]:
            changes.append("the corpus is another one")
        if not overwrite:
            raise UserError(
                f"{str(folder)!r} was prepared otherwise ({'; '.join(changes)}): give --overwrite or another --out"
            )
        say(f"prepared otherwise ({'; '.join(changes)}): starting over")
        (folder / "header.json").unlink()  # first: without it nothing here counts as finished
        header = None
    if header is None:
        for name in ("vocabularies", "examples", "rows"):
            shutil.rmtree(folder / name, ignore_errors=True)
        start = {
            "format_version": FORMAT_VERSION,
            "made_with": made_with,
            "provenance": {
                "zipper_jax": __version__,
                "corpus": json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {},
            },
            "complete": False,
        }
        write_json(folder / "header.json", start)


def _tokenizer(
    corpus: Path, folder: Path, rows: list[dict[str, Any]], settings: PrepareSettings, say: Say
) -> UnitTokenizer:
    home = folder / "vocabularies" / "speech"
    if (home / "vocabulary.json").is_file():
        return UnitTokenizer.load(home)
    begun = time.monotonic()
    chosen, seconds = [], 0.0
    # In random order, so that every voice has its share of the hour.
    for place in np.random.default_rng(settings.seed).permutation(len(rows)):
        if seconds >= _FIT_SECONDS:
            break
        path = corpus / rows[place]["audio"]
        seconds += soundfile.info(path).duration if path.is_file() else 0.0
        chosen.append(path)
    say(f"fitting {settings.num_units} units on {seconds / 60:.1f} minutes of training audio")
    tokenizer = UnitTokenizer.fit([load_audio(path) for path in chosen], settings.num_units, settings.seed, say)
    tokenizer.save(home)
    vocabulary = UnitVocabulary(tokenizer.num_units, tokenizer.rate_hz, tokenizer.digest)
    if settings.speech_vocabulary:
        vocabulary = _given_units(settings, tokenizer)
        say(f"units have the ids of {settings.speech_vocabulary!r}: it must be a model of these very units")
    vocabulary.save(home)
    say(f"fitted {tokenizer.num_units} units in {time.monotonic() - begun:.1f} s")
    return tokenizer


def _text_vocabulary(folder: Path, sentences: list[str], settings: PrepareSettings, say: Say) -> Vocabulary:
    home = folder / "vocabularies" / "text"
    if (home / "vocabulary.json").is_file():
        return load_vocabulary(home)
    vocabulary: Vocabulary
    if settings.text_vocabulary == "bytes":
        vocabulary = ByteVocabulary()
    elif settings.text_vocabulary != "sentencepiece":
        vocabulary = _given_vocabulary("text", settings.text_vocabulary)
    else:
        vocabulary = train_sentencepiece(sentences, settings.text_vocabulary_size)
    vocabulary.save(home)
    source = f"{len(sentences)} training sentences" if settings.text_vocabulary == "sentencepiece" else "given"
    say(f"text vocabulary: {vocabulary.kind}, {vocabulary.size} tokens, from {source}")
    return vocabulary


def _given_vocabulary(modality: str, given: str) -> Vocabulary:
    folder = Path(given) / "vocabularies" / modality
    if not folder.is_dir():
        names = "'sentencepiece', 'bytes', or " if modality == "text" else ""
        raise UserError(
            f"{modality}_vocabulary = {given!r}: give {names}a folder that has vocabularies/{modality} (a run, a "
            "prepared folder, or what `zipper convert from-hf` wrote)"
        )
    return load_vocabulary(folder)


def _given_units(settings: PrepareSettings, tokenizer: UnitTokenizer | None = None) -> UnitVocabulary:
    """The vocabulary of ``speech_vocabulary``. Raises UserError when it is not of units like those asked for."""
    given, place = _given_vocabulary("speech", settings.speech_vocabulary), settings.speech_vocabulary
    if not isinstance(given, UnitVocabulary):
        raise UserError(f"speech_vocabulary = {place!r}: its speech vocabulary holds {given.kind}, not units")
    if given.num_units != settings.num_units:
        raise UserError(
            f"speech_vocabulary = {place!r} has {given.num_units} units, but num_units = {settings.num_units}; give "
            f"--num_units {given.num_units}"
        )
    if tokenizer is not None and given.rate_hz != tokenizer.rate_hz:
        raise UserError(
            f"speech_vocabulary = {place!r} has {given.rate_hz:g} units per second, not {tokenizer.rate_hz:g}"
        )
    if tokenizer is not None and given.codebook not in ("", tokenizer.digest):
        raise UserError(f"speech_vocabulary = {place!r} names another unit tokenizer: its unit 7 is another sound")
    return given


def _encode_split(
    corpus: Path, folder: Path, split: str, rows: list[dict[str, Any]], shifts: int, say: Say, processes: int | None
) -> None:
    path = _examples(folder, split)
    if path.is_file():
        return
    begun = last = time.monotonic()
    setup = {"tokenizer": str(folder / "vocabularies" / "speech"), "shifts": shifts}
    files = [str(corpus / row["audio"]) for row in rows]
    lines: list[str] = []
    encoded = parallel_map(f"{__name__}:make_encoder", setup, files, processes)
    for done, (row, (variants, seconds)) in enumerate(zip(rows, encoded, strict=True), 1):
        about = {"id": row["id"], "split": split, "text": row["text"], "voice": row.get("voice")}
        for shift, units in enumerate(variants):
            example = about | {"units": units, "seconds": round(seconds, 3), "shift": shift}
            lines.append(json.dumps(example, ensure_ascii=False) + "\n")
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - begun)
            left = (len(rows) - done) / rate
            say(f"{split}: {done}/{len(rows)} utterances encoded, {rate:.0f}/s, {left:.0f} s left")
    write_bytes(path, "".join(lines).encode())
    say(f"{split}: {len(rows)} utterances encoded in {time.monotonic() - begun:.1f} s")


def make_encoder(tokenizer: str, shifts: int) -> Callable[[str], tuple[list[list[int]], float]]:
    """For the workers: a function from an audio file to its units from each starting point, and its seconds."""
    units = UnitTokenizer.load(tokenizer)

    def encode(path: str) -> tuple[list[list[int]], float]:
        waveform = load_audio(path)
        starts = [SAMPLES_PER_UNIT * shift // shifts for shift in range(shifts)]
        variants = [units.encode(waveform[start:]).tolist() for start in starts if start < len(waveform)]
        return variants, len(waveform) / SAMPLE_RATE

    return encode


def _examples(folder: Path, split: str) -> Path:
    return folder / "examples" / f"{split}.jsonl"


def _header_or_none(folder: Path) -> dict[str, Any] | None:
    path = folder / "header.json"
    if not path.is_file():
        return None
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, _ = header["format_version"], header["made_with"]["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error!r}): delete the folder and prepare it again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{str(path)!r} has format {version}, this version reads {FORMAT_VERSION}: prepare it again")
    return header

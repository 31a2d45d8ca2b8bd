"""Errors per sentence from the models' outputs: ``results.jsonl``, one line per row.

``measures`` of a line has for each measure a list of ``[errors, words]`` per sentence (``[nats, 1]`` for likelihoods),
so that a report can average, pair and test them. Perplexities and costs are copied from the outputs.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from zipper_jax.decoding.generate import BATCH_SIZE
from zipper_jax.evaluation.controls import partners, sounds
from zipper_jax.metrics.error_rates import per_sentence_errors
from zipper_jax.speech import grammar
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.judge import NAME as JUDGE
from zipper_jax.speech.judge import transcribe_all
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.speech.vocoder import synthesize
from zipper_jax.sweep.plan import Places, Row, Sweep, digest
from zipper_jax.sweep.plan import rows as all_rows
from zipper_jax.sweep.row import read_examples
from zipper_jax.sweep.statistics import rate
from zipper_jax.tasks import SPEECH, TEXT
from zipper_jax.utils import user_json
from zipper_jax.utils.distributed import gather, is_first, share
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes, write_json
from zipper_jax.vocabularies import load_vocabulary

logger = logging.getLogger(__name__)

ASR_OF = {"test": "asr", "test_other": "asr_other", "validation": "asr_validation"}
"""split -> measure."""

Pairs = list[list[float]]
_FIX = "it is damaged: remove it and run `zipper sweep run` again"


_Pair = tuple[user_json.Number, user_json.Number]


class _Result(msgspec.Struct):
    """What a report reads of a row."""

    arm: str
    seed: int
    steps: int
    rows_per_step: int
    flops: float
    flops_before: float
    trained: int
    frozen: int
    measures: dict[str, Annotated[list[_Pair], msgspec.Meta(min_length=1)]]
    letters: list[int]
    not_possible: dict[str, str] = {}
    perplexity: dict[str, float] = {}
    outputs: str = ""

    def __post_init__(self) -> None:
        for name in self.perplexity:
            kind, _, when = name.rpartition("_")
            other = {"before": f"{kind}_after", "after": f"{kind}_before"}.get(when)
            if other not in self.perplexity:
                raise UserError(f"perplexity: {name} has no {other or 'other: names end in _before or _after'}")
        if "tts" in self.measures and len(self.measures["tts"]) != len(self.letters):
            raise UserError(f"measures.tts has {len(self.measures['tts'])} sentences, letters {len(self.letters)}")
        for name, pairs in self.measures.items():
            if not sum(words for _, words in pairs) > 0:
                raise UserError(f"measures.{name}: no sentence has a word")


class _Heard(msgspec.Struct):
    gold_units: list[str]


class Judge(msgspec.Struct):
    """``judge.json``: errors and hypotheses of the judge for sounds with known words."""

    sentences: int
    judge: str
    errors: dict[str, Annotated[list[_Pair], msgspec.Meta(min_length=1)]]
    heard: _Heard

    def __post_init__(self) -> None:
        if missing := [name for name in ("raw_audio", "gold_units", "reversed", "noise") if name not in self.errors]:
            raise UserError(f"errors.{missing[0]} is missing")


def read_judge(places: Places) -> Judge:
    """Read ``judge.json``. Raises UserError if it is missing or damaged."""
    path, fix = places.root / "judge.json", "remove it and run `zipper sweep score` again"
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist: run `zipper sweep score` first")
    return user_json.read_file(path, Judge, fix)


class _Start(msgspec.Struct):
    flops: float


class _Scored(msgspec.Struct):
    """What the scores are made of, in a row's outputs."""

    scored: str
    asr: dict[str, list[list[int]]]
    tts: dict[str, list[list[int]]]
    nats: dict[str, list[float]]
    flops: float


def score(sweep: Sweep, places: Places) -> None:
    """Scores every row that has outputs and no line yet (or a line of other outputs), and the judge's own controls.

    In a group every process calls it; the rows are shared, and the first process writes.

    Lines of rows that the sweep file no longer has, or that have another configuration, are dropped; others stay, also
    where their outputs are on another machine.

    Raises:
        UserError: There are no outputs.
    """
    outputs = sorted((places.root / "outputs").glob("*.json"))
    if not outputs:
        raise UserError(f"there are no outputs in {str(places.root / 'outputs')!r}: run `zipper sweep run` first")
    before = {(line["arm"], line["seed"]): line for line in read_results(places.results)}
    if is_first():
        _judge_controls(sweep, places)
    gather("")
    rows = {places.outputs(row.arm.name, row.seed): row for row in all_rows(sweep)}
    digests = {(row.arm.name, row.seed): digest(sweep, row, places) for row in rows.values()}
    known = {key: line for key, line in before.items() if key in digests and line.get("digest") == digests[key]}
    new: list[tuple[Row, dict[str, Any], str]] = []
    for path in outputs:
        row, content = rows.get(path), path.read_bytes()
        found = user_json.decode(content, repr(str(path)), _FIX)
        if row is None or found.get("digest") != digests[row.arm.name, row.seed]:
            logger.info(f"{path.stem}: skipped, it has another configuration than the sweep file's")
            continue
        if row.arm.scored == "no":
            continue
        key, made_of = (row.arm.name, row.seed), hashlib.sha256(content).hexdigest()[:16]
        if known.get(key, {}).get("outputs") == made_of:
            continue
        user_json.convert(found, _Scored, repr(str(path)), _FIX)
        new.append((row, found, made_of))
    for (row, _, made_of), line in share(new, lambda one: _score_row(sweep, places, *one[:2])):
        known[row.arm.name, row.seed] = {**line, "outputs": made_of}
        rates = {name: rate(pairs) for name, pairs in line["measures"].items() if name in ("asr", "tts")}
        logger.info(f"{row.name}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in rates.items()))
        # After every row: judging takes seconds a row, and nothing of it should be lost.
        _write(places.results, known)
    if before and not known:
        raise UserError(f"{str(places.results)!r}: no output is of this sweep file: score with the one that ran them")
    _write(places.results, known)


def _write(path: Path, lines: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    if not is_first():
        return
    write_bytes(path, "".join(json.dumps(lines[key], ensure_ascii=False) + "\n" for key in sorted(lines)).encode())


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the lines of ``results.jsonl``; none where the file is missing.

    Raises:
        UserError: A line is no result, or the second of a row.
    """
    fix = "remove the file and run `zipper sweep score` again"
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for place, line in user_json.read_lines(path, fix):
        user_json.convert(line, _Result, place, fix)
        key = line["arm"], line["seed"]
        if key in found:
            raise UserError(f"{place}: a second result of arm {line['arm']!r}, seed {line['seed']}; {fix}")
        found[key] = line
    return list(found.values())


def _score_row(sweep: Sweep, places: Places, row: Row, outputs: Mapping[str, Any]) -> dict[str, Any]:
    main = outputs["scored"]
    texts = {
        split: _texts(sweep, places, split) for split in ("test", "test_other", "validation") if split in outputs["asr"]
    }
    vocabulary = load_vocabulary(places.prepared / "vocabularies" / TEXT)
    transcripts = {name: [vocabulary.decode(ids) for ids in rows] for name, rows in outputs["asr"].items()}
    measures = {name: _errors(texts[split], transcripts[split]) for split, name in ASR_OF.items() if split in texts}
    not_possible: dict[str, str] = {}
    if isinstance(others := partners(texts[main]), str):
        not_possible |= dict.fromkeys(("asr_shuffled", "asr_shuffled_nats", "tts_shuffled_nats"), others)
    for name in ("shuffled", "no_audio", "gates_zero"):
        if name in transcripts:
            measures[f"asr_{name}"] = _errors(texts[main], transcripts[name])
    judged = _judge(sweep, places, outputs["tts"][main])
    spoken = texts[main][: len(judged)]
    letters = [len(text) for text in spoken]
    if main == "test":
        errors = _errors(spoken, judged)
        middle = float(np.median(letters))
        measures["tts"] = errors
        short = np.array(letters) <= middle
        for name, half in (("tts_short", short), ("tts_long", ~short)):
            if half.any():
                measures[name] = np.array(errors)[half].tolist()
        if isinstance(others := partners(spoken), str):
            not_possible["tts_shuffled"] = others
        else:
            measures["tts_shuffled"] = _errors(spoken, [judged[i] for i in others])
        target = read_judge(places).heard.gold_units
        known = [i for i, text in enumerate(target) if text]
        measures["tts_target"] = _errors([target[i] for i in known], [judged[i] for i in known])
    for name, key in (("", main), ("_shuffled", "shuffled")):
        for task in ("asr", "tts") if f"asr_{key}" in outputs["nats"] else ():
            measures[f"{task}{name}_nats"] = [[nats, 1.0] for nats in outputs["nats"][f"{task}_{key}"]]
    kept = {k: v for k, v in outputs.items() if k not in ("asr", "tts", "nats")}
    hypotheses = {"asr": transcripts[main][:8], "tts": judged[:8]}
    starts = [user_json.read_file(places.outputs(name, 0), _Start, _FIX) for name in row.arm.needs]
    kept["flops_before"] = sum(start.flops for start in starts)
    scored = {"measures": measures, "not_possible": not_possible, "hypotheses": hypotheses}
    return {**kept, "judge": JUDGE, "letters": letters, **scored}


def _judge_controls(sweep: Sweep, places: Places) -> None:
    """What the judge makes of gold units, raw audio, reversed audio and noise: ``judge.json``, once per sweep."""
    path = places.root / "judge.json"
    count = sweep.scoring.speech_sentences or None
    examples = read_examples(places, "test")[:count]
    if path.is_file() and read_judge(places).sentences == len(examples):
        return
    logger.info("the judge's controls")
    hypotheses = {"gold_units": _judge(sweep, places, [e["contents"][SPEECH] for e in examples])}
    for first in range(0, len(examples), BATCH_SIZE):  # all recordings at once may not fit into memory
        some = examples[first : first + BATCH_SIZE]
        raw = [load_audio(places.corpus / "audio" / f"{e['id']}.flac") for e in some]
        for name, waveforms in sounds(raw, first).items():
            hypotheses.setdefault(name, []).extend(transcribe_all(waveforms, _jsgf(sweep)))
    texts = [e["text"] for e in examples]
    errors = {name: _errors(texts, found) for name, found in hypotheses.items()}
    write_json(path, {"sentences": len(examples), "judge": JUDGE, "errors": errors, "heard": hypotheses})


def _judge(sweep: Sweep, places: Places, spoken: Sequence[Sequence[int]]) -> list[str]:
    """Vocode token ids of speech and transcribe them with the judge."""
    home = places.prepared / "vocabularies" / SPEECH
    tokenizer, vocabulary = UnitTokenizer.load(home), load_vocabulary(home)
    units = [np.asarray(vocabulary.decode(ids), np.int32) for ids in spoken]
    hypotheses: list[str] = []
    for first in range(0, len(units), BATCH_SIZE):
        some = units[first : first + BATCH_SIZE]
        waveforms = [synthesize(tokenizer, u) if len(u) else np.zeros(0, np.float32) for u in some]
        hypotheses += transcribe_all(waveforms, _jsgf(sweep))
    return hypotheses


def _jsgf(sweep: Sweep) -> str:
    return grammar.jsgf(sweep.corpus.get("grammar", "home"))


def _texts(sweep: Sweep, places: Places, split: str) -> list[str]:
    return [e["text"] for e in read_examples(places, split)[: sweep.scoring.sentences or None]]


def _errors(references: Sequence[str], hypotheses: Sequence[str]) -> Pairs:
    rows = per_sentence_errors(references, hypotheses)
    return [[float(row["errors"]), float(row["words"])] for row in rows]

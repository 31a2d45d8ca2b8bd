"""Speech to text of one model on one split of a prepared folder, sentence by sentence.

Writes the input of `reports.utterances`:

    outputs.jsonl       finished transcripts, from which a killed evaluation resumes
    utterances.json     the error rate and its controls; each sentence with its alignment and counts
    audio/*.flac        the corpus's audio where a corpus is given, else the vocoder's output, if there is one

The controls are those of `evaluator`: another sentence's audio, no audio, gates at zero.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.api import load
from zipper_jax.data.prepared import read_examples
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.evaluation.decoding import Decoding
from zipper_jax.evaluation.evaluator import EvalSettings, check_units, policy_of
from zipper_jax.evaluation.outputs import FILE as OUTPUTS
from zipper_jax.evaluation.outputs import Outputs
from zipper_jax.evaluation.recordings import recordings
from zipper_jax.evaluation.transcription import speech_to_text
from zipper_jax.inference.model import Model
from zipper_jax.metrics.error_rates import per_sentence_errors, percent
from zipper_jax.speech.audio import AudioError, load_audio, save_audio
from zipper_jax.tasks import SPEECH, TEXT
from zipper_jax.utils.distributed import is_first
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.utils.storage import AnyPath

logger = logging.getLogger(__name__)

FILE = "utterances.json"
WITH_AUDIO = 100
"""Sentences with audio in the page, worst first; browsers cannot open a page with the audio of a large split."""


def evaluate_split(
    run: AnyPath,
    prepared: AnyPath,
    split: str,
    out: Path,
    settings: EvalSettings = EvalSettings(),
    corpus: Path | None = None,
) -> dict[str, Any]:
    """Transcribe the split, write the folder ``out`` and return the content of ``utterances.json``.

    In a group every process calls it; the work is shared, and the first process writes.

    Raises:
        UserError: No such run or split, no sentence with words, units that are not the model's, or audio
            missing from the corpus.
    """
    policy = policy_of(settings, prepared)
    found = [example for example in read_examples(prepared, split) if example["units"] is not None]
    spoken = [example for example in found if policy(example["text"] or "")]
    examples = spoken[: settings.sentences or None]
    if not examples:
        raise UserError(f"{prepared}: split {split!r} has no sentence with words and audio: give another --split")
    sounds = None if corpus is None else recordings(corpus, examples)
    model = load(run)
    for modality in (SPEECH, TEXT):
        if modality not in model.layout:
            raise UserError(f"--run {run}: the model has no {modality}, so it cannot transcribe; give a fused run")
    check_units(prepared, run, model)
    played = "the recordings" if sounds is not None else "the units through the vocoder"
    try:
        if sounds is None:
            model.vocode(examples[0]["units"])
    except UserError as error:  # units from elsewhere: the page does without sound
        logger.info(f"the page will have no sound: {error}")
        played = ""
    logger.info(f"{run}: {len(examples)} sentences of {split}, and the controls")
    outputs = Outputs(out / OUTPUTS)
    how = Decoding(model.max_new_tokens, SamplingConfig(beams=settings.beams), settings.batch_size, outputs)
    rates, hypotheses = speech_to_text(model, examples, [], how, "speech to text", policy)
    logger.info("  " + ", ".join(f"{key} {percent(value)}" for key, value in rates.items()) + f" (text: {policy.name})")
    rows = [
        {"id": example["id"], "seconds": example.get("seconds"), **errors}
        for example, errors in zip(
            examples, per_sentence_errors([e["text"] for e in examples], hypotheses, policy), strict=True
        )
    ]
    worst = sorted(range(len(rows)), key=lambda i: (-rows[i]["errors"], -rows[i]["errors"] / rows[i]["words"]))
    for place in worst[:WITH_AUDIO] if played and is_first() else ():
        try:
            rows[place]["audio"] = _write_audio(out, place, model, examples[place], sounds)
        except AudioError as error:  # a recording gone bad since it was prepared
            logger.info(f"  no sound of {rows[place]['id']!r}: {error}")
    results = {
        "run": str(run),
        "split": split,
        "normaliser": policy.about,
        "beams": settings.beams,
        "heard": played,
        "without_words": len(found) - len(spoken),
        "left_out": len(spoken) - len(examples),
        "rates": rates,
        "utterances": [rows[place] for place in worst],
    }
    if is_first():
        write_json(out / FILE, results)
    outputs.tidy()
    return results


def _write_audio(
    out: Path, number: int, model: Model, example: Mapping[str, Any], sounds: Mapping[str, dict[str, Any]] | None
) -> str:
    path = out / "audio" / f"{number:05d}.flac"  # a user's ids may hold any characters
    path.parent.mkdir(parents=True, exist_ok=True)
    units = np.asarray(example["units"])
    save_audio(path, model.vocode(units) if sounds is None else load_audio(**sounds[example["id"]]))
    return str(path.relative_to(out))

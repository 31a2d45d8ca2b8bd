"""One row of a sweep: trains it, then writes the model's outputs (token ids and nats) to ``outputs/``.

Needs only jax, flax, optax and orbax-checkpoint; `scores` decodes text and audio and computes error rates.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import jax
import msgspec
import numpy as np

from zipper_jax.api import load
from zipper_jax.evaluation.controls import partners
from zipper_jax.evaluation.decoding import Decoded, Decoding, decode_set, transcribe_with_controls
from zipper_jax.evaluation.outputs import Outputs
from zipper_jax.inference.likelihood import Likelihood
from zipper_jax.inference.model import Model
from zipper_jax.inference.perplexity import perplexities
from zipper_jax.sweep.plan import Places, Row, Sweep, digest, train_config
from zipper_jax.tasks import SPEECH, TASKS, TEXT
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.cost import cost, parameters
from zipper_jax.training.initial import initial_params
from zipper_jax.training.loop import train
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes, write_json

logger = logging.getLogger(__name__)

_FIX = "the file is damaged: remove it and run `zipper sweep run` again"


class Sentence(TypedDict):
    """A scored sentence; ``contents``: modality -> token ids."""

    id: str
    text: str
    contents: dict[str, list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]]


def finished(sweep: Sweep, row: Row, places: Places) -> bool:
    """Whether the row has outputs.

    Raises:
        UserError: It has outputs of another configuration.
    """
    path = places.outputs(row.arm.name, row.seed)
    if not path.is_file():
        return False
    found = user_json.read_object(path, _FIX).get("digest")
    wanted = digest(sweep, row, places)
    if found != wanted:
        raise UserError(
            f"row {row.name} was run with another configuration ({found}, the sweep file has {wanted}): remove "
            f"{str(path)!r} and {places.run(row.arm.name, row.seed)!r} to rerun it, or give another --out"
        )
    return True


def run_row(sweep: Sweep, row: Row, places: Places) -> int:
    """Does what is missing of a row; returns the exit code (0, or 128 + signal when interrupted)."""
    if finished(sweep, row, places):
        logger.info(f"{row.name}: finished before")
        return 0
    config = train_config(sweep, row, places)
    _begin(places.begun(row.arm.name, row.seed), digest(sweep, row, places), config)
    result = train(config)
    if result.exit_code:
        return result.exit_code
    outputs: dict[str, Any] = {
        "arm": row.arm.name,
        "seed": row.seed,
        "digest": digest(sweep, row, places),
        "scored": row.arm.scored,
        **_cost(config),
    }
    if row.arm.scored != "no":
        outputs |= _generated(sweep, row, places, config)
    write_json(places.outputs(row.arm.name, row.seed), outputs)
    logger.info(f"{row.name}: finished")
    return 0


def _begin(path: Path, wanted: str, config: TrainConfig) -> None:
    """Raise UserError when the run folder was started with another configuration; a row must not mix two."""
    if path.is_file() and path.read_bytes() != wanted.encode():
        raise UserError(
            f"{config.model_dir!r} was started with another configuration: remove it and {str(path)!r} to start again"
        )
    write_bytes(path, wanted.encode())


def read_examples(places: Places, split: str) -> list[Sentence]:
    """Read the scored sentences; see `prepare`. Raises UserError for a file that is missing or damaged."""
    path = places.root / "sentences" / f"{split}.json"
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist: run `zipper sweep prepare` first")
    return user_json.read_list(path, Sentence, "run `zipper sweep prepare` again")


def _cost(config: TrainConfig) -> dict[str, Any]:
    """Cost of the training, and the number of trained and frozen parameters."""
    found = cost(config)
    return {
        "steps": config.steps,
        "rows_per_step": config.batch_size,
        "slots": found.slots,
        "flops": found.flops,
        **parameters(config),
        "goodput": user_json.read_object(
            Path(config.model_dir) / "goodput.json", "remove the run and run the row again"
        ),
        "device": jax.devices()[0].device_kind,
    }


def _generated(sweep: Sweep, row: Row, places: Places, config: TrainConfig) -> dict[str, Any]:
    model = load(config.model_dir)
    splits = ("validation",) if row.arm.scored == "validation" else ("test", "test_other", "validation")
    sentences = {split: read_examples(places, split)[: sweep.scoring.sentences or None] for split in splits}
    likelihood = Likelihood(model.config, model.layout, model.lengths)
    max_new_tokens = {m: sweep.prepare[f"{m}_length"] - 2 for m in (TEXT, SPEECH)}
    finished = Path(config.model_dir) / "outputs.jsonl"  # a killed row resumes from it
    how = Decoding(max_new_tokens, outputs=Outputs(finished), show=False)
    main = sentences[splits[0]]
    main_texts = [e["text"] for e in main]
    transcripts: dict[str, Any] = {}
    speech: dict[str, Any] = {}
    nats: dict[str, Any] = {}
    for name, examples in sentences.items():
        logger.info(f"{row.name}: {name}")
        units = [e["contents"][SPEECH] for e in examples]
        if examples is not main:
            transcripts[name] = _tokens(decode_set(model, SPEECH, units, TEXT, how, name))
        nats |= {f"{task}_{name}": _nats(likelihood, model.params, task, examples) for task in ("asr", "tts")}
    units = [e["contents"][SPEECH] for e in main]
    for name, decoded in transcribe_with_controls(model, units, main_texts, how, splits[0]).items():
        if not isinstance(decoded, str):  # `scores` says why it is not possible
            stored = {"test": splits[0], "shuffled_audio": "shuffled"}.get(name, name)
            transcripts[stored] = _tokens(decoded)
    texts = [e["contents"][TEXT] for e in main[: sweep.scoring.speech_sentences or None]]
    speech[splits[0]] = _tokens(decode_set(model, TEXT, texts, SPEECH, how, f"{splits[0]}, text to speech"))
    if not isinstance(others := partners(main_texts), str):
        for task, given in (("asr", SPEECH), ("tts", TEXT)):
            mismatched = [
                {"contents": {**e["contents"], given: main[i]["contents"][given]}}
                for e, i in zip(main, others, strict=True)
            ]
            nats[f"{task}_shuffled"] = _nats(likelihood, model.params, task, mismatched)
    found: dict[str, Any] = {"asr": transcripts, "tts": speech, "nats": nats}
    if row.arm.perplexity:
        logger.info(f"{row.name}: perplexities")
        found["perplexity"] = _perplexities(model, config, main)
    return found


def _tokens(decoded: Sequence[Decoded]) -> list[list[int]]:
    return [one.tokens for one in decoded]


def _nats(likelihood: Likelihood, params: Any, task: str, examples: Sequence[Mapping[str, Any]]) -> list[float]:
    contents = [{m: np.asarray(ids, np.int32) for m, ids in e["contents"].items()} for e in examples]
    return [round(float(x), 4) for x in likelihood(params, TASKS[task], contents)]


def _perplexities(model: Model, config: TrainConfig, examples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Perplexity of each modality alone at step 0 and after training; unimodal path and, with zips, fused path."""
    before = initial_params(config.model, config.seed, config.initialise_from, config.restore)
    found: dict[str, float] = {}
    for modality in model.layout:
        contents = [np.asarray(e["contents"][modality], np.int32) for e in examples]
        for path in ("fused", "unimodal") if model.config.zips else ("unimodal",):
            pair = perplexities(
                model.config, [before, model.params], model.layout, modality, contents, fused=path == "fused"
            )
            found |= {f"{modality}_{path}_{when}": value for when, value in zip(("before", "after"), pair, strict=True)}
    return found

"""Word error rates, perplexities and controls of a zipper and, optionally, a Single Decoder.

Writes the input of the report:

    results.json     all figures (error rates are fractions), the settings, parameter counts, seconds
    samples.json     a few sentences with the hypotheses of every model
    audio/*.wav      their audio
    outputs.jsonl    finished outputs and what the judge made of them, from which a killed evaluation resumes
    attention.npz    cross-attention weights of one sentence's text tokens over its speech

Each error rate has controls: another sentence's input, no input, gates at zero. For generated speech the judge also
transcribes gold units, the raw audio, reversed audio and noise.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.api import load
from zipper_jax.data.text_forms import read_policy
from zipper_jax.decoding.generate import BATCH_SIZE
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.evaluation.attention import cross_attention
from zipper_jax.evaluation.controls import Figure, partners, sounds
from zipper_jax.evaluation.decoding import Decoded, Decoding, decode_set
from zipper_jax.evaluation.outputs import FILE as OUTPUTS
from zipper_jax.evaluation.outputs import Outputs, digest
from zipper_jax.evaluation.recordings import recordings
from zipper_jax.evaluation.transcription import speech_to_text
from zipper_jax.inference.model import SAMPLE_RATE, Model, Speech
from zipper_jax.inference.perplexity import perplexities
from zipper_jax.metrics.error_rates import percent, wer
from zipper_jax.metrics.normalisers import Policy
from zipper_jax.metrics.normalisers import policy as normaliser
from zipper_jax.models.config import ZipperConfig
from zipper_jax.speech import grammar
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.corpus import LATER_FIELDS, read_header
from zipper_jax.speech.judge import NAME as JUDGE
from zipper_jax.speech.judge import transcribe_all
from zipper_jax.tasks import SPEECH, TEXT
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.vocabularies import load_vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalSettings:
    """Evaluation data and decoding.

    Attributes:
        sentences: Sentences of each test split for speech to text; 0: all.
        speech_sentences: Sentences for text to speech, transcribed by the judge; 0: all.
        beams: Beam size of speech to text.
        speech_sampling: Sampling of text to speech.
        shown: Sentences with audio in the report.
        normaliser: Name of the normalisation of texts, see `metrics.normalisers.policy`; None: that of the data.
        batch_size: Sentences decoded, synthesised and judged together: memory grows with it, not with the test set.
    """

    sentences: int = 100
    speech_sentences: int = 60
    beams: int = 1
    speech_sampling: SamplingConfig = field(default_factory=SamplingConfig)
    shown: int = 6
    batch_size: int = BATCH_SIZE
    normaliser: str | None = None

    def __post_init__(self):
        for name in ("sentences", "speech_sentences", "shown"):
            if getattr(self, name) < 0:
                raise UserError(f"EvalSettings.{name} = {getattr(self, name)} must be 0 or positive")
        if self.normaliser is not None:
            normaliser(self.normaliser)  # fails now where it is unknown
        if self.batch_size < 1:
            raise UserError(f"EvalSettings.batch_size = {self.batch_size}: give at least 1")


@dataclass(frozen=True)
class Sources:
    """Input folders.

    Attributes:
        runs: Model name -> run folder: "zipper" is the model under test, "single_decoder" its baseline, "other_form" a
            zipper of the other form (the paper's or the identity-preserving one), whose perplexities alone are used.
        prepared: Prepared folder with the test examples.
        corpus: Their corpus, with the raw audio.
    """

    runs: Mapping[str, Path]
    prepared: Path
    corpus: Path


def evaluate(sources: Sources, out: Path, settings: EvalSettings = EvalSettings()) -> dict[str, Any]:
    """Runs everything, writes the folder ``out`` and returns the results.

    Raises:
        UserError: A run, a split or audio is missing; raised before any expensive work.
    """
    began = time.monotonic()
    from zipper_jax.data.prepared import splits
    from zipper_jax.training.cost import parameters
    from zipper_jax.training.run_folder import stored_config

    _check_origins(sources)
    judged_by = _grammar(sources.corpus)
    models = {name: load(sources.runs[name]) for name in ("zipper", "single_decoder") if name in sources.runs}
    for name, model in models.items():
        check_units(sources.prepared, sources.runs[name], model)
    policy = policy_of(settings, sources.prepared)
    settings = replace(settings, normaliser=policy.name)
    test = _examples(sources.prepared, "test", settings.sentences, policy)
    there = "test_other" in splits(sources.prepared)
    other = _examples(sources.prepared, "test_other", settings.sentences, policy) if there else []
    if not test:
        raise UserError(
            f"{sources.prepared}: the test split has no sentence with words and audio: prepare one that has"
        )
    spoken = test[: settings.speech_sentences or None]
    models["zipper"].vocode(spoken[0]["units"])  # fails now where the units have no vocoder
    sounds_of = list(recordings(sources.corpus, spoken).values())
    for where in sounds_of:
        load_audio(**where)  # fails now where a recording cannot be read; all of them would not fit into memory
    max_new_tokens = models["zipper"].max_new_tokens  # the same for every model
    results: dict[str, Any] = {"normaliser": policy.about, "judge": JUDGE, "settings": asdict(settings)}
    results["form"] = form_of(models["zipper"].config)
    results["sentences"] = {"test": len(test), "test_other": len(other), "speech": len(spoken)}

    hypotheses: dict[str, list[str]] = {}
    speech: dict[str, list[Decoded]] = {}
    outputs = Outputs(out / OUTPUTS)
    read = Decoding(max_new_tokens, SamplingConfig(beams=settings.beams), settings.batch_size, outputs)
    say = replace(read, sampling=settings.speech_sampling)
    for name, model in models.items():
        logger.info(f"{name}: speech to text")
        prefix = "" if name == "zipper" else f"{name}_"
        rates, hypotheses[name] = speech_to_text(model, test, other, read, f"{name}, speech to text", policy)
        results |= {prefix + key: value for key, value in rates.items()}
        logger.info(_shown(rates, policy))
        logger.info(f"{name}: text to speech")
        texts = [model.vocabularies[TEXT].encode(e["text"]) for e in spoken]
        speech[name] = decode_set(model, TEXT, texts, SPEECH, say, f"{name}, text to speech")
        results[f"{prefix}tts_truncated"] = float(np.mean([s.truncated for s in speech[name]]))

    logger.info("judging speech")
    units = {
        name: [models[name].vocabularies[SPEECH].decode(one.tokens) for one in found] for name, found in speech.items()
    }
    rates, judged = _judge(models["zipper"], spoken, sounds_of, units, judged_by, settings.batch_size, outputs, policy)
    results |= rates
    logger.info(_shown(rates, policy))
    logger.info("perplexities")
    results |= _perplexities(sources, test)
    results["parameters"] = {name: parameters(stored_config(run)) for name, run in sources.runs.items()}
    # Of a resumed evaluation only the last start's time is known.
    results["seconds"] = {"evaluate": None if outputs.resumed else round(time.monotonic() - began, 1)}

    out.mkdir(parents=True, exist_ok=True)
    _write_samples(out, models["zipper"], spoken[: settings.shown], sounds_of, hypotheses, units, judged)
    _write_attention(out, models["zipper"], test[0])
    write_json(out / "results.json", results)
    outputs.tidy()
    return results


def policy_of(settings: EvalSettings, prepared: Path) -> Policy:
    """Return the normalisation of texts that the settings name, else that of the data."""
    name = settings.normaliser
    return read_policy(prepared) if name is None else normaliser(name)


def _shown(rates: Mapping[str, Figure], policy: Policy) -> str:
    figures = ", ".join(f"{key} {percent(value)}" for key, value in rates.items())
    return f"  {figures} (text: {policy.name})"


def _grammar(corpus: Path) -> str:
    """Name of the grammar that the judge recognises."""
    settings = (read_header(corpus) or {}).get("settings", {})
    if "voices" not in settings:
        raise UserError(
            f"--corpus {corpus}: the judge needs the grammar of the corpus, and this corpus has none (it was not made "
            "by `zipper data synth`); give --split test to evaluate speech to text alone"
        )
    return settings.get("grammar", LATER_FIELDS["grammar"])


def _judge(
    model: Model, examples, sounds_of, units, judged_by: str, batch_size: int, outputs: Outputs, policy: Policy
) -> tuple[dict[str, Figure], dict[str, list[str]]]:
    """Judge generated speech and its controls with one setting; returns error rates and the judge's hypotheses."""
    judged: dict[str, list[str]] = {}
    jsgf, rng = grammar.jsgf(judged_by), np.random.default_rng(0)
    for first in range(0, len(examples), batch_size):
        part = slice(first, first + batch_size)
        audio = {
            **{name: [model.vocode(u) for u in spoken[part]] for name, spoken in units.items()},
            "gold_units": [model.vocode(e["units"]) for e in examples[part]],
            **sounds([load_audio(**where) for where in sounds_of[part]], rng),
        }
        flat = [waveform for waveforms in audio.values() for waveform in waveforms]
        keys = [digest(JUDGE, jsgf, waveform) for waveform in flat]
        new = {key: waveform for key, waveform in zip(keys, flat, strict=True) if outputs.get(key) is None}
        outputs.add(dict(zip(new, transcribe_all(list(new.values()), jsgf), strict=True)), {"set": "judge"})
        found = iter(keys)
        for name, waveforms in audio.items():
            judged.setdefault(name, []).extend(outputs.get(next(found)) for _ in waveforms)
    texts = [e["text"] for e in examples]
    others = partners(texts, policy)
    rates: dict[str, Figure] = {
        "tts_wer_gold_units": wer(texts, judged["gold_units"], policy),
        "tts_wer_raw_audio": wer(texts, judged["raw_audio"], policy),
        "judge_wer_noise": wer(texts, judged["noise"], policy),
        "judge_wer_reversed": wer(texts, judged["reversed"], policy),
    }
    for name in units:
        prefix = "" if name == "zipper" else f"{name}_"
        rates[f"{prefix}tts_wer_test"] = wer(texts, judged[name], policy)
        # Speech generated from another sentence, scored against this one.
        rates[f"{prefix}tts_wer_shuffled_text"] = (
            others if isinstance(others, str) else wer(texts, [judged[name][i] for i in others], policy)
        )
    return rates, judged


def _perplexities(sources: Sources, test) -> dict[str, float]:
    """Text-only and speech-only perplexity before (the run's own step 0) and after fusion training."""
    from zipper_jax.training.initial import initial_params
    from zipper_jax.training.run_folder import stored_config

    results: dict[str, float] = {}
    for name in ("zipper", "other_form"):
        if name not in sources.runs:
            continue
        after = load(sources.runs[name])
        form = form_of(after.config)
        train = stored_config(sources.runs[name])
        before = initial_params(train.model, train.seed, train.initialise_from, train.restore, allow_changes=True)
        texts = [np.asarray(after.vocabularies[TEXT].encode(e["text"]), np.int32) for e in test]
        units = [after.vocabularies[SPEECH].encode(e["units"]) for e in test]
        wanted = [(f"text_ppl_fused_{{}}_{form}", TEXT, texts, True)]
        if name == "zipper":
            wanted.append(("text_ppl_unimodal_{}", TEXT, texts, False))
            wanted.append(("speech_ppl_unimodal_{}", SPEECH, units, False))
        for key, modality, contents, fused in wanted:
            pair = perplexities(after.config, [before, after.params], after.layout, modality, contents, fused=fused)
            results |= {key.format(when): value for when, value in zip(("before", "after"), pair, strict=True)}
    return results


def _check_origins(sources: Sources) -> None:
    """Raise UserError when a run's initial weights are gone: step 0 cannot be recomputed without them."""
    from zipper_jax.checkpoint.run_format import read_config

    for run in (sources.runs[name] for name in ("zipper", "other_form") if name in sources.runs):
        header = read_config(run)
        if "train" not in header:
            raise UserError(
                f"{str(run)!r} is a model folder: evaluation compares a run with its step 0, so give the run folder"
            )
        origins = {
            f"its tower {tower!r}": path for tower, path in (header["train"].get("initialise_from") or {}).items()
        }
        if header["train"].get("restore"):
            origins["its start"] = header["train"]["restore"]["path"]
        for what, origin in origins.items():
            if not Path(origin).is_dir():
                raise UserError(
                    f"{str(run)!r} initialised {what} from {origin!r}, which does not exist, and perplexity before "
                    "fusion needs it: restore that folder, or run from the working folder of the training command"
                )


def check_units(prepared: Path, run: Path, model: Model) -> None:
    """Raise UserError when the examples' units differ from those that the model was trained on."""
    theirs, ours = load_vocabulary(prepared / "vocabularies" / SPEECH), model.vocabularies[SPEECH]
    for name in ("num_units", "rate_hz", "codebook"):  # ids may differ: examples store unit numbers
        found, wanted = getattr(theirs, name), getattr(ours, name)
        if found != wanted and "" not in (found, wanted):
            raise UserError(
                f"{str(prepared)!r} has other units than {str(run)!r} ({name} {found}, not {wanted}): give the data "
                f"the run was trained on, or prepare this data with --tokenizer {run}"
            )


def form_of(config: ZipperConfig) -> str:
    """ "identity" where the fused path equals the towers while gates are 0 and nothing is visible, else "paper"."""
    kept = all(p.form in ("residual", "none") for p in config.input_projections.values())
    return "identity" if kept and all(z.feed_forward == "where_visible" for z in config.zips) else "paper"


def _examples(prepared: Path, split: str, most: int, policy: Policy) -> list[dict[str, Any]]:
    from zipper_jax.data.prepared import read_examples

    rows = [row for row in read_examples(prepared, split) if row["units"] is not None and policy(row["text"] or "")]
    return rows[: most or None]


def _write_samples(out: Path, model: Model, examples, sounds_of, hypotheses, units, judged) -> None:
    rows = []
    for i, example in enumerate(examples):
        sounds = {"gold": load_audio(**sounds_of[i]), "gold_units": model.vocode(example["units"])}
        sounds |= {name: model.vocode(spoken[i]) for name, spoken in units.items()}
        audio = {}
        for name, waveform in sounds.items():
            path = out / "audio" / f"{example['id']}_{name}.wav"
            path.parent.mkdir(exist_ok=True)
            Speech(waveform, SAMPLE_RATE, np.zeros(0, np.int32), False).save(path)
            audio[name] = str(path.relative_to(out))
        rows.append(
            {
                "id": example["id"],
                "reference": example["text"],
                "asr": {name: texts[i] for name, texts in hypotheses.items()},
                "tts_judged": {name: texts[i] for name, texts in judged.items() if name not in ("reversed", "noise")},
                "audio": audio,
            }
        )
    write_json(out / "samples.json", rows)


def _write_attention(out: Path, model: Model, example) -> None:
    """Write each zip's attention from one sentence's text tokens to its speech."""
    tokens, weights = cross_attention(model, example["text"], example["units"], "asr")
    pictures = {f"weights_{index}": w for index, w in weights.items()}
    arrays: dict[str, Any] = {"tokens": np.array(tokens), "seconds_per_unit": 1 / model.tokenizer.rate_hz, **pictures}
    np.savez(out / "attention.npz", **arrays)

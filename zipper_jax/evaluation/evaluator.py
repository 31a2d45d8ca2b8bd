"""Word error rates, perplexities and controls of a zipper and, optionally, a Single Decoder.

Writes the input of the report:

    results.json     all figures (error rates are fractions), the settings, parameter counts, seconds
    samples.json     a few sentences with the hypotheses of every model
    audio/*.wav      their audio
    outputs.jsonl    finished outputs and what the judge made of them, from which a killed evaluation resumes
    attention.npz    cross-attention weights of one sentence's text tokens over its speech

Each error rate has controls: another sentence's input, no input, gates at zero. For generated speech the judge also
transcribes gold units, the raw audio, reversed audio, noise and silence.
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
from zipper_jax.metrics.error_rates import best, cer, percent, wer
from zipper_jax.metrics.normalisers import Policy
from zipper_jax.metrics.normalisers import policy as normaliser
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.fusion import fusion_class
from zipper_jax.speech import grammar
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.corpus import LATER_FIELDS, read_header
from zipper_jax.speech.judges import Judge, WhisperJudge, make_judge
from zipper_jax.speech.tokenizers import VocodedTokenizer
from zipper_jax.speech.whisper_units import WhisperUnits
from zipper_jax.tasks import SPEECH, TEXT
from zipper_jax.utils.distributed import is_first, share
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.utils.storage import AnyPath, as_path
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
        speech_seeds: Samples per sentence, of the seeds from that of ``speech_sampling`` on; above 1, the best of them
            is reported, too.
        judge: Of text to speech, see `speech.judges`; "": the grammar of the corpus if it has one, else Whisper.
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
    speech_seeds: int = 1
    judge: str = ""

    def __post_init__(self):
        for name in ("sentences", "speech_sentences", "shown"):
            if getattr(self, name) < 0:
                raise UserError(f"EvalSettings.{name} = {getattr(self, name)} must be 0 or positive")
        if self.speech_seeds < 1:
            raise UserError(f"EvalSettings.speech_seeds = {self.speech_seeds}: give at least 1")
        if self.speech_seeds > 1 and not self.speech_sampling.temperature:
            raise UserError(
                f"EvalSettings.speech_seeds = {self.speech_seeds}: at temperature 0 all samples are equal; give a "
                "temperature above 0"
            )
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

    runs: Mapping[str, AnyPath]
    prepared: AnyPath
    corpus: Path


def evaluate(sources: Sources, out: Path, settings: EvalSettings = EvalSettings()) -> dict[str, Any]:
    """Runs everything, writes the folder ``out`` and returns the results.

    In a group every process calls it; the work is shared, and the first process writes.

    Raises:
        UserError: A run, a split or audio is missing; raised before any expensive work.
    """
    began = time.monotonic()
    from zipper_jax.data.prepared import splits
    from zipper_jax.training.cost import parameters
    from zipper_jax.training.run_folder import stored_config

    _check_origins(sources)
    judge = make_judge(settings.judge, _jsgf(sources.corpus))
    models = {name: load(sources.runs[name]) for name in ("zipper", "single_decoder") if name in sources.runs}
    for name, model in models.items():
        check_units(sources.prepared, sources.runs[name], model)
    policy = policy_of(settings, sources.prepared)
    # What a recogniser writes may need another normalisation than the corpus does: digits, capitals.
    of_judge = policy if settings.normaliser or judge.normaliser is None else normaliser(judge.normaliser)
    settings = replace(settings, normaliser=policy.name)
    test = _examples(sources.prepared, "test", settings.sentences, policy)
    there = "test_other" in splits(sources.prepared)
    other = _examples(sources.prepared, "test_other", settings.sentences, policy) if there else []
    if not test:
        raise UserError(
            f"{sources.prepared}: the test split has no sentence with words and audio: prepare one that has"
        )
    spoken = [example for example in test if of_judge(example["text"])][: settings.speech_sentences or None]
    if not spoken:
        raise UserError(f"no test sentence has words for {of_judge.name!r}: give another --normaliser, or --split test")
    models["zipper"].vocode(spoken[0]["units"])  # fails now where the units have no vocoder
    _check_independent(judge, models["zipper"].tokenizer)
    sounds_of = list(recordings(sources.corpus, spoken).values())
    for where in sounds_of:
        load_audio(**where)  # fails now where a recording cannot be read; all of them would not fit into memory
    max_new_tokens = models["zipper"].max_new_tokens  # the same for every model
    results: dict[str, Any] = {"normaliser": policy.about, "judge": judge.name, "judge_normaliser": of_judge.about}
    results["settings"] = asdict(settings)
    results["form"] = form_of(models["zipper"].config)
    results["sentences"] = {"test": len(test), "test_other": len(other), "speech": len(spoken)}

    hypotheses: dict[str, list[str]] = {}
    speech: dict[str, list[list[Decoded]]] = {}
    outputs = Outputs(out / OUTPUTS)
    read = Decoding(max_new_tokens, SamplingConfig(beams=settings.beams), settings.batch_size, outputs)
    for name, model in models.items():
        logger.info(f"{name}: speech to text")
        prefix = "" if name == "zipper" else f"{name}_"
        rates, hypotheses[name] = speech_to_text(model, test, other, read, f"{name}, speech to text", policy)
        results |= {prefix + key: value for key, value in rates.items()}
        logger.info(_shown(rates, policy))
        logger.info(f"{name}: text to speech")
        texts = [model.vocabularies[TEXT].encode(e["text"]) for e in spoken]
        speech[name] = []
        for seed in range(settings.speech_seeds):
            sampling = replace(settings.speech_sampling, seed=settings.speech_sampling.seed + seed)
            how = replace(read, sampling=sampling)
            speech[name].append(decode_set(model, TEXT, texts, SPEECH, how, f"{name}, text to speech"))
        results[f"{prefix}tts_truncated"] = float(np.mean([s.truncated for found in speech[name] for s in found]))

    logger.info("judging speech")
    units = {
        name: [[models[name].vocabularies[SPEECH].decode(one.tokens) for one in found] for found in samples]
        for name, samples in speech.items()
    }
    judged = _judged(models["zipper"], spoken, sounds_of, units, judge, settings.batch_size, outputs)
    rates = _speech_rates([e["text"] for e in spoken], judged, of_judge)
    results |= rates
    logger.info(_shown(rates, of_judge))
    logger.info("perplexities")
    results |= _perplexities(sources, test)
    results["parameters"] = {name: parameters(stored_config(run)) for name, run in sources.runs.items()}
    # Of a resumed evaluation only the last start's time is known.
    results["seconds"] = {"evaluate": None if outputs.resumed else round(time.monotonic() - began, 1)}

    if is_first():
        out.mkdir(parents=True, exist_ok=True)
        first = {name: samples[0] for name, samples in units.items()}
        _write_samples(out, models["zipper"], spoken[: settings.shown], sounds_of, hypotheses, first, judged)
        _write_attention(out, models["zipper"], test[0])
        write_json(out / "results.json", results)
    outputs.tidy()
    return results


def policy_of(settings: EvalSettings, prepared: AnyPath) -> Policy:
    """Return the normalisation of texts that the settings name, else that of the data."""
    name = settings.normaliser
    return read_policy(prepared) if name is None else normaliser(name)


def _shown(rates: Mapping[str, Figure], policy: Policy) -> str:
    figures = ", ".join(f"{key} {percent(value)}" for key, value in rates.items())
    return f"  {figures} (text: {policy.name})"


def _check_independent(judge: Judge, tokenizer: Any) -> None:
    """Raise UserError where the judge has the weights whose features the units are codes of."""
    base = tokenizer.base if isinstance(tokenizer, VocodedTokenizer) else tokenizer
    if isinstance(judge, WhisperJudge) and isinstance(base, WhisperUnits) and base.made_by(judge.weights):
        raise UserError(
            "--judge: these weights also make the features that the units are codes of, so the judge would not be "
            "independent; give others, --judge whisper:base"
        )


def _jsgf(corpus: Path) -> str | None:
    """The grammar of a corpus that `zipper data synth` made."""
    settings = (read_header(corpus) or {}).get("settings", {})
    if "voices" not in settings or settings.get("text_file"):
        return None
    return grammar.jsgf(settings.get("grammar", LATER_FIELDS["grammar"]))


Judged = dict[str, list[list[str]]]
"""Whose speech -> transcripts of each sample of every sentence; the controls have one sample."""


def _judged(
    model: Model,
    examples: list[dict[str, Any]],
    sounds_of: list[dict[str, Any]],
    units: Mapping[str, list[list[Any]]],
    judge: Judge,
    batch_size: int,
    outputs: Outputs,
) -> Judged:
    """What the judge understands of generated speech and its controls, all transcribed with one setting."""
    judged: Judged = {}

    def speech(first: int) -> dict[str, list[list[np.ndarray]]]:
        part = slice(first, first + batch_size)
        audio = {name: [[model.vocode(u) for u in one[part]] for one in samples] for name, samples in units.items()}
        controls = sounds([load_audio(**where) for where in sounds_of[part]], first)
        controls |= {"gold_units": [model.vocode(e["units"]) for e in examples[part]]}
        return audio | {name: [waveforms] for name, waveforms in controls.items()}

    def transcripts(first: int) -> dict[str, Any]:
        """Key -> what the judge understands, of all speech of a batch; by name and sample the keys of the sentences."""
        keyed = {
            name: [[(digest(judge.key, waveform), waveform) for waveform in waveforms] for waveforms in samples]
            for name, samples in speech(first).items()
        }
        flat = [one for samples in keyed.values() for pairs in samples for one in pairs]
        known = {key: outputs.get(key) for key, _ in flat}
        new = {key: waveform for key, waveform in flat if known[key] is None}
        known |= dict(zip(new, judge.transcribe(list(new.values())), strict=True))
        keys = {name: [[key for key, _ in pairs] for pairs in samples] for name, samples in keyed.items()}
        return {"known": known, "keys": keys}

    for _, found in share(range(0, len(examples), batch_size), transcripts):
        outputs.add(found["known"], {"set": "judge"})
        for name, samples in found["keys"].items():
            texts = judged.setdefault(name, [[] for _ in samples])
            for number, keys in enumerate(samples):
                texts[number].extend(outputs.get(key) for key in keys)
    return judged


_CONTROLS = {
    "gold_units": "tts_wer_gold_units",
    "raw_audio": "tts_wer_raw_audio",
    "noise": "judge_wer_noise",
    "silence": "judge_wer_silence",
    "reversed": "judge_wer_reversed",
}


def _speech_rates(texts: list[str], judged: Judged, policy: Policy) -> dict[str, Figure]:
    """Error rates of generated speech, of controls, and of speech scored against another sentence's text."""
    others = partners(texts, policy)
    rates: dict[str, Figure] = {key: wer(texts, judged[name][0], policy) for name, key in _CONTROLS.items()}
    gold = [(i, text) for i, text in enumerate(judged["gold_units"][0]) if policy(text)]
    for name, samples in judged.items():
        if name in _CONTROLS:
            continue
        prefix, one = "" if name == "zipper" else f"{name}_", samples[0]
        rates[f"{prefix}tts_wer_test"] = wer(texts, one, policy)
        rates[f"{prefix}tts_cer_test"] = cer(texts, one, policy)
        rates[f"{prefix}tts_wer_against_gold_units"] = (
            wer([text for _, text in gold], [one[i] for i, _ in gold], policy)
            if gold
            else "not possible: the judge understands no gold units"
        )
        # Speech generated from another sentence, scored against this one.
        exchanged = None if isinstance(others, str) else [[sample[i] for i in others] for sample in samples]
        rates[f"{prefix}tts_wer_shuffled_text"] = str(others) if exchanged is None else wer(texts, exchanged[0], policy)
        if len(samples) > 1:
            rates[f"{prefix}tts_wer_best"] = wer(texts, best(texts, samples, policy), policy)
            rates[f"{prefix}tts_wer_best_shuffled_text"] = (
                str(others) if exchanged is None else wer(texts, best(texts, exchanged, policy), policy)
            )
    return rates


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
            both = [before, after.params]
            pair = perplexities(after.config, both, after.layout, modality, contents, fused=fused, shared=True)
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
            if not as_path(origin).is_dir():
                raise UserError(
                    f"{str(run)!r} initialised {what} from {origin!r}, which does not exist, and perplexity before "
                    "fusion needs it: restore that folder, or run from the working folder of the training command"
                )


def check_units(prepared: AnyPath, run: AnyPath, model: Model) -> None:
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
    return "identity" if kept and all(fusion_class(z.fusion).preserves(z) for z in config.zips) else "paper"


def _examples(prepared: AnyPath, split: str, most: int, policy: Policy) -> list[dict[str, Any]]:
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
                "tts_judged": {
                    name: texts[0][i] for name, texts in judged.items() if name not in ("reversed", "noise", "silence")
                },
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

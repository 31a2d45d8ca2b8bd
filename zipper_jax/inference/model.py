"""The Python API of a trained model, ``zipper_jax.load(run)``. No TensorFlow.

model = zipper_jax.load("runs/smoke/zipper")
model.transcribe("hello.wav")
model.speak("turn the kitchen light off").save("off.wav")
model.generate([[("text", "set a timer")]], outputs=("text", "speech"))
model.generate([[("text", "what time is it?")]], outputs="auto")  # in an order that the model chooses
model.tower("text").perplexity(["turn the light on"])
"""

import copy
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zipper_jax.decoding.auto import MAX_SPANS
from zipper_jax.decoding.generate import BATCH_SIZE, Batch, Generator
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.decoding.spans import Generated, Outputs
from zipper_jax.inference import perplexity
from zipper_jax.metrics.normalisers import TextForm
from zipper_jax.models import zipper
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.module import Placer, unsharded
from zipper_jax.models.schedule import soft_tokens
from zipper_jax.sequences import make_layout, own_tokens
from zipper_jax.sharding.mesh import MeshConfig, make_mesh
from zipper_jax.sharding.rules import Placement, param_shardings
from zipper_jax.tasks import SPEECH, TEXT, TaskSet, stored_task_set
from zipper_jax.utils import storage
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import any_path
from zipper_jax.utils.storage import AnyPath, as_path
from zipper_jax.utils.trees import flatten, unflatten
from zipper_jax.vocabularies import Vocabulary, load_vocabulary

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000


class Output(NamedTuple):
    """One generated span.

    Attributes:
        modality: Its name.
        content: A string for text, units for speech.
        truncated: Whether max_new_tokens ended it, or max_spans the example after it.
        log_probs: Of each token, the end token last.
        next_modality: With outputs "auto" what the model chose to follow; None: the end of the example.
    """

    modality: str
    content: Any
    truncated: bool
    log_probs: Float[np.ndarray, " n"]
    next_modality: str | None = None


class Transcript(NamedTuple):
    """What one piece of audio was transcribed to.

    Attributes:
        content: The transcript; None where there is a ``problem``.
        seconds: Length of the audio.
        truncated: Whether ``max_new_tokens`` ended it.
        problem: Why it has none: the audio cannot be read, is silent, or is longer than rows of training.
    """

    content: Any
    seconds: float
    truncated: bool = False
    problem: UserError | None = None


@dataclass(frozen=True)
class Speech:
    """Generated speech.

    Attributes:
        waveform: Float32, mono.
        sample_rate: In Hz.
        units: Unit ids, int32.
        truncated: Whether max_new_tokens ended it.
    """

    waveform: np.ndarray
    sample_rate: int
    units: np.ndarray
    truncated: bool

    def save(self, path: str | os.PathLike) -> None:
        """Write 16-bit audio; the suffix decides the format (.wav, .flac, .ogg)."""
        from zipper_jax.speech.audio import save_audio

        save_audio(path, self.waveform, self.sample_rate)


class Model:
    """A model with its vocabularies.

    Attributes:
        config: The model.
        params: Nested dict of arrays.
        vocabularies: Modality -> Vocabulary.
        max_new_tokens: Modality -> most content tokens of a generated span, from the row lengths of training.
        task_set: The tasks of its run.
        text_form: How the texts of its training data were encoded: prompts are, too; None: as they are given.
    """

    def __init__(
        self,
        config: ZipperConfig,
        params: Mapping[str, Any],
        vocabularies: Mapping[str, Vocabulary],
        lengths: Mapping[str, int],
        folder: AnyPath | None = None,
        mesh: MeshConfig | None = None,
        task_set: TaskSet | None = None,
        text_form: TextForm | None = None,
    ):
        self.params: dict[str, Any]
        placer: Placer = unsharded
        known = zipper.parameters(config)
        dtypes = {key: zipper.inference_dtype(config, known[key], x.dtype) for key, x in flatten(params).items()}
        flat = {key: x.astype(dtypes[key], copy=False) for key, x in flatten(params).items()}
        if mesh is None:
            self.params = unflatten({key: jnp.asarray(leaf) for key, leaf in flat.items()})
        else:
            devices = make_mesh(mesh)
            shardings, _ = param_shardings(flat, known, devices, mesh)
            self.params, placer = unflatten(jax.device_put(flat, shardings)), Placement(devices, mesh)
        self.config = replace(config, remat="none")  # nothing is differentiated here
        self.vocabularies = dict(vocabularies)
        self.lengths, self.folder = dict(lengths), folder
        self.task_set, self.text_form = TaskSet() if task_set is None else task_set, text_form
        self.layout = make_layout(config.modalities, vocabularies, "" if folder is None else str(folder))
        self.max_new_tokens = {m: max(1, lengths[place.tower] - 2) for m, place in self.layout.items()}
        self._tokenizers: dict[str, Any] = {}
        self._generator = Generator(self.config, self.params, self.layout, self.lengths, placer)

    def with_params(self, params: Mapping[str, Any]) -> "Model":
        """A copy with other parameters of the same shapes; compiled programs are shared."""
        other = copy.copy(self)
        other.params = jax.tree.map(
            lambda new, old: jax.device_put(new.astype(old.dtype, copy=False), old.sharding), dict(params), self.params
        )
        other._generator = self._generator.with_params(other.params)
        return other

    def without_zips(self) -> "Model":
        """A copy with input projections but no zips; for gated fusions the same as all gates at 0."""
        other = copy.copy(self)
        other.config = replace(self.config, zips=())
        other.params = {part: tree for part, tree in self.params.items() if part != "zips"}
        other._generator = Generator(other.config, other.params, self.layout, self.lengths, self._generator.placer)
        return other

    @property
    def tokenizer(self) -> Any:
        """The audio tokenizer stored with the speech vocabulary: audio to units, and back if it supports that."""
        return self._tokenizer(SPEECH)

    def _tokenizer(self, modality: str) -> Any:
        if modality not in self._tokenizers:
            self._tokenizers[modality] = self._load_tokenizer(modality)
        return self._tokenizers[modality]

    def _load_tokenizer(self, modality: str) -> Any:
        from zipper_jax.speech.tokenizers import load_tokenizer

        self.require(modality)
        if self.folder is None:
            raise UserError("this model was not loaded from a folder, so it has no audio tokenizer")
        home, named = self.folder / "vocabularies" / modality, getattr(self.vocabularies[modality], "codebook", "")
        with storage.on_this_machine(home) as here:
            loaded = load_tokenizer(here)
        if named not in ("", loaded.digest):
            raise UserError(
                f"{str(home)!r}: the tokenizer is not the one that this model was trained with (digest "
                f"{loaded.digest}, not {named}); restore that one, or copy it from the training data"
            )
        return loaded

    def generate(
        self,
        prompts: Sequence[Sequence[tuple[str, Any]]],
        outputs: Outputs = (TEXT,),
        *,
        sampling: SamplingConfig | Mapping[str, SamplingConfig] = SamplingConfig(),
        max_new_tokens: Mapping[str, int] | None = None,
        batch_size: int = BATCH_SIZE,
        first_row: int = 0,
        max_spans: int = MAX_SPANS,
    ) -> list[list[Output]]:
        """Continue each prompt with one span per output modality, in order, or with those that the model chooses.

        Args:
            prompts: Per example, (modality, content) spans in order: a string for text, unit ids for speech, else what
                the modality's vocabulary encodes; may be empty.
            outputs: Modalities to generate, for example ``("text", "speech")``; "auto": the model chooses after each
                span, the prompt's last one included, which follows or that the example ends (docs/interleaving.md).
            sampling: One setting, or one per output modality. Choices of the next modality are never sampled.
            max_new_tokens: Modality -> most content tokens; overrides the model's own.
            batch_size: Most prompts decoded together; beams count as prompts.
            first_row: Number of the first prompt in a larger set: what is sampled depends on a prompt's number.
            max_spans: With outputs "auto", most spans of an example.

        Returns:
            The generated spans of each prompt.

        Raises:
            UserError: See `decoding.generate.Generator`.
        """
        given = [[(modality, self.encode(modality, content)) for modality, content in prompt] for prompt in prompts]
        results = self.generate_tokens(
            given, outputs, sampling=sampling, max_new_tokens=max_new_tokens, batch_size=batch_size,
            first_row=first_row, max_spans=max_spans,
        )  # fmt: skip
        return [[self._output(span) for span in row] for row in results]

    def _output(self, span: Generated) -> Output:
        content = self.vocabularies[span.modality].decode(span.tokens)
        return Output(span.modality, content, span.truncated, span.log_probs, span.next_modality)

    def encode(self, modality: str, content: Any) -> np.ndarray:
        """The token ids of a content, int32; what the vocabulary lacks is logged as a warning.

        Raises:
            UserError: An unknown modality, or content that is not of its kind.
        """
        self.require(modality)
        vocabulary = self.vocabularies[modality]
        kind = self.task_set.modalities.get(modality)
        if self.text_form is not None and kind is not None and kind.vocabulary == "subwords" and type(content) is str:
            content = self.text_form.stored(content)
        tokens = np.asarray(vocabulary.encode(content), np.int32)
        if lacking := list(dict.fromkeys(vocabulary.unknown(content))):
            logger.warning(
                f"warning: {modality} = {content!r}: the model's vocabulary lacks {', '.join(map(repr, lacking))}, "
                "which it does not see; write it in the characters of its training text"
            )
        return tokens

    def generate_tokens(
        self,
        given: Sequence[Sequence[tuple[str, np.ndarray]]],
        outputs: Outputs = (TEXT,),
        *,
        sampling: SamplingConfig | Mapping[str, SamplingConfig] = SamplingConfig(),
        max_new_tokens: Mapping[str, int] | None = None,
        batch_size: int = BATCH_SIZE,
        first_row: int = 0,
        max_spans: int = MAX_SPANS,
    ) -> list[list[Generated]]:
        """`generate` from token ids to token ids, without vocabularies."""
        longest = sorted(self.layout) * max_spans if outputs == "auto" else outputs
        max_new_tokens = {**self._room(given, longest), **(max_new_tokens or {})}
        outputs = outputs if outputs == "auto" else tuple(outputs)
        return self._generator(given, outputs, max_new_tokens, sampling, batch_size, first_row, max_spans)

    def token_batches(
        self,
        given: Sequence[Sequence[tuple[str, np.ndarray]]],
        outputs: Sequence[str] = (TEXT,),
        *,
        sampling: SamplingConfig | Mapping[str, SamplingConfig] = SamplingConfig(),
        max_new_tokens: Mapping[str, int] | None = None,
        batch_size: int = BATCH_SIZE,
        done: Collection[int] = (),
    ) -> list[Batch]:
        """The batches of `generate_tokens`, see `decoding.generate.Generator.batches`."""
        max_new_tokens = {**self._room(given, outputs), **(max_new_tokens or {})}
        return self._generator.batches(given, tuple(outputs), max_new_tokens, sampling, batch_size, done)

    def _room(self, given: Sequence[Sequence[tuple[str, np.ndarray]]], outputs: Sequence[str]) -> dict[str, int]:
        """The model's own max_new_tokens, lower where a tower's learned positions end earlier."""
        room = dict(self.max_new_tokens)
        for name, tower in self.config.towers.items():
            own = [m for m in outputs if self.layout.get(m) and self.layout[m].tower == name]
            if tower.positions == "learned" and own:
                # Soft tokens take positions, too. Tower -> how many of its tokens take one.
                stacks = {name: 1, **{soft.source: soft.stack for soft in soft_tokens(self.config, name)}}

                def used(spans: Iterable[tuple[str, int]], stacks: Mapping[str, int] = stacks) -> int:
                    towers = [(self.layout[m].tower, n + 2) for m, n in spans if m in self.layout]
                    return sum(n // stacks[at] for at, n in towers if at in stacks)

                prompts = max((used((m, len(t)) for m, t in spans) for spans in given), default=0)
                soft = used((m, room[m]) for m in outputs if m in self.layout and m not in own)
                left = (tower.max_positions or 0) - prompts - soft - 2 * len(own)
                room |= {m: max(1, min(room[m], left // len(own))) for m in own}
        return room

    def transcribe(
        self, audio: Any, sample_rate: int | None = None, *, beams: int = 1, source: str = SPEECH, target: str = TEXT
    ) -> Any:
        """Transcribe speech to text, or to another modality.

        Args:
            audio: A path (WAV, FLAC, OGG, any rate, mono or stereo), an array with its ``sample_rate``, or a list of
                either.
            sample_rate: Of arrays, in Hz.
            beams: Above 1: beam search with so many beams.
            source, target: Modalities.

        Returns:
            The content of the target span; a list for a list.
        """
        many = isinstance(audio, list | tuple)
        given = list(audio) if many else [audio]
        found = list(self.transcripts(given, sample_rate, beams=beams, source=source, target=target))
        for one in found:
            if one.problem is not None:
                raise one.problem
        return [one.content for one in found] if many else found[0].content

    def transcripts(
        self,
        audio: Sequence[Any],
        sample_rate: int | None = None,
        *,
        beams: int = 1,
        source: str = SPEECH,
        target: str = TEXT,
        batch_size: int = BATCH_SIZE,
    ) -> Iterator[Transcript]:
        """A `Transcript` per piece of audio, in order; audio that cannot be transcribed is one with a problem.

        Args:
            audio: See `transcribe`.
            sample_rate: Of arrays.
            beams: Above 1, beam search of that width.
            source: Modality of the audio.
            target: Modality of the transcripts.
            batch_size: How many are decoded together.
        """
        from zipper_jax.speech.audio import AudioError, load_audio

        for start in range(0, len(audio), batch_size):
            found, prompts = [], []
            for one in audio[start : start + batch_size]:
                seconds = 0.0
                try:
                    waveform = load_audio(one, sample_rate)
                    seconds = len(waveform) / SAMPLE_RATE
                    prompts.append([(source, self.units(waveform, SAMPLE_RATE, source))])
                    found.append(Transcript(None, seconds))
                except AudioError as problem:
                    found.append(Transcript(None, seconds, problem=problem))
            rows = iter(self.generate(prompts, (target,), sampling=SamplingConfig(beams=beams), batch_size=batch_size))
            for transcript in found:
                if transcript.problem is None:
                    (output,) = next(rows)
                    transcript = transcript._replace(content=output.content, truncated=output.truncated)
                yield transcript

    def units(self, audio: Any, sample_rate: int | None = None, modality: str = SPEECH) -> np.ndarray:
        """The units of one audio input, without leading and trailing silence.

        Args:
            audio: A path or an array, see `transcribe`.
            sample_rate: Of an array, in Hz.
            modality: Whose tokenizer is used.

        Raises:
            AudioError: Silence, or audio longer than a training row.
        """
        from zipper_jax.speech.audio import AudioError, is_silent, load_audio, trim_silence

        tokenizer = self._tokenizer(modality)
        # Training audio has no leading or trailing silence, so its units would be out of distribution.
        waveform = trim_silence(load_audio(audio, sample_rate))
        if is_silent(waveform):
            raise AudioError("the audio is silent; check the recording", "silent audio")
        seconds, most = len(waveform) / SAMPLE_RATE, self.max_new_tokens[modality] / tokenizer.rate_hz
        if seconds > most:
            raise AudioError(
                f"the audio has {seconds:.1f} s of speech, the training rows of this model hold {most:.1f}; split it "
                "into segments",
                "too long",
            )
        return tokenizer.encode(waveform)

    def speak(
        self,
        text: Any,
        *,
        sampling: SamplingConfig = SamplingConfig(),
        seed: int | None = None,
        source: str = TEXT,
        target: str = SPEECH,
    ) -> Any:
        """Synthesise speech from text, greedily by default.

        Args:
            text: A sentence, or a list of them.
            sampling: How units are chosen.
            seed: Replaces ``sampling.seed``.
            source, target: Modalities.

        Returns:
            A `Speech`, or a list of them for a list.
        """
        many = isinstance(text, list | tuple)
        sampling = sampling if seed is None else replace(sampling, seed=seed)
        rows = self.generate([[(source, t)] for t in (text if many else [text])], (target,), sampling=sampling)
        speech = [self._vocode(row[0]) for row in rows]
        return speech if many else speech[0]

    def tower(self, name: str) -> "Unimodal":
        """One tower alone: input projection and zips are bypassed."""
        if name not in self.config.towers:
            raise UserError(f"this model has no tower {name!r}; it has {', '.join(sorted(self.config.towers))}")
        return Unimodal(self, name)

    def vocode(self, units: Any, modality: str = SPEECH) -> np.ndarray:
        """Units of ``modality`` to a float32 waveform at 16 kHz (Griffin-Lim); no units give no samples."""
        from zipper_jax.speech.vocoder import synthesize

        units = np.asarray(units, np.int32)
        return synthesize(self._tokenizer(modality), units) if len(units) else np.zeros(0, np.float32)

    def _vocode(self, output: Output) -> Speech:
        units = np.asarray(output.content, np.int32)
        return Speech(self.vocode(units, output.modality), SAMPLE_RATE, units, output.truncated)

    def require(self, modality: str) -> None:
        """Raise UserError for an unknown modality."""
        if modality not in self.layout:
            raise UserError(f"this model has no modality {modality!r}; it has {', '.join(sorted(self.layout))}")


class Unimodal:
    """The unimodal path of one tower of a model."""

    def __init__(self, model: Model, tower: str):
        self._model, self._tower = model, tower
        self._logits = jax.jit(lambda params, batch: zipper.bind_params(model.config, params).towers[tower](batch))

    def logits(self, content: Any, modality: str | None = None) -> Float[np.ndarray, "T V"]:
        """Float32 logits at ``begin, content..., end``; row t predicts token t + 1.

        Begin or end has no row if it is an added token, which the unimodal path lacks.
        """
        modality = modality or self._only_modality()
        tokens, own = self._encode(modality, content), self._model.config.towers[self._tower]
        own.check_length(len(tokens) + 2, f"tokens of this {modality}")
        batch = perplexity.pack_contents(self._model.layout, modality, [tokens], {})[self._tower]
        batch = own_tokens(batch, own.vocab_size)
        logits = self._logits(self._model.params, batch)
        length = int((batch.segment_ids[0] > 0).sum())
        return np.asarray(logits[0, :length])

    def perplexity(self, contents: Sequence[Any], modality: str | None = None) -> float:
        """exp(mean negative log likelihood per predicted token, end tokens included) over all ``contents``."""
        modality = modality or self._only_modality()
        tokens = [self._encode(modality, content) for content in contents]
        model = self._model
        return perplexity.perplexities(model.config, [model.params], model.layout, modality, tokens, fused=False)[0]

    def _encode(self, modality: str, content: Any) -> np.ndarray:
        return self._model.encode(modality, content)

    def _only_modality(self) -> str:
        found = [m for m, place in self._model.layout.items() if place.tower == self._tower]
        if len(found) != 1:
            raise UserError(f"tower {self._tower!r} holds {', '.join(sorted(found))}; give modality")
        return found[0]


def load(path: str | os.PathLike, step: int | None = None, *, mesh: MeshConfig | None = None) -> Model:
    """Load a model folder, or a checkpoint of a run folder, without gin or TensorFlow.

    Args:
        path: The folder.
        step: Of a run folder; None: the newest good checkpoint.
        mesh: Sharded over devices, for example ``MeshConfig(data=1, tensor=4, strategy="tensor")``; None: one device.

    Raises:
        UserError: No run folder, no complete checkpoint, vocabularies that do not match the model, or an invalid mesh.
    """
    from zipper_jax.checkpoint.checkpoints import load_params
    from zipper_jax.checkpoint.run_format import part_of, require

    path = any_path(path, "path")
    header, params = load_params(as_path(path), step)
    require(header, path, "model", "lengths")
    config = part_of(header, ZipperConfig, path, "model")
    try:
        task_set = stored_task_set(header)
    except UserError as error:
        raise UserError(f"{str(as_path(path) / 'config.json')!r}: {error}") from error
    require(
        {f"lengths.{tower}": length for tower, length in header["lengths"].items()},
        path,
        *(f"lengths.{tower}" for tower in config.towers),
    )
    _check_parameters(path, params, zipper.abstract_params(config))
    vocabularies = {m: load_vocabulary(as_path(path) / "vocabularies" / m) for m in config.modalities}
    form = part_of(header, TextForm, path, "text_form") if "text_form" in header else None
    return Model(config, params, vocabularies, header["lengths"], as_path(path), mesh, task_set, form)


def _check_parameters(path: str | os.PathLike, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UserError naming the first parameter in which checkpoint and configuration differ."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}

    have, want = shapes(found), shapes(wanted)
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise UserError(
                f"{str(path)!r}: parameter {name} is {have.get(name, 'missing')} in the checkpoint and "
                f"{want.get(name, 'unknown')} by its config.json; load it with the zipper_jax version that wrote it"
            )

"""Settings of `zipper data prepare`."""

import dataclasses
from typing import Any

from zipper_jax.tasks import MODALITIES, SPEECH, TEXT, TaskSet
from zipper_jax.utils.configs import closest, to_dict
from zipper_jax.utils.errors import UserError

NUM_UNITS = 1024


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """How a corpus is tokenised and packed into rows.

    Attributes:
        text_length: Text positions of a packed row, begin and end tokens included.
        speech_length: Speech positions of a packed row, begin and end tokens included.
        text_vocabulary: "sentencepiece" (trained on the training sentences), "bytes", a sentencepiece .model file, the
            folder of a Hugging Face tokenizer, or a folder with a text vocabulary (a run, a model folder, a prepared
            folder).
        text_vocabulary_size: Total number of ids; sentencepiece only.
        num_units: Number of units of the tokenizer; ignored unless it is fitted here.
        unit_features: What fitted units are codes of: "whisper" (sounds: a layer of Whisper's encoder; "whisper:WHERE"
            for other weights than the installed, as `zipper eval --judge`), or "log-mel" (a speaker's spectrum, 25 a
            second; needs no weights). "": whisper, where units are fitted.
        unit_layer: Layer of the encoder.
        unit_rate: Units of the encoder per second, 25 or 50.
        tokenizer: "" (fit on the training audio, or use the corpus's own units), or a folder with a unit tokenizer (a
            run, a prepared folder, the output of `zipper data tokenizer`).
        speech_vocabulary: "" (unit u has id u; begin and end follow), or a folder with the vocabulary of a pretrained
            unit model with the same number of units, whose ids are used.
        seed: Seed of the tokenizer fit.
        shifts: Training audio is encoded this many times, from starting points spread over the 40 ms of one unit, as
            augmentation. Other splits are encoded once.
        max_unknown: Largest share of a split's tokens that may be unknown to a vocabulary, in [0, 1]; fewer than ten
            tokens are never too many.
        tasks: Tasks to write rows for; (): all of ``task_set``.
        open_rows: See `zipper_jax.packing.pack`.
        lengths: Further modality -> positions of a packed row.
        vocabularies: Further modality -> "" (made from the training split) or a value as for ``text_vocabulary``.
        vocabulary_sizes: Further modality -> total ids of a sentencepiece vocabulary, or number of units.
        task_set: The tasks and modalities.
    """

    text_length: int = 64
    speech_length: int = 512
    text_vocabulary: str = "sentencepiece"
    text_vocabulary_size: int = 256
    num_units: int = NUM_UNITS
    unit_features: str = ""
    unit_layer: int = 3
    unit_rate: int = 50
    tokenizer: str = ""
    speech_vocabulary: str = ""
    seed: int = 0
    shifts: int = 1
    max_unknown: float = 0.01
    tasks: tuple[str, ...] = ()
    open_rows: int = 64
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    vocabularies: dict[str, str] = dataclasses.field(default_factory=dict)
    vocabulary_sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    task_set: TaskSet = dataclasses.field(default_factory=TaskSet)

    def __post_init__(self) -> None:
        for name in ("text_length", "speech_length"):
            if getattr(self, name) < 3:
                raise UserError(f"{name} = {getattr(self, name)}: begin, one token and end take 3; give at least 3")
        for name in ("text_vocabulary_size", "num_units", "shifts", "open_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: give at least 1")
        kind = self.unit_features.partition(":")[0]
        if self.unit_features not in ("", "log-mel") and kind != "whisper":
            raise UserError(f"unit_features = {self.unit_features!r}: give whisper, whisper:WHERE or log-mel")
        if self.unit_features and self.tokenizer:
            raise UserError(f"tokenizer = {self.tokenizer!r}: its units are used, so omit unit_features")
        for name in ("unit_layer", "unit_rate"):
            if getattr(self, name) != getattr(PrepareSettings, name) and (self.tokenizer or kind == "log-mel"):
                raise UserError(f"{name} = {getattr(self, name)}: only units of Whisper's encoder have one, so omit it")
        if self.unit_layer < 0:
            raise UserError(f"unit_layer = {self.unit_layer}: give 0 (the input of the blocks) or more")
        if self.unit_rate not in (25, 50):
            raise UserError(f"unit_rate = {self.unit_rate}: give 25 or 50")
        if not 0 <= self.max_unknown <= 1:
            raise UserError(f"max_unknown = {self.max_unknown}: give a share from 0 to 1")
        object.__setattr__(self, "tasks", self.tasks or tuple(self.task_set.tasks))
        self._check_further()

    def _check_further(self) -> None:
        """Raise UserError for an unknown modality, one with its own fields, or one without a row length."""
        modalities = self.task_set.modalities
        for name in ("lengths", "vocabularies", "vocabulary_sizes"):
            for modality in getattr(self, name):
                if modality in MODALITIES:
                    raise UserError(f"{name}[{modality!r}]: this modality has its own fields; see {modality}_length")
                if modality not in modalities:
                    raise UserError(f"{name}: there is no modality {modality!r}{closest(modality, modalities)}")
        for modality, length in self.lengths.items():
            if length < 3:
                raise UserError(f"lengths[{modality!r}] = {length}: begin, one token and end take 3; give at least 3")
        for task in self.tasks:
            for modality in self.task_set.task(task, "tasks").modalities:
                if modality not in self.row_lengths:
                    raise UserError(
                        f"lengths has no {modality!r}, which task {task!r} needs: give its positions per row"
                    )

    @property
    def row_lengths(self) -> dict[str, int]:
        """Modality -> positions of a row."""
        return {TEXT: self.text_length, SPEECH: self.speech_length, **self.lengths}

    def vocabulary(self, modality: str) -> str:
        """Return the vocabulary given for ``modality``; "": make it from the training split."""
        ours = {TEXT: self.text_vocabulary, SPEECH: self.speech_vocabulary}
        given = {**ours, **self.vocabularies}.get(modality, "")
        return "" if given == "sentencepiece" else given

    def vocabulary_size(self, modality: str) -> int | None:
        """Return the total ids of the vocabulary to fit for ``modality``, or its number of units; None: not given."""
        ours = {TEXT: self.text_vocabulary_size, SPEECH: self.num_units}
        return {**ours, **self.vocabulary_sizes}.get(modality)

    def of_examples(self) -> dict[str, Any]:
        """Return the settings that determine vocabularies and examples (the others affect rows only)."""
        names = ["text_vocabulary", "text_vocabulary_size", "num_units", "seed", "shifts"]
        # Only if given, so that folders written before these fields existed still match.
        names += [name for name in ("tokenizer", "speech_vocabulary") if getattr(self, name)]
        names += [name for name in ("vocabularies", "vocabulary_sizes") if getattr(self, name)]
        names += ["unit_features", "unit_layer", "unit_rate"] if self.unit_features.startswith("whisper") else []
        further = {name: to_dict(m) for name, m in self.task_set.modalities.items() if name not in MODALITIES}
        return {name: getattr(self, name) for name in names} | ({"modalities": further} if further else {})

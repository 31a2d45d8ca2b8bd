"""How a corpus becomes rows."""

import dataclasses
from typing import Any

from zipper_jax.tasks import MODALITIES, SPEECH, TEXT, TaskSet
from zipper_jax.utils.configs import closest, to_dict
from zipper_jax.utils.errors import UserError

NUM_UNITS = 1024


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """How a corpus becomes rows.

    text_length, speech_length: slots of a packed row, begin and end tokens included.
    text_vocabulary: "sentencepiece" (trained on the training sentences), "bytes", a sentencepiece .model file, the
      folder of a Hugging Face tokenizer, or a folder that holds a text vocabulary: a run, a model folder (`zipper
      convert from-hf`), a prepared folder.
    text_vocabulary_size: ids in all; sentencepiece only.
    tokenizer: "" (fitted on the training audio, or what made the corpus's own units), or a folder that holds one: a
      run, a prepared folder, what `zipper data tokenizer` wrote.
    num_units: codes of the unit tokenizer; of one that is not fitted here, as many as it has. seed: of the fit.
    speech_vocabulary: "" (units from id 0 on, then begin and end), or a folder that holds a vocabulary of as many
      units, whose ids are taken: that of a unit model from elsewhere.
    shifts: starting points, spread over one unit's 40 ms, from each of which training audio is turned into units: as
      many examples, which differ in where the frames happened to fall. Test splits are encoded as they are.
    tasks: of which rows are written; (): all of ``task_set``. open_rows: see `zipper_jax.packing.pack`.
    lengths, vocabularies, vocabulary_sizes: what the fields above say for text and speech, for each further modality
      by its name: slots of a packed row; "" (made from the training split) or as ``text_vocabulary``; ids in all of a
      sentencepiece vocabulary, or the number of units.
    task_set: tasks and modalities there are.
    """

    text_length: int = 64
    speech_length: int = 512
    text_vocabulary: str = "sentencepiece"
    text_vocabulary_size: int = 256
    num_units: int = NUM_UNITS
    tokenizer: str = ""
    speech_vocabulary: str = ""
    seed: int = 0
    shifts: int = 1
    tasks: tuple[str, ...] = ()
    open_rows: int = 64
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    vocabularies: dict[str, str] = dataclasses.field(default_factory=dict)
    vocabulary_sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    task_set: TaskSet = dataclasses.field(default_factory=TaskSet)

    def __post_init__(self) -> None:
        for name in ("text_length", "speech_length"):
            if getattr(self, name) < 3:
                raise UserError(f"{name} is {getattr(self, name)}: begin, one token and end take 3")
        for name in ("text_vocabulary_size", "num_units", "shifts", "open_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give at least 1")
        object.__setattr__(self, "tasks", self.tasks or tuple(self.task_set.tasks))
        self._check_further()

    def _check_further(self) -> None:
        """UserError for what is said of a modality that there is not, that has a field of its own, or is unsaid."""
        modalities = self.task_set.modalities
        for name in ("lengths", "vocabularies", "vocabulary_sizes"):
            for modality in getattr(self, name):
                if modality in MODALITIES:
                    raise UserError(f"{name}: {modality!r} has settings of its own, see {modality}_length and others")
                if modality not in modalities:
                    raise UserError(f"{name}: there is no modality {modality!r}{closest(modality, modalities)}")
        for modality, length in self.lengths.items():
            if length < 3:
                raise UserError(f"lengths[{modality!r}] is {length}: begin, one token and end take 3")
        for task in self.tasks:
            for modality in self.task_set.task(task, "tasks").modalities:
                if modality not in self.row_lengths:
                    raise UserError(f"lengths names no {modality!r}, which task {task!r} has: give its slots of a row")

    @property
    def row_lengths(self) -> dict[str, int]:
        """modality -> slots of a row."""
        return {TEXT: self.text_length, SPEECH: self.speech_length, **self.lengths}

    def vocabulary(self, modality: str) -> str:
        """What is given for the vocabulary of ``modality``; "": it is made from the training split."""
        ours = {TEXT: self.text_vocabulary, SPEECH: self.speech_vocabulary}
        given = {**ours, **self.vocabularies}.get(modality, "")
        return "" if given == "sentencepiece" else given

    def vocabulary_size(self, modality: str) -> int | None:
        """Ids of the vocabulary that is fitted for ``modality``, or its number of units; None: not said."""
        ours = {TEXT: self.text_vocabulary_size, SPEECH: self.num_units}
        return {**ours, **self.vocabulary_sizes}.get(modality)

    def of_examples(self) -> dict[str, Any]:
        """The settings that decide vocabularies and examples (the others decide rows only)."""
        names = ["text_vocabulary", "text_vocabulary_size", "num_units", "seed", "shifts"]
        # Folders from before these were settings go on.
        names += [name for name in ("tokenizer", "speech_vocabulary") if getattr(self, name)]
        names += [name for name in ("vocabularies", "vocabulary_sizes") if getattr(self, name)]
        further = {name: to_dict(m) for name, m in self.task_set.modalities.items() if name not in MODALITIES}
        return {name: getattr(self, name) for name in names} | ({"modalities": further} if further else {})

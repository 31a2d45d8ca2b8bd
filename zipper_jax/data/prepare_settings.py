"""How a corpus becomes rows."""

import dataclasses
from typing import Any

from zipper_jax.errors import UserError
from zipper_jax.sequences import TEMPLATES

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
    tasks: of which rows are written. open_rows: see `zipper_jax.packing.pack`.
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
        # Folders from before these were settings go on.
        names += [name for name in ("tokenizer", "speech_vocabulary") if getattr(self, name)]
        return {name: getattr(self, name) for name in names}

"""Configuration of modalities, tasks over them and mixtures of tasks, with defaults for text and speech.

gin builds these objects (``TaskSet.tasks = {...}``); runs and prepared folders store them. A configuration names only
what it adds to the defaults. No other module of the core knows a modality or a task by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zipper_jax.utils.configs import closest, from_dict
from zipper_jax.utils.errors import UserError

TEXT = "text"
SPEECH = "speech"
"""The modality that audio is encoded into and vocoded from; all others are read from a field alone."""

VocabularyKind = Literal["subwords", "symbols", "units"]
_OTHER_FIELDS = ("id", "split", "audio", "voice", "start", "seconds", "shift", "word_times")


@dataclass(frozen=True)
class DataModality:
    """A modality of the data. (``ModalityConfig`` names the tower of a model that holds it.)

    Attributes:
        field: Field of a manifest's row, and of a prepared example, with the content.
        vocabulary: ``subwords``: a string, with a trained (sentencepiece) or given vocabulary; ``symbols``: a string of
            space-separated symbols, collected from the training split; ``units``: a list of integers from 0.
    """

    field: str
    vocabulary: VocabularyKind

    def __post_init__(self) -> None:
        if not self.field or self.field in _OTHER_FIELDS:
            raise UserError(f"DataModality.field = {self.field!r}: name the field of a row that holds the content")


@dataclass(frozen=True)
class Interleaving:
    """An utterance in spans that alternate between modalities, cut between words by their times (`data.interleave`).

    Attributes:
        switch: Modality -> probability that its span ends at a place where it may.
        words: Fewest words of a span, unless the utterance has fewer: 1 for word-aligned spans, more for phrases.
        pause: Shortest pause between two words where a span may end, in seconds.
        copies: Different interleavings of each utterance, each an example.
        seed: Of the draws, together with the utterance and the copy.
    """

    switch: dict[str, float]
    words: int = 1
    pause: float = 0.0
    copies: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for modality, probability in self.switch.items():
            if not 0 <= probability <= 1:
                raise UserError(f"Interleaving.switch[{modality!r}] = {probability}: give a probability from 0 to 1")
        for name in ("words", "copies"):
            if getattr(self, name) < 1:
                raise UserError(f"Interleaving.{name} = {getattr(self, name)}: give at least 1")
        if not (math.isfinite(self.pause) and self.pause >= 0):
            raise UserError(f"Interleaving.pause = {self.pause}: give 0 (any place between words) or more seconds")


@dataclass(frozen=True)
class TaskConfig:
    """A task: the order of an example's spans, and which of them are targets.

    Attributes:
        spans: (modality, loss weight) of each span in order of time: 1 for a target, 0 for a condition. The order
            identifies the task, so there are no task tags.
        interleaving: Instead of one span of each modality in this order, spans that alternate; None: no.
    """

    spans: tuple[tuple[str, float], ...]
    interleaving: Interleaving | None = None

    def __post_init__(self) -> None:
        if len(set(self.modalities)) != len(self.spans):
            raise UserError(f"TaskConfig.spans = {self.spans}: name each modality once")
        for modality, weight in self.spans:
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"TaskConfig.spans: {modality!r} has weight {weight}: give 0 or more")
        if not any(weight for _, weight in self.spans):
            raise UserError(f"TaskConfig.spans = {self.spans}: no target; give one span a weight above 0")
        if self.interleaving is not None and (
            len(self.spans) < 2 or set(self.interleaving.switch) != set(self.modalities)
        ):
            raise UserError(
                f"Interleaving.switch = {dict(self.interleaving.switch)}: give the probability of each modality of "
                f"TaskConfig.spans, two or more: {', '.join(self.modalities)}"
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the spans, in order of time."""
        return tuple(modality for modality, _ in self.spans)

    @property
    def target(self) -> str:
        """The modality that is generated from the others: that of the last span."""
        return self.spans[-1][0]


MODALITIES = {TEXT: DataModality("text", "subwords"), SPEECH: DataModality("units", "units")}
TASKS = {
    "text_lm": TaskConfig(((TEXT, 1.0),)),
    "speech_lm": TaskConfig(((SPEECH, 1.0),)),
    "asr": TaskConfig(((SPEECH, 0.0), (TEXT, 1.0))),
    "tts": TaskConfig(((TEXT, 0.0), (SPEECH, 1.0))),
}
PAPER_RATES = {"asr": 1.0, "tts": 1.26}
"""ASR to TTS by number of samples (paper §4)."""
MIXTURES = {"asr_tts": PAPER_RATES}


@dataclass(frozen=True)
class TaskSet:
    """The modalities, tasks and mixtures of a run or a prepared folder, added to the defaults.

    Attributes:
        modalities: Name -> its data. The defaults (``text``, ``speech``) cannot be redefined.
        tasks: Name -> its spans.
        mixtures: Name -> relative rates of tasks.
    """

    modalities: dict[str, DataModality] = field(default_factory=dict)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    mixtures: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, ours in (("modalities", MODALITIES), ("tasks", TASKS), ("mixtures", MIXTURES)):
            object.__setattr__(self, name, {**ours, **getattr(self, name)})
        for name, modality in MODALITIES.items():
            if self.modalities[name] != modality:
                raise UserError(
                    f"TaskSet.modalities[{name!r}] = {self.modalities[name]}: defaults cannot be redefined; give yours "
                    "another name"
                )
        for name, task in self.tasks.items():
            for needed in task.modalities:
                if needed not in self.modalities:
                    raise UserError(
                        f"TaskSet.tasks[{name!r}]: there is no modality {needed!r} in TaskSet.modalities"
                        f"{closest(needed, self.modalities)}"
                    )
                if task.interleaving is not None and needed != SPEECH and self.vocabulary_of(needed) == "units":
                    raise UserError(
                        f"TaskSet.tasks[{name!r}]: {needed!r} cannot be interleaved: its units have no times; give "
                        "speech, or modalities with as many words as the text"
                    )
        for name, rates in self.mixtures.items():
            if name in self.tasks:
                raise UserError(f"TaskSet.mixtures[{name!r}]: a task has that name; give the mixture another")
            for task_name in rates:
                self.task(task_name, f"TaskSet.mixtures[{name!r}]")

    def task(self, name: str, where: str = "TaskSet.tasks") -> TaskConfig:
        """The task called ``name``.

        Raises:
            UserError: There is none; the message begins with ``where``, the field that names it.
        """
        if name not in self.tasks:
            raise UserError(f"{where}: task {name!r} is unknown{closest(name, self.tasks)}")
        return self.tasks[name]

    def field_of(self, modality: str) -> str:
        """The field of an example with the content of ``modality``."""
        return self.modalities[modality].field

    def vocabulary_of(self, modality: str) -> VocabularyKind:
        """The kind of vocabulary of ``modality``."""
        return self.modalities[modality].vocabulary


def stored_task_set(config: Mapping[str, Any]) -> TaskSet:
    """The TaskSet stored in the config.json of a run or model folder, or the header.json of a prepared folder.

    The defaults if the file has none (older formats).
    """
    data = config.get("train", {}).get("data", config)
    return from_dict(TaskSet, data.get("task_set", {}))

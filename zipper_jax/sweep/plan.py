"""Definition of a sweep, in a Python file: arms (one model each), the data they share, and claims to test.

    # experiments/mine.py
    def sweep(size: str) -> Sweep: ...

A row is an arm with one seed; its name is ARM-SEED.
"""

import hashlib
import importlib.util
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zipper_jax.training.config import TrainConfig
from zipper_jax.training.run_folder import resolved
from zipper_jax.utils.configs import closest, to_dict
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import load_vocabulary

MEASURES = {
    "asr": "ASR WER",
    "asr_other": "ASR WER, other",
    "asr_validation": "ASR WER, validation",
    "asr_shuffled": "… shuffled audio",
    "asr_no_audio": "… no audio",
    "asr_gates_zero": "… gates at 0",
    "tts": "TTS WER",
    "tts_target": "TTS WER, vs target",
    "tts_short": "TTS WER, shorter half",
    "tts_long": "TTS WER, longer half",
    "tts_shuffled": "… shuffled text",
    "asr_nats": "ASR nats/token",
    "asr_shuffled_nats": "… shuffled audio",
    "tts_nats": "TTS nats/token",
    "tts_shuffled_nats": "… shuffled text",
}
"""measure -> heading. Error rates are fractions of the reference's words, shown in percent."""


class Places:
    """Folders and files of a sweep; passed to an arm's ``config`` with the seed."""

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()
        self.corpus = self.root / "corpus"
        self.prepared = self.root / "prepared"
        self.prose = self.root / "prose"
        self.results = self.root / "results.jsonl"

    def data(self, share: float = 1.0) -> str:
        """The prepared folder with that share of the pairs."""
        return str(self.prepared if share == 1 else self.root / "shares" / f"{share:g}")

    def text(self) -> str:
        """The prepared folder whose text a text tower is pretrained on: prose where it was given."""
        return str(self.prose if self.prose.is_dir() else self.prepared)

    def run(self, arm: str, seed: int = 0) -> str:
        """The run folder of a row."""
        return str(self.root / "runs" / f"{arm}-{seed}")

    def outputs(self, arm: str, seed: int) -> Path:
        """The outputs of the row's model, see `row`."""
        return self.root / "outputs" / f"{arm}-{seed}.json"

    def begun(self, arm: str, seed: int) -> Path:
        """The file with the digest that the row's run folder was started with."""
        return self.root / "begun" / f"{arm}-{seed}"

    def log(self, arm: str, seed: int) -> Path:
        return self.root / "logs" / f"{arm}-{seed}.log"

    def vocabulary_size(self, *modalities: str) -> int:
        """Total vocabulary size of these modalities, begin and end tokens included."""
        return sum(load_vocabulary(self.prepared / "vocabularies" / m).size for m in modalities)


@dataclass(frozen=True)
class Arm:
    """One model of the comparison, trained once per seed.

    Attributes:
        name: Letters, digits, dots, underscores.
        about: One line for the report.
        config: (places, seed) -> the run; the runner sets its ``model_dir`` and ``seed``.
        share: Share of the pairs it is trained on, 0 to 1; ``config`` gets the folder from ``places.data(share)``.
        needs: Arms whose runs of seed 0 it starts from.
        seeds: Seeds of this arm; None: the sweep's.
        scored: "test", "validation" (model selection; test sentences stay unused) or "no" (pretraining).
        perplexity: Also measure the perplexity of each modality alone, before and after (a few extra compilations).
    """

    name: str
    about: str
    config: Callable[[Places, int], TrainConfig]
    share: float = 1.0
    needs: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    scored: Literal["test", "validation", "no"] = "test"
    perplexity: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+", self.name):
            raise UserError(f"arm {self.name!r}: use only letters, digits, dots and underscores: it names a folder")


@dataclass(frozen=True)
class Scoring:
    """Scoring of rows.

    Attributes:
        sentences: Sentences of each split for speech to text; 0: all.
        speech_sentences: Sentences for text to speech, transcribed by the judge; 0: all.
    """

    sentences: int = 0
    speech_sentences: int = 60

    def __post_init__(self) -> None:
        if self.sentences == 1 or self.speech_sentences == 1:
            raise UserError("Scoring: the controls need at least 2 sentences; give 0 (all) or at least 2")
        if self.sentences and not 0 < self.speech_sentences <= self.sentences:
            raise UserError(
                f"Scoring.speech_sentences = {self.speech_sentences}: give 2 to {self.sentences} (Scoring.sentences)"
            )


@dataclass(frozen=True)
class Table:
    """Rows (arms) and columns (measures, see `MEASURES`) of one table of the report."""

    title: str
    arms: tuple[str, ...]
    measures: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """Curves of a measure: label -> (x, arm) points; or, with ``by_length``, label -> one arm, over text lengths."""

    name: str
    title: str
    x_label: str
    measure: str
    series: Mapping[str, Sequence[tuple[float, str]]]
    log_x: bool = False
    by_length: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim about the ``measure`` of two arms, tested on paired sentences.

    Attributes:
        text: The claim in words.
        measure: See `MEASURES`.
        a: First arm.
        b: Second arm.
        relation: "lower" (a below b) or "similar" (difference within ``margin``).
        margin: For "similar": 0.02 is two percentage points of an error rate.
        source: Where the claim is made.
    """

    text: str
    measure: str
    a: str
    b: str
    relation: Literal["lower", "similar"] = "lower"
    margin: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        if self.relation == "similar" and not 0 < self.margin < 0.5:
            raise UserError(f"claim {self.text!r}: margin = {self.margin}: give a fraction, e.g. 0.02 for two points")


@dataclass(frozen=True)
class Sweep:
    """A sweep: arms, data, scoring, and the tables, figures and claims of its report.

    Attributes:
        name: Name of the sweep.
        corpus: Fields of CorpusSettings that differ from their defaults (by name: that class needs audio libraries,
            which a machine that only runs rows may lack).
        prepare: Likewise for PrepareSettings.
        arms: The arms in the order they are run.
        seeds: Seeds of every arm without seeds of its own.
        scoring: How rows are scored.
        tables: Tables of the report.
        figures: Figures of the report.
        claims: Claims of the report.
        about: Introduction of the report.
        times: Whether the report has the seconds of training. They compare where rows ran alike, on one machine.
        steps: Steps of every row, for a trial; longer warm-ups are shortened. None: each arm's own.
    """

    name: str
    corpus: Mapping[str, Any]
    prepare: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    scoring: Scoring = Scoring()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    claims: tuple[Claim, ...] = ()
    about: str = ""
    times: bool = False
    steps: int | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"sweep {self.name!r}: two arms are named {twice[0]!r}")
        shown = {name: f"table {t.title!r}" for t in self.tables for name in t.arms}
        shown |= {
            name: f"figure {f.name!r}" for f in self.figures for points in f.series.values() for _, name in points
        }
        shown |= {name: f"claim {c.text!r}" for c in self.claims for name in (c.a, c.b)}
        shown |= {name: f"arm {arm.name!r} (needs)" for arm in self.arms for name in arm.needs}
        measures = {m: f"table {t.title!r}" for t in self.tables for m in t.measures}
        measures |= {f.measure: f"figure {f.name!r}" for f in self.figures}
        measures |= {c.measure: f"claim {c.text!r}" for c in self.claims}
        for measure, place in measures.items():
            if measure not in MEASURES:
                raise UserError(
                    f"sweep {self.name!r}: {place} has unknown measure {measure!r}{closest(measure, MEASURES)}"
                )
        for name, place in shown.items():
            if name not in names:
                raise UserError(f"sweep {self.name!r}: {place} names unknown arm {name!r}{closest(name, names)}")
        for index, arm in enumerate(self.arms):
            for name in arm.needs:
                if name not in names[:index]:
                    raise UserError(f"sweep {self.name!r}: arm {arm.name!r} needs {name!r}; list that one before it")

    def arm(self, name: str) -> Arm:
        """Find an arm by name.

        Raises:
            UserError: There is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = [arm.name for arm in self.arms]
        raise UserError(f"sweep {self.name!r} has no arm {name!r}{closest(name, names)}")

    @property
    def shares(self) -> list[float]:
        """Shares of the pairs that arms use, except 1."""
        return sorted({arm.share for arm in self.arms} - {1.0})


class Row(NamedTuple):
    """An arm with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.seed}"


def rows(sweep: Sweep, only: Iterable[str] = (), seeds: Iterable[int] = ()) -> list[Row]:
    """Select rows, and the rows they need, in order.

    Args:
        sweep: The sweep.
        only: Patterns of arm names; none: all arms.
        seeds: Seeds to select; none: all.

    Raises:
        UserError: A pattern matches no arm, or no arm has one of the seeds.
    """
    patterns, wanted_seeds = list(only), set(seeds)
    for pattern in patterns:
        if not any(fnmatchcase(arm.name, pattern) for arm in sweep.arms):
            names = [arm.name for arm in sweep.arms]
            raise UserError(f"--only {pattern!r} matches no arm of {sweep.name!r}{closest(pattern, names)}")
    needed: dict[str, set[int]] = {}
    for arm in reversed(sweep.arms):  # reversed: needed arms precede those that need them
        own = set(arm.seeds if arm.seeds is not None else sweep.seeds)
        if not patterns or any(fnmatchcase(arm.name, pattern) for pattern in patterns):
            needed.setdefault(arm.name, set()).update(
                own & wanted_seeds if wanted_seeds and arm.scored != "no" else own
            )
        if needed.get(arm.name):
            for name in arm.needs:
                needed.setdefault(name, set()).add(0)
    if not any(needed.values()):
        raise UserError(f"--seeds {sorted(wanted_seeds)}: no arm of {sweep.name!r} has one of them")
    # Seed by seed, so that every arm has a first result early.
    found = [Row(arm, seed) for arm in sweep.arms for seed in sorted(needed.get(arm.name, ()))]
    return sorted(found, key=lambda row: row.seed)


def train_config(sweep: Sweep, row: Row, places: Places) -> TrainConfig:
    """The row's training configuration."""
    code = getattr(row.arm.config, "__code__", None)  # a call that does not fit leaves no frame of its file
    with _errors_of(f"arm {row.arm.name!r}: ", "" if code is None else code.co_filename):
        found = row.arm.config(places, row.seed)
        if not isinstance(found, TrainConfig):
            raise UserError(f"config returned {type(found).__name__}, not a TrainConfig")
    config = replace(found, model_dir=places.run(row.arm.name, row.seed), seed=row.seed)
    if sweep.steps is None:
        return config
    warmup_steps = min(config.optimizer.warmup_steps, sweep.steps // 2)
    return replace(config, steps=sweep.steps, optimizer=replace(config.optimizer, warmup_steps=warmup_steps))


def digest(sweep: Sweep, row: Row, places: Places) -> str:
    """Digest of everything that determines a row's result, its data and source arms included; independent of paths."""
    run = resolved(train_config(sweep, row, places))
    del run["train"]["data"]["task_set"]  # packed rows store their tasks; and older sweeps lack it
    if run["model"]["attention"] == "auto":  # older sweeps lack it
        del run["model"]["attention"]
    for name in ("z_loss", "dropout", "token_noise"):
        if not run["train"][name]:
            del run["train"][name]
    decides: dict[str, Any] = {
        "run": _moved(run, str(places.root)),
        "data": data_settings(sweep),
        "starts_from": [digest(sweep, Row(sweep.arm(name), 0), places) for name in row.arm.needs],
        "scored": row.arm.scored,
    }
    if row.arm.scored != "no":
        decides |= {"scoring": to_dict(sweep.scoring), "perplexity": row.arm.perplexity}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def data_settings(sweep: Sweep) -> dict[str, Any]:
    """The settings that determine a sweep's data, as JSON values."""
    return json.loads(json.dumps({"corpus": dict(sweep.corpus), "prepare": dict(sweep.prepare)}))


def _moved(value: Any, root: str) -> Any:
    """``value`` with paths below ``root`` made relative to it."""
    if isinstance(value, dict):
        return {key: _moved(part, root) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(part, root) for part in value]
    within = isinstance(value, str) and Path(value).is_relative_to(root) and value != ""
    return f"ROOT/{Path(value).relative_to(root)}" if within else value


@contextmanager
def _errors_of(what: str = "", file: str = "") -> Iterator[None]:
    """Raise the errors of the user's code as UserErrors of one line, which name its file and line.

    Args:
        what: What the code is for.
        file: The file; "": that of the function called.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        found = traceback.extract_tb(error.__traceback__)
        frames = [(frame.filename, frame.lineno) for frame in found if frame.filename != __file__]
        file = file or (frames[0][0] if frames else "")
        if isinstance(error, SyntaxError):
            frames = [(str(error.filename), error.lineno)]
        line = next((f" line {number}" for name, number in reversed(frames) if name == file), "")
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        place = f"{file!r}{line}: " if file else ""
        raise UserError(f"{place}{what}{kind}{' '.join(str(error).split())}") from error


def load_sweep(path: str | Path, size: str) -> Sweep:
    """Load the sweep that a Python file's function ``sweep(size)`` returns.

    Raises:
        UserError: The file or its function is missing, its code raises an error, or the function does not return a
            Sweep.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"sweep file {str(path)!r} does not exist; give a Python file with a function sweep(size)")
    spec = importlib.util.spec_from_file_location(f"sweep_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _errors_of(file=str(path)):
        spec.loader.exec_module(module)
    make = getattr(module, "sweep", None)
    if not callable(make):
        raise UserError(f"{str(path)!r} has no function sweep(size) that returns a zipper_jax.sweep.plan.Sweep")
    with _errors_of(file=str(path)):
        found = make(size)
    if not isinstance(found, Sweep):
        raise UserError(f"{str(path)!r}: sweep({size!r}) returned {type(found).__name__}, not a Sweep")
    return found

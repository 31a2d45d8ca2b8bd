"""What one training run is. gin, flags and Python all build this one object; it checks itself."""

from dataclasses import dataclass, field
from pathlib import Path

from zipper_jax.checkpoint.config import SaveCheckpointConfig
from zipper_jax.models.config import ZipperConfig
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.tasks import TaskSet
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import compile_pattern


@dataclass(frozen=True)
class DataConfig:
    """Packed rows to train on.

    Attributes:
        folder: A folder that ``zipper data prepare`` wrote.
        task_folders: Task to another such folder that its rows are in, prepared with the same vocabularies.
        mixture: A task or a mixture of ``task_set``, or a name for what ``rates`` defines.
        rates: Task to its share of the rows; empty: those that ``task_set`` has for ``mixture``.
        task_weights: Task to a factor on the loss weight of its tokens; 1 where not named. In a model of several towers
            each tower's loss is a mean of its own; where two modalities share a tower, this balances them.
        lengths: Tower to slots per row. Rows were packed to such lengths; longer slots are padding.
        skip_batches: Ranges ``(start, stop)`` of batches, counted from 0 over the whole run, that are left out.
        task_set: The tasks, mixtures and modalities there are.
    """

    folder: str
    mixture: str
    lengths: dict[str, int]
    rates: dict[str, float] = field(default_factory=dict)
    skip_batches: tuple[tuple[int, int], ...] = ()
    task_weights: dict[str, float] = field(default_factory=dict)
    task_folders: dict[str, str] = field(default_factory=dict)
    task_set: TaskSet = field(default_factory=TaskSet)

    def __post_init__(self) -> None:
        for start, stop in self.skip_batches:
            if not 0 <= start < stop:
                raise UserError(f"DataConfig.skip_batches: ({start}, {stop}) names no batch; give 0 <= start < stop")
        for task, rate in self.rates.items():
            if rate <= 0:
                raise UserError(f"DataConfig.rates[{task!r}]={rate}: give a positive rate, or leave the task out")
        if (
            self.rates and self.mixture in self.task_set.tasks
        ):  # t5x users name a task; here the rates would win silently
            raise UserError(
                f"DataConfig.mixture={self.mixture!r} is a task, but DataConfig.rates mixes {', '.join(self.rates)}: "
                "for the task alone give --gin.DataConfig.rates={}, for the mixture a name of its own"
            )
        known = {**self.task_set.tasks, **self.task_set.mixtures}
        if not self.rates:  # resolved here, so that what is stored says what was trained on
            object.__setattr__(self, "rates", dict(self.task_set.mixtures.get(self.mixture, {})))
        if not self.rates and self.mixture not in known:
            raise UserError(
                f"DataConfig.mixture={self.mixture!r} (MIXTURE_OR_TASK_NAME): there is no such task or mixture: "
                f"add yours to TaskSet.tasks, or give DataConfig.rates{closest(self.mixture, known)}"
            )
        for task in self.rates:
            self.task_set.task(task, "DataConfig.rates")
        for name in ("task_weights", "task_folders"):
            for task in getattr(self, name):
                if task not in self.tasks:
                    raise UserError(f"DataConfig.{name}: there is no task {task!r} here{closest(task, self.tasks)}")
        for task, weight in self.task_weights.items():
            if weight <= 0:
                raise UserError(f"DataConfig.task_weights[{task!r}]={weight}: give a positive factor")
        for tower, length in self.lengths.items():
            if length < 1:
                raise UserError(f"DataConfig.lengths[{tower!r}]={length}: give the number of slots per row, e.g. 256")

    def rows(self, task: str) -> Path:
        """The folder of a task's rows, one folder per split in it."""
        return Path(self.task_folders.get(task, self.folder)) / "rows" / task

    @property
    def tasks(self) -> dict[str, float]:
        """Rate per task."""
        return dict(self.rates) or {self.mixture: 1.0}


@dataclass(frozen=True)
class RestoreCheckpointConfig:
    """Where a new run takes its first parameters from, path by path (t5x's ``RestoreCheckpointConfig``).

    It matters at step 0 only; a run that has checkpoints of its own goes on from those.

    Attributes:
        path: A run folder.
        step: Its step; None: the newest good one.
        assignment_map: (regular expression, replacement) pairs over this model's paths; the first that matches a whole
            path names the source's path (``\\1`` and so on stand for groups), or, with None, leaves it at random.
            A path that none matches is looked up under its own name.
        strict: Every leaf of this model must be found. Else what is missing stays random, and is named in the log.
    """

    path: str
    step: int | None = None
    assignment_map: tuple[tuple[str, str | None], ...] = ()
    strict: bool = True

    def __post_init__(self) -> None:
        for pattern, _ in self.assignment_map:
            compile_pattern(pattern, "RestoreCheckpointConfig.assignment_map")


@dataclass(frozen=True)
class InferEvalConfig:
    """Decoding of validation examples inside the training loop (t5x's inference evaluation).

    Attributes:
        period: Steps between two of them, a multiple of ``TrainConfig.eval_period``; 0: none.
        examples: So many of each task, the first ones of its validation rows.
        metrics: Task to metric functions, as ``package.module:function`` with seqio's signature ``(targets,
            predictions) -> {name: number}``; without naming any, tasks with a condition have those of the kind of
            vocabulary that their target has.
    """

    period: int = 0
    examples: int = 32
    metrics: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.period < 0 or self.examples < 1:
            raise UserError(
                f"InferEvalConfig: period={self.period}, examples={self.examples}: give 0 or more, and 1 or more"
            )


@dataclass(frozen=True)
class GuardConfig:
    """What happens to an update that would spoil the run.

    An update whose loss or gradient is not finite, or whose loss is a spike, is not applied: its batch is skipped, as
    if it were not in the data. The statistics are part of the state, so a resumed run decides as the undisturbed one.

    Attributes:
        spike_deviations: A loss this many standard deviations above the running mean is a spike; 0: no loss is.
        window: The running mean and deviation forget over about this many updates; no loss is a spike before as many.
        skips_in_a_row: After so many skipped batches in a row the run goes back to its newest checkpoint and leaves out
            every batch from there to the last bad one.
        rollbacks: After so many returns it stops with an error.
    """

    spike_deviations: float = 10.0
    window: int = 100
    skips_in_a_row: int = 5
    rollbacks: int = 3

    def __post_init__(self) -> None:
        for name in ("window", "skips_in_a_row"):
            if getattr(self, name) < 1:
                raise UserError(f"GuardConfig.{name}={getattr(self, name)}: give 1 or more")
        for name in ("spike_deviations", "rollbacks"):
            if getattr(self, name) < 0:
                raise UserError(f"GuardConfig.{name}={getattr(self, name)}: give 0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """One run: pretraining of a tower, fusion, or the Single Decoder.

    Attributes:
        model: What to train.
        data: What on.
        model_dir: The run folder (MODEL_DIR). Rerunning with the same config resumes.
        steps: Updates in all (TRAIN_STEPS).
        batch_size: Rows per update, all devices together (BATCH_SIZE).
        optimizer: How.
        freeze: Which parts stay as they are.
        mesh: On which devices.
        seed: Of the initial parameters and of the data order.
        microbatches: Gradient accumulation: parts a batch is worked off in.
        loss_weights: lambda per tower; 1 where not named.
        initialise_from: Tower to the run folder whose tower is copied into it; a smaller vocabulary is expanded
            (the Single Decoder). What is not named starts at random.
        restore: Or start from another run's parameters, path by path.
        save: Checkpoints.
        guard: Losses that are not finite, and spikes.
        log_period: Steps between lines of metrics.
        eval_period: Steps between validation losses; 0: never.
        eval_batches: Batches of validation rows per validation (fewer if there are fewer rows).
        infer_eval: Decoding of validation examples, by which metrics.
        xla_options: Options of the compiler for the training step, by name (``gin/xla/``).
        allow_changes: Go on in a run folder although model, data or objective differ from what it holds.
    """

    model: ZipperConfig
    data: DataConfig
    model_dir: str
    steps: int
    batch_size: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    seed: int = 0
    microbatches: int = 1
    loss_weights: dict[str, float] = field(default_factory=dict)
    initialise_from: dict[str, str] = field(default_factory=dict)
    restore: RestoreCheckpointConfig | None = None
    save: SaveCheckpointConfig = field(default_factory=SaveCheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    log_period: int = 10
    eval_period: int = 0
    eval_batches: int = 8
    infer_eval: InferEvalConfig = field(default_factory=InferEvalConfig)
    xla_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    allow_changes: bool = False

    def __post_init__(self) -> None:
        if not self.model_dir:
            raise UserError("TrainConfig.model_dir is empty: name the run folder, e.g. --gin.MODEL_DIR=\"'runs/text'\"")
        for name in ("steps", "batch_size", "microbatches", "log_period", "eval_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"TrainConfig.{name}={getattr(self, name)}: give 1 or more")
        if self.eval_period < 0:
            raise UserError(f"TrainConfig.eval_period={self.eval_period}: give 0 (never) or more")
        if self.save.keep_best and (not self.eval_period or self.save.period % self.eval_period):
            raise UserError(
                f"SaveCheckpointConfig.keep_best={self.save.keep_best} needs a validation wherever a step is saved: "
                f"make SaveCheckpointConfig.period={self.save.period} a multiple of TrainConfig.eval_period="
                f"{self.eval_period} (above 0)"
            )
        if self.infer_eval.period and (not self.eval_period or self.infer_eval.period % self.eval_period):
            raise UserError(
                f"InferEvalConfig.period={self.infer_eval.period} must be a multiple of TrainConfig.eval_period="
                f"{self.eval_period} (above 0)"
            )
        if self.restore is not None and self.initialise_from:
            raise UserError("TrainConfig: give restore or initialise_from, not both")
        towers = sorted(self.model.towers)
        for name in ("loss_weights", "initialise_from"):
            for tower in getattr(self, name):
                if tower not in towers:
                    raise UserError(f"TrainConfig.{name}: the model has no tower {tower!r}{closest(tower, towers)}")
        if set(self.data.lengths) != set(towers):
            raise UserError(
                f"DataConfig.lengths (TASK_FEATURE_LENGTHS) names {sorted(self.data.lengths)}, the model's towers are "
                f"{towers}; give each tower its slots per row"
            )
        for name, tower in self.model.towers.items():
            tower.check_length(self.data.lengths[name], f"DataConfig.lengths[{name!r}] (TASK_FEATURE_LENGTHS)")


RESUME_MAY_CHANGE = frozenset(
    {"model_dir", "steps", "mesh", "microbatches", "log_period", "save", "eval_period", "eval_batches", "infer_eval",
     "initialise_from", "restore", "xla_options", "allow_changes", "data.task_set"}
)  # fmt: skip
"""Fields of TrainConfig that a rerun into the same folder may change: they alter neither model, data nor objective.

``steps`` may grow to train longer; with a cosine schedule the rate then follows the new length.
``initialise_from`` and ``restore`` only matter at step 0, and their folders may have moved.
``data.task_set`` may know more tasks than before; the rows themselves hold the order and the weights of their spans.
"""

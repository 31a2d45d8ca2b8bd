"""Configuration of a training run: validated frozen dataclasses, built by gin, by flags or in Python."""

import math
from dataclasses import dataclass, field

from zipper_jax.checkpoint.config import SaveCheckpointConfig
from zipper_jax.models.choice import choice_of
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.schedule import positions_used
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.tasks import TaskSet
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import any_path, require_different
from zipper_jax.utils.storage import AnyPath, as_path
from zipper_jax.utils.trees import compile_pattern


@dataclass(frozen=True)
class DataConfig:
    """Packed rows to train on.

    Attributes:
        folder: A folder written by ``zipper data prepare``.
        task_folders: Task -> another such folder that has its rows, prepared with the same vocabularies.
        mixture: A task or a mixture of ``task_set``, or a name for the mixture that ``rates`` defines.
        rates: Task -> its share of the rows; empty: the rates of ``mixture`` in ``task_set``.
        task_weights: Task -> factor on the loss weight of its tokens; 1 where not named. With several towers each
            tower's loss is a mean of its own; where two modalities share a tower, this balances them. Choices of the
            next modality are not scaled: each end token counts as 1, see ``TrainConfig.next_modality_weight``.
        lengths: Tower -> sequence length of a row, in tokens. Rows packed to shorter lengths are padded.
        skip_batches: Ranges ``(start, stop)`` of batches to skip, counted from 0 over the whole run.
        task_set: The known tasks, mixtures and modalities.
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
        object.__setattr__(self, "folder", any_path(self.folder, "DataConfig.folder (DATA)"))
        folders = {t: any_path(path, f"DataConfig.task_folders[{t!r}]") for t, path in self.task_folders.items()}
        object.__setattr__(self, "task_folders", folders)
        for start, stop in self.skip_batches:
            if not 0 <= start < stop:
                raise UserError(f"DataConfig.skip_batches: ({start}, {stop}) is an empty range; give 0 <= start < stop")
        for task, rate in self.rates.items():
            if rate <= 0:
                raise UserError(f"DataConfig.rates[{task!r}]={rate}: give a positive rate, or leave the task out")
        if (
            self.rates and self.mixture in self.task_set.tasks
        ):  # a task named as in t5x would silently be overridden by the rates
            raise UserError(
                f"DataConfig.mixture={self.mixture!r} is a task, but DataConfig.rates mixes {', '.join(self.rates)}: "
                "for the task alone give --gin.DataConfig.rates={}, for the mixture a name of its own"
            )
        known = {**self.task_set.tasks, **self.task_set.mixtures}
        if not self.rates:  # resolved here, so that the stored configuration has the rates of the run
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
                    raise UserError(f"DataConfig.{name}: the mixture has no task {task!r}{closest(task, self.tasks)}")
        for task, weight in self.task_weights.items():
            if weight <= 0:
                raise UserError(f"DataConfig.task_weights[{task!r}]={weight}: give a positive factor")
        for tower, length in self.lengths.items():
            if length < 1:
                raise UserError(f"DataConfig.lengths[{tower!r}]={length}: give the tokens per row, e.g. 256")

    def rows(self, task: str) -> AnyPath:
        """The folder of a task's rows, with one subfolder per split."""
        return as_path(self.task_folders.get(task, self.folder)) / "rows" / task

    @property
    def tasks(self) -> dict[str, float]:
        """Rate per task."""
        return dict(self.rates) or {self.mixture: 1.0}


@dataclass(frozen=True)
class RestoreCheckpointConfig:
    """The source of a new run's initial parameters, path by path (t5x's ``RestoreCheckpointConfig``).

    Used at step 0 only; a run with checkpoints resumes from those.

    Attributes:
        path: A run folder.
        step: Its step; None: the newest good one.
        assignment_map: (regular expression, replacement) pairs over this model's paths; the first that matches a whole
            path gives the source's path (``\\1`` and so on are groups), or, if None, keeps the random initial value.
            A path that none matches is looked up under its own name.
        strict: Every leaf of this model must be found. Otherwise missing leaves stay random and are logged.
    """

    path: str
    step: int | None = None
    assignment_map: tuple[tuple[str, str | None], ...] = ()
    strict: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", any_path(self.path, "RestoreCheckpointConfig.path"))
        for pattern, _ in self.assignment_map:
            compile_pattern(pattern, "RestoreCheckpointConfig.assignment_map")


@dataclass(frozen=True)
class InferEvalConfig:
    """Decoding of validation examples inside the training loop (t5x's inference evaluation).

    Attributes:
        period: Steps between evaluations, a multiple of ``TrainConfig.eval_period``; 0: never.
        examples: Examples per task, the first ones of its validation rows.
        metrics: Task -> metric functions, as ``package.module:function`` with seqio's signature ``(targets,
            predictions) -> {name: number}``. Empty: the default metrics of the target's vocabulary kind, for every
            task with a condition.
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
    """Handling of bad updates.

    An update whose loss or gradient is not finite, or whose loss is a spike, is not applied: its batch is skipped, as
    if it were not in the data. The loss statistics are part of the state, so a resumed run makes the same decisions.

    Attributes:
        spike_deviations: A loss this many standard deviations above the running mean is a spike; 0: no loss is.
        window: Updates over which the running mean and deviation average; before that many no loss is a spike.
        skips_in_a_row: After this many skipped batches in a row the run restores its newest checkpoint and skips every
            batch from there to the last bad one.
        rollbacks: Rollbacks after which the run stops with an error.
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
class ProfileConfig:
    """XProf traces of a run, see `training.traces`.

    Attributes:
        start_step: The first update that is traced, counted from 1 over the whole run; 0: none. SIGUSR1 starts a
            trace at any time.
        steps: Updates per trace.
    """

    start_step: int = 0
    steps: int = 5

    def __post_init__(self) -> None:
        if self.start_step < 0 or self.steps < 1:
            raise UserError(
                f"ProfileConfig: start_step={self.start_step}, steps={self.steps}: give 0 (none) or more, and 1 or more"
            )


@dataclass(frozen=True)
class WandbConfig:
    """Metrics to Weights & Biases, beside TensorBoard and by the same names; needs the package ``wandb``.

    Attributes:
        project: The project; "": nothing is sent.
        entity: The user or team; "": the account's default.
        name: Of the run; "": the name of the run folder.
        mode: ``online``, or ``offline``: files in ``MODEL_DIR/wandb``, which ``wandb sync`` sends later.
    """

    project: str = ""
    entity: str = ""
    name: str = ""
    mode: str = "online"

    def __post_init__(self) -> None:
        if self.mode not in ("online", "offline"):
            raise UserError(f"WandbConfig.mode={self.mode!r}: give online or offline")


@dataclass(frozen=True)
class TrainConfig:
    """One run: pretraining of a tower, fusion, or the Single Decoder.

    Attributes:
        model: The model.
        data: The packed rows and their mixture.
        model_dir: The run folder (MODEL_DIR). Rerunning with the same config resumes.
        steps: Total number of updates (TRAIN_STEPS).
        batch_size: Global batch size: rows per update over all devices (BATCH_SIZE).
        optimizer: Optimizer and learning-rate schedule.
        freeze: Which parameters are not trained.
        mesh: The device mesh.
        seed: Seed of the initial parameters and of the data order.
        microbatches: Gradient accumulation: parts of a batch, run one after another.
        loss_weights: lambda per tower; 1 where not named.
        next_modality_weight: lambda of the choice of the next modality, for each tower's end tokens, where the model
            has it (``ZipperConfig.next_modality``).
        z_loss: Factor of (log Z)^2 of each token, added to the minimised loss, not to the reported ones; 0: none.
        dropout: Tower -> the probability that an element of its embeddings, and of the outputs of its attentions and
            feed-forwards, is set to 0 in training; 0 where not named. A function of seed, step and row.
        token_noise: Tower -> the probability that an input token which the model would generate is replaced by a random
            one of the tower's vocabulary; 0 where not named. Targets stay. A function of seed, step and row.
        initialise_from: Tower -> run folder whose tower is copied; a smaller vocabulary is expanded (the Single
            Decoder). Towers that are not named start at random.
        restore: Alternatively, initial parameters from another run, path by path.
        save: Checkpoints.
        guard: Handling of losses that are not finite, and of spikes.
        log_period: Steps between logged training metrics.
        eval_period: Steps between validation losses; 0: never.
        eval_batches: Batches of validation rows per validation (fewer if there are fewer rows).
        infer_eval: Decoding of validation examples, and its metrics.
        profile: Traces of some updates.
        wandb: Metrics to Weights & Biases.
        xla_options: Compiler options of the training step, by name (``gin/xla/``).
        debug_nans: Stop at the first operation that makes a NaN, and name it (``--debug_nans``).
        allow_changes: Resume although model, data or objective differ from those of the run folder.
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
    next_modality_weight: float = 1.0
    z_loss: float = 0.0
    dropout: dict[str, float] = field(default_factory=dict)
    token_noise: dict[str, float] = field(default_factory=dict)
    initialise_from: dict[str, str] = field(default_factory=dict)
    restore: RestoreCheckpointConfig | None = None
    save: SaveCheckpointConfig = field(default_factory=SaveCheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    log_period: int = 10
    eval_period: int = 0
    eval_batches: int = 8
    infer_eval: InferEvalConfig = field(default_factory=InferEvalConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    xla_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    debug_nans: bool = False
    allow_changes: bool = False

    def __post_init__(self) -> None:
        if not self.model_dir:
            raise UserError("TrainConfig.model_dir is empty: name the run folder, e.g. --gin.MODEL_DIR=\"'runs/text'\"")
        object.__setattr__(self, "model_dir", any_path(self.model_dir, "TrainConfig.model_dir (MODEL_DIR)"))
        if self.model_dir.startswith("s3:"):
            raise UserError(
                f"TrainConfig.model_dir (MODEL_DIR) = {self.model_dir!r}: checkpoints are written to disks and gs:// "
                "only (Orbax has no S3); give such a folder"
            )
        origins = {t: any_path(run, f"TrainConfig.initialise_from[{t!r}]") for t, run in self.initialise_from.items()}
        object.__setattr__(self, "initialise_from", origins)
        sources = {f"TrainConfig.initialise_from[{tower!r}]": run for tower, run in origins.items()}
        sources["DataConfig.folder (DATA)"] = self.data.folder
        if self.restore is not None:
            sources["RestoreCheckpointConfig.path"] = self.restore.path
        require_different(self.model_dir, "TrainConfig.model_dir (MODEL_DIR)", sources)
        for name in ("steps", "batch_size", "microbatches", "log_period", "eval_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"TrainConfig.{name}={getattr(self, name)}: give 1 or more")
        if not 0 <= self.z_loss < math.inf:
            raise UserError(f"TrainConfig.z_loss={self.z_loss}: give 0 (none) or more, for example 1e-4")
        if not 0 <= self.next_modality_weight < math.inf:
            raise UserError(
                f"TrainConfig.next_modality_weight={self.next_modality_weight}: give 0 (not trained) or more, as 1.0"
            )
        if self.eval_period < 0:
            raise UserError(f"TrainConfig.eval_period={self.eval_period}: give 0 (never) or more")
        if self.save.keep_best and (not self.eval_period or self.save.period % self.eval_period):
            raise UserError(
                f"SaveCheckpointConfig.keep_best={self.save.keep_best} needs a validation at every saved step: "
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
        for name in ("dropout", "token_noise"):
            for tower, rate in getattr(self, name).items():
                if not 0 <= rate < 1:
                    raise UserError(f"TrainConfig.{name}[{tower!r}]={rate}: give 0 (none) or more, below 1, as 0.1")
        for name in ("loss_weights", "dropout", "token_noise", "initialise_from"):
            for tower in getattr(self, name):
                if tower not in towers:
                    raise UserError(f"TrainConfig.{name}: the model has no tower {tower!r}{closest(tower, towers)}")
        if set(self.data.lengths) != set(towers):
            raise UserError(
                f"DataConfig.lengths (TASK_FEATURE_LENGTHS) names {sorted(self.data.lengths)}, the model's towers are "
                f"{towers}; give each tower its tokens per row"
            )
        for name, tower in self.model.towers.items():
            length = positions_used(self.model, name, self.data.lengths)
            tower.check_length(length, f"positions of DataConfig.lengths (TASK_FEATURE_LENGTHS) in tower {name!r}")

    @property
    def term_weights(self) -> dict[str, float]:
        """lambda of every term of the loss, see `models.choice.loss_terms`; 1 where not named."""
        return self.loss_weights | {choice_of(tower): self.next_modality_weight for tower in self.model.towers}

    @property
    def dropout_seed(self) -> int | None:
        """The seed of dropout and token noise; None where there is neither."""
        return self.seed if any((*self.dropout.values(), *self.token_noise.values())) else None


RESUME_MAY_CHANGE = frozenset(
    {"model_dir", "steps", "mesh", "microbatches", "log_period", "save", "eval_period", "eval_batches", "infer_eval",
     "initialise_from", "restore", "profile", "wandb", "xla_options",
     "debug_nans", "allow_changes", "data.task_set"}
)  # fmt: skip
"""Fields of TrainConfig that a rerun into the same folder may change: they alter neither model, data nor objective.

``steps`` may grow to train longer; a cosine schedule then ends at the new last step.
``initialise_from`` and ``restore`` only matter at step 0, and their folders may have moved.
``data.task_set`` may have more tasks than before; packed rows store the order and the weights of their spans.
"""

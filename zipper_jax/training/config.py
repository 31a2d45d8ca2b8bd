"""What one training run is. gin, flags and Python all build this one object; it checks itself."""

from dataclasses import dataclass, field

from zipper_jax.configs import closest
from zipper_jax.errors import UserError
from zipper_jax.models.config import ZipperConfig
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.training.partitioning import MeshConfig


@dataclass(frozen=True)
class DataConfig:
    """Packed rows to train on.

    Attributes:
        folder: A folder that ``zipper data prepare`` wrote.
        mixture: A task (``text_lm``, ``speech_lm``, ``asr``, ``tts``), or a name for what ``rates`` defines.
        rates: Task to its share of the rows; empty: ``mixture`` is a task.
        lengths: Tower to slots per row. Rows were packed to such lengths; longer slots are padding.
    """

    folder: str
    mixture: str
    lengths: dict[str, int]
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, rate in self.rates.items():
            if rate <= 0:
                raise UserError(f"DataConfig.rates[{task!r}]={rate}: give a positive rate, or leave the task out")
        for tower, length in self.lengths.items():
            if length < 1:
                raise UserError(f"DataConfig.lengths[{tower!r}]={length}: give the number of slots per row, e.g. 256")

    @property
    def tasks(self) -> dict[str, float]:
        """Rate per task."""
        return dict(self.rates) or {self.mixture: 1.0}


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
        log_period: Steps between lines of metrics.
        checkpoint_period: Steps between checkpoints; the last step is always saved.
        checkpoints_kept: How many of the newest stay.
        asynchronous_checkpoints: Write while training goes on.
        eval_period: Steps between validation losses; 0: never.
        eval_batches: Batches of validation rows per validation (fewer if there are fewer rows).
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
    log_period: int = 10
    checkpoint_period: int = 500
    checkpoints_kept: int = 2
    asynchronous_checkpoints: bool = True
    eval_period: int = 0
    eval_batches: int = 8

    def __post_init__(self) -> None:
        if not self.model_dir:
            raise UserError("TrainConfig.model_dir is empty: name the run folder, e.g. --gin.MODEL_DIR=\"'runs/text'\"")
        for name in ("steps", "batch_size", "microbatches", "log_period", "checkpoint_period", "checkpoints_kept",
                     "eval_batches"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"TrainConfig.{name}={getattr(self, name)}: give 1 or more")
        if self.eval_period < 0:
            raise UserError(f"TrainConfig.eval_period={self.eval_period}: give 0 (never) or more")
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


RESUME_MAY_CHANGE = frozenset(
    {"model_dir", "steps", "mesh", "microbatches", "log_period", "checkpoint_period", "checkpoints_kept",
     "asynchronous_checkpoints", "eval_period", "eval_batches", "initialise_from"}
)  # fmt: skip
"""Fields of TrainConfig that a rerun into the same folder may change: they alter neither model, data nor objective.

``steps`` may grow to train longer; with a cosine schedule the rate then follows the new length.
``initialise_from`` only matters at step 0, and its folders may have moved.
"""

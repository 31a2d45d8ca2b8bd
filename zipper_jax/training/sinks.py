"""Where the scalars of a run go beside ``metrics.jsonl``: TensorBoard, and Weights & Biases where it is asked for."""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import msgspec

from zipper_jax.training.config import TrainConfig
from zipper_jax.training.run_folder import resolved
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.utils.storage import as_path

WANDB_ID = "wandb.json"
"""Names the run at Weights & Biases, so that a resumed run continues it."""


@runtime_checkable
class Sink(Protocol):
    """Receives scalars by TensorBoard's names."""

    def add(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``folder/tensorboard``; a resumed run hides the values past its first step."""

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Id(msgspec.Struct):
    id: user_json.Name


class WeightsAndBiases:
    """A run at Weights & Biases; its local files are in ``folder/wandb``.

    Values have the field ``step`` as their horizontal axis: those that a resumed run repeats are the same ones again.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        import wandb

        path = as_path(config.model_dir) / WANDB_ID
        if not path.is_file():
            write_json(path, {"id": secrets.token_hex(8)})
        about = config.wandb
        try:
            self._run = wandb.init(
                project=about.project,
                entity=about.entity or None,
                name=about.name or as_path(config.model_dir).name,
                id=user_json.read_file(path, _Id, "remove it: a new run begins there").id,
                resume=None if about.mode == "offline" else "allow",
                mode=cast(Any, about.mode),
                dir=str(folder),
                config=resolved(config),
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    disable_git=True,
                    disable_code=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
            )
        except Exception as error:
            raise UserError(
                f"WandbConfig.project = {about.project!r}: Weights & Biases cannot be reached "
                f"({str(error) or type(error).__name__}); run `wandb login`, or set WandbConfig.mode = 'offline' and "
                "send the run later with `wandb sync`"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


def require(config: TrainConfig) -> None:
    """Raise UserError where the package of a sink that is asked for is missing."""
    if not config.wandb.project:
        return
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError(
            f"WandbConfig.project = {config.wandb.project!r}: the package wandb is not installed; install it with "
            "pip install 'zipper-jax[wandb]', or unset the project"
        ) from None


def further(config: TrainConfig, folder: Path) -> list[Sink]:
    """The sinks that the configuration asks for."""
    return [WeightsAndBiases(folder, config)] if config.wandb.project else []


def tensorboard(folder: Path, start: int) -> list[Sink]:
    """TensorBoard where it is installed: training needs only jax, flax, optax and orbax-checkpoint."""
    with suppress(ImportError):
        return [TensorBoard(folder, start)]
    return []

"""Output of ``zipper train --dry_run``: summary and checks of a run's configuration, data and folders.

Nothing is compiled, allocated or written, and no weights are read. Errors that would stop the run in its first minute
are raised with the same message.
"""

from collections.abc import Iterator

from zipper_jax.checkpoint import checkpoints
from zipper_jax.cli.inspect import model_lines, parameter_lines
from zipper_jax.sharding.mesh import MESH_AXES, check_batch_size
from zipper_jax.training import cost, data_source, initial, run_folder
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.optimizer import learning_rate_schedule
from zipper_jax.training.sharding_report import sharding_lines
from zipper_jax.utils.errors import UserError


def lines(config: TrainConfig, devices: int | None, mfu: float) -> Iterator[str]:
    """Yield the summary: first what depends on the configuration only (with the cost), then initial weights and data.

    Args:
        config: The run.
        devices: Number of devices; None: those of this machine.
        mfu: Model FLOP utilisation: share of the devices' peak that is reached.

    Raises:
        UserError: Any error that `zipper train` would raise before its first step.
    """
    if devices is None:
        import jax

        devices = jax.device_count()
    if devices < 1:
        raise UserError(f"--devices = {devices}: give 1 or more")
    yield from model_lines(config.model, config.data.lengths)
    yield from parameter_lines(config.model, config.freeze)
    check_batch_size(
        config.batch_size, config.microbatches, dict(zip(MESH_AXES, config.mesh.shape(devices), strict=True))
    )
    sharding = sharding_lines(config.model, config.freeze, config.optimizer, config.mesh, devices)
    yield from (line for line in sharding if not line.startswith("array"))
    yield _optimizer(config)
    yield from (f"cost         {line}" for line in cost.lines(config, mfu))
    yield _start(config)
    yield from _data(config)
    yield "dry run      all checks passed; the same command without --dry_run starts the run"


def _optimizer(config: TrainConfig) -> str:
    made = config.optimizer
    rate = learning_rate_schedule(made, config.steps)
    updates = sorted({1, max(made.warmup_steps, 1), (config.steps + 1) // 2, config.steps})
    rates = ", ".join(f"{float(rate(update - 1)):.3g} at {update:,}" for update in updates)
    betas = f"b1 {made.b1:g}, b2 {made.b2:g}, " if made.name == "adam" else ""
    return f"optimizer    {made.name}, {betas}clip {made.clip_norm:g}; {made.schedule} learning rate: {rates}"


def _start(config: TrainConfig) -> str:
    run_folder.check_run(config)
    done = checkpoints.steps(config.model_dir)
    if done:
        return f"start        {config.model_dir}: resumes after step {done[-1]} of {config.steps:,}"
    initial.check_sources(config.model, config.initialise_from, config.restore, config.allow_changes)
    sources = dict(config.initialise_from) | ({"all": config.restore.path} if config.restore is not None else {})
    taken = ", ".join(f"{tower} from {source}" for tower, source in sorted(sources.items()))
    return f"start        {config.model_dir}: new; {taken or 'nothing'} is loaded, the rest is random"


def _data(config: TrainConfig) -> Iterator[str]:
    source = data_source.open_data(config)
    with source.batches as batches:
        tasks = batches.mixture.stores
        total = sum(config.data.tasks.values())
        for task, rate in config.data.tasks.items():
            meta = tasks[task].meta
            tokens = ", ".join(f"{count:,} {modality}" for modality, count in meta["tokens"].items())
            epochs = config.steps * config.batch_size * rate / total / meta["rows"]
            yield (
                f"data         {task}: {meta['rows']:,} rows of {meta['examples']:,} examples, {tokens} tokens; "
                f"{epochs:,.1f} epochs"
            )
        batch = batches.get(0)
    filled = ", ".join(f"{tower} {(t.segment_ids > 0).mean():.0%}" for tower, t in sorted(batch["towers"].items()))
    yield f"data         the first batch is read; its rows are filled: {filled}"
    if config.eval_period and source.validation is None:
        yield f"warning      eval_period = {config.eval_period}: a task has no validation rows, so none is validated"

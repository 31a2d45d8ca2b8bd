"""Entry points that read run folders: configuration, checkpoints, metrics, stored batches."""

import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp
import numpy as np
from property import Entry, entry_point
from valid_files import files_below, lines

from zipper_jax.api import load
from zipper_jax.checkpoint import checkpoints, tools
from zipper_jax.checkpoint.config import SaveCheckpointConfig
from zipper_jax.checkpoint.run_format import write_config
from zipper_jax.checkpoint.state import Guard, TrainState
from zipper_jax.cli import eval as eval_command
from zipper_jax.cli import inspect
from zipper_jax.models import zipper
from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.sequences import TowerBatch
from zipper_jax.training import bad_batches
from zipper_jax.training.config import DataConfig, TrainConfig
from zipper_jax.training.goodput import Goodput
from zipper_jax.training.partition_tree import FreezeConfig, split
from zipper_jax.training.run_folder import resolved, stored_config
from zipper_jax.training.skips import Skips
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten
from zipper_jax.vocabularies import SymbolVocabulary, UnitVocabulary

_STEP = 2
_UNCHECKED = ("config.json", "metrics.jsonl", "goodput.json")  # by digests; the rest of a run folder is


def _each(*calls: Callable[[], object]) -> None:
    """Call all, then raise the first UserError of theirs."""
    first = None
    for call in calls:
        try:
            call()
        except UserError as error:
            first = first or error
    if first is not None:
        raise first


def _config() -> TrainConfig:
    sizes = {"num_layers": 1, "embed_dim": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "mlp_dim": 8}
    model = ZipperConfig(
        towers={"text": TowerConfig(23, **sizes), "speech": TowerConfig(19, **sizes)},
        modalities={"text": ModalityConfig("text", 23), "speech": ModalityConfig("speech", 19)},
        zips=(ZipConfig(("text", "speech"), pairs=((1, 1),)),),
        input_projections={"text": ProjectionConfig()},
    )
    return TrainConfig(
        model,
        DataConfig("prepared", "asr", {"text": 20, "speech": 24}),
        model_dir="run",
        steps=_STEP,
        batch_size=2,
        freeze=FreezeConfig(("text",)),
        save=SaveCheckpointConfig(asynchronous=False),
    )


@cache
def _run_files() -> dict[str, bytes]:
    """A run after two steps, one tower frozen."""
    config = _config()
    shapes = flatten(zipper.abstract_params(config.model))
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.standard_normal(x.shape), x.dtype) for name, x in shapes.items()}
    trainable, frozen = split(params, config.freeze)
    guard = Guard(jnp.int32(_STEP), jnp.float32(1.0), jnp.float32(0.5))
    state = TrainState(jnp.int32(_STEP), trainable, frozen, {"mu": jnp.zeros(3)}, guard)
    with TemporaryDirectory() as name:
        run = Path(name) / "run"
        write_config(run, resolved(config))
        SymbolVocabulary([chr(97 + n) for n in range(20)]).save(run / "vocabularies" / "text")
        UnitVocabulary(17, 25.0).save(run / "vocabularies" / "speech")
        with checkpoints.Checkpoints(run, config.save) as saving:
            saving.keep_frozen(frozen)
            saving.save(state, {"skipped": [[1, 2]]}, {"loss": 1.5})
        rows = [{"step": n, "split": s, "loss": 2.5 - n} for n in (1, 2) for s in ("train", "validation")]
        more = {
            "tasks": {"asr": {"loss": 1.0}},
            "towers": {"text": {"loss": 1.0, "accuracy": 0.5}},
            "gates": {"a-b": {"into_a/gate": [0.1]}},
        }
        (run / "metrics.jsonl").write_bytes(lines([*rows, rows[-1] | more]))
        goodput = Goodput(run / "goodput.json", 0.0)
        goodput.write()
        return files_below(run)


def _describe(source: Path) -> None:
    _each(
        lambda: tools.listing(str(source)),
        lambda: list(inspect.summary(str(source))),
        lambda: list(inspect.kernels(str(source), "cpu")),
        lambda: stored_config(source),
        lambda: eval_command._pretraining_runs(source),
        lambda: Goodput(source / "goodput.json", 0.0).summary(),
    )


def _load(source: Path) -> None:
    changed = [
        name
        for name, content in _run_files().items()
        if name not in _UNCHECKED and not _same(name, (source / name).read_bytes(), content)
    ]
    problems = [problem for _, found, _ in tools.verify_run(str(source), None, True) for problem in found]
    assert bool(problems) == bool(changed), f"{changed} changed, and `ckpt verify` reports {problems}"
    assert _bytes(flatten(load(source).params)) == _params(), "other parameters than those that were saved"
    leaves = checkpoints.open_params(source)
    assert _bytes({path: leaf.make() for path, leaf in leaves.items()}) == _params()


def _same(name: str, content: bytes, whole: bytes) -> bool:
    """Equal bytes; equal values of a file that has the digest of its own values."""
    if content == whole or not name.endswith(".json"):
        return content == whole
    try:
        return json.loads(content) == json.loads(whole)
    except (ValueError, RecursionError):
        return False


def _bytes(flat: Mapping[str, Any]) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in flat.items()}


@cache
def _params() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        for name, content in _run_files().items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        return _bytes(flatten(checkpoints.load_params(folder)[1]))


@entry_point
def run_config() -> Entry:
    modules = ("checkpoint/run_format.py", "utils/configs.py", "cli/inspect.py", "training/monitor.py", "tasks.py")
    files = {name: [content] for name, content in _run_files().items()}
    return Entry("run_config", files, lambda source, out: _describe(source), modules, _UNCHECKED, short=10)


@entry_point
def checkpoint() -> Entry:
    modules = tuple(f"checkpoint/{name}.py" for name in ("checkpoints", "manifest", "orbax_trees", "frozen", "tools"))
    files = {name: [content] for name, content in _run_files().items()}
    fuzzed = tuple(name for name in files if name not in _UNCHECKED and "vocabularies" not in name)
    return Entry("checkpoint", files, lambda source, out: _load(source), modules, fuzzed, short=6)


def _bad_batch(source: Path, out: Path) -> None:
    batch, number, step, skips = bad_batches.read(source / "batch_3.npz")
    assert number >= 0
    assert step >= 0
    assert all(start < stop for start, stop in skips.ranges)
    for tower in batch["towers"].values():
        assert len({np.shape(value)[:1] for value in tower if value is not None}) == 1


@entry_point
def bad_batch() -> Entry:
    shape = (2, 5)
    fields = {name: np.ones(shape, np.int32) for name in TowerBatch._fields}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "batch_3.npz"
        batch = {"towers": {"text": TowerBatch(**fields)}, "task": np.zeros(2, np.int32)}
        bad_batches.write(path, batch, 3, 2, Skips([(1, 2)]))
        content = io.BytesIO()
        with np.load(path) as arrays:
            np.savez(content, **arrays)  # not compressed: changes reach the arrays
        files = {"batch_3.npz": [path.read_bytes(), content.getvalue()]}
    return Entry("bad_batch", files, _bad_batch, ("training/bad_batches.py", "utils/arrays.py"))

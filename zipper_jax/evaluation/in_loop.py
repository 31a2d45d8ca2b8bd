"""Decoding inside the training loop: greedy output for a few validation examples, scored by seqio-style metrics.

Every prompt is an example of the packed validation rows without its last span, which is the target. Prompts are decoded
by the mesh of the training, rows sharded over its data axes, so all processes of a group decode together.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zipper_jax.data.packed_rows import RowStore
from zipper_jax.data.text_forms import read_policy
from zipper_jax.decoding.generate import Generator
from zipper_jax.metrics.task_metrics import find, metrics_of, under
from zipper_jax.sequences import Example
from zipper_jax.sharding.mesh import make_mesh
from zipper_jax.sharding.rules import Placement
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.data_source import open_layout
from zipper_jax.utils.distributed import from_first, is_first, together
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.storage import as_path
from zipper_jax.vocabularies import load_vocabulary

Scores = dict[str, dict[str, float]]
"""task -> metric -> value."""


def make(config: TrainConfig) -> Callable[[Mapping[str, Any]], Scores] | None:
    """Build the evaluation of ``InferEvalConfig`` as a function of the parameters; None when its period is 0.

    Raises:
        UserError: A task has no validation rows or no metrics, or is interleaved, or a metric cannot be imported.
    """
    wanted = config.infer_eval
    if not wanted.period:
        return None
    functions = {task: metrics_of(config.data.task_set, task) for task in config.data.tasks}
    functions |= {task: tuple(map(find, names)) for task, names in wanted.metrics.items()}
    policy = read_policy(config.data.folder)
    functions = {task: under(policy, fns) for task, fns in functions.items() if fns}
    if not functions:
        raise UserError(
            f"InferEvalConfig: {', '.join(config.data.tasks)} has no default metric; name some in "
            "InferEvalConfig.metrics, e.g. {'mytask': ('mypackage.metrics:bleu',)}"
        )
    for task in functions:
        if (known := config.data.task_set.tasks.get(task)) is not None and known.interleaving is not None:
            raise UserError(
                f"InferEvalConfig.metrics: task {task!r} is interleaved, so its last span has no one modality; name "
                "tasks with a target"
            )
    examples = {task: _examples(config, task, wanted.examples) for task in functions}
    layout = open_layout(config)
    folder = as_path(config.data.folder) / "vocabularies"
    vocabularies = {modality: load_vocabulary(folder / modality) for modality in layout}
    max_new_tokens = {modality: max(1, config.data.lengths[place.tower] - 2) for modality, place in layout.items()}
    placer = Placement(make_mesh(config.mesh), config.mesh)
    generator = Generator(config.model, {}, layout, placer=placer)  # reused: it caches the compiled programs

    def evaluate(params: Mapping[str, Any]) -> Scores:
        current = generator.with_params(dict(params))
        scores: Scores = {}
        for task, chosen in examples.items():
            modality = chosen[0][-1].modality
            given = [[(span.modality, span.tokens) for span in example[:-1]] for example in chosen]
            rows = current(given, (modality,), max_new_tokens)
            decode = vocabularies[modality].decode
            targets = [decode(example[-1].tokens) for example in chosen]
            predictions = [decode(row[0].tokens) for row in rows]
            # The first process scores for all: a user's metric may depend on its machine, and scores decide which
            # checkpoints are kept.
            found = together(_score, functions[task], targets, predictions) if is_first() else together(dict)
            scores[task] = from_first(found)
        return scores

    return evaluate


def _score(functions: Sequence[Callable[..., Any]], targets: list[Any], predictions: list[Any]) -> dict[str, float]:
    scores = {}
    for function in functions:
        for name, value in function(targets, predictions).items():
            scalar: Any = getattr(value, "value", value)  # a number, or seqio's Scalar
            scores[name] = float(scalar)
    return scores


def _examples(config: TrainConfig, task: str, count: int) -> list[Example]:
    folder = config.data.rows(task) / "validation"
    if not folder.is_dir():
        raise UserError(f"InferEvalConfig.metrics: task {task!r} has no validation rows in {config.data.folder!r}")
    store = RowStore(folder)
    found: list[Example] = []
    for index in range(len(store)):
        found += store.row(index)
        if len(found) >= count:
            break
    if not found:
        raise UserError(f"InferEvalConfig: the validation rows of task {task!r} are empty")
    return found[:count]

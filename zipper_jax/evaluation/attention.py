"""Cross-attention weights of the zips for one example.

Axes: N heads, T target positions, S positions of the condition.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zipper_jax.inference.model import Model
from zipper_jax.models import zipper
from zipper_jax.sequences import fill_template, rows_to_towers, tower_lengths
from zipper_jax.tasks import SPEECH, TASKS, TEXT, TaskConfig


def attention_weights(model: Model, task: TaskConfig, contents: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """Attention weights from the target of ``task`` to its first span.

    Args:
        model: The model.
        task: A task with a condition, its target last.
        contents: Modality -> content.

    Returns:
        Zip index -> weights [N, T, S].
    """
    tokens = {m: np.asarray(model.vocabularies[m].encode(contents[m]), np.int32) for m in task.modalities}
    example = fill_template(task, tokens)
    lengths = {tower: length for tower, length in tower_lengths(example, model.layout).items() if length}
    towers = rows_to_towers([[example]], model.layout, lengths)
    run = jax.jit(lambda params, towers: zipper.bind_params(model.config, params).attention_weights(towers))
    found = run(model.params, towers)
    source, target = (model.layout[m].tower for m in (task.modalities[0], task.target))
    names = {z.name for z in model.config.zips if {*z.towers} == {source, target}}
    return {
        index: np.asarray(w[0]).reshape(-1, *w.shape[-2:])
        for (name, into, index), w in sorted(found.items())
        if name in names and into == target
    }


def cross_attention(
    model: Model, text: str, units: Sequence[int] | np.ndarray, task: str
) -> tuple[list[str], dict[int, np.ndarray]]:
    """Attention weights between a sentence's text and speech, for plots.

    Args:
        model: A model with text and speech.
        text: The sentence.
        units: Its speech units.
        task: ``asr``: from text to speech; ``tts``: from speech to text, transposed so that the text axis is first.

    Returns:
        The text tokens with begin and end, and zip index -> weights [N, text tokens, units].
    """
    weights = attention_weights(model, TASKS[task], {TEXT: text, SPEECH: units})
    if TASKS[task].target == SPEECH:
        weights = {index: w.swapaxes(1, 2) for index, w in weights.items()}
    vocabulary = model.vocabularies[TEXT]
    tokens = np.asarray(vocabulary.encode(text), np.int32)
    # Without the begin and end positions of speech, so that unit u is at u / rate seconds.
    pictures = {index: w[..., 1:-1] for index, w in weights.items()}
    return ["<bos>", *(vocabulary.decode([token]) for token in tokens), "<eos>"], pictures

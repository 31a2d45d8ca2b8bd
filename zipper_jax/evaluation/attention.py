"""Which text token and which moment of speech see each other in the zips, for one sentence.

Axis letters: N heads, T text tokens, S speech units.
"""

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from zipper_jax.api import Model
from zipper_jax.models import zipper
from zipper_jax.sequences import TEMPLATES, fill_template, rows_to_towers


def cross_attention(
    model: Model, text: str, units: Sequence[int] | np.ndarray, task: str
) -> tuple[list[str], dict[int, np.ndarray]]:
    """The text's tokens, begin and end among them, and by the number of the zip the weights [N, T, S].

    Args:
      model: with text and speech.
      text: the sentence.
      units: its speech.
      task: ``asr``: what text draws from speech; ``tts``: what speech draws from text, turned so that text lies first.
    """
    tokens = np.asarray(model.vocabularies["text"].encode(text), np.int32)
    contents = {"speech": np.asarray(model.vocabularies["speech"].encode(units), np.int32), "text": tokens}
    lengths: Counter[str] = Counter()
    for modality, content in contents.items():
        lengths[model.layout[modality].tower] += len(content) + 2
    towers = rows_to_towers([[fill_template(task, contents)]], model.layout, lengths)
    run = jax.jit(lambda params, towers: zipper.bind_params(model.config, params).attention_weights(towers))
    found = run(model.params, towers)
    target = TEMPLATES[task][-1][0]
    weights = {}
    for (_, into, index), w in sorted(found.items()):
        if into == model.layout[target].tower:
            heads = np.asarray(w[0]).reshape(-1, *w.shape[-2:])
            # Without speech's begin and end slots, so that unit u lies at u / rate seconds.
            weights[index] = (heads if target == "text" else heads.swapaxes(1, 2))[..., 1:-1]
    vocabulary = model.vocabularies["text"]
    return ["<bos>", *(vocabulary.decode([token]) for token in tokens), "<eos>"], weights

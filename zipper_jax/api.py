"""The Python API: `zipper_jax.load` and `zipper_jax.from_hf`. No TensorFlow."""

import os

from zipper_jax.inference.model import Model, Output, Speech, Unimodal, load
from zipper_jax.tasks import TEXT

__all__ = ["Model", "Output", "Speech", "Unimodal", "from_hf", "load"]


def from_hf(path_or_id: str | os.PathLike, name: str = TEXT, **tokens: str) -> Model:
    """Load a Hugging Face decoder as a model of one tower; `zipper convert from-hf` writes it to a folder.

    Args:
        path_or_id: A folder with config.json, safetensors and a tokenizer, or a hub id.
        name: Of the tower and its modality.
        tokens: ``begin``, ``end``: override the tokens that begin and end a span, see
            `vocabularies.tokenizer_files.text_vocabulary`.

    Raises:
        UserError: An unknown architecture, field or tensor, by its name; or no such model.
    """
    from zipper_jax.conversion import from_hf, hub, to_tower
    from zipper_jax.vocabularies import tokenizer_files

    folder = hub.model_folder(os.fspath(path_or_id))
    plan = from_hf.plan(folder)
    vocabulary = tokenizer_files.text_vocabulary(folder, plan.config, plan.tower.vocab_size, **tokens)
    return to_tower.load_tower(plan, name, vocabulary)

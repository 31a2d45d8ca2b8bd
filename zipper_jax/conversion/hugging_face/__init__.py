"""Hugging Face decoders: one file per group of families; `FAMILIES` names them all."""

from collections.abc import Mapping
from typing import Any

from zipper_jax.conversion.hugging_face.family import Family
from zipper_jax.conversion.hugging_face.fields import Fields
from zipper_jax.conversion.hugging_face.gemma import GEMMA, GEMMA2, GEMMA3
from zipper_jax.conversion.hugging_face.gpt2 import GPT2
from zipper_jax.conversion.hugging_face.gpt_neox import GPT_NEOX
from zipper_jax.conversion.hugging_face.llama import LLAMA, MISTRAL
from zipper_jax.conversion.hugging_face.opt import OPT
from zipper_jax.conversion.hugging_face.phi3 import PHI3
from zipper_jax.conversion.hugging_face.qwen import QWEN2, QWEN3
from zipper_jax.models.config import TowerConfig
from zipper_jax.utils.errors import UserError

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, OPT, GPT2, GPT_NEOX, GEMMA, PHI3)
}
"""``model_type`` -> family, in the order in which `family_of` tries them."""


def read_tower(config: Mapping[str, Any], where: str, ignored: tuple[str, ...] = ()) -> tuple[Family, TowerConfig]:
    """Read family and tower from a ``config.json``.

    Args:
        config: The JSON object.
        where: Its name in error messages.
        ignored: Unknown fields to ignore.

    Raises:
        UserError: An unknown architecture, an unknown field, or a value that is not supported.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        inner = config.get("text_config")
        known = f"; known: {', '.join(FAMILIES)}"
        if isinstance(inner, dict) and inner.get("model_type") in list(FAMILIES):
            known = f"; it holds a {inner['model_type']} text model: save that alone and convert it"
        raise UserError(f"{where}: model_type {kind!r} is not converted{known}")
    family = FAMILIES[kind]
    own = config.get("architectures")
    is_own = isinstance(own, list) and own[:1] == [family.architecture]
    code = ("auto_map",) if is_own else ()  # remote code for transformers versions without the family
    fields = Fields(config, where, (*ignored, *code))
    try:
        tower = family.tower(fields)
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: {error}") from None
    fields.finish()
    return family, tower

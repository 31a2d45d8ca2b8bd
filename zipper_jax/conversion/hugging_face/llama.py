"""Llama 1 to 3.x and models of its architecture (SmolLM, Spirit LM, Vicuna); Mistral, which adds windows."""

from typing import Any

from zipper_jax.conversion.hugging_face.family import (
    LLAMA_RULES,
    MLP_NORM,
    Family,
    activation_name,
    one_window,
    read_sizes,
    rope_fields,
    sizes,
)
from zipper_jax.conversion.hugging_face.fields import Fields
from zipper_jax.models.config import TowerConfig


def _llama(fields: Fields) -> TowerConfig:
    base, scaling, share = fields.rope()
    return TowerConfig(
        **read_sizes(fields, tied=False),
        activation=fields.activation("hidden_act", "silu"),
        rope_base=base,
        rope_scaling=scaling,
        rope_fraction=share,
        attention_bias="all" if fields.boolean("attention_bias", False) else "none",
        mlp_bias=fields.boolean("mlp_bias", False),
        family="llama",
    )


def _llama_fields(tower: TowerConfig) -> dict[str, Any]:
    return {
        **sizes(tower),
        **rope_fields(tower),
        "hidden_act": activation_name(tower),
        "attention_bias": tower.attention_bias == "all",
        "mlp_bias": tower.mlp_bias,
    }


def _mistral(fields: Fields) -> TowerConfig:
    base, scaling, share = fields.rope()
    common = read_sizes(fields, tied=False, max_positions=4096 * 32)
    layers, size = common["num_layers"], fields.number_or_null("sliding_window", 4096)
    return TowerConfig(
        **common,
        activation=fields.activation("hidden_act", "silu"),
        rope_base=base,
        rope_scaling=scaling,
        rope_fraction=share,
        windows=(int(size),) * layers if size else (),
        family="mistral",
    )


def _mistral_fields(tower: TowerConfig) -> dict[str, Any]:
    return {
        **sizes(tower),
        **rope_fields(tower),
        "hidden_act": activation_name(tower),
        "sliding_window": one_window(tower),
    }


LLAMA = Family("llama", "LlamaForCausalLM", _llama, _llama_fields, (*LLAMA_RULES, MLP_NORM))
MISTRAL = Family("mistral", "MistralForCausalLM", _mistral, _mistral_fields, (*LLAMA_RULES, MLP_NORM))

"""Qwen 2 and 2.5 (biases on query, key and value) and Qwen 3 (norms of query and key heads)."""

from typing import Any

from zipper_jax.conversion.hugging_face.family import (
    LLAMA_RULES,
    MLP_NORM,
    Family,
    activation_name,
    layer_types,
    one_window,
    read_sizes,
    rope_fields,
    sizes,
)
from zipper_jax.conversion.hugging_face.fields import Fields
from zipper_jax.models.config import TowerConfig


def _common(fields: Fields, head_dim: int | None) -> dict[str, Any]:
    base, scaling, share = fields.rope()
    common = read_sizes(fields, tied=False, head_dim=head_dim, max_positions=32_768)
    layers = common["num_layers"]
    first, size = fields.take("max_window_layers", 28), fields.number_or_null("sliding_window", 4096)
    if not fields.boolean("use_sliding_window", False):
        size = None
    kinds = ["sliding_attention" if size is not None and i >= first else "full_attention" for i in range(layers)]
    return {
        **common,
        "activation": fields.activation("hidden_act", "silu"),
        "rope_base": base,
        "rope_scaling": scaling,
        "rope_fraction": share,
        "windows": fields.windows(layers, size, kinds),
    }


def _common_fields(tower: TowerConfig) -> dict[str, Any]:
    return {
        **sizes(tower),
        **rope_fields(tower),
        "hidden_act": activation_name(tower),
        "use_sliding_window": any(tower.windows),
        "sliding_window": one_window(tower),
        "max_window_layers": next((i for i, size in enumerate(tower.window_of) if size), tower.num_layers),
        "layer_types": layer_types(tower),
    }


def _qwen2(fields: Fields) -> TowerConfig:
    return TowerConfig(**_common(fields, None), attention_bias="qkv", family="qwen2")


def _qwen3(fields: Fields) -> TowerConfig:
    bias = "all" if fields.boolean("attention_bias", False) else "none"
    return TowerConfig(**_common(fields, 128), attention_bias=bias, query_key_norm=True, family="qwen3")  # type: ignore[arg-type]


def _qwen3_fields(tower: TowerConfig) -> dict[str, Any]:
    return {**_common_fields(tower), "attention_bias": tower.attention_bias == "all"}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _qwen2, _common_fields, (*LLAMA_RULES, MLP_NORM))
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _qwen3, _qwen3_fields, (*LLAMA_RULES, MLP_NORM))

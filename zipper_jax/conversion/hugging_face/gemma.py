"""Gemma 1, 2 and 3 (text): scaled embeddings, norms stored as scale - 1; soft caps and windows; two RoPE bases."""

from typing import Any

from zipper_jax.conversion.hugging_face.family import (
    LLAMA_RULES,
    MLP_NORM,
    SANDWICH_NORMS,
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
from zipper_jax.utils.errors import UserError


def _common(fields: Fields, kind: str | None = None, **defaults: Any) -> dict[str, Any]:
    base, scaling, share = fields.rope(defaults.pop("base", 10_000.0), kind)
    common = read_sizes(fields, tied=True, head_dim=256, **defaults)
    return {
        **common,
        "rope_base": base,
        "rope_scaling": scaling,
        "rope_fraction": share,
        "embedding_scale": common["embed_dim"] ** 0.5,
        "norm_offset": 1.0,
        "attention_bias": "all" if fields.boolean("attention_bias", False) else "none",
    }


def _common_fields(tower: TowerConfig) -> dict[str, Any]:
    return {
        **sizes(tower),
        **rope_fields(tower),
        "hidden_activation": activation_name(tower),
        "attention_bias": tower.attention_bias == "all",
    }


def _gemma(fields: Fields) -> TowerConfig:
    # Early files have "gelu", but the model was trained with the tanh approximation, which transformers computes.
    tanh = "gelu_pytorch_tanh"
    activation = "gelu" if fields.take("hidden_act", tanh) == "gelu" else fields.activation("hidden_act", tanh)
    if fields.take("hidden_activation", None) and fields.activation("hidden_activation", tanh) != activation:
        raise UserError("hidden_act and hidden_activation differ, and transformers' versions disagree on which is used")
    return TowerConfig(**_common(fields, max_positions=8192), activation=activation, family="gemma")


def _gemma_fields(tower: TowerConfig) -> dict[str, Any]:
    return {**_common_fields(tower), "hidden_act": activation_name(tower), "hidden_activation": None}


def _with_windows(fields: Fields, kind: str | None, every: int, **more: Any) -> dict[str, Any]:
    """Options shared by Gemma 2 and 3; every ``every``-th layer has full attention."""
    fields.take("hidden_act", None)  # older name; hidden_activation is used
    common = _common(fields, kind, **more)
    fields.only("sliding_window_size", fields.take("sliding_window", 4096), "it is not sliding_window")
    layers, size = common["num_layers"], fields.number_or_null("sliding_window", 4096)
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    return {
        **common,
        "activation": fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        "norm_placement": "both",
        "attention_scale": fields.number("query_pre_attn_scalar", 256) ** -0.5,
        "windows": fields.windows(layers, size, kinds),
    }


def _with_windows_fields(tower: TowerConfig) -> dict[str, Any]:
    scale = tower.attention_scale or tower.head_dim**-0.5
    scalar, whole = scale**-2, round(scale**-2)
    return {
        **_common_fields(tower),
        "query_pre_attn_scalar": whole if whole and whole**-0.5 == scale else scalar,
        "final_logit_softcapping": tower.logit_softcap,
        "sliding_window": one_window(tower) or 4096,  # unused without sliding layers, but null is rejected
        "layer_types": layer_types(tower),
    }


def _gemma2(fields: Fields) -> TowerConfig:
    return TowerConfig(
        **_with_windows(fields, None, every=2, max_positions=8192),
        attention_softcap=fields.number_or_null("attn_logit_softcapping", 50.0),
        logit_softcap=fields.number_or_null("final_logit_softcapping", 30.0),
        family="gemma2",
    )


def _gemma2_fields(tower: TowerConfig) -> dict[str, Any]:
    return {**_with_windows_fields(tower), "attn_logit_softcapping": tower.attention_softcap}


def _gemma3(fields: Fields) -> TowerConfig:
    near, scaling, _ = fields.rope(10_000.0, "sliding_attention", base_name="rope_local_base_freq")
    if scaling is not None:
        raise UserError("rope_parameters['sliding_attention'] scales: only the full-attention layers' RoPE may")
    every = fields.take("sliding_window_pattern", fields.take("_sliding_window_pattern", 6))
    fields.only("attn_logit_softcapping", None, "transformers ignores it in Gemma 3")
    return TowerConfig(
        **_with_windows(fields, "full_attention", every, base=1_000_000.0, max_positions=131_072),
        logit_softcap=fields.number_or_null("final_logit_softcapping", None),
        query_key_norm=True,
        window_rope_base=near,
        family="gemma3_text",
    )


def _gemma3_fields(tower: TowerConfig) -> dict[str, Any]:
    return {**_with_windows_fields(tower), "rope_local_base_freq": tower.window_rope_base}


GEMMA = Family("gemma", "GemmaForCausalLM", _gemma, _gemma_fields, (*LLAMA_RULES, MLP_NORM))
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _gemma2, _gemma2_fields, (*LLAMA_RULES, *SANDWICH_NORMS))
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _gemma3, _gemma3_fields, (*LLAMA_RULES, *SANDWICH_NORMS))

"""Phi-3 without longrope (the 4k models): Llama with query, key, value and gate, up joined in one tensor each."""

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
from zipper_jax.conversion.tensor_map import Rule
from zipper_jax.models.config import TowerConfig
from zipper_jax.utils.errors import UserError

_LAYER = "model.layers.{layer}."
_JOINED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def _tower(fields: Fields) -> TowerConfig:
    base, scaling, share = fields.rope(share_name="partial_rotary_factor")
    if scaling is not None:
        raise UserError(f"rope {scaling.kind!r} is not supported by transformers' Phi-3: not converted")
    fields.take("original_max_position_embeddings", None)
    fields.only("attention_bias", False, "Phi-3 has no biases")
    common = read_sizes(fields, tied=False, max_positions=4096, epsilon=1e-5)
    size = fields.number_or_null("sliding_window", None)
    return TowerConfig(
        **common,
        activation=fields.activation("hidden_act", "silu"),
        rope_base=base,
        rope_fraction=share,
        windows=(int(size),) * common["num_layers"] if size else (),
        family="phi3",
    )


def _fields(tower: TowerConfig) -> dict[str, Any]:
    return {
        **sizes(tower),
        **rope_fields(tower),
        "partial_rotary_factor": tower.rope_fraction,
        "hidden_act": activation_name(tower),
        "sliding_window": one_window(tower),
        "original_max_position_embeddings": tower.max_positions or 4096,
        "pad_token_id": None,  # its default exceeds small vocabularies
    }


PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    _tower,
    _fields,
    (
        *(rule for rule in LLAMA_RULES if not any(name in rule.name for name in _JOINED)),
        MLP_NORM,
        Rule(
            _LAYER + "self_attn.qkv_proj.weight",
            tuple(f"blocks/attention/{name}/kernel" for name in ("query", "key", "value")),
            "linear",
        ),
        Rule(
            _LAYER + "mlp.gate_up_proj.weight",
            tuple(f"blocks/mlp/{name}/kernel" for name in ("gate", "up")),
            "linear",
        ),
    ),
)

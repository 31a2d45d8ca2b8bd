"""GPT-NeoX and Pythia: parallel residual, partial RoPE, query, key and value joined by head."""

from typing import Any

from zipper_jax.conversion.hugging_face.family import (
    TIED,
    Family,
    activation_name,
    linear,
    norm,
    rope_fields,
)
from zipper_jax.conversion.hugging_face.fields import Fields
from zipper_jax.conversion.tensor_map import Rule
from zipper_jax.models.config import TowerConfig

_LAYER = "gpt_neox.layers.{layer}."
_QKV = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))


def _tower(fields: Fields) -> TowerConfig:
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    base, scaling, share = fields.rope(base_name="rotary_emb_base", share_name="rotary_pct", share=0.25)
    return TowerConfig(
        vocab_size=fields.integer("vocab_size"),
        num_layers=fields.integer("num_hidden_layers"),
        embed_dim=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_dim=fields.integer("intermediate_size"),
        rope_base=base,
        rope_scaling=scaling,
        rope_fraction=share,
        norm_epsilon=fields.number("layer_norm_eps", 1e-5),
        activation=fields.activation("hidden_act", "gelu"),
        tied_head=fields.boolean("tie_word_embeddings", False),
        max_positions=fields.integer("max_position_embeddings", 2048),
        norm="layer",
        attention_bias="all" if fields.boolean("attention_bias", True) else "none",
        mlp_bias=True,
        gated_mlp=False,
        parallel=fields.boolean("use_parallel_residual", True),
        family="gpt_neox",
    )


def _fields(tower: TowerConfig) -> dict[str, Any]:
    rope = rope_fields(tower)
    return {
        "vocab_size": tower.vocab_size,
        "hidden_size": tower.embed_dim,
        "num_hidden_layers": tower.num_layers,
        "num_attention_heads": tower.num_heads,
        "intermediate_size": tower.mlp_dim,
        "rotary_emb_base": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
        "rotary_pct": tower.rope_fraction,
        "layer_norm_eps": tower.norm_epsilon,
        "hidden_act": activation_name(tower),
        "tie_word_embeddings": tower.tied_head,
        "max_position_embeddings": tower.max_positions or 2048,
        "attention_bias": tower.attention_bias == "all",
        "use_parallel_residual": tower.parallel,
    }


GPT_NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    _tower,
    _fields,
    (
        Rule("gpt_neox.embed_in.weight", ("embedding/table",)),
        Rule("embed_out.weight", ("head/table",)),
        *norm("gpt_neox.final_layer_norm", "final_norm"),
        *norm(_LAYER + "input_layernorm", "blocks/attention_norm"),
        Rule(
            _LAYER + "attention.query_key_value.weight", tuple(f"{leaf}/kernel" for leaf in _QKV), "linear", "by head"
        ),
        Rule(_LAYER + "attention.query_key_value.bias", tuple(f"{leaf}/bias" for leaf in _QKV), "flat", "by head"),
        *linear(_LAYER + "attention.dense", "blocks/attention/output", inputs=2),
        *norm(_LAYER + "post_attention_layernorm", "blocks/mlp_norm"),
        *linear(_LAYER + "mlp.dense_h_to_4h", "blocks/mlp/up"),
        *linear(_LAYER + "mlp.dense_4h_to_h", "blocks/mlp/down"),
    ),
    prefix="gpt_neox.",
    left_out=(
        (r".*\.attention\.(bias|masked_bias)", "the causal mask, a constant"),
        (r".*rotary_emb\.inv_freq", "computed from the configuration"),
        (r"embed_out\.weight", TIED),
    ),
)

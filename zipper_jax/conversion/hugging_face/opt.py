"""OPT, and the speech models made from it (TWIST): learned positions with an offset of 2, LayerNorm, biases, ReLU."""

from typing import Any

from zipper_jax.conversion.hugging_face.family import Family, activation_name, linear, norm
from zipper_jax.conversion.hugging_face.fields import Fields
from zipper_jax.conversion.tensor_map import Rule
from zipper_jax.models.config import TowerConfig

_LAYER = "model.decoder.layers.{layer}."


def _tower(fields: Fields) -> TowerConfig:
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    fields.only("do_layer_norm_before", True, "post-norm blocks (OPT-350M) are not supported")
    fields.only("_remove_final_layer_norm", False, "a tower has a final norm")
    fields.only("word_embed_proj_dim", width, "embeddings of another size (OPT-350M) are not supported")
    fields.only("layer_norm_elementwise_affine", True, "norms without parameters are not supported")
    bias = fields.boolean("enable_bias", True)
    return TowerConfig(
        vocab_size=fields.integer("vocab_size"),
        num_layers=fields.integer("num_hidden_layers"),
        embed_dim=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_dim=fields.integer("ffn_dim"),
        norm_epsilon=1e-5,
        activation=fields.activation("activation_function", "relu"),
        tied_head=fields.boolean("tie_word_embeddings", True),
        positions="learned",
        max_positions=fields.integer("max_position_embeddings", 2048),
        position_offset=2,
        norm="layer",
        attention_bias="all" if bias else "none",
        mlp_bias=bias,
        gated_mlp=False,
        family="opt",
    )


def _fields(tower: TowerConfig) -> dict[str, Any]:
    return {
        "vocab_size": tower.vocab_size,
        "hidden_size": tower.embed_dim,
        "word_embed_proj_dim": tower.embed_dim,
        "num_hidden_layers": tower.num_layers,
        "num_attention_heads": tower.num_heads,
        "ffn_dim": tower.mlp_dim,
        "max_position_embeddings": tower.max_positions,
        "activation_function": activation_name(tower),
        "tie_word_embeddings": tower.tied_head,
        "enable_bias": tower.mlp_bias,
        "do_layer_norm_before": True,
    }


OPT = Family(
    "opt",
    "OPTForCausalLM",
    _tower,
    _fields,
    (
        Rule("model.decoder.embed_tokens.weight", ("embedding/table",)),
        Rule("model.decoder.embed_positions.weight", ("embedding/position_table",)),
        *norm("model.decoder.final_layer_norm", "final_norm"),
        Rule("lm_head.weight", ("head/table",)),
        *norm(_LAYER + "self_attn_layer_norm", "blocks/attention_norm"),
        *linear(_LAYER + "self_attn.q_proj", "blocks/attention/query"),
        *linear(_LAYER + "self_attn.k_proj", "blocks/attention/key"),
        *linear(_LAYER + "self_attn.v_proj", "blocks/attention/value"),
        *linear(_LAYER + "self_attn.out_proj", "blocks/attention/output", inputs=2),
        *norm(_LAYER + "final_layer_norm", "blocks/mlp_norm"),
        *linear(_LAYER + "fc1", "blocks/mlp/up"),
        *linear(_LAYER + "fc2", "blocks/mlp/down"),
    ),
)

"""GPT-2: learned positions, LayerNorm, biases, and kernels stored [inputs, outputs] with query, key, value joined."""

from typing import Any

from zipper_jax.conversion.hugging_face.family import TIED, Family, activation_name, norm
from zipper_jax.conversion.hugging_face.fields import Fields
from zipper_jax.conversion.tensor_map import Rule
from zipper_jax.models.config import TowerConfig

_LAYER = "transformer.h.{layer}."
_QKV = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))


def _tower(fields: Fields) -> TowerConfig:
    width, heads = fields.integer("n_embd"), fields.integer("n_head")
    fields.only("scale_attn_weights", True, "scores without scaling are not converted")
    fields.only("scale_attn_by_inverse_layer_idx", False, "scores scaled by the layer index are not converted")
    return TowerConfig(
        vocab_size=fields.integer("vocab_size"),
        num_layers=fields.integer("n_layer"),
        embed_dim=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_dim=fields.integer("n_inner", 4 * width),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        activation=fields.activation("activation_function", "gelu_new"),
        tied_head=fields.boolean("tie_word_embeddings", True),
        positions="learned",
        max_positions=fields.integer("n_positions", 1024),
        norm="layer",
        attention_bias="all",
        mlp_bias=True,
        gated_mlp=False,
        family="gpt2",
    )


def _fields(tower: TowerConfig) -> dict[str, Any]:
    return {
        "vocab_size": tower.vocab_size,
        "n_embd": tower.embed_dim,
        "n_layer": tower.num_layers,
        "n_head": tower.num_heads,
        "n_inner": tower.mlp_dim,
        "n_positions": tower.max_positions,
        "layer_norm_epsilon": tower.norm_epsilon,
        "activation_function": {"gelu_pytorch_tanh": "gelu_new"}.get(activation_name(tower), activation_name(tower)),
        "tie_word_embeddings": tower.tied_head,
    }


def _conv1d(tensor: str, leaves: tuple[str, ...], inputs: int = 1) -> tuple[Rule, Rule]:
    return (
        Rule(f"{tensor}.weight", tuple(f"{leaf}/kernel" for leaf in leaves), "conv1d", inputs=inputs),
        Rule(f"{tensor}.bias", tuple(f"{leaf}/bias" for leaf in leaves), "flat"),
    )


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    _tower,
    _fields,
    (
        Rule("transformer.wte.weight", ("embedding/table",)),
        Rule("transformer.wpe.weight", ("embedding/position_table",)),
        *norm("transformer.ln_f", "final_norm"),
        Rule("lm_head.weight", ("head/table",)),
        *norm(_LAYER + "ln_1", "blocks/attention_norm"),
        *_conv1d(_LAYER + "attn.c_attn", _QKV),
        *_conv1d(_LAYER + "attn.c_proj", ("blocks/attention/output",), inputs=2),
        *norm(_LAYER + "ln_2", "blocks/mlp_norm"),
        *_conv1d(_LAYER + "mlp.c_fc", ("blocks/mlp/up",)),
        *_conv1d(_LAYER + "mlp.c_proj", ("blocks/mlp/down",)),
    ),
    prefix="transformer.",
    left_out=(
        (r".*\.attn\.(bias|masked_bias)", "the causal mask, a constant"),
        (r"lm_head\.weight", TIED),
    ),
)

"""A family of Hugging Face models: reading and writing its configuration, and its table of tensors."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zipper_jax.conversion.hugging_face.fields import ACTIVATIONS, Fields
from zipper_jax.conversion.tensor_map import Rule
from zipper_jax.models.config import RopeScaling, TowerConfig

TIED = "the head is tied to the embedding"
"""Reason for skipping a head in the file; it must then equal the embedding."""


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: ``model_type`` of ``config.json``.
        architecture: transformers' class with a language-model head.
        tower: Reads the fields into a tower configuration.
        fields: Writes them, the inverse.
        rules: The table of tensors; rules of leaves that a tower lacks are skipped.
        prefix: Prefix of the tensors' names, absent in files saved from the bare model.
        left_out: Tensors in some files that are no parameters: (pattern, reason) pairs.
    """

    model_type: str
    architecture: str
    tower: Callable[[Fields], TowerConfig]
    fields: Callable[[TowerConfig], dict[str, Any]]
    rules: tuple[Rule, ...]
    prefix: str = "model."
    left_out: tuple[tuple[str, str], ...] = (
        (r".*rotary_emb\.inv_freq", "computed from the configuration"),
        (r"lm_head\.weight", TIED),
    )

    def reason(self, name: str) -> str | None:
        """The reason for skipping a tensor; None: it must be converted."""
        return next((why for pattern, why in self.left_out if re.fullmatch(pattern, name)), None)


def activation_name(tower: TowerConfig) -> str:
    """transformers' name of the tower's activation."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {**names, "gelu": "gelu_pytorch_tanh"}[tower.activation]


def rope_fields(tower: TowerConfig) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``, which old and new versions of transformers read."""
    scaling = tower.rope_scaling
    return {"rope_theta": tower.rope_base, "rope_scaling": None if scaling is None else scaling_fields(scaling)}


def scaling_fields(scaling: RopeScaling) -> dict[str, Any]:
    """The RoPE scaling as transformers' dictionary."""
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        fields["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        fields["low_freq_factor"] = scaling.low_frequency_factor
        fields["high_freq_factor"] = scaling.high_frequency_factor
    if scaling.kind == "yarn":
        fields |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        fields |= {"attention_factor": scaling.amplitude, "truncate": scaling.truncate}
    return fields


def sizes(tower: TowerConfig) -> dict[str, Any]:
    """The fields shared by all Llama-like decoders."""
    return {
        "vocab_size": tower.vocab_size,
        "hidden_size": tower.embed_dim,
        "intermediate_size": tower.mlp_dim,
        "num_hidden_layers": tower.num_layers,
        "num_attention_heads": tower.num_heads,
        "num_key_value_heads": tower.num_kv_heads,
        "head_dim": tower.head_dim,
        "rms_norm_eps": tower.norm_epsilon,
        "tie_word_embeddings": tower.tied_head,
        "max_position_embeddings": tower.max_positions or 2048,
    }


def read_sizes(
    fields: Fields, tied: bool, head_dim: int | None = None, max_positions: int = 2048, epsilon: float = 1e-6
) -> dict[str, Any]:
    """The inverse of `sizes`; arguments are the family's defaults."""
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    return {
        "vocab_size": fields.integer("vocab_size"),
        "embed_dim": width,
        "mlp_dim": fields.integer("intermediate_size"),
        "num_layers": fields.integer("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.integer("num_key_value_heads", heads),
        "head_dim": fields.integer("head_dim", head_dim or width // heads),
        "norm_epsilon": fields.number("rms_norm_eps", epsilon),
        "tied_head": fields.boolean("tie_word_embeddings", tied),
        "max_positions": fields.integer("max_position_embeddings", max_positions),
    }


def layer_types(tower: TowerConfig) -> list[str]:
    """transformers' layer type of each layer."""
    return ["sliding_attention" if size else "full_attention" for size in tower.window_of]


def one_window(tower: TowerConfig) -> int | None:
    """The window size shared by all windowed layers; None when there is none."""
    found = {size for size in tower.window_of if size}
    return found.pop() if len(found) == 1 else None


_LAYER = "model.layers.{layer}."


def linear(tensor: str, leaf: str, inputs: int = 1) -> tuple[Rule, Rule]:
    """The rules of one ``torch.nn.Linear``: its weight and, where the tower has one, its bias."""
    return (
        Rule(f"{tensor}.weight", (f"{leaf}/kernel",), "linear", inputs=inputs),
        Rule(f"{tensor}.bias", (f"{leaf}/bias",), "flat"),
    )


def norm(tensor: str, leaf: str) -> tuple[Rule, Rule]:
    """The rules of one norm: its scale and, where the tower has one, its bias."""
    return Rule(f"{tensor}.weight", (f"{leaf}/scale",)), Rule(f"{tensor}.bias", (f"{leaf}/bias",))


LLAMA_RULES = (
    Rule("model.embed_tokens.weight", ("embedding/table",)),
    Rule("model.norm.weight", ("final_norm/scale",)),
    Rule("lm_head.weight", ("head/table",)),
    *norm(_LAYER + "input_layernorm", "blocks/attention_norm"),
    *linear(_LAYER + "self_attn.q_proj", "blocks/attention/query"),
    *linear(_LAYER + "self_attn.k_proj", "blocks/attention/key"),
    *linear(_LAYER + "self_attn.v_proj", "blocks/attention/value"),
    *linear(_LAYER + "self_attn.o_proj", "blocks/attention/output", inputs=2),
    *norm(_LAYER + "self_attn.q_norm", "blocks/attention/query_norm"),
    *norm(_LAYER + "self_attn.k_norm", "blocks/attention/key_norm"),
    *linear(_LAYER + "mlp.gate_proj", "blocks/mlp/gate"),
    *linear(_LAYER + "mlp.up_proj", "blocks/mlp/up"),
    *linear(_LAYER + "mlp.down_proj", "blocks/mlp/down"),
)
"""Llama's names, except the norms around the MLP, whose names differ between families."""

MLP_NORM = Rule(_LAYER + "post_attention_layernorm.weight", ("blocks/mlp_norm/scale",))
SANDWICH_NORMS = (
    Rule(_LAYER + "post_attention_layernorm.weight", ("blocks/attention_output_norm/scale",)),
    Rule(_LAYER + "pre_feedforward_layernorm.weight", ("blocks/mlp_norm/scale",)),
    Rule(_LAYER + "post_feedforward_layernorm.weight", ("blocks/mlp_output_norm/scale",)),
)

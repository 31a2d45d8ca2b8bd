"""Tiny random Hugging Face models, several per family, that together use every option a family has.

Built by transformers with torch on the CPU; nothing is downloaded. Every parameter is redrawn at random, so that no
bias is 0 and no norm is 1.
"""

import dataclasses
from typing import Any

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-2,  # no family's default
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 24}
OPT = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "ffn_dim": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128, "word_embed_proj_dim": 48, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "layer_norm_epsilon": 1e-2,
    "bos_token_id": 96,
    "eos_token_id": 96,
}
NEOX = {name: value for name, value in SMALL.items() if name not in ("num_key_value_heads", "rms_norm_eps")} | {
    "layer_norm_eps": 1e-2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclasses.dataclass(frozen=True)
class Tiny:
    """One configuration. ``fast``: greedy decoding, too, is compared in the fast tier."""

    config: str
    model: str
    fields: dict[str, Any]
    fast: bool = True


def _llama(fast=True, **fields):
    return Tiny("LlamaConfig", "LlamaForCausalLM", {**SMALL, **fields}, fast)


def _linear(factor, base=10_000.0):
    return {"rope_type": "linear", "rope_theta": base, "factor": factor}


def _gemma3_rope(**full):
    near = {"rope_type": "default", "rope_theta": 100.0}
    return {"sliding_attention": near, "full_attention": {"rope_type": "default", "rope_theta": 5000.0, **full}}


CASES: dict[str, Tiny] = {
    "llama": _llama(),
    "llama tied, multi-query, free head size": _llama(
        fast=False, tie_word_embeddings=True, num_key_value_heads=1, head_dim=20
    ),
    "llama 3.1, biases": _llama(rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, head_dim=16),
    "llama linear": _llama(fast=False, rope_parameters=_linear(3.0)),
    "llama yarn": _llama(rope_parameters=YARN),
    "llama yarn, all fields": _llama(
        fast=False,
        rope_parameters=YARN
        | {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False},
    ),
    "llama all heads": _llama(fast=False, num_key_value_heads=4),
    "mistral": Tiny("MistralConfig", "MistralForCausalLM", {**SMALL, "sliding_window": 7}),
    "mistral without window": Tiny(
        "MistralConfig", "MistralForCausalLM", {**SMALL, "sliding_window": None, "head_dim": 16}, fast=False
    ),
    "qwen2": Tiny("Qwen2Config", "Qwen2ForCausalLM", SMALL),
    "qwen2 windows, tied": Tiny(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {**SMALL, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True},
        fast=False,
    ),
    "qwen3": Tiny("Qwen3Config", "Qwen3ForCausalLM", {**SMALL, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 biases, windows, yarn": Tiny(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {
            **SMALL,
            "head_dim": 20,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 2,
            "rope_parameters": YARN,
        },
        fast=False,
    ),
    "gemma2": Tiny(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **SMALL,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2 without caps": Tiny(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **SMALL,
            "head_dim": 20,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window": 6,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        fast=False,
    ),
    "gemma3": Tiny(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **SMALL,
            "num_hidden_layers": 7,
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "rope_parameters": _gemma3_rope(rope_type="linear", factor=8.0),
        },
    ),
    "gemma3 caps, other layers": Tiny(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **SMALL,
            "head_dim": 16,
            "sliding_window": 4,
            "final_logit_softcapping": 2.0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        fast=False,
    ),
    "opt": Tiny("OPTConfig", "OPTForCausalLM", OPT),
    "opt without biases": Tiny(
        "OPTConfig", "OPTForCausalLM", {**OPT, "enable_bias": False, "activation_function": "gelu"}, fast=False
    ),
    "gpt2": Tiny("GPT2Config", "GPT2LMHeadModel", GPT2),
    "gpt2 other mlp, untied": Tiny(
        "GPT2Config",
        "GPT2LMHeadModel",
        {**GPT2, "n_inner": 60, "activation_function": "relu", "tie_word_embeddings": False},
        fast=False,
    ),
    "pythia": Tiny("GPTNeoXConfig", "GPTNeoXForCausalLM", {**NEOX, "rotary_pct": 0.5}),
    "neox in sequence, tied, no biases": Tiny(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {
            **NEOX,
            "use_parallel_residual": False,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "rotary_pct": 1.0,
            "rotary_emb_base": 500,
        },
        fast=False,
    ),
    "gemma": Tiny("GemmaConfig", "GemmaForCausalLM", {**SMALL, "head_dim": 16}, fast=False),
    "phi3": Tiny("Phi3Config", "Phi3ForCausalLM", {**SMALL, "pad_token_id": 0, "sliding_window": 6}, fast=False),
}


def build(name: str, folder, dtype: str = "float32", seed: int = 0):
    """The model of a case, saved in ``folder`` and returned in evaluation mode."""
    import torch
    import transformers

    case = CASES[name]
    config = getattr(transformers, case.config)(**case.fields, attn_implementation="eager")
    torch.manual_seed(seed)
    model = getattr(transformers, case.model)(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1:  # norms; Gemma's are around 0
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.shape[0] != VOCABULARY else 0.5)
    model = model.to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder)
    return model


def random_tokens(rows: int, length: int, seed: int = 0):
    """[rows, length] tokens, none of them a special one."""
    import numpy as np

    return np.random.default_rng(seed).integers(3, VOCABULARY - 1, (rows, length)).astype(np.int32)


SENTENCES = (
    "turn the kitchen light off", "set a timer for nine minutes", "what is the weather in the north",
    "play the song again", "call my sister at seven", "is the door of the garage open",
)  # fmt: skip


def add_tokenizer(folder, begin: str | None = "<s>", end: str | None = "</s>", kind: str = "bpe") -> None:
    """A small tokenizer beside a model: a trained BPE with an end and perhaps a begin token.

    kind: "bpe" writes tokenizer.json; "files" vocab.json and merges.txt, GPT-2's way.
    """
    import json
    from pathlib import Path

    import tokenizers

    special = [token for token in ("<pad>", begin, end) if token]
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 7, special_tokens=special, show_progress=False, initial_alphabet=[]
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind == "bpe":
        tokenizer.save(str(Path(folder) / "tokenizer.json"))
    else:
        tokenizer.model.save(str(folder))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end, "pad_token": "<pad>"}
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))

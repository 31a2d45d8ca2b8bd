"""Tiny random GGUF files of Llama's family."""

import numpy as np

from zipper_jax.conversion.gguf import _halves

WIDTH, FF, HEADS, KV, LAYERS = 32, 64, 2, 1, 2
BLOCK = {
    "attn_norm": ("input_layernorm", (WIDTH,)),
    "ffn_norm": ("post_attention_layernorm", (WIDTH,)),
    "attn_q": ("self_attn.q_proj", (WIDTH, WIDTH)),
    "attn_k": ("self_attn.k_proj", (WIDTH // 2, WIDTH)),
    "attn_v": ("self_attn.v_proj", (WIDTH // 2, WIDTH)),
    "attn_output": ("self_attn.o_proj", (WIDTH, WIDTH)),
    "ffn_gate": ("mlp.gate_proj", (FF, WIDTH)),
    "ffn_up": ("mlp.up_proj", (FF, WIDTH)),
    "ffn_down": ("mlp.down_proj", (WIDTH, FF)),
}


def alphabet():
    from tokenizers import pre_tokenizers

    return ["<|end|>", "<|begin|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe"]


def interleaved(kernel, heads):
    """As llama.cpp stores queries and keys: the halves of each head row by row."""
    return kernel.reshape(heads, 2, len(kernel) // heads // 2, -1).swapaxes(1, 2).reshape(kernel.shape)


def write_gguf(path, kind="Q8_0", tied=False, **changes):
    """A random model; returns what a Hugging Face folder of it would hold. ``changes``: metadata, None removes."""
    import gguf  # an extra

    rng, tokens = np.random.default_rng(0), alphabet()
    writer = gguf.GGUFWriter(str(path), "llama")
    about = {
        "llama.block_count": LAYERS, "llama.context_length": 128, "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FF, "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV,
        "llama.rope.dimension_count": WIDTH // HEADS, "llama.vocab_size": len(tokens),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 0, **changes,
    }  # fmt: skip
    for name, value in about.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 500.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    hf = {}
    tops = {"token_embd": ("model.embed_tokens", (len(tokens), WIDTH)), "output_norm": ("model.norm", (WIDTH,))}
    tops |= {} if tied else {"output": ("lm_head", (len(tokens), WIDTH))}
    blocks = {f"blk.{n}.{k}": (f"model.layers.{n}.{v}", s) for n in range(LAYERS) for k, (v, s) in BLOCK.items()}
    for name, (wanted, shape) in {**tops, **blocks}.items():
        array = rng.normal(size=shape).astype(np.float32) * 0.2
        heads = {"attn_q": HEADS, "attn_k": KV}.get(name.split(".")[-1])
        stored = array if heads is None else interleaved(array, heads)
        quant = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(stored, quant), raw_dtype=quant)
        exact = gguf.quants.dequantize(gguf.quants.quantize(stored, quant), quant).reshape(shape)
        hf[f"{wanted}.weight"] = exact if heads is None else _halves(exact, heads)
        np.testing.assert_allclose(hf[f"{wanted}.weight"], array, atol=0.1)  # of 4 bits
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hf

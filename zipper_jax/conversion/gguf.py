"""Reads GGUF files (llama.cpp's format) of Llama's family as if they were a Hugging Face folder.

Quantised tensors are dequantised to float32 as they are read, one at a time. llama.cpp stores queries and keys with
the two halves of each head interleaved, for its RoPE on adjacent pairs; here they are put back.

Needs the extra ``gguf`` (MIT), the format's own Python package.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.utils.errors import UserError

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""Of ``llama.*`` -> the field of config.json."""
_OPTIONAL = ("attention.head_count_kv", "attention.key_length")
_CHECKED = ("vocab_size", "rope.dimension_count", "attention.value_length")
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens
_PRE_TOKENIZERS = ("gpt-2", "smollm")


class GGUFFile:
    """The tensors of a file by their Hugging Face names, with the interface of `safetensors_files.Reader`.

    Attributes:
        folder: The file.
        config: What its ``config.json`` would be.

    Raises:
        UserError: No such file, a damaged one, another family, or metadata that would change the model.
    """

    def __init__(self, path: str | Path):
        self.folder = Path(path)
        if not self.folder.is_file():
            raise UserError(f"{str(path)!r} does not exist (or is not a file): give a .gguf file")
        try:
            import gguf
        except ImportError:
            raise UserError("GGUF files need a package: pip install --editable '.[gguf]' in the checkout") from None
        try:
            file = gguf.GGUFReader(str(path))
            self._metadata = {name: field.contents() for name, field in file.fields.items()}
            self._tensors = {_name(tensor.name, self.folder): tensor for tensor in file.tensors}
            self._shapes = {n: tuple(int(s) for s in reversed(t.shape)) for n, t in self._tensors.items()}
        except UserError:
            raise
        except Exception as error:  # the package raises whatever a damaged file leads to
            raise UserError(f"{str(path)!r} is not a GGUF file, or damaged ({' '.join(str(error).split())})") from error
        self.config = self._config()

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._tensors)

    @property
    def count(self) -> int:
        """Number of elements of all tensors."""
        return sum(map(math.prod, self._shapes.values()))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(np.float32)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor as float32."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            with np.errstate(all="ignore"):  # of a damaged file: what is not finite is refused later
                array = dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name)).astype(np.float32)
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"{str(self.folder)!r}: tensor {tensor.name!r} ({tensor.tensor_type.name}): {error}"
            ) from error
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        return array if heads is None else _halves(array, self.config[heads])

    def _config(self) -> dict[str, Any]:
        kind = self._metadata.get("general.architecture")
        if kind != "llama":
            raise UserError(f"{str(self.folder)!r}: general.architecture = {kind!r}: only 'llama' is converted")
        config: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
        for key, value in self._metadata.items():
            if not key.startswith("llama."):
                continue
            name = key.removeprefix("llama.")
            if name in _FIELDS:
                real = name in ("attention.layer_norm_rms_epsilon", "rope.freq_base")
                if not isinstance(value, int | float if real else int) or isinstance(value, bool) or not value > 0:
                    raise UserError(f"{str(self.folder)!r}: {key} = {value!r} must be a positive number")
                config[_FIELDS[name]] = value
            elif name not in _CHECKED:
                raise UserError(f"{str(self.folder)!r}: {key} = {value!r} is not supported: it may change the model")
        if missing := [key for key, name in _FIELDS.items() if name not in config and key not in _OPTIONAL]:
            raise UserError(f"{str(self.folder)!r} lacks llama.{missing[0]}: it is no model of Llama's family")
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        for name in ("rope.dimension_count", "attention.value_length"):
            if (found := self._metadata.get(f"llama.{name}", config["head_dim"])) != config["head_dim"]:
                raise UserError(
                    f"{str(self.folder)!r}: llama.{name} = {found!r} must be the head size {config['head_dim']}"
                )
        if "model.embed_tokens.weight" not in self._tensors:
            raise UserError(f"{str(self.folder)!r} has no tensor 'token_embd.weight': it is no whole model")
        config["vocab_size"] = self.shape("model.embed_tokens.weight")[0]
        config["tie_word_embeddings"] = "lm_head.weight" not in self._tensors
        for name in ("bos", "eos"):
            token = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
            if token is not None and not (isinstance(token, int) and 0 <= token < config["vocab_size"]):
                raise UserError(f"{str(self.folder)!r}: tokenizer.ggml.{name}_token_id = {token!r} is no token")
            config[f"{name}_token_id"] = token
        return config

    def tokenizer(self) -> dict[str, bytes]:
        """The tokenizer's files as in a Hugging Face folder: name -> content.

        Raises:
            UserError: The file has none, or one of a kind that cannot be rebuilt from it.
        """
        kind, split = (self._metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
        if kind != "gpt2" or (split or "gpt-2") not in _PRE_TOKENIZERS:
            raise UserError(
                f"{str(self.folder)!r}: tokenizer.ggml.model = {kind!r}, pre = {split!r}: only 'gpt2' with "
                f"{' or '.join(_PRE_TOKENIZERS)} is rebuilt from the file; give --tokenizer FOLDER"
            )
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tokens, types, merges = (self._list(name) for name in ("tokens", "token_type", "merges"))
        if not len(tokens) == len(types) == self.config["vocab_size"]:
            raise UserError(
                f"{str(self.folder)!r}: {len(tokens)} tokens and {len(types)} types of tokens for a vocabulary of "
                f"{self.config['vocab_size']}: it is damaged; give --tokenizer FOLDER"
            )
        try:
            pairs = [tuple(merge.split(" ", 1)) for merge in merges]
            made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise UserError(
                f"{str(self.folder)!r}: its tokenizer is damaged ({' '.join(str(error).split())})"
            ) from error
        steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        steps = [pre_tokenizers.Digits(individual_digits=True), *steps] if split == "smollm" else steps
        made.pre_tokenizer = pre_tokenizers.Sequence(steps)
        made.decoder = decoders.ByteLevel()
        for token, number in zip(tokens, types, strict=True):
            if number in (_CONTROL, _USER_DEFINED):
                made.add_tokens([AddedToken(token, special=number == _CONTROL, normalized=False)])
        named = {f"{n}_token": tokens[i] for n in ("bos", "eos") if (i := self.config[f"{n}_token_id"]) is not None}
        return {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": json.dumps(named).encode()}

    def _list(self, name: str) -> list[Any]:
        found = self._metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(found, list):
            raise UserError(f"{str(self.folder)!r} lacks tokenizer.ggml.{name}: give --tokenizer FOLDER")
        return found


def _name(name: str, path: Path) -> str:
    """Return the Hugging Face name of a tensor."""
    if name in _TOP:
        return _TOP[name]
    part = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if part is None or part[2] not in _BLOCK:
        raise UserError(f"{str(path)!r}: unknown tensor {name!r}: this is not a plain model of Llama's family")
    return f"model.layers.{part[1]}.{_BLOCK[part[2]]}.{part[3]}"


def _halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Undo the interleaving of each head's halves: rows (a0 b0 a1 b1 …) -> (a0 a1 … b0 b1 …)."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def tokenizer_files(file: GGUFFile, folder: str | Path | None) -> Mapping[str, bytes]:
    """The tokenizer of ``folder``, or else that of the file."""
    from zipper_jax.vocabularies.hugging_face import read_files

    return file.tokenizer() if folder is None else read_files(folder)

"""Reads a Hugging Face ``config.json`` field by field; unread fields are rejected, since they may change the model."""

from collections.abc import Mapping
from typing import Any

from zipper_jax.models.config import Activation, RopeScaling
from zipper_jax.utils.errors import UserError

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "squared_relu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
}

# Fields of training, decoding and bookkeeping: none of these changes the logits of a forward pass.
_HARMLESS = """
    architectures model_type torch_dtype dtype transformers_version _name_or_path name_or_path _commit_hash use_cache
    initializer_range init_std bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    attention_dropout hidden_dropout dropout resid_pdrop embd_pdrop attn_pdrop activation_dropout layerdrop
    classifier_dropout hidden_dropout_prob attention_probs_dropout_prob summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj return_dict output_attentions output_hidden_states torchscript
    use_bfloat16 chunk_size_feed_forward id2label label2id num_labels problem_type task_specific_params prefix
    tokenizer_class finetuning_task gradient_checkpointing _attn_implementation attn_implementation
    _attn_implementation_autoset pretraining_tp cache_implementation do_sample max_length min_length num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens early_stopping tf_legacy_loss n_ctx
    reorder_and_upcast_attn is_decoder _num_labels is_llama_config max_sequence_length transformers.js_config
    """

# Fields that change the computation or load code from the checkpoint -> (supported value, reason).
ONLY: dict[str, tuple[Any, str]] = {
    "auto_map": (None, "the model brings code of its own, which is never run"),
    "quantization_config": (None, "quantised weights are not read: save the model unquantised"),
    "is_encoder_decoder": (False, "only decoders become towers"),
    "add_cross_attention": (False, "cross-attention of its own is not converted"),
    "cross_attention_hidden_size": (None, "cross-attention of its own is not converted"),
    "tie_encoder_decoder": (False, "only decoders become towers"),
    "pruned_heads": ({}, "pruned heads are not converted"),
    "use_bidirectional_attention": (False, "towers are causal"),
    "use_mrope": (False, "positions of several axes are not converted"),
    "rope_interleaved": (False, "RoPE on adjacent pairs is not converted"),
}

_LAYERS = ("num_hidden_layers", "n_layer")
_MOST_LAYERS = 10_000
_MOST = 1e30
_SCALING = (
    *("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
    *("attention_factor", "mscale", "mscale_all_dim"),
)
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class Fields:
    """``config.json`` with a record of the fields that were read.

    Args:
        config: The JSON object.
        where: Its name in error messages.
        ignored: Fields to ignore.
    """

    def __init__(self, config: Mapping[str, Any], where: str, ignored: tuple[str, ...] = ()):
        self._config, self._where = config, where
        self._read = {*_HARMLESS.split(), *ignored}
        for name, (allowed, why) in ONLY.items():
            if name not in ignored:
                self.only(name, allowed, why)

    def take(self, name: str, default: Any = ...) -> Any:
        """Read a field, or its default where it is missing or null; a field without a default is required."""
        self._read.add(name)
        value = self._config.get(name)
        if value is None:
            if default is ...:
                raise UserError(f"{self._where} lacks {name!r}; is it a config.json of transformers?")
            return default
        return value

    def integer(self, name: str, default: Any = ...) -> int:
        """Read a positive integer, of layers at most `_MOST_LAYERS`."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{self._where}: {name} = {value!r} must be a positive whole number")
        most = _MOST_LAYERS if name in _LAYERS else 2**31 - 1
        if value > most:
            raise UserError(f"{self._where}: {name} = {value} must be at most {most}: no decoder is as large")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """Read a boolean."""
        self._read.add(name)
        value = self._config.get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self._where}: {name} = {value!r} must be true or false")
        return value

    def number(self, name: str, default: float | None) -> Any:
        """Read a positive number; may be null where the family's default is null."""
        self._read.add(name)
        value = self._config.get(name, default)
        return self._positive(name, value)

    def _positive(self, name: str, value: Any) -> Any:
        """Return ``value``, a positive number that is neither infinite nor NaN."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST:
            raise UserError(f"{self._where}: {name} = {value!r} must be a positive number")
        return value

    def number_or_null(self, name: str, default: float | None) -> Any:
        """Like `number`, but file and default may be null: None."""
        self._read.add(name)
        return None if self._config.get(name, default) is None else self.number(name, default)

    def only(self, name: str, allowed: Any, why: str) -> None:
        """Raise UserError for any value other than ``allowed`` (or null, or a missing field)."""
        value = self.take(name, None)
        if value is not None and value != allowed:
            raise UserError(f"{self._where}: {name} = {value!r} is not converted: {why}")

    def activation(self, name: str, default: str) -> Activation:
        """Read the activation of the MLP."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise UserError(f"{self._where}: {name} = {value!r} is no supported activation: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def rope(
        self,
        base: float = 10_000.0,
        kind: str | None = None,
        *,
        base_name: str = "rope_theta",
        share_name: str | None = None,
        share: float = 1.0,
    ) -> tuple[float, RopeScaling | None, float]:
        """Read RoPE from ``rope_parameters`` or the older fields.

        Args:
            base: The family's default base.
            kind: Layer type, in families whose ``rope_parameters`` differ by layer type.
            base_name: Older field with the base.
            share_name: Older field with the rotated share of the head; None: the family rotates the whole head.
            share: The family's default share.

        Returns:
            Base, scaling, and rotated share of the head.
        """
        parameters = self._rope_parameters(kind)
        kinds = [parameters.pop(name) for name in ("rope_type", "type") if name in parameters] or ["default"]
        rope_type = kinds[0]
        if rope_type != kinds[-1] or rope_type not in _ROPE_TYPES:
            grows = " (it changes with the sequence's length, so caches would not equal the full pass)"
            raise UserError(
                f"{self._where}: rope type {rope_type!r}{grows if rope_type in ('dynamic', 'longrope') else ''} is not "
                f"converted; known: {', '.join(_ROPE_TYPES)}"
            )
        base = self.number(base_name, base)
        base = self._positive("rope_theta", parameters.pop("rope_theta", base))
        if share_name is None:
            self.only("partial_rotary_factor", 1.0, "this family rotates the whole head")
        else:
            share = self.number(share_name, share)
        found = parameters.pop("partial_rotary_factor", None)
        if found is not None and share_name is None and found != 1.0:
            raise UserError(f"{self._where}: partial_rotary_factor = {found}: this family rotates the whole head")
        share = share if found is None else self._positive("partial_rotary_factor", found)
        scaling = None if rope_type == "default" else self._scaling(rope_type, parameters, kind)
        unknown = sorted(name for name, value in parameters.items() if value is not None)
        if unknown:
            raise UserError(f"{self._where}: rope {rope_type!r} has the unknown field {unknown[0]!r}: not converted")
        return float(base), scaling, float(share)

    def _rope_parameters(self, kind: str | None) -> dict[str, Any]:
        """The RoPE parameters of layers of type ``kind``; raises UserError where old and new fields differ."""
        found = {name: self.take(name, None) for name in ("rope_scaling", "rope_parameters")}
        for name, value in found.items():
            if value is not None and not isinstance(value, dict):
                raise UserError(f"{self._where}: {name} = {value!r} must be an object, or null")
        old, new = found["rope_scaling"] or {}, found["rope_parameters"] or {}
        if old and new and old != new:
            raise UserError(f"{self._where}: rope_scaling and rope_parameters disagree: keep only one of them")
        nested = any(isinstance(value, dict) for value in new.values())
        if nested and not all(isinstance(value, dict | None) for value in new.values()):
            raise UserError(f"{self._where}: rope_parameters = {new!r} must be nested by layer type, or not at all")
        if nested != (kind is not None) and new:
            raise UserError(
                f"{self._where}: rope_parameters {'is' if nested else 'is not'} nested by layer type, which this "
                f"family {'does not have' if nested else 'requires'}: not converted"
            )
        if kind is None:
            return dict(new or old)
        if new:
            unknown = sorted(set(new) - {"full_attention", "sliding_attention"})
            if unknown:
                raise UserError(f"{self._where}: rope_parameters has the unknown layer type {unknown[0]!r}")
            return dict(new.get(kind) or {})  # nested: each is an object
        return dict(old) if kind == "full_attention" else {}

    def _scaling(self, kind: str, parameters: dict[str, Any], layers: str | None) -> RopeScaling:
        given = {
            name: self._positive(name, parameters.pop(name)) for name in _SCALING if parameters.get(name) is not None
        }
        longest, factor = self.integer("max_position_embeddings", 1), given.get("factor")
        fallback = self.take("original_max_position_embeddings", self.take("max_position_embeddings", 0))
        original = given.get("original_max_position_embeddings") or fallback
        if kind != "linear" and not original:
            raise UserError(f"{self._where}: rope {kind!r} lacks 'original_max_position_embeddings'")
        if kind != "linear":
            original = self._positive("original_max_position_embeddings", original)
        if factor is None and kind == "yarn":
            factor = longest / original
        if factor is None:
            raise UserError(f"{self._where}: rope {kind!r} lacks 'factor'")
        taken: dict[str, Any] = {}
        if kind == "llama3":
            for ours, theirs in (
                ("low_frequency_factor", "low_freq_factor"),
                ("high_frequency_factor", "high_freq_factor"),
            ):
                if theirs not in given:
                    raise UserError(f"{self._where}: rope 'llama3' lacks {theirs!r}")
                taken[ours] = float(given.pop(theirs))
        if kind == "yarn":
            taken["beta_fast"] = float(given.pop("beta_fast", 32.0))
            taken["beta_slow"] = float(given.pop("beta_slow", 1.0))
            taken["amplitude"] = _yarn_amplitude(factor, given)
            taken["truncate"] = parameters.pop("truncate", True)
            if not isinstance(taken["truncate"], bool):
                raise UserError(f"{self._where}: truncate = {taken['truncate']!r} must be true or false")
            if layers is not None and taken["truncate"] is not True:
                raise UserError(f"{self._where}: transformers ignores yarn's truncate per layer type: remove it")
        for name in given.keys() - {"factor", "original_max_position_embeddings"}:  # of another kind of scaling
            parameters[name] = given[name]
        return RopeScaling(kind, float(factor), 0 if kind == "linear" else int(original), **taken)  # type: ignore[arg-type]

    def windows(self, layers: int, size: int | None, default_kinds: list[str]) -> tuple[int, ...]:
        """Window of each layer: ``size`` for sliding layers by ``layer_types`` or the family's default, else 0."""
        kinds = self.take("layer_types", default_kinds)
        if not isinstance(kinds, list):
            raise UserError(f"{self._where}: layer_types = {kinds!r} must be a list of names")
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise UserError(f"{self._where}: layer_types has {kind!r}, which is not converted")
        if len(kinds) != layers:
            raise UserError(f"{self._where}: layer_types names {len(kinds)} layers, num_hidden_layers is {layers}")
        if "sliding_attention" not in kinds:
            return ()
        if size is None:
            raise UserError(f"{self._where}: layer_types has sliding layers, but sliding_window is null")
        return tuple(int(size) if kind == "sliding_attention" else 0 for kind in kinds)

    def finish(self) -> None:
        """Raise UserError for fields that were not read and are not null."""
        unknown = sorted(name for name, value in self._config.items() if name not in self._read and value is not None)
        if unknown:
            names = [name if name.isprintable() else ascii(name) for name in unknown[:5]]
            shown = ", ".join(f"{name} = {self._config[own]!r}" for name, own in zip(names, unknown, strict=False))
            raise UserError(
                f"{self._where} has fields that this version does not know, and which may change the model: {shown}; "
                f"if you know that they do not, give {' '.join(f'--ignore_field {name}' for name in names)}"
            )


def _yarn_amplitude(factor: float, parameters: dict[str, Any]) -> float:
    """transformers' ``attention_factor``: as given, else 0.1 ln(factor) + 1 (arXiv 2309.00071, §3.4).

    Supports DeepSeek's pair ``mscale``, ``mscale_all_dim``.
    """
    import math

    given = parameters.pop("attention_factor", None)
    mscale, mscale_all = parameters.pop("mscale", None), parameters.pop("mscale_all_dim", None)
    if given is not None:
        return float(given)

    def amplitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return amplitude(mscale) / amplitude(mscale_all) if mscale and mscale_all else amplitude(1.0)

"""What is not converted is refused by name, before anything is written."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import tiny_hf
from safetensors.numpy import load_file, save_file

from zipper_jax.checkpoint.safetensors_files import FILE, INDEX, Reader, Writer
from zipper_jax.cli.main import main
from zipper_jax.conversion import from_hf
from zipper_jax.conversion.hugging_face import read_tower
from zipper_jax.models.config import RopeScaling
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import tokenizer_files

LLAMA = {"model_type": "llama", **tiny_hf.SMALL}


def read(**fields):
    return read_tower({**LLAMA, **fields}, "config.json")[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not converted; known: llama, mistral"),
        ({"model_type": "llama4_text"}, "model_type 'llama4_text' is not converted; known: llama"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "it holds a gemma3_text text model"),
        ({"attn_sinks": 4}, r"fields that this version does not know.*attn_sinks = 4; .*--ignore_field attn_sinks"),
        ({"layer_scale": False}, "layer_scale = False"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is no supported activation"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope type 'dynamic' \(it changes with the sequence"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, r"rope type 'longrope' \(it changes"),
        ({"rope_scaling": {"rope_type": "su"}}, "rope type 'su' is not converted; known: default, linear"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "wave": 1}}, "the unknown field 'wave'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "'llama3' lacks 'low_freq_factor'"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map = .* code of its own, which is never run"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not read"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder = True is not converted: only decoders"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_size": "48"}, "hidden_size = '48' must be a positive whole number"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "keep only one of",
        ),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "the unknown field 'factor'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear"}}},
            "nested by layer type, which this family does not",
        ),
        ({"rope_scaling": False}, "rope_scaling = False must be an object"),
        (
            {"rope_parameters": {"rope_type": "yarn"}, "max_position_embeddings": None},
            "lacks 'original_max|lacks 'factor'",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not converted: this family rotates the whole"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "this family rotates the whole head",
        ),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false' must be true or false"),
        ({"attention_bias": 0}, "attention_bias = 0 must be true or false"),
        ({"rms_norm_eps": None}, "rms_norm_eps = None must be a positive number"),
        ({"rope_interleaved": True}, "RoPE on adjacent pairs"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window = 0 must be a positive number"),
        ({"model_type": "qwen2", "use_mrope": True}, "positions of several axes"),
        (
            {"model_type": "gemma", "hidden_act": "relu", "hidden_activation": "gelu"},
            "hidden_act and hidden_activation",
        ),
        ({"model_type": "gemma2", "sliding_window": 8, "sliding_window_size": 9}, "sliding_window_size = 9"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": None}, "query_pre_attn_scalar = None must be"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}},
            "is not nested by layer type",
        ),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope 'linear' is not supported by transformers' Phi-3",
        ),
        ({"model_type": "phi3", "attention_bias": True}, "Phi-3 has no biases"),
        ({"model_type": "opt", **tiny_hf.OPT, "do_layer_norm_before": False}, "post-norm blocks"),
        ({"model_type": "opt", **tiny_hf.OPT, "word_embed_proj_dim": 24}, "word_embed_proj_dim = 24 is not converted"),
        ({"model_type": "gpt2", **tiny_hf.GPT2, "scale_attn_by_inverse_layer_idx": True}, "by the layer index"),
        ({"model_type": "gpt2", **tiny_hf.GPT2, "scale_attn_weights": False}, "scores without scaling"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 5.0}, "transformers ignores it in Gemma 3"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "towers are causal"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ({"model_type": "qwen2", "layer_types": ["linear_attention"] * 3}, "layer_types has 'linear_attention'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_configurations_that_mean_something_else(fields, message):
    drop = set() if fields.get("model_type") not in ("opt", "gpt2") else set(tiny_hf.SMALL) - set(fields)
    config = {name: value for name, value in {**LLAMA, **fields}.items() if name not in drop}
    with pytest.raises(UserError, match=message):
        read_tower(config, "config.json")


def test_fields_that_change_nothing_are_accepted():
    plain = read()
    assert read(torch_dtype="bfloat16", attention_dropout=0.1, transformers_version="5.0", unknown=None) == plain
    assert read_tower({**LLAMA, "attn_sinks": 4}, "config.json", ("attn_sinks",))[1] == plain


def test_old_and_new_names_of_rope_mean_the_same():
    new = read(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0})
    assert new == read(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert (new.rope_base, new.rope_scaling.factor) == (500.0, 2.0)


# What files on the hub look like, from memory: (fields, the config they must give).
ON_THE_HUB = {
    "Llama 2": (
        {
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "pretraining_tp": 1,
            "rope_scaling": None,
            "tie_word_embeddings": False,
        },
        {"norm_epsilon": 1e-5, "rope_scaling": None, "tied_head": False},
    ),
    "Llama 3.2": (
        {
            "model_type": "llama",
            "head_dim": 12,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "rope_type": "llama3",
                "original_max_position_embeddings": 8192,
            },
        },
        {"rope_base": 5e5, "rope_scaling": RopeScaling("llama3", 32.0, 8192), "tied_head": True},
    ),
    "SmolLM2": (
        {
            "model_type": "llama",
            "is_llama_config": True,
            "rope_interleaved": False,
            "rope_theta": 130000,
            "transformers.js_config": {"dtype": "q4"},
        },
        {"rope_base": 130000.0},
    ),
    "Mistral 0.1": ({"model_type": "mistral", "sliding_window": 4096}, {"windows": (4096,) * 3}),
    "Mistral 0.3": ({"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6}, {"windows": ()}),
    "Qwen2.5": (
        {
            "model_type": "qwen2",
            "use_mrope": False,
            "use_sliding_window": False,
            "sliding_window": 32768,
            "max_window_layers": 1,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-06,
        },
        {"windows": (), "attention_bias": "qkv", "head_dim": 12},
    ),
    "Qwen3": (
        {
            "model_type": "qwen3",
            "head_dim": 128,
            "max_window_layers": 28,
            "sliding_window": None,
            "attention_bias": False,
        },
        {"head_dim": 128, "query_key_norm": True, "attention_bias": "none"},
    ),
    "gemma-2b": (
        {"model_type": "gemma", "head_dim": 256, "hidden_act": "gelu"},
        {"activation": "gelu", "norm_offset": 1.0},
    ),
    "gemma-2-9b": (
        {
            "model_type": "gemma2",
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "sliding_window": 4096,
            "sliding_window_size": 4096,
            "query_pre_attn_scalar": 224,
            "cache_implementation": "hybrid",
            "hidden_activation": "gelu_pytorch_tanh",
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        {"windows": (4096, 0, 4096), "attention_softcap": 50.0, "logit_softcap": 30.0, "attention_scale": 224**-0.5},
    ),
    "gemma-3-1b": (
        {
            "model_type": "gemma3_text",
            "head_dim": 256,
            "num_hidden_layers": 7,
            "sliding_window_pattern": 3,
            "sliding_window": 512,
            "rope_local_base_freq": 10000,
            "rope_theta": 1000000,
            "rope_scaling": None,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        {"windows": (512, 512, 0, 512, 512, 0, 512), "rope_base": 1e6, "window_rope_base": 1e4, "logit_softcap": None},
    ),
    "Phi-3 mini 4k": (
        {
            "model_type": "phi3",
            "architectures": ["Phi3ForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_phi3.X"},
            "attention_bias": False,
            "original_max_position_embeddings": 4096,
            "rope_scaling": None,
            "sliding_window": 2047,
            "rms_norm_eps": 1e-05,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        },
        {"windows": (2047,) * 3, "rope_fraction": 1.0},
    ),
    "pythia-70m": (
        {
            "model_type": "gpt_neox",
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "use_parallel_residual": True,
            "layer_norm_eps": 1e-05,
            "num_attention_heads": 6,
            "num_key_value_heads": None,
            "rms_norm_eps": None,
        },
        {"rope_fraction": 0.25, "parallel": True},
    ),
    "gpt-neox-20b": (
        {
            "model_type": "gpt_neox",
            "hidden_act": "gelu_fast",
            "layer_norm_eps": 1e-5,
            "rotary_pct": 0.5,
            "num_key_value_heads": None,
            "rms_norm_eps": None,
        },
        {"activation": "gelu", "rope_fraction": 0.5},
    ),
}


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_files_as_they_are_on_the_hub_are_read(name):
    fields, wanted = ON_THE_HUB[name]
    tower = read(**fields, torch_dtype="bfloat16", transformers_version="4.40.0", use_cache=True)
    assert {field: getattr(tower, field) for field in wanted} == wanted


@pytest.fixture
def folder(tiny, tmp_path):
    copy = tmp_path / "hf"
    shutil.copytree(tiny("llama")[0], copy)
    tiny_hf.add_tokenizer(copy)
    return copy


def _tensors(folder, change):
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"has no tensor 'model.layers.1.mlp.up_proj.weight'"),
        (lambda t: t.pop("lm_head.weight"), "has no tensor 'lm_head.weight'"),
        (
            lambda t: t.update({"model.layers.0.router.weight": np.zeros((2, 2), np.float32)}),
            r"unknown tensor 'model.layers.0.router.weight' \[2, 2\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(40, np.float32)}),
            r"model.norm.weight has shape \[40\], but config.json implies \[48\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(48, np.int8)}),
            "model.norm.weight is quantised or not floating-point",
        ),
    ],
    ids=["missing", "no head", "unknown", "shape", "int8"],
)
def test_tensors_that_do_not_fit(folder, tmp_path, change, message, capsys):
    _tensors(folder, change)
    assert main(["convert", "from-hf", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_named(folder):
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model.safetensors is damaged .*; get it again"):
        from_hf.plan(folder)


def test_a_head_that_is_not_the_embedding_is_not_tied(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"lm_head.weight differs from the embedding: set tie_word_embeddings to false"):
        from_hf.plan(folder)


def test_pickles_are_refused_with_the_way_out_and_never_opened(folder):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    (folder / FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"pytorch_model.bin, a torch pickle.*save_pretrained\(NEW_FOLDER"):
        from_hf.plan(folder)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("self_attn.", "_orig_mod.self_attn."),
        lambda name: name.replace("model.layers", "_fsdp_wrapped_module.model.layers"),
        lambda name: f"_orig_mod.{name.removeprefix('model.')}",
    ],
    ids=["compiled", "parallel", "peft", "both", "layers compiled", "fsdp", "bare and compiled"],
)
def test_the_prefix_of_a_wrapper_is_stripped_and_reported(folder, tmp_path, rename, capsys):
    plain = {move.tensor: (move.rule, move.layer) for move in from_hf.plan(folder).moves}
    tensors = load_file(folder / FILE)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / FILE, {"format": "pt"})
    found = from_hf.plan(folder)
    assert {move.tensor: (move.rule, move.layer) for move in found.moves} == {rename(n): r for n, r in plain.items()}
    assert main(["convert", "from-hf", str(folder), "--out", str(tmp_path / "out"), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    for prefix in found.wrappers:
        assert f"names without {prefix!r}, which " in shown
    assert found.wrappers


def test_adapters_and_doubled_tensors_are_named(folder):
    _tensors(folder, lambda t: t.update({"_orig_mod.model.norm.weight": t["model.norm.weight"]}))
    with pytest.raises(UserError, match=r"'model.norm.weight' and '_orig_mod.model.norm.weight' are the same tensor"):
        from_hf.plan(folder)
    _tensors(folder, lambda t: t.update({"base_model.model.model.x.lora_A.default.weight": np.zeros(2, np.float32)}))
    with pytest.raises(UserError, match=r"lora_A.default.weight' is of an adapter .*merge_and_unload"):
        from_hf.plan(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter .* merge it into its model first: peft"),
        (["consolidated.safetensors", "params.json"], "has consolidated.safetensors, .* maker's own layout"),
        (["consolidated.00.pth"], "has consolidated.00.pth, .* maker's own layout"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "has 2 shards .model-00001-of-00002.safetensors, .* and no model.safetensors.index.json",
        ),
        (["weights.safetensors"], "has weights.safetensors and neither .* rename the file"),
        (["README.md", "notes.txt"], "; it has README.md, (config.json, )?notes.txt"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_a_folder_of_something_else_is_named_with_what_it_has(tmp_path, files, message, config, capsys):
    folder = tmp_path / "hf"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"{}")
    if config:
        (folder / "config.json").write_text(json.dumps(LLAMA))
    assert main(["convert", "from-hf", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def _shard(folder):
    """The folder's file as two, with an index."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors, weight_map


def test_shards_are_one_model(folder):
    tensors, _ = _shard(folder)
    reader = from_hf.plan(folder).reader
    assert reader.names == sorted(tensors)
    for name in reader.names:
        np.testing.assert_array_equal(reader.read(name), tensors[name])


@pytest.mark.parametrize("escape", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", 3])
def test_an_index_cannot_leave_its_folder(folder, escape):
    _, weight_map = _shard(folder)
    save_file({"model.norm.weight": np.zeros(48, np.float32)}, folder.parent / "secret.safetensors")
    weight_map["model.norm.weight"] = escape
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"not in this folder|is damaged"):
        from_hf.plan(folder)


def test_an_incomplete_set_of_shards_is_named(folder):
    _shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002.safetensors, which .* names"):
        from_hf.plan(folder)


@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.0.mlp.up_proj.weight"])
def test_files_of_the_bare_model_lack_its_prefix(folder, name):
    tensors = load_file(folder / FILE)
    save_file({key.removeprefix("model."): tensor for key, tensor in tensors.items()}, folder / FILE)
    plan = from_hf.plan(folder)
    assert name in {move.tensor for move in plan.moves}


def test_nothing_is_left_of_a_conversion_that_fails_or_is_stopped(folder, tmp_path, monkeypatch):
    real, calls = Reader.read, []

    def stop(self, name):
        calls.append(name)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return real(self, name)

    monkeypatch.setattr(Reader, "read", stop)
    out = tmp_path / "towers" / "text"
    assert main(["convert", "from-hf", str(folder), "--out", str(out)]) == 130
    assert list(out.parent.iterdir()) == []


def test_an_output_that_exists_is_refused_first(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert main(["convert", "from-hf", "/nowhere", "--out", str(tmp_path / "out")]) == 2
    assert "exists; give a folder that does not" in capsys.readouterr().err


def test_a_writer_is_whole_or_nothing(tmp_path):
    tensors = {"a": (np.float32, (2, 3))}
    with pytest.raises(AssertionError), Writer(tmp_path / "x", tensors, {}) as writer:
        writer.write("a", np.zeros(3, np.float32), 0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no tokenizer .none of tokenizer.json"),
        ({"tokenizer.json": "{"}, "the tokenizer's files are damaged"),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": "["},
            "tokenizer_config.json is not a JSON object.*; it is damaged: get it again",
        ),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "Qwen2Tokenizer"}'},
            "read as plain GPT-2's, but this is Qwen2Tokenizer",
        ),
    ],
)
def test_tokenizers_that_cannot_be_read(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizer_files.text_vocabulary(tmp_path, {}, 97)


def test_two_files_are_gpt2s_tokenizer_and_special_names_in_text_stay_text(tmp_path):
    whole, files = tmp_path / "whole", tmp_path / "files"
    whole.mkdir(), files.mkdir()
    tiny_hf.add_tokenizer(whole)
    tiny_hf.add_tokenizer(files, kind="files")
    (files / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}')
    one, other = tokenizer_files.text_vocabulary(whole, {}, 97), tokenizer_files.text_vocabulary(files, {}, 97)
    for sentence in tiny_hf.SENTENCES:
        assert one.encode(sentence).tolist() == other.encode(sentence).tolist()
        assert one.decode(one.encode(sentence)) == sentence
    assert (other.begin_id, other.end_id) == (97, 2), "no begin token is named, so one is added"
    for vocabulary in (one, other):
        assert not {1, 2} & set(vocabulary.encode("the </s> light").tolist())


def test_a_special_token_beyond_the_tower_is_none_of_texts(tmp_path):
    """Gemma 3's text models: one special token more than rows."""
    tiny_hf.add_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": 97, "content": "<image>", **flags})
    content["model"]["vocab"]["<image>"] = 97
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_files.text_vocabulary(tmp_path, {}, 97).size == 97


def test_a_token_number_that_is_none(tmp_path):
    tiny_hf.add_tokenizer(tmp_path)
    with pytest.raises(UserError, match="bos_token_id = '1', which is not a token id"):
        tokenizer_files.text_vocabulary(tmp_path, {"bos_token_id": "1"}, 97)


def test_a_tokenizer_of_another_model(tmp_path):
    tiny_hf.add_tokenizer(tmp_path)
    with pytest.raises(UserError, match="has 90 tokens, the tower 60: it is the tokenizer of another model"):
        tokenizer_files.text_vocabulary(tmp_path, {}, 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--zips", "text=1,speech=1"], r"--tower = 'text': give NAME=FOLDER"),
        (["--zips", "text"], "give text=2,speech=3"),
        (["--zips", "text-speech=1-1,2"], "give text=2,speech=3"),
        (["--zips", "text=9,speech=1"], "give no zip"),
        (["--zips", "text=1,image=1"], "names tower 'image'"),
        (["--zips", "text=1,speech=1", "--gin.ZipConfig.num_head=2"], "did you mean 'num_heads'"),
    ],
)
def test_fuse_says_what_is_wrong(tmp_path, capsys, arguments, message):
    import re

    from zipper_jax.checkpoint.model_folder import write_model_folder
    from zipper_jax.conversion.to_tower import one_tower_model
    from zipper_jax.models.config import TowerConfig
    from zipper_jax.models.zipper import init_params
    from zipper_jax.utils.trees import flatten
    from zipper_jax.vocabularies import UnitVocabulary

    for name in ("text", "speech"):
        model = one_tower_model(name, TowerConfig(12, 3, 8, 2, 2, 4, 8), UnitVocabulary(10, 25.0))
        flat = flatten(init_params(model, 0))
        write_model_folder(
            tmp_path / name,
            model,
            {path: (leaf.dtype, leaf.shape) for path, leaf in flat.items()},
            lambda writer, flat=flat: [writer.write(*item) for item in flat.items()],
            {name: UnitVocabulary(10, 25.0)},
        )
    towers = ["text"] if "NAME=FOLDER" in message else [f"text={tmp_path / 'text'}", f"speech={tmp_path / 'speech'}"]
    given = [part for tower in towers for part in ("--tower", tower)]
    assert main(["fuse", *given, *arguments, "--out", str(tmp_path / "fused")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "fused").exists()

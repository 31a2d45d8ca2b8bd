"""The command line from two Hugging Face folders to a trained zipper and back, on real files."""

import dataclasses
import json
import re
import shutil
from functools import partial

import jax
import numpy as np
import pytest
import tiny_hf
from safetensors.numpy import load_file

import zipper_jax
from zipper_jax.checkpoint.model_folder import read_model_folder
from zipper_jax.checkpoint.safetensors_files import FILE
from zipper_jax.cli.main import main
from zipper_jax.data.packed_rows import write_rows
from zipper_jax.models.config import ModalityConfig, ZipperConfig
from zipper_jax.sequences import fill_template
from zipper_jax.tasks import TASKS
from zipper_jax.training.config import RestoreCheckpointConfig
from zipper_jax.training.initial import initial_params
from zipper_jax.utils.trees import flatten
from zipper_jax.vocabularies import load_vocabulary

SENTENCE = "turn the kitchen light off"


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """A text model with a tokenizer, begin and end; a unit model with 90 units from row 3 on and an end; fused."""
    root = tmp_path_factory.mktemp("folders")
    shutil.copytree(tiny("llama 3.1, biases")[0], root / "hf_text")
    shutil.copytree(tiny("opt")[0], root / "hf_speech")
    _change_config(root / "hf_text", bos_token_id=None, eos_token_id=None)  # the tokenizer says which they are
    tiny_hf.add_tokenizer(root / "hf_text")
    assert main(["convert", "from-hf", str(root / "hf_text"), "--out", str(root / "text")]) == 0
    units = ["--units", "90", "--first_unit", "3", "--end_token", "2"]
    assert main(["convert", "from-hf", str(root / "hf_speech"), *units, "--out", str(root / "speech")]) == 0
    towers = ["--tower", f"text={root / 'text'}", "--tower", f"speech={root / 'speech'}"]
    form = "--gin.input/ProjectionConfig.form=residual"
    assert main(["fuse", *towers, "--zips", "text=1,speech=1", "--out", str(root / "fused"), form]) == 0
    return root


def _change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_plan_names_everything_and_a_dry_run_writes_nothing(folders, tmp_path, capsys):
    assert main(["convert", "from-hf", str(folders / "hf_text"), "--out", str(tmp_path / "x"), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "LlamaForCausalLM, 3 blocks, embed_dim 48" in shown
    assert "model.layers.{layer}.self_attn.q_proj.bias -> blocks/attention/query/bias  (3 layers)" in shown
    assert "parameters: 62,496 in the file, 62,496 of them used, 62,496 in the tower" in shown
    assert "vocabulary: hugging_face, begin 1, end 2" in shown
    assert not (tmp_path / "x").exists()


def test_a_tied_head_in_the_file_is_skipped_with_a_reason(tiny, tmp_path, capsys):
    folder = tmp_path / "hf"
    shutil.copytree(tiny("opt")[0], folder)
    tensors = load_file(folder / FILE)
    from safetensors.numpy import save_file

    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"]
    save_file(tensors, folder / FILE)
    assert main(["convert", "from-hf", str(folder), "--units", "90", "--out", str(tmp_path / "x"), "--dry_run"]) == 0
    assert "lm_head.weight: skipped, the head is tied to the embedding" in capsys.readouterr().out


def test_the_text_tower_reads_and_writes_its_tokenizers_text(folders):
    import transformers

    model = zipper_jax.load(folders / "text")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / "hf_text")
    ids = tokenizer(SENTENCE, add_special_tokens=False).input_ids
    assert model.vocabularies["text"].encode(SENTENCE).tolist() == ids
    assert model.vocabularies["text"].decode([1, *ids, 2]) == SENTENCE
    assert model.tower("text").perplexity([SENTENCE]) > 1
    in_memory = zipper_jax.from_hf(folders / "hf_text")
    for (path, stored), (_, leaf) in zip(
        sorted(flatten(model.params).items()), sorted(flatten(in_memory.params).items()), strict=True
    ):
        np.testing.assert_array_equal(stored, leaf, err_msg=path)


def test_fused_towers_are_as_they_were_and_added_tokens_stay_outside_them(folders):
    model = zipper_jax.load(folders / "fused")
    for name in ("text", "speech"):
        alone = zipper_jax.load(folders / name)
        before, after = flatten(alone.params["towers"][name]), flatten(model.params["towers"][name])
        assert before.keys() == after.keys()
        assert all(np.asarray(before[leaf]).tobytes() == np.asarray(after[leaf]).tobytes() for leaf in before)
        content = SENTENCE if name == "text" else [5, 6, 7, 8]
        np.testing.assert_array_equal(alone.tower(name).logits(content), model.tower(name).logits(content))
    assert model.config.added_tokens == {"speech": 1}
    assert model.params["added_embeddings"]["speech"]["table"].shape == (1, 48)
    # No begin of its own: 4 units and the end; the tower's own 97 tokens, not the added one.
    assert model.tower("speech").logits([5, 6, 7, 8]).shape == (5, 97)
    rows = np.asarray(model.params["towers"]["speech"]["embedding"]["table"])
    added = np.asarray(model.params["added_embeddings"]["speech"]["table"])
    assert 0.5 < np.sqrt((added**2).mean() / (rows**2).mean()) < 2


@pytest.mark.slow
def test_generation_goes_through_added_tokens_and_replays(folders):
    """The unit model's begin token is an added row: what is decoded is what the fused path computes."""
    model = zipper_jax.load(folders / "fused")
    (row,) = model.generate([[("text", SENTENCE)]], ("speech", "text"), max_new_tokens={"speech": 6, "text": 4})
    assert [output.modality for output in row] == ["speech", "text"]
    from passes import forward

    from zipper_jax.sequences import Span, rows_to_towers

    vocabularies = model.vocabularies
    spans = [Span("text", vocabularies["text"].encode(SENTENCE), 0.0)]
    spans += [Span(o.modality, vocabularies[o.modality].encode(o.content), 1.0) for o in row if o.modality == "speech"]
    towers = rows_to_towers([[tuple(spans)]], model.layout, {"text": 64, "speech": 32})
    logits = np.asarray(jax.jit(partial(forward, model.config))(model.params, towers)["speech"])[0]
    assert logits.shape[-1] == 98
    speech = row[0]
    tokens = [*vocabularies["speech"].encode(speech.content), 2]
    log_probs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_probs -= logits.max(-1, keepdims=True)
    np.testing.assert_allclose(log_probs[np.arange(len(tokens)), tokens], speech.log_probs, atol=1e-4)


@pytest.mark.slow
def test_fused_model_trains_and_converts_back(folders, tmp_path, capfd):
    """`runs/fuse_from.gin` from the fused folder; the frozen text tower is exported unchanged; added rows train."""
    vocabularies = {name: load_vocabulary(folders / "fused" / "vocabularies" / name) for name in ("text", "speech")}
    data = tmp_path / "data"
    for name, vocabulary in vocabularies.items():
        vocabulary.save(data / "vocabularies" / name)
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        for task in ("asr", "tts"):
            rows = []
            for _ in range(8):
                text = vocabularies["text"].encode(str(random.choice(tiny_hf.SENTENCES)))
                units = vocabularies["speech"].encode(random.integers(0, 90, 12))
                rows.append([fill_template(TASKS[task], {"text": text, "speech": units})])
            write_rows(data / "rows" / task / split, rows, {"task": task})
    run = tmp_path / "run"
    flags = {"FUSED": folders / "fused", "DATA": data, "MODEL_DIR": run, "TRAIN_STEPS": 2}
    given = [f"--gin.{name}={value}" for name, value in flags.items()]
    given += ["--gin.OptimizerConfig.warmup_steps=0", "--gin.MeshConfig.data=1"]
    assert main(["train", "--gin_file=runs/fuse_from.gin", *given]) == 0

    start, trained = read_model_folder(folders / "fused")[1], zipper_jax.load(run)
    assert np.any(trained.params["added_embeddings"]["speech"]["table"] != start["added_embeddings"]["speech"]["table"])
    back, exported = tmp_path / "back", tmp_path / "exported"
    assert main(["convert", "to-hf", str(run), "--tower", "text", "--out", str(back)]) == 0
    before, after = load_file(folders / "hf_text" / FILE), load_file(back / FILE)
    assert {name: t.tobytes() for name, t in after.items()} == {name: t.tobytes() for name, t in before.items()}
    import transformers

    assert transformers.AutoTokenizer.from_pretrained(back)(SENTENCE).input_ids
    assert main(["convert", "verify", str(run), "--tower", "text", "--against", str(folders / "hf_text")]) == 0

    assert main(["convert", "export", str(run), "--out", str(exported)]) == 0
    again = zipper_jax.load(exported)
    for (path, stored), (_, leaf) in zip(
        sorted(flatten(trained.params).items()), sorted(flatten(again.params).items()), strict=True
    ):
        np.testing.assert_array_equal(stored, leaf, err_msg=path)
    assert again.max_new_tokens == trained.max_new_tokens

    towers = ["--tower", f"text={run}", "--tower", f"speech={run}"]  # a run's towers can be fused again
    assert main(["fuse", *towers, "--zips", "text-speech=1-2", "--out", str(tmp_path / "anew")]) == 0
    anew = zipper_jax.load(tmp_path / "anew").params
    for path, leaf in flatten(trained.params["towers"]).items():
        np.testing.assert_array_equal(flatten(anew["towers"])[path], leaf, err_msg=path)


def test_verify_reports_another_model_by_its_exit_status(folders, tiny, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(tiny_hf.SENTENCES * 20))
    tower = str(folders / "text")
    assert main(["convert", "verify", tower, "--against", str(folders / "hf_text"), "--text", str(text)]) == 0
    shown = capsys.readouterr().out
    assert "top-1 agreement  100.00%" in shown
    assert re.search(r"perplexity +\S+ against \S+ \([+-]0.00%\)", shown)
    other = tmp_path / "other"
    shutil.copytree(folders / "hf_text", other)
    tensors = load_file(other / FILE)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] * 1.01
    from safetensors.numpy import save_file

    save_file(tensors, other / FILE, {"format": "pt"})
    assert main(["convert", "verify", tower, "--against", str(other), "--text", str(text)]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_verify_against_no_model_is_one_line(folders, tmp_path, capsys):
    tower = str(folders / "text")
    assert main(["convert", "verify", tower, "--against", str(tmp_path / "nowhere")]) == 2
    assert "nowhere' does not exist (the id of a model on the hub is ORG/NAME)" in capsys.readouterr().err
    assert main(["convert", "verify", tower, "--against", str(tmp_path)]) == 2
    assert re.fullmatch(r"error: --against .*: transformers cannot read it \(.*\): give .*\n", capsys.readouterr().err)


def test_bfloat16_export_halves_the_file_and_stays_near(folders, tmp_path):
    assert main(["convert", "export", str(folders / "fused"), "--out", str(tmp_path / "bf16"), "--bf16"]) == 0
    sizes = [(folder / FILE).stat().st_size for folder in (tmp_path / "bf16", folders / "fused")]
    assert 0.5 < sizes[0] / sizes[1] < 0.52
    exact, near = (flatten(zipper_jax.load(f).params) for f in (folders / "fused", tmp_path / "bf16"))
    for path, leaf in exact.items():
        np.testing.assert_allclose(near[path], leaf, rtol=2**-8, err_msg=path)


def test_a_new_run_takes_a_tower_and_its_added_rows_from_a_model_folder(folders):
    model = zipper_jax.load(folders / "fused")
    start = initial_params(model.config, 7, {"speech": str(folders / "speech")})
    alone = zipper_jax.load(folders / "speech").params
    for top in ("towers", "added_embeddings"):
        wanted, found = flatten(alone[top]["speech"]), flatten(start[top]["speech"])
        assert wanted.keys() == found.keys()
        for path, leaf in wanted.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_weights_of_a_tower_that_computes_something_else_are_refused(folders):
    """No shape shows a window: the fields do."""
    model = zipper_jax.load(folders / "fused").config
    other = dataclasses.replace(model.towers["text"], windows=(4, 0, 4))
    changed = dataclasses.replace(model, towers={**model.towers, "text": other})
    source = {"text": str(folders / "text")}
    message = r"its tower has windows = \(\), here tower 'text' has \(4, 0, 4\), so the same weights compute"
    with pytest.raises(zipper_jax.UserError, match=message):
        initial_params(changed, 0, source)
    with pytest.raises(zipper_jax.UserError, match=message):
        initial_params(changed, 0, {}, RestoreCheckpointConfig(path=str(folders / "fused")))
    initial_params(changed, 0, source, allow_changes=True)


def test_a_single_decoder_takes_added_rows_behind_the_towers_own(folders):
    speech = zipper_jax.load(folders / "speech")
    grown = dataclasses.replace(speech.config.towers["speech"], vocab_size=110)
    places = {"speech": ModalityConfig("decoder", 98), "more": ModalityConfig("decoder", 12, 98)}
    model = ZipperConfig({"decoder": grown}, places)
    table = initial_params(model, 0, {"decoder": str(folders / "speech")})["towers"]["decoder"]["embedding"]["table"]
    np.testing.assert_array_equal(table[:97], speech.params["towers"]["speech"]["embedding"]["table"])
    np.testing.assert_array_equal(table[97:98], speech.params["added_embeddings"]["speech"]["table"])


def test_default_max_new_tokens_end_where_learned_positions_do(folders):
    model = zipper_jax.load(folders / "speech")
    (row,) = model.generate([[("speech", [1] * 100)]], ("speech",))
    assert len(row[0].content) <= 128 - 102 - 2


def test_vocabulary_folders_are_copied_whole(folders, tmp_path):
    """A speech vocabulary's folder holds the audio tokenizer, without which nothing can be transcribed."""
    source = tmp_path / "speech"
    shutil.copytree(folders / "speech", source)
    (source / "vocabularies" / "speech" / "tokenizer.npz").write_bytes(b"the audio tokenizer")
    towers = ["--tower", f"text={folders / 'text'}", "--tower", f"speech={source}"]
    assert main(["fuse", *towers, "--zips", "text=1,speech=1", "--out", str(tmp_path / "fused")]) == 0
    assert main(["convert", "export", str(tmp_path / "fused"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/vocabularies/speech/tokenizer.npz").read_bytes() == b"the audio tokenizer"


def test_inspect_shows_a_model_folder(folders, capsys):
    assert main(["inspect", str(folders / "fused")]) == 0
    shown = capsys.readouterr().out
    assert "no run: a model folder" in shown
    assert "vocabulary 97 + 1 added" in shown
    assert "(llama)" in shown


def test_our_own_tower_converts_to_hugging_face_and_back(tmp_path):
    """A tower not converted from Hugging Face: the first family that can express it is chosen."""
    from zipper_jax.checkpoint.model_folder import Loaded
    from zipper_jax.conversion import from_hf, to_hf
    from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipperConfig
    from zipper_jax.models.zipper import init_params

    tower = TowerConfig(64, 2, 16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)
    params = init_params(ZipperConfig({"text": tower}, {"text": ModalityConfig("text", 64)}), seed=0)
    to_hf.write(to_hf.plan(Loaded(params), "text", tower), tmp_path / "hf")
    again = from_hf.plan(tmp_path / "hf")
    assert dataclasses.replace(again.tower, family="", max_positions=None) == tower
    with pytest.raises(zipper_jax.UserError, match=r"the nearest, llama, does not support its embedding_scale = 9.8"):
        to_hf.family_of(dataclasses.replace(tower, embedding_scale=9.8))
    with pytest.raises(
        zipper_jax.UserError, match="--family qwen2: cannot represent this tower's attention_bias = 'none'"
    ):
        to_hf.family_of(tower, "qwen2")

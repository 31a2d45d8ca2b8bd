"""Entry points that read models: tokenizers, vocabularies, weights, model folders, gin."""

import importlib.util
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tensorstore
from flax.serialization import msgpack_serialize
from property import Entry, entry_point
from valid_files import SENTENCES, files_below, hugging_face, model_files, unit_tokenizer_files, vocabulary_files

import gin
from zipper_jax.api import load
from zipper_jax.cli import gin_bindings, gin_flags
from zipper_jax.conversion import from_hf
from zipper_jax.conversion.gguf import GGUFFile
from zipper_jax.conversion.hugging_face import FAMILIES, read_tower
from zipper_jax.conversion.t5x_checkpoint import Reader
from zipper_jax.conversion.t5x_gin import GinFiles
from zipper_jax.models.config import TowerConfig
from zipper_jax.speech.tokenizers import load_tokenizer
from zipper_jax.vocabularies import load_vocabulary, tokenizer_files


def _tokenizer(source: Path, out: Path) -> None:
    for kind in ("fitted", "given"):
        tokenizer = load_tokenizer(source / kind)
        assert tokenizer.num_units > 0
        assert tokenizer.rate_hz > 0
        assert tokenizer.digest
        if kind == "fitted":
            units = tokenizer.encode(np.full(1600, 0.1, np.float32))
            assert ((units >= 0) & (units < tokenizer.num_units)).all()


def _gguf(source: Path, out: Path) -> None:
    file = GGUFFile(source / "a.gguf")
    plan = from_hf.plan_gguf(file)
    plan.write(lambda leaf, array, layer: None)
    tokenizer_files.made_vocabulary(file.tokenizer(), str(file.folder), plan.config, plan.tower.vocab_size)


def _convert(source: Path, out: Path) -> None:
    plan = from_hf.plan(source)
    written: dict[str, int] = {}

    def put(leaf: str, array: np.ndarray, layer: int | None) -> None:
        written[leaf] = written.get(leaf, 0) + array.size

    list(plan.lines())
    plan.write(put)
    assert sum(written.values()) == plan.count, "not every parameter was written"


def _hf_tokenizer(source: Path, out: Path) -> None:
    config = from_hf.read_json(source / "config.json")
    vocabulary = tokenizer_files.text_vocabulary(source, config, 400)
    for sentence in SENTENCES[:2]:
        ids = vocabulary.encode(sentence)
        assert ((ids >= 0) & (ids < vocabulary.size)).all()
        vocabulary.decode(ids)
        vocabulary.unknown(sentence)


@entry_point
def families() -> Entry:
    sizes = {"vocab_size": 64, "num_layers": 3, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
    valid = []
    for family in FAMILIES.values():
        tower = TowerConfig(**sizes, mlp_dim=16, activation="silu")
        about = family.fields(tower) | {"model_type": family.model_type, "architectures": [family.architecture]}
        about |= {"hidden_act": "silu"} if "hidden_act" in about else {}
        about |= {name: "relu" for name in ("activation_function",) if name in about}
        about |= {"hidden_activation": "gelu_pytorch_tanh"} if about.get("hidden_activation") else {}
        valid.append(json.dumps({name: value for name, value in about.items() if value is not None}).encode())
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for scaling in (rope, llama3 | {"original_max_position_embeddings": 32}):
        valid.append(json.dumps(json.loads(valid[0]) | {"rope_scaling": scaling}).encode())

    def call(source: Path, out: Path) -> None:
        path = source / "config.json"
        config = from_hf.read_json(path)
        family, tower = read_tower(config, str(path))
        assert tower.num_layers == config.get("num_hidden_layers", config.get("n_layer"))
        assert family.fields(tower)

    return Entry(
        "families", {"config.json": valid}, call, ("conversion/hugging_face/fields.py", "models/config_parts.py")
    )


def _vocabularies(source: Path, out: Path) -> None:
    for kind in ("bytes", "symbols", "units", "pieces", "tokens"):
        vocabulary = load_vocabulary(source / kind)
        content: Any = [1, 2] if kind == "units" else "a b" if kind == "symbols" else "open the door"
        ids = vocabulary.encode(content)
        assert ((ids >= 0) & (ids < vocabulary.size)).all()
        decoded = vocabulary.decode([vocabulary.begin_id, *ids, vocabulary.end_id])
        assert (decoded.tolist() if kind == "units" else decoded) == content


# Model folders and gin


def _model_folder(source: Path, out: Path) -> None:
    model = load(source)
    assert set() < set(model.layout) <= {"text", "speech"}  # a modality may be left out, not made up
    assert all(count >= 1 for count in model.max_new_tokens.values())


_GIN = b"""\
# A run.
include 'runs/pretrain_text.gin'
DATA = 'data'
MODEL_DIR = 'runs/x'
TRAIN_STEPS = 10
BATCH_SIZE = 4
OptimizerConfig.learning_rate = 2e-3
OptimizerConfig.warmup_steps = 5
TrainConfig.seed = 3
FreezeConfig.towers = ()
"""


def _gin(source: Path, out: Path) -> None:
    try:
        gin_flags.apply(gin_flags.parse([f"--gin_file={source / 'run.gin'}"]))
    finally:
        gin.clear_config()


def _gin_flag(source: Path, out: Path) -> None:
    """Each line is one argument, as a shell gives it."""
    text = (source / "flags").read_bytes().decode(errors="surrogateescape").replace("\0", "")
    try:
        gin_flags.apply(gin_flags.parse([*text.split("\n"), f"--gin.DATA={source}"]))
        gin_bindings.train_config()
    finally:
        gin.clear_config()


def _t5x_gin(source: Path, out: Path) -> None:
    found = GinFiles([source / "t5x.gin"])
    for name in ("T5Config", "DecoderConfig"):
        found.parameters(name)
    list(found.bound("vocab_size"))


_T5X = b"""\
from __gin__ import dynamic_registration
import seqio
HEADS = 2
network.T5Config:
  vocab_size = 64
  emb_dim = 16
  num_heads = %HEADS
  dtype = 'bfloat16'
  mlp_activations = ('gelu', 'linear')
models.DecoderOnlyModel.module = @network.Transformer()
"""


@entry_point
def tokenizer() -> Entry:
    modules = ("speech/tokenizer.py", "speech/tokenizers.py", "speech/given_units.py")
    return Entry("tokenizer", {n: [c] for n, c in unit_tokenizer_files().items()}, _tokenizer, modules)


@entry_point
def vocabularies() -> Entry:
    modules = tuple(
        f"vocabularies/{name}.py" for name in ("__init__", "symbols", "units", "text", "hugging_face", "files")
    )
    return Entry("vocabularies", {n: [c] for n, c in vocabulary_files().items()}, _vocabularies, modules)


@entry_point
def convert() -> Entry:
    modules = ("conversion/from_hf.py", "checkpoint/safetensors_files.py", "conversion/hugging_face/fields.py")
    return Entry("convert", {n: [c] for n, c in hugging_face().items() if "token" not in n}, _convert, modules)


if importlib.util.find_spec("gguf"):

    @entry_point
    def gguf() -> Entry:
        from tiny_gguf import write_gguf

        with TemporaryDirectory() as folder:
            write_gguf(Path(folder) / "a.gguf", "Q4_1", tied=True)
            content = (Path(folder) / "a.gguf").read_bytes()
        return Entry("gguf", {"a.gguf": [content]}, _gguf, ("conversion/gguf.py",))


@entry_point
def hf_tokenizer() -> Entry:
    files = {n: [c] for n, c in hugging_face().items() if "token" in n or n == "config.json"}
    return Entry(
        "hf_tokenizer", files, _hf_tokenizer, ("vocabularies/tokenizer_files.py", "vocabularies/hugging_face.py")
    )


@entry_point
def model() -> Entry:
    files = {n: [c] for n, c in model_files().items()}
    modules = (
        "checkpoint/run_format.py",
        "utils/configs.py",
        "models/config.py",
        "models/config_parts.py",
        "checkpoint/model_folder.py",
    )
    return Entry("model", files, _model_folder, modules, ("config.json", "model.safetensors"))


@entry_point
def gin_file() -> Entry:
    return Entry("gin_file", {"run.gin": [_GIN]}, _gin, ("cli/gin_flags.py",))


@entry_point
def gin_flag() -> Entry:
    arguments = b"--gin_file=runs/pretrain_text.gin\n--gin.MODEL_DIR=y\n--gin.TRAIN_STEPS=5\n--gin.TrainConfig.seed=1"
    about = {"vocabularies/text/vocabulary.json": [vocabulary_files()["bytes/vocabulary.json"]]}
    modules = ("cli/gin_flags.py", "cli/gin_bindings.py")
    return Entry("gin_flag", {"flags": [arguments], **about}, _gin_flag, modules, ("flags",), names_file=False)


@entry_point
def t5x_gin() -> Entry:
    return Entry("t5x_gin", {"t5x.gin": [_T5X]}, _t5x_gin, ("conversion/t5x_gin.py",))


def _t5x_checkpoint(source: Path, out: Path) -> None:
    reader = Reader(source / "checkpoint_7")
    for name in reader.names:
        assert reader.read(name).shape == tuple(reader.shape(name))


@entry_point
def t5x_checkpoint() -> Entry:
    leaf = np.arange(6, dtype=np.float32).reshape(2, 3)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "target.b/"}, "metadata": {"shape": [2, 3]}}
    tree = {"version": 3, "optimizer": {"target": {"a": leaf, "b": spec}, "state": {"step": np.int32(7)}}}
    with TemporaryDirectory() as folder:
        store = {"driver": "zarr", "dtype": "float32", "kvstore": {"driver": "file", "path": f"{folder}/target.b/"}}
        about = {"shape": [2, 3], "chunks": [2, 2], "compressor": {"id": "gzip"}}
        tensorstore.open(store | {"metadata": about}, create=True).result().write(leaf).result()
        files = {f"checkpoint_7/{name}": [content] for name, content in files_below(Path(folder)).items()}
    files["checkpoint_7/checkpoint"] = [msgpack_serialize(tree)]
    return Entry("t5x_checkpoint", files, _t5x_checkpoint, ("conversion/t5x_checkpoint.py",))

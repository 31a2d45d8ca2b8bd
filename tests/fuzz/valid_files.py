"""Valid files of several entry points."""

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import tiny
from safetensors.numpy import save

from zipper_jax.checkpoint.model_folder import write_model_folder
from zipper_jax.checkpoint.safetensors_files import INDEX
from zipper_jax.conversion import from_hf
from zipper_jax.conversion.hugging_face import FAMILIES
from zipper_jax.models.config import TowerConfig
from zipper_jax.speech.given_units import GivenUnits
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.utils.trees import flatten
from zipper_jax.vocabularies import (
    ByteVocabulary,
    SymbolVocabulary,
    UnitVocabulary,
    tokenizer_files,
    train_sentencepiece,
)

SENTENCES = [f"{verb} the {thing}" for verb in ("open", "close", "paint") for thing in ("door", "window", "box")]


def lines(rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@cache
def sound(kind: str = "WAV", rate: int = 16_000, channels: int = 1) -> bytes:
    """A tenth of a second of noise."""
    content, noise = io.BytesIO(), np.random.default_rng(0).uniform(-0.1, 0.1, (rate // 10, channels))
    soundfile.write(content, noise, rate, format=kind)
    return content.getvalue()


@cache
def model_files() -> Mapping[str, bytes]:
    """A model folder of text and speech, with random weights."""
    config, params = tiny.pair(), tiny.random_params(tiny.pair())
    leaves = flatten(params)
    with TemporaryDirectory() as folder:
        write_model_folder(
            Path(folder) / "m",
            config,
            {name: (leaf.dtype, leaf.shape) for name, leaf in leaves.items()},
            lambda writer: [writer.write(name, leaf) for name, leaf in leaves.items()],
            {"text": SymbolVocabulary([chr(97 + n) for n in range(20)]), "speech": UnitVocabulary(17, 25.0)},
            tiny.PAIR_LENGTHS,
        )
        return files_below(Path(folder) / "m")


@cache
def unit_tokenizer_files() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
        UnitTokenizer.fit([noise], num_units=4).save(Path(folder) / "fitted")
        GivenUnits(20, 50.0, "made up").save(Path(folder) / "given")
        return files_below(Path(folder))


@cache
def hugging_face() -> dict[str, bytes]:
    """A Hugging Face folder: a byte-level tokenizer and a Llama of two layers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    tower = TowerConfig(
        vocab_size=tokenizer.get_vocab_size(), num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8,
        mlp_dim=16, activation="silu",
    )  # fmt: skip
    family = FAMILIES["llama"]
    about = family.fields(tower) | {"model_type": "llama", "architectures": [family.architecture]}
    rng, shapes, tensors = np.random.default_rng(0), from_hf.tower_shapes(tower), {}
    for rule in from_hf.rules_for(family.rules, shapes):
        shape = rule.shape([from_hf.of_one_layer(shapes[leaf], rule) for leaf in rule.leaves])
        for layer in range(2) if rule.per_layer else (None,):
            tensors[rule.name.format(layer=layer)] = rng.standard_normal(shape).astype(np.float16)
    half = sorted(tensors)[: len(tensors) // 2]
    parts = {"a.safetensors": half, "b.safetensors": sorted(tensors.keys() - set(half))}
    weight_map = {name: file for file, names in parts.items() for name in names}
    return {
        "config.json": json.dumps(about).encode(),
        INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        **{file: save({name: tensors[name] for name in names}) for file, names in parts.items()},
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": b'{"bos_token": "<s>", "eos_token": {"content": "</s>"}}',
    }


@cache
def vocabulary_files() -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        ByteVocabulary().save(folder / "bytes")
        SymbolVocabulary(["a", "b", "c"]).save(folder / "symbols")
        UnitVocabulary(20, 50.0, first=2, rows=30, begin_id=0, end_id=1).save(folder / "units")
        train_sentencepiece(SENTENCES, 40).save(folder / "pieces")
        (folder / "hf").mkdir()
        for file, content in hugging_face().items():
            (folder / "hf" / file).write_bytes(content)
        tokenizer_files.text_vocabulary(folder / "hf", {}, 400).save(folder / "tokens")
        return {file: content for file, content in files_below(folder).items() if not file.startswith("hf/")}

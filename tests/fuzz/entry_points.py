"""The entry points that read users' text or bytes: each with valid files, the product's call, and what can be counted.

An entry is built when it is first used (`ENTRIES[name]()`), because some need a model or a vocabulary.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import tiny
from property import Entry
from safetensors.numpy import save

import gin
from zipper_jax.api import load
from zipper_jax.checkpoint.model_folder import write_model_folder
from zipper_jax.checkpoint.safetensors_files import INDEX
from zipper_jax.cli import generate, gin_bindings, gin_flags, transcribe
from zipper_jax.conversion import from_hf
from zipper_jax.conversion.hugging_face import FAMILIES, read_tower
from zipper_jax.conversion.t5x_gin import GinFiles
from zipper_jax.data import check_audio
from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.inspect import inspect
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.evaluation.outputs import Outputs
from zipper_jax.models.config import TowerConfig
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.corpus import read_manifest
from zipper_jax.speech.given_units import GivenUnits
from zipper_jax.speech.tokenizer import UnitTokenizer
from zipper_jax.speech.tokenizers import load_tokenizer
from zipper_jax.sweep.scores import read_results
from zipper_jax.utils.trees import flatten
from zipper_jax.vocabularies import (
    ByteVocabulary,
    SymbolVocabulary,
    UnitVocabulary,
    load_vocabulary,
    tokenizer_files,
    train_sentencepiece,
)

SENTENCES = [f"{verb} the {thing}" for verb in ("open", "close", "paint") for thing in ("door", "window", "box")]
_ALL = ImportSettings(validation=0, test=0)


def _lines(rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@cache
def _sound(kind: str = "WAV", rate: int = 16_000, channels: int = 1) -> bytes:
    """A tenth of a second of noise."""
    content, noise = io.BytesIO(), np.random.default_rng(0).uniform(-0.1, 0.1, (rate // 10, channels))
    soundfile.write(content, noise, rate, format=kind)
    return content.getvalue()


# Import formats. Every line of the source is a row of the corpus or a dropped row that is counted.


def _import(kind: str, path: Path, out: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of the manifest, and how many were dropped. Audio is checked in this process."""
    parallel_map = check_audio.parallel_map
    check_audio.parallel_map = lambda target, setup, jobs, processes: (check_audio.make_checker()(job) for job in jobs)
    try:
        header = import_corpus(kind, [path], out, _ALL, processes=1)
    finally:
        check_audio.parallel_map = parallel_map
    for _ in inspect(out):
        pass
    return read_manifest(out), sum(about["count"] for about in header["dropped"].values())


def _source_lines(path: Path) -> list[str | None]:
    """The lines, without empty ones; None: not UTF-8."""
    found: list[str | None] = []
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            text = None if b"\0" in line else line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError:
            text = None
        if text is None or text.strip():
            found.append(text)
    return found


def _count(path: Path, rows: list[dict[str, Any]], dropped: int, headers: int = 0) -> None:
    whole = {row["id"].split("~")[0] for row in rows}
    expected = len(_source_lines(path)) - headers
    assert len(whole) + dropped == expected, f"{len(whole)} rows and {dropped} dropped of {expected} lines"


def _text(source: Path, out: Path) -> None:
    for number, name in enumerate(("a.txt", "b.jsonl")):
        rows, dropped = _import("text", source / name, out / str(number))
        _count(source / name, rows, dropped)
        if name == "a.txt":
            words = [word for line in _source_lines(source / name) if line for word in line.split()]
            mine = [word for row in rows for word in row["text"].split()]
            assert dropped or words == mine, "the words of the corpus are not those of the source"


def _units(source: Path, out: Path) -> None:
    rows, dropped = _import("units", source / "units.jsonl", out)
    _count(source / "units.jsonl", rows, dropped)
    given = [json.loads(line)["units"] for line in _source_lines(source / "units.jsonl") if line] if not dropped else []
    assert dropped or [row["units"] for row in rows] == given


def _table(source: Path, out: Path) -> None:
    for number, name in enumerate(("t.tsv", "t.csv")):
        rows, dropped = _import("table", source / name, out / str(number))
        records = (source / name).read_bytes().split(b"\n")
        if name == "t.csv" and b'"' not in (source / name).read_bytes():
            filled = [line for line in records if line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf")]
            assert len(rows) + dropped == len(filled) - 1, f"{len(rows)} rows, {dropped} dropped, {len(filled)} lines"


def _ljspeech(source: Path, out: Path) -> None:
    rows, dropped = _import("ljspeech", source, out)
    named = {line.split("|")[0].strip() for line in _source_lines(source / "metadata.csv") if line}
    kept = {row["id"] for row in rows}
    assert kept <= named | {name.replace("/", "-") for name in named}
    assert len(kept) + dropped >= len(named - {""})


def _librispeech(source: Path, out: Path) -> None:
    rows, dropped = _import("librispeech", source, out)
    assert len(rows) + dropped >= len(_source_lines(source / "train-clean-100/19/198/19-198.trans.txt"))


def _kaldi(source: Path, out: Path) -> None:
    rows, dropped = _import("kaldi", source, out)
    assert len(rows) + dropped >= len(_source_lines(source / "text"))


_ROWS = [{"id": f"u{n}", "units": [n, 1, 2, 19], "text": text, "seconds": 0.08} for n, text in enumerate(SENTENCES)]
_JSONL = _lines({"text": text, "split": "train", "title": n} for n, text in enumerate(SENTENCES))


def _manifest(source: Path, out: Path) -> None:
    rows = read_manifest(source)
    lines = [line for line in (source / "manifest.jsonl").read_bytes().split(b"\n") if line.strip()]
    assert [json.dumps(row) for row in rows] == [json.dumps(json.loads(line)) for line in lines]
    for _ in inspect(source):
        pass


# Lines of JSON


@cache
def _model_files() -> Mapping[str, bytes]:
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
        return _files_below(Path(folder) / "m")


@cache
def _model() -> Any:
    with TemporaryDirectory() as folder:
        for name, content in _model_files().items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        return load(folder)


def _generate(source: Path, out: Path) -> None:
    path = source / "prompts.jsonl"
    requests = list(generate._read(path, ["text"]))
    for place, request in requests:
        generate._check(_model(), request, place)
    assert len(requests) == sum(bool(line.strip()) for line in path.read_text("utf-8").split("\n"))
    assert sum(map(len, generate._batches((request for _, request in requests), 2))) == len(requests)


def _transcripts(source: Path, out: Path) -> None:
    path = source / "out.jsonl"
    before = path.read_bytes()
    done = transcribe._finished(path, {"model": "m", "beams": 1})
    after = path.read_bytes()
    assert before.startswith(after), "finished lines were changed"
    assert len(before) - len(after) == len(before) - (before.rfind(b"\n") + 1), "more than an unfinished line is gone"
    assert len(done) <= after.count(b"\n")


def _outputs(source: Path, out: Path) -> None:
    path = source / "outputs.jsonl"
    before = path.read_bytes()
    outputs = Outputs(path)
    assert path.read_bytes() == before[: before.rfind(b"\n") + 1], "more than an unfinished line is gone"
    outputs.add({"new": "text"}, {"id": "x"})
    again = Outputs(path)
    for line in path.read_bytes().split(b"\n")[:-1]:
        assert again.get(json.loads(line)["key"]) is not None or b"null" in line
    again.tidy()
    assert Outputs(path).get("new") == "text"


def _results(source: Path, out: Path) -> None:
    rows = read_results(source / "results.jsonl")
    assert len(rows) == sum(bool(line) for line in (source / "results.jsonl").read_text("utf-8").split("\n"))


# Audio, tokenizers, vocabularies


def _audio(source: Path, out: Path) -> None:
    for path in sorted(source.iterdir()):
        waveform = load_audio(path)
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        assert waveform.size
        assert np.isfinite(waveform).all()
        seconds, rate, problem = check_audio.make_checker()((str(path), 0.0, None, None))
        assert problem or (seconds > 0 and rate > 0)


@cache
def _tokenizer_files() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
        UnitTokenizer.fit([noise], num_units=4).save(Path(folder) / "fitted")
        GivenUnits(20, 50.0, "made up").save(Path(folder) / "given")
        return _files_below(Path(folder))


def _tokenizer(source: Path, out: Path) -> None:
    for kind in ("fitted", "given"):
        tokenizer = load_tokenizer(source / kind)
        assert tokenizer.num_units > 0
        assert tokenizer.rate_hz > 0
        assert tokenizer.digest
        if kind == "fitted":
            units = tokenizer.encode(np.full(1600, 0.1, np.float32))
            assert ((units >= 0) & (units < tokenizer.num_units)).all()


@cache
def _hugging_face() -> dict[str, bytes]:
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


def _families() -> Entry:
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


@cache
def _vocabulary_files() -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        ByteVocabulary().save(folder / "bytes")
        SymbolVocabulary(["a", "b", "c"]).save(folder / "symbols")
        UnitVocabulary(20, 50.0, first=2, rows=30, begin_id=0, end_id=1).save(folder / "units")
        train_sentencepiece(SENTENCES, 40).save(folder / "pieces")
        (folder / "hf").mkdir()
        for file, content in _hugging_face().items():
            (folder / "hf" / file).write_bytes(content)
        tokenizer_files.text_vocabulary(folder / "hf", {}, 400).save(folder / "tokens")
        return {file: content for file, content in _files_below(folder).items() if not file.startswith("hf/")}


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
    assert set(model.layout) == {"text", "speech"}
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


def _builders() -> Iterator[Callable[[], Entry]]:
    sources = ("data/sources/lines.py", "data/import_corpus.py", "data/splits.py")

    def text() -> Entry:
        files = {"a.txt": ["\n".join(SENTENCES).encode() + b"\n"], "b.jsonl": [_JSONL]}
        return Entry("text", files, _text, ("data/sources/text.py", *sources))

    def units() -> Entry:
        files = {"units.jsonl": [_lines(_ROWS)], "header.json": [b'{"num_units": 20, "rate_hz": 50, "name": "n"}']}
        return Entry("units", files, _units, ("data/sources/units.py", "speech/given_units.py", *sources))

    def table() -> Entry:
        header = ["id", "audio", "text", "split", "voice", "start", "end"]
        records = [header] + [[f"u{n}", "a.wav", t, "train", "v", "0.01", "0.09"] for n, t in enumerate(SENTENCES[:4])]
        quoted = io.StringIO()
        csv.writer(quoted, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(records)
        tabs, commas = ("".join(mark.join(r) + "\n" for r in records).encode() for mark in "\t,")
        files = {"t.tsv": [tabs], "t.csv": [commas, quoted.getvalue().encode()], "a.wav": [_sound()]}
        return Entry(
            "table", files, _table, ("data/sources/table.py", "data/sources/columns.py", *sources), ("t.tsv", "t.csv")
        )

    def ljspeech() -> Entry:
        lines = "".join(f"a{n}|{text}, {n}|{text}\n" for n, text in enumerate(SENTENCES[:3]))
        files = {"metadata.csv": [lines.encode()], **{f"wavs/a{n}.wav": [_sound()] for n in range(3)}}
        return Entry("ljspeech", files, _ljspeech, ("data/sources/ljspeech.py", *sources), ("metadata.csv",))

    def librispeech() -> Entry:
        home = "train-clean-100/19/198/19-198"
        lines = "".join(f"19-198-{n:04d} {text.upper()}\n" for n, text in enumerate(SENTENCES[:2]))
        files = {f"{home}.trans.txt": [lines.encode()], **{f"{home}-{n:04d}.flac": [_sound("FLAC")] for n in range(2)}}
        modules = ("data/sources/librispeech.py", *sources)
        return Entry("librispeech", files, _librispeech, modules, (f"{home}.trans.txt",))

    def kaldi() -> Entry:
        files = {
            "wav.scp": [b"r r.wav\nq r.wav\n"],
            "text": [b"a open the door\nb close the box\n"],
            "segments": [b"a r 0.01 0.05\nb q 0 -1 0\n"],
            "utt2spk": [b"a x\nb y\n"],
        }
        return Entry("kaldi", files | {"r.wav": [_sound()]}, _kaldi, ("data/sources/kaldi.py", *sources), tuple(files))

    def manifest() -> Entry:
        rows = [{"id": "a", "split": "train", "text": "open it"}, {"id": "b", "split": "test", "units": [1, 2]}]
        rows += [
            {"id": "c", "split": "train", "audio": "c.wav", "start": 0.5, "seconds": 1.0, "voice": "v", "text": "x"}
        ]
        about = {
            "format_version": 1,
            "settings": {},
            "counts": {"train": 2},
            "complete": True,
            "units": {"num_units": 9, "rate_hz": 25},
        }
        files = {"manifest.jsonl": [_lines(rows)], "corpus.json": [json.dumps(about).encode()]}
        return Entry("manifest", files, _manifest, ("speech/corpus.py", "utils/user_json.py", "data/inspect.py"))

    def prompts() -> Entry:
        rows = [{"prompt": [["text", "a b"], ["speech", [1, 2]]], "outputs": ["speech"]}, {"prompt": []}]
        return Entry(
            "generate", {"prompts.jsonl": [_lines(rows)]}, _generate, ("cli/generate.py", "utils/user_json.py")
        )

    def transcripts() -> Entry:
        rows = [
            {"audio": f"{n}.wav", "text": "é", "seconds": 1.0, "truncated": False, "model": "m", "beams": 1}
            for n in range(3)
        ]
        return Entry("transcripts", {"out.jsonl": [_lines(rows)]}, _transcripts, ("cli/transcribe.py",))

    def outputs() -> Entry:
        rows = [{"key": f"k{n}", "id": n, "output": text} for n, text in enumerate(["a", ["b"], {"c": 1}])]
        return Entry("outputs", {"outputs.jsonl": [_lines(rows)]}, _outputs, ("evaluation/outputs.py",))

    def results() -> Entry:
        rows = [{"arm": "a", "seed": n, "outputs": "x", "measures": {"asr": [[1, 4]]}} for n in range(2)]
        return Entry("results", {"results.jsonl": [_lines(rows)]}, _results, ("sweep/scores.py",))

    def audio() -> Entry:
        files = {
            "a.wav": [_sound(), _sound(channels=2, rate=44_100)], "b.flac": [_sound("FLAC")],
            "c.ogg": [_sound("OGG")], "d.mp3": [_sound("MP3")], "e.aiff": [_sound("AIFF")],
        }  # fmt: skip
        return Entry("audio", files, _audio, ("speech/audio.py", "data/check_audio.py"))

    def tokenizer() -> Entry:
        modules = ("speech/tokenizer.py", "speech/tokenizers.py", "speech/given_units.py")
        return Entry("tokenizer", {n: [c] for n, c in _tokenizer_files().items()}, _tokenizer, modules)

    def vocabularies() -> Entry:
        modules = tuple(
            f"vocabularies/{name}.py" for name in ("__init__", "symbols", "units", "text", "hugging_face", "files")
        )
        return Entry("vocabularies", {n: [c] for n, c in _vocabulary_files().items()}, _vocabularies, modules)

    def convert() -> Entry:
        modules = ("conversion/from_hf.py", "checkpoint/safetensors_files.py", "conversion/hugging_face/fields.py")
        return Entry("convert", {n: [c] for n, c in _hugging_face().items() if "token" not in n}, _convert, modules)

    def hf_tokenizer() -> Entry:
        files = {n: [c] for n, c in _hugging_face().items() if "token" in n or n == "config.json"}
        return Entry(
            "hf_tokenizer", files, _hf_tokenizer, ("vocabularies/tokenizer_files.py", "vocabularies/hugging_face.py")
        )

    def model() -> Entry:
        files = {n: [c] for n, c in _model_files().items()}
        modules = (
            "checkpoint/run_format.py",
            "utils/configs.py",
            "models/config.py",
            "models/config_parts.py",
            "checkpoint/model_folder.py",
        )
        return Entry("model", files, _model_folder, modules, ("config.json", "model.safetensors"))

    def gin_file() -> Entry:
        return Entry("gin_file", {"run.gin": [_GIN]}, _gin, ("cli/gin_flags.py",))

    def gin_flag() -> Entry:
        arguments = (
            b"--gin_file=runs/pretrain_text.gin\n--gin.MODEL_DIR=y\n--gin.TRAIN_STEPS=5\n--gin.TrainConfig.seed=1"
        )
        about = {"vocabularies/text/vocabulary.json": [_vocabulary_files()["bytes/vocabulary.json"]]}
        modules = ("cli/gin_flags.py", "cli/gin_bindings.py")
        return Entry("gin_flags", {"flags": [arguments], **about}, _gin_flag, modules, ("flags",), names_file=False)

    def t5x_gin() -> Entry:
        return Entry("t5x_gin", {"t5x.gin": [_T5X]}, _t5x_gin, ("conversion/t5x_gin.py",))

    yield from (
        text,
        units,
        table,
        ljspeech,
        librispeech,
        kaldi,
        manifest,
        prompts,
        transcripts,
        outputs,
        results,
        audio,
    )
    yield from (tokenizer, vocabularies, convert, hf_tokenizer, _families, model, gin_file, gin_flag, t5x_gin)


ENTRIES: dict[str, Callable[[], Entry]] = {
    {"prompts": "generate", "_families": "families", "gin_flag": "gin_flags"}.get(b.__name__, b.__name__): cache(b)
    for b in _builders()
}
"""name -> its entry."""

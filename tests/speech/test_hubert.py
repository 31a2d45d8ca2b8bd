"""Units of a tiny random HuBERT on disk: the same as those of transformers and a plain nearest centroid."""

import json
import sys

import numpy as np
import pytest
import soundfile

from zipper_jax.cli import main as cli
from zipper_jax.data import prepared
from zipper_jax.data.prepare_examples import write_examples
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.speech.hubert import HubertTokenizer, read_centroids
from zipper_jax.speech.tokenizers import load_tokenizer
from zipper_jax.speech.vocoder import synthesize
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import load_vocabulary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WIDTH, UNITS = 16, 12


def save_hubert(folder, **fields):
    """50 Hz as the base model has it: strides of 320 samples in all."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_feat_extract_layers=7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        **fields,
    )
    transformers.HubertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    return save_hubert(tmp_path_factory.mktemp("hubert"))


@pytest.fixture(scope="module")
def waveform():
    return np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


def features(hubert, waveform, layer):
    model = transformers.HubertModel.from_pretrained(hubert).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(waveform)[None], output_hidden_states=True).hidden_states[layer][0].numpy()


def nearest(frames, centroids):
    return np.square(frames[:, None] - centroids).sum(-1).argmin(1)


@pytest.fixture(scope="module")
def kmeans(hubert, waveform, tmp_path_factory):
    path = tmp_path_factory.mktemp("km") / "km.npy"
    np.save(path, features(hubert, waveform, 2)[::4][:UNITS])
    return path


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_units_are_those_of_transformers(hubert, kmeans, waveform, layer):
    centroids = read_centroids(kmeans)
    tokenizer = HubertTokenizer(hubert, layer, centroids)
    assert (tokenizer.num_units, tokenizer.rate_hz) == (UNITS, 50.0)
    units = tokenizer.encode(waveform)
    assert len(units) == 49
    np.testing.assert_array_equal(units, nearest(features(hubert, waveform, layer), centroids))
    if layer == 2:
        assert len(set(units.tolist())) > 4


def test_two_frames_pooled_make_25_hz(hubert, kmeans, waveform):
    tokenizer = HubertTokenizer(hubert, 2, read_centroids(kmeans), pooled=2)
    assert tokenizer.rate_hz == 25.0
    frames = features(hubert, waveform, 2)[:48].reshape(24, 2, WIDTH).mean(1)
    np.testing.assert_array_equal(tokenizer.encode(waveform), nearest(frames, read_centroids(kmeans)))
    assert tokenizer.encode(waveform[:10]).shape == (1,)
    assert tokenizer.encode(waveform[:720]).shape == (1,)


def test_waveforms_are_normalised_where_the_model_was_trained_so(waveform, tmp_path):
    folder = save_hubert(tmp_path, feat_extract_norm="layer", conv_bias=True)
    model = transformers.HubertModel.from_pretrained(folder)
    for name, parameter in model.feature_extractor.named_parameters():
        if name.endswith("conv.bias"):  # 0 in a new model; through them the level counts
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    centroids = features(folder, waveform, 2)[:UNITS]
    plain = HubertTokenizer(folder, 2, centroids)
    quiet, normal = plain.encode(0.1 * waveform), plain.encode((waveform - waveform.mean()) / waveform.std())
    assert not np.array_equal(quiet, normal)
    digest = plain.digest
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    normalising = HubertTokenizer(folder, 2, centroids)
    np.testing.assert_array_equal(normalising.encode(0.1 * waveform), normal)
    assert normalising.digest != digest


def test_the_command_writes_a_folder_that_refers_to_the_weights(hubert, kmeans, waveform, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    arguments = ["data", "tokenizer", "--hubert", str(hubert), "--layer", "2", "--kmeans", str(kmeans)]
    assert cli.main([*arguments, "--vocoder", "speak {units} {wav}", "--out", str(out)]) == 0
    assert capsys.readouterr().err.endswith(f"{out}: {UNITS} units at 50 Hz\n")
    home = out / "vocabularies" / "speech"
    tokenizer = load_tokenizer(home)
    np.testing.assert_array_equal(
        tokenizer.encode(waveform), HubertTokenizer(hubert, 2, read_centroids(kmeans)).encode(waveform)
    )
    assert load_vocabulary(home).codebook == tokenizer.digest
    assert not list(out.rglob("*.safetensors"))
    with pytest.raises(UserError, match=r"no built-in vocoder.* speak \{units\} \{wav\}"):
        synthesize(tokenizer, np.array([1], np.int32))
    assert cli.main([*arguments, "--out", str(out)]) == 2
    assert "exists; give a folder that does not" in capsys.readouterr().err

    about = json.loads((home / "tokenizer.json").read_text())
    (home / "tokenizer.json").write_text(json.dumps(about | {"model": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"these units, '.*gone', does not exist: restore it"):
        load_tokenizer(home)
    (home / "tokenizer.json").write_text(json.dumps(about | {"layer": 1}))
    with pytest.raises(UserError, match="is not the one that"):
        load_tokenizer(home)
    (home / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        load_tokenizer(home)


def test_prepare_uses_them(hubert, kmeans, waveform, tmp_path):
    soundfile.write(tmp_path / "a.wav", waveform, 16_000, subtype="FLOAT")
    row = {"id": "a", "split": "train", "text": "hello", "audio": "a.wav"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ["--layer", "2", "--kmeans", str(kmeans), "--pooled", "2", "--out", str(tmp_path / "tokenizer")]
    assert cli.main(["data", "tokenizer", "--hubert", str(hubert), *arguments]) == 0
    settings = PrepareSettings(tokenizer=str(tmp_path / "tokenizer"), text_vocabulary="bytes")
    header = write_examples(tmp_path, tmp_path / "out", settings, False, 1)
    assert (header["num_units"], header["rate_hz"]) == (UNITS, 25.0)
    units = HubertTokenizer(hubert, 2, read_centroids(kmeans), pooled=2).encode(waveform)
    np.testing.assert_array_equal(next(prepared.read_examples(tmp_path / "out", "train"))["units"], units)
    assert load_vocabulary(tmp_path / "out" / "vocabularies" / "speech").codebook == header["tokenizer"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layer": 4}, "layer = 4: this model has 0 .* to 3"),
        ({"pooled": 0}, "pooled = 0"),
        ({"centroids": np.zeros((4, 5), np.float32)}, r"shape \(4, 5\): this model needs \[units, 16\]"),
        ({"vocoder": "speak"}, "give a command with {units} and {wav}"),
        ({"model": "nowhere"}, r"nowhere/config\.json' cannot be read"),
    ],
)
def test_what_does_not_fit(hubert, kmeans, change, message):
    given = {"model": hubert, "layer": 2, "centroids": read_centroids(kmeans)}
    with pytest.raises(UserError, match=message):
        HubertTokenizer(**given | change)


def test_files_that_are_no_kmeans(tmp_path):
    path = tmp_path / "km.npy"
    path.write_bytes(b"\x80\x04sklearn")
    with pytest.raises(UserError, match=r"cannot be read .*cluster_centers_"):
        read_centroids(path)
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match="no finite array of shape"):
        read_centroids(path)


def test_without_torch_the_error_says_what_to_install(hubert, kmeans, waveform, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install --editable '\.\[verify\]'"):
        HubertTokenizer(hubert, 2, read_centroids(kmeans)).encode(waveform)

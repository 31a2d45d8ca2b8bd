"""`zipper demo`: what it refuses, and the page itself, clicked through by a headless browser where there is one."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from browser import open_page
from tiny_run import tone, write_run

from zipper_jax import load
from zipper_jax.cli.main import main
from zipper_jax.evaluation.attention import cross_attention
from zipper_jax.inference.model import Model
from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.models.zipper import init_params
from zipper_jax.vocabularies import ByteVocabulary, UnitVocabulary

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("demo"))


def test_without_gradio_it_says_how_to_get_it(run, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo", "--model", str(run)]) == 2
    assert capsys.readouterr().err == (
        "error: zipper demo needs gradio, which is not installed: pip install --editable '.[demo]' in the checkout\n"
    )
    assert main(["demo", "--model", str(run), "--port", "0"]) == 2
    assert "--port = 0: give 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["asr", "tts"])
def test_attention_of_both_directions_has_text_on_the_first_axis(run, task):
    tokens, weights = cross_attention(load(run), "go", [1, 2, 3, 4, 5], task)
    assert tokens == ["<bos>", "g", "o", "<eos>"]
    assert {w.shape for w in weights.values()} == {(2, 4, 5)}
    sums = weights[0].sum(2 if task == "asr" else 1)
    assert (sums <= 1 + 1e-5).all()
    assert sums.max() > 0.5, "text looks into speech, or speech into text"


def test_attention_takes_unit_numbers_not_token_ids():
    """In a vocabulary whose units begin at another id: the weights are those of the same ids."""
    text, ids = ByteVocabulary().size, 19
    model = ZipperConfig(
        towers={name: TowerConfig(n, 1, 16, **SIZES) for name, n in (("text", text), ("speech", ids))},
        modalities={"text": ModalityConfig("text", text), "speech": ModalityConfig("speech", ids)},
        zips=(ZipConfig(("speech", "text"), pairs=((1, 1),), gate_init=1.0),),
    )
    params = init_params(model, 0)

    def weights(speech, units):
        vocabularies = {"text": ByteVocabulary(), "speech": speech}
        return cross_attention(Model(model, params, vocabularies, {"text": 16, "speech": 16}), "go", units, "asr")[1]

    found = weights(UnitVocabulary(12, 25.0, first=5), [0, 1, 2])
    np.testing.assert_array_equal(found[0], weights(UnitVocabulary(17, 25.0), [5, 6, 7])[0])
    assert not np.array_equal(found[0], weights(UnitVocabulary(17, 25.0), [0, 1, 2])[0])


def test_a_single_decoder_has_no_zip_to_look_into():
    text, units = ByteVocabulary(), UnitVocabulary(12, 25.0)
    model = ZipperConfig(
        towers={"decoder": TowerConfig(text.size + units.size, 1, 16, **SIZES)},
        modalities={
            "text": ModalityConfig("decoder", text.size),
            "speech": ModalityConfig("decoder", units.size, offset=text.size),
        },
    )
    loaded = Model(model, init_params(model, 0), {"text": text, "speech": units}, {"decoder": 64})
    assert cross_attention(loaded, "go", [1, 2, 3], "asr") == (["<bos>", "g", "o", "<eos>"], {})


@pytest.fixture(scope="module")
def page(run):
    """The page in a browser, and every address that the browser asked for."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "zipper_jax.cli.main", "demo", "--model", str(run), "--port", str(port)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open_page() as shown:
        server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
        try:
            wait_for(port, server)
            asked: list[str] = []
            shown.on("request", lambda request: asked.append(request.url))
            shown.goto(f"http://127.0.0.1:{port}")
            yield shown, asked, port
        finally:
            server.terminate()
            server.wait(30)


def wait_for(port: int, server: subprocess.Popen) -> None:
    ends = time.monotonic() + 300
    while time.monotonic() < ends:
        assert server.poll() is None, "the server has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("no page after 300 s")


@pytest.mark.slow
def test_speech_becomes_text_and_text_speech_with_pictures(page, run, tmp_path):
    shown, asked, port = page
    sound = tone(tmp_path / "a.wav", 22_050, 1)
    shown.locator("input[type=file]").first.set_input_files(str(sound))
    shown.locator("audio, [data-testid^=waveform]").first.wait_for(state="attached")
    shown.get_by_role("button", name="Transcribe").click()
    shown.frame_locator("iframe").first.locator("svg image").first.wait_for(state="attached")
    assert shown.get_by_role("textbox").first.input_value() == load(run).transcribe(sound)

    shown.get_by_role("tab", name="Text to speech").click()
    shown.get_by_role("button", name="Speak").click()
    shown.get_by_text("Write a sentence first.").wait_for()
    shown.get_by_label("Sentence").fill("go on")
    shown.get_by_role("button", name="Speak").click()
    if len(load(run).speak("go on").units):
        shown.locator("iframe").nth(1).wait_for(state="attached")
    else:
        shown.get_by_text("The model generated no unit").wait_for()

    elsewhere = [url for url in asked if not url.startswith((f"http://127.0.0.1:{port}", "data:", "blob:"))]
    assert not elsewhere

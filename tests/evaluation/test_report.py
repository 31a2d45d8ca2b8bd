"""The report: from small real files to one page that needs nothing else."""

import base64
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from zipper_jax.reports import tables
from zipper_jax.reports.plots import curves
from zipper_jax.reports.report import write_report
from zipper_jax.training.goodput import Goodput
from zipper_jax.training.monitor import Monitor
from zipper_jax.utils.errors import UserError

RESULTS = {
    "asr_wer_test": 0.0624,
    "asr_wer_test_other": 0.1311,
    "asr_wer_shuffled_audio": 0.874,
    "asr_wer_no_audio": 0.912,
    "asr_wer_gates_zero": 0.955,
    "tts_wer_test": 0.2042,
    "tts_wer_gold_units": 0.1187,
    "tts_wer_raw_audio": 0.0411,
    "tts_wer_shuffled_text": 0.893,
    "tts_truncated": 0.0167,
    "judge_wer_noise": 0.964,
    "judge_wer_reversed": 0.533,
    "single_decoder_asr_wer_test": 0.0981,
    "single_decoder_asr_wer_test_other": 0.2013,
    "single_decoder_asr_wer_shuffled_audio": 0.861,
    "single_decoder_asr_wer_no_audio": 0.907,
    "single_decoder_tts_wer_test": 0.3333,
    "single_decoder_tts_wer_shuffled_text": 0.899,
    "text_ppl_unimodal_before": 6.712,
    "text_ppl_unimodal_after": 6.712,
    "text_ppl_fused_before_paper": 1041.4,
    "text_ppl_fused_after_paper": 7.93,
    "text_ppl_fused_before_identity": 6.712,
    "text_ppl_fused_after_identity": 6.94,
    "speech_ppl_unimodal_before": 21.07,
    "speech_ppl_unimodal_after": 21.93,
    "parameters": {
        "zipper": {"frozen": 1_234_567, "trained": 2_345_678},
        "single_decoder": {"frozen": 0, "trained": 3_400_000},
    },
    "seconds": {"synthesise": 61.4, "pretrain_text": 75.0, "fuse": 240.2, "evaluate": 95.0, "total": 471.6},
    "normaliser": "lower case; only letters, digits and apostrophes",
    "judge": "pocketsphinx en-us, corpus grammar",
    "sentences": {"test": 100, "test_other": 100, "speech": 60},
    "settings": {"beams": 1, "speech_sampling": {"temperature": 0.8, "top_p": None}, "engine": "flite <b>"},
    "some_new_figure": 0.125,
}
SENTENCES = ["the old captain won't sell seven green boats", 'give <script>alert("x")</script> & co one red lamp']


class Page(HTMLParser):
    """Text, tags and addresses of a page, and whether its tags close in their order."""

    VOID = frozenset({"meta", "rect", "path", "image", "circle", "input"})

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.words, self.tags, self.links, self.open = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            (tag, value) for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def sound(path, pitch: float) -> None:
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, 0.2 * np.sin(np.arange(8000) * 2 * np.pi * pitch / 16000), 16000, subtype="PCM_16")


def train(folder, zips: int, steps: int = 120) -> None:
    """A run folder as the real monitor leaves it."""
    folder.mkdir()
    monitor = Monitor(folder, start=0, total=steps, flops_per_step=1e9, peak=None)
    goodput = Goodput(None, time.perf_counter())
    rng = np.random.default_rng(zips)
    for step in range(1, steps + 1):
        loss = 1.5 + 4 * np.exp(-step / 30)
        tasks = {t: {"loss": loss + d, "accuracy": 0.5, "tokens": 9.0} for t, d in (("asr", -0.4), ("tts", 0.5))}
        parts = {"towers": {}, "tasks": tasks if zips else {}}
        values = {"grad_norm": 1.0, "learning_rate": 1e-3}
        if zips:
            opened = [float(np.tanh(step / (90 + 60 * z))) * (-1) ** z for z in range(zips)]
            ways = (f"into_{side}/{gate}_gate" for side in ("text", "speech") for gate in ("attention", "mlp"))
            values["gates"] = {"speech-text": dict.fromkeys(ways, opened)}
        monitor.train(step, loss + 0.2 * float(rng.standard_normal()), parts, values, goodput)
        if step % 20 == 0:
            towers = {"text": {"loss": loss + 0.15, "accuracy": 0.5, "tokens": 9.0}}
            monitor.validation(step, {**parts, "towers": towers}, {})
    monitor.close()


def write_samples(folder) -> None:
    rows = []
    for i, text in enumerate(SENTENCES):
        audio = {name: f"audio/{i}_{name}.wav" for name in ("gold", "gold_units", "zipper", "single_decoder")}
        for k, path in enumerate(audio.values()):
            sound(folder / path, 200 + 60 * k)
        judged = {"zipper": text, "single_decoder": "", "gold_units": text, "raw_audio": text}
        wrong = text.replace("seven green", "eleven")
        rows.append(
            {
                "id": f"test<{i}>",
                "reference": text,
                "asr": {"zipper": text, "single_decoder": wrong},
                "tts_judged": judged,
                "audio": audio,
            }
        )
    (folder / "samples.json").write_text(json.dumps(rows))


def write_attention(folder, zips: int = 2) -> None:
    tokens = np.array(["<bos>", "▁the", "▁old", "▁captain", "▁won", "'", "t", "▁incomprehensibility", "<eos>"])
    T, S = len(tokens), 70
    places, centres = np.arange(S), np.linspace(4, 64, T)[:, None]
    weights = {}
    for k in range(zips):
        w = np.exp(-(((places - centres) / (12 - 8 * k)) ** 2))[None] + 0.02 * np.arange(1, 5)[:, None, None]
        weights[f"weights_{k}"] = (w / w.sum(-1, keepdims=True)).astype(np.float32)
    np.savez(folder / "attention.npz", tokens=tokens, seconds_per_unit=0.04, **weights)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "smoke <run>"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(RESULTS))
    write_samples(folder)
    write_attention(folder)
    train(folder / "text", 0)
    train(folder / "fused", 3)
    (folder / "empty").mkdir()
    runs = {"text tower": folder / "text", "zipper": folder / "fused", "a <new> run": folder / "empty"}
    path = write_report(folder, runs)
    return folder, runs, path, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(written):
    return Page(written[3])


def cells(source: str, label: str) -> list[str]:
    """The numbers of the row that begins with ``label``."""
    row = re.search(rf'<tr[^>]*><th scope="row">{re.escape(label)}<.*?</tr>', source, re.DOTALL)
    return [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row.group(), re.DOTALL)]


def test_nothing_is_fetched(written, parsed):
    """No scripts, and every address is data embedded in the file."""
    assert written[2] == written[0] / "report.html"
    assert "http://" not in written[3]
    assert "https://" not in written[3]
    assert parsed.links
    assert all(link.startswith("data:") for _, link in parsed.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(parsed.tags)
    assert "@import" not in written[3]
    assert "url(" not in written[3]


def test_figures_are_in_their_places(written, parsed):
    source = written[3]
    assert cells(source, "Another sentence&#x27;s audio") == ["87.4 %", "86.1 %"]
    assert cells(source, "Harder test sentences") == ["13.1 %", "20.1 %"]
    assert cells(source, "Gates set to 0") == ["95.5 %", "not measured"]
    assert cells(source, "Gold units") == ["either model 11.9 %"]
    assert cells(source, "Text, fused path, the paper&#x27;s input projection") == ["1,041.40", "7.93"]
    assert cells(source, "Zipper") == ["1,234,567", "2,345,678", "65.5 %"]
    assert cells(source, "fuse")[1] == "4:00"
    for text in ("it took 7:52", "100 test_other", RESULTS["normaliser"], "some_new_figure", "0.125", "top_p"):
        assert text in parsed.text


def test_a_resumed_evaluation_has_no_duration(tmp_path):
    """Of an evaluation that resumed only the last start was timed."""
    seconds = {"fuse": 240.2, "evaluate": None, "total": None}
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | {"seconds": seconds}))
    text = Page(write_report(tmp_path, {}).read_text()).text
    assert "its duration was not measured" in text
    assert "4:00" in text


def test_words_from_files_are_escaped(written, parsed):
    for text in ("<script>alert", "flite <b>", "a <new>", "smoke <run>", "test<0>"):
        assert text not in written[3]
        assert text in parsed.text
    assert "<del>seven green</del> <ins>eleven</ins>" in written[3]


def test_sounds_and_pictures_are_inside(written, parsed):
    folder = written[0]
    sounds = [base64.b64decode(link.split(",")[1]) for tag, link in parsed.links if tag == "audio"]
    assert len(sounds) == 8
    assert sounds[0] == (folder / "audio" / "0_gold.wav").read_bytes()
    pictures = [base64.b64decode(link.split(",")[1]) for tag, link in parsed.links if tag == "image"]
    assert len(pictures) == 2
    assert all(png.startswith(b"\x89PNG") for png in pictures)
    assert {"▁captain", "▁incomprehe…", "seconds of speech"} <= set(parsed.words)


def test_curves_of_each_run(written, parsed):
    """Losses of two runs, one by task, four gates; the run without metrics is named."""
    assert parsed.tags.count("svg") == 2 + 2 + 1 + 4
    assert "No metrics.jsonl yet: a <new> run" in parsed.text
    assert "Zipper: speech-text, into text, attention gate" in parsed.text
    assert {"train ", "validation ", "asr ", "tts ", "zip 3 "} <= set(parsed.words)


def test_goals_follow_the_numbers():
    goals = tables.verdicts(RESULTS)
    assert {name: goal.met for name, goal in goals.items()} == {"asr": True, "other": False, "audio": True, "tts": True}
    assert (
        goals["other"].text == "Harder speech: 13.1 %, at most 12.5 % (twice the test sentences, or twice their goal)"
    )
    on_the_bound = tables.verdicts(
        {"asr_wer_test": 0.08, "asr_wer_test_other": 0.16, "asr_wer_shuffled_audio": 0.24, "tts_wer_gold_units": 0.1}
        | {"tts_wer_test": 0.1 + tables.MOST_TTS_OVER_GOLD}
    )
    assert all(goal.met for goal in on_the_bound.values())
    just_over = tables.verdicts({"asr_wer_test": 0.0803})["asr"]
    assert (just_over.met, just_over.text) == (False, "Speech to text: 8.03 %, at most 8.00 %")


def test_missing_files_and_keys_are_reported(tmp_path):
    """Only results.json has to be there, and it may be empty, or hold null and NaN."""
    for text in ("{}", '{"asr_wer_test": null, "tts_wer_test": NaN, "text_ppl_unimodal": 5.5}'):
        (tmp_path / "results.json").write_text(text)
        source = write_report(tmp_path, {}).read_text(encoding="utf-8")
        page = Page(source)
        assert cells(source, "No audio at all") == ["not measured"] * 2
        assert cells(source, "Gold units") == ["not measured"] * 2
        assert "0 of 4 goals are met" in page.text
        assert "nan" not in page.text.lower().split()
    assert cells(source, "Text, tower alone") == ["5.50", "5.50"]


def test_a_lost_sound_is_named(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "samples.json").write_text('[{"reference": "one", "audio": {"gold": "audio/gone.wav"}}]')
    assert "audio/gone.wav is missing" in write_report(tmp_path, {}).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("results.json", None, "run the evaluation first"),
        ("results.json", "{", "is not a JSON object"),
        ("results.json", "[]", "is not a JSON object but []"),
        ("results.json", '{"asr_wer_test": "low"}', "asr_wer_test is 'low': give a number"),
        ("results.json", '{"seconds": 3}', "seconds = 3: expected an object"),
        ("samples.json", "[1]", "[0] = 1: expected an object"),
        ("attention.npz", "text", "no NumPy file of plain arrays"),
    ],
)
def test_what_a_user_can_fix(tmp_path, name, text, message):
    if name != "results.json":
        (tmp_path / "results.json").write_text("{}")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        write_report(tmp_path, {})
    assert not (tmp_path / "report.html").exists()


def test_attention_must_fit_its_tokens(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    tokens = np.array(["a", "b"])
    np.savez(tmp_path / "attention.npz", tokens=tokens, seconds_per_unit=0.04, weights_0=np.ones((4, 3, 9)))
    with pytest.raises(UserError, match=re.escape("weights_0 has shape (4, 3, 9): give [heads, 2 tokens, units]")):
        write_report(tmp_path, {})
    np.savez(tmp_path / "attention.npz", tokens=tokens)
    with pytest.raises(UserError, match="it needs tokens, seconds_per_unit"):
        write_report(tmp_path, {})


@pytest.mark.parametrize(
    "points", [[(0, 0.0)], [(5, 2.0), (9, 2.0)], [(1, -3e-9), (2, 4e5)], [(1, float("nan")), (2, 1.0)]]
)
def test_curves_of_any_range(points):
    """A single point, a constant, huge ranges and values that are not finite: all is drawn inside the picture."""
    svg = curves({"a": points, "none": []}, title="t", x_label="step", y_label="loss")
    line = re.search(r'class="curve" [^>]*d="M([^"]*)"', svg).group(1)
    places = [tuple(map(float, place.split())) for place in line.split("L")]
    assert all(0 <= x <= 380 and 0 <= y <= 230 for x, y in places)
    assert "nan" not in svg
    assert curves({"none": []}, title="t", x_label="step", y_label="loss") == ""

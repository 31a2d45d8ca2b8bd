"""`zipper eval --split`: from a real (tiny) run and a prepared split to one page, with the controls."""

import json
import re
import shutil

import pytest
from browser import open_page
from test_report import Page
from tiny_run import UNITS, tone, write_run

from zipper_jax.cli.main import main
from zipper_jax.metrics.error_rates import NORMALISER, per_sentence_errors
from zipper_jax.reports.utterances import ORDERS, write_utterances
from zipper_jax.speech.given_units import GivenUnits
from zipper_jax.vocabularies import UnitVocabulary

TEXTS = {"u/1": "on", "u/2": "go on", "u <3>": "off", "silence": "...", "u/5": "on and off"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("utterances"))
    examples = run.parent / "prepared" / "examples"
    examples.mkdir()
    lines = [
        {"id": name, "split": "test", "text": text, "units": [(k + i) % UNITS for i in range(5 + k)], "seconds": 0.2}
        for k, (name, text) in enumerate(TEXTS.items())
    ]
    (examples / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture(scope="module")
def command(run):
    return ["eval", "--run", str(run), "--data", str(run.parent / "prepared"), "--split", "test"]


def test_figures_controls_and_page(command, tmp_path, capsys):
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "utterances.html")
    results = json.loads((tmp_path / "utterances.json").read_text())
    assert set(results["rates"]) == {f"asr_wer_{kind}" for kind in ("test", "shuffled_audio", "no_audio", "gates_zero")}
    rows = results["utterances"]
    assert {row["id"] for row in rows} == {"u/1", "u/2", "u <3>", "u/5"}
    assert results["without_words"] == 1
    assert sum(r["errors"] for r in rows) / sum(r["words"] for r in rows) == pytest.approx(
        results["rates"]["asr_wer_test"]
    )
    assert [row["errors"] for row in rows] == sorted((row["errors"] for row in rows), reverse=True)
    source = (tmp_path / "utterances.html").read_text()
    page = Page(source)
    assert page.tags.count("audio") == 4
    assert all(link.startswith("data:audio/flac;base64,") for _, link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)
    rows_shown = ("Sentences of test", "Another sentence's audio", "Gates set to 0")
    for words in (*rows_shown, "1 without words were skipped", "u <3>", NORMALISER):
        assert words in page.text, words


def test_the_corpus_gives_the_recordings(run, command, tmp_path, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    sound = tone(corpus / "any name.wav", 44_100, 2)
    rows = [{"id": name, "split": "test", "text": text, "audio": sound.name} for name, text in TEXTS.items()]
    (corpus / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--corpus", str(corpus), "--sentences", "2", "--out", str(tmp_path / "out")]
    assert main([*command, *more]) == 0
    results = json.loads((tmp_path / "out" / "utterances.json").read_text())
    assert (len(results["utterances"]), results["left_out"], results["heard"]) == (2, 2, "the recordings")
    sound.write_bytes(b"RIFF, then nothing of use")  # what was measured is not lost for it
    capsys.readouterr()
    assert main([*command, *more[:-1], str(tmp_path / "mute")]) == 0
    assert f"  no sound of 'u/1': audio file {str(sound)!r} cannot be read" in capsys.readouterr().err
    assert "audio" not in Page((tmp_path / "mute" / "utterances.html").read_text()).tags
    (corpus / "manifest.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert main([*command, *more]) == 2
    assert "has no audio for 'u/2' (not in its manifest)" in capsys.readouterr().err


def test_units_that_nothing_makes_audible_leave_the_page_without_sound(run, command, tmp_path, capsys):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    speech = copied / "vocabularies" / "speech"
    for path in speech.iterdir():
        if path.name != "vocabulary.json":
            path.unlink()
    GivenUnits(UNITS, 25.0).save(speech)
    command = [str(copied) if part == str(run) else part for part in command]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "the page will have no sound" in capsys.readouterr().err
    page = Page((tmp_path / "out" / "utterances.html").read_text())
    assert "audio" not in page.tags
    assert "Audio:" not in page.text


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (UnitVocabulary(UNITS + 1, 25.0), "num_units 13, not 12"),
        (UnitVocabulary(UNITS, 50.0), "rate_hz 50.0, not 25.0"),
        (UnitVocabulary(UNITS, 25.0, "theirs"), "codebook theirs, not ours"),
    ],
)
def test_data_of_other_units_is_refused(run, tmp_path, capsys, theirs, message):
    """They would be synthesised as other sounds, and the error rates would count against the model."""
    copied = tmp_path / "all"
    shutil.copytree(run.parent, copied)
    UnitVocabulary(UNITS, 25.0, "ours").save(copied / "run" / "vocabularies" / "speech")
    theirs.save(copied / "prepared" / "vocabularies" / "speech")
    arguments = ["--run", str(copied / "run"), "--data", str(copied / "prepared"), "--split", "test"]
    assert main(["eval", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {str(copied / 'prepared')!r} has other units than ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def write_three(folder):
    """A page of three sentences, and its path."""
    texts = {"b": ("turn the light off", "turn a light"), "a": ("go <on>", "go <on>"), "c": ("stop", "stop it now")}
    rows = [
        {"id": name, "seconds": float(k), **row}
        for k, (name, row) in enumerate(
            zip(texts, per_sentence_errors(*zip(*texts.values(), strict=True)), strict=True)
        )
    ]
    results = {"run": "runs/<x>", "split": "test", "normaliser": NORMALISER, "heard": "x", "without_words": 0}
    results |= {"left_out": 0, "rates": {"asr_wer_test": 4 / 7, "asr_wer_no_audio": 1.0}, "utterances": rows}
    return write_utterances(folder, results)


def test_words_are_marked_and_orders_are_places(tmp_path):
    source = write_three(tmp_path).read_text()
    page = Page(source)
    assert "57.1 % of 7 words in 3 sentences are wrong: 1 substituted, 1 deleted, 2 inserted." in page.text
    assert '<span class="swap"><del>the</del><ins>a</ins></span> light <del>off</del>' in source
    assert "stop <ins>it now</ins>" in source
    assert "go on" in page.text
    assert "runs/<x>" not in source
    places = {
        re.search(r'why">(\w):', line)[1]: dict(re.findall(r"--(\w+):(\d)", line))
        for line in re.findall(r"<li .*?</li>", source, re.DOTALL)
    }
    order = {name: "".join(sorted(places, key=lambda row: places[row][name])) for name in ORDERS}
    assert order == {"errors": "cba", "rate": "cba", "words": "bac", "seconds": "cab", "name": "abc"}
    assert re.search(r'id="by_errors" checked', source)
    assert "main:has(#by_words:checked) .utterances li { order: var(--words); }" in source


@pytest.mark.slow
def test_a_browser_sorts_and_hides_without_a_script(tmp_path):
    path = write_three(tmp_path)
    with open_page() as shown:
        shown.goto(path.as_uri())

        def order() -> str:
            rows = [row for row in shown.locator(".utterances li").all() if row.is_visible()]
            rows.sort(key=lambda row: row.bounding_box()["y"])
            return "".join(row.locator(".why").inner_text()[0] for row in rows)

        assert order() == "cba"
        for label, wanted in (("longest sentence", "bac"), ("longest audio", "cab"), ("name", "abc")):
            shown.get_by_label(label, exact=True).check()
            assert order() == wanted
        shown.get_by_label("only sentences with errors").check()
        assert order() == "bc"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "tset"], "tset.jsonl' does not exist (splits there: test)"),
        (["--split", "test", "--single_decoder", "RUN"], "--single_decoder cannot be combined with --split"),
        ([], "--corpus is missing"),
    ],
)
def test_what_a_user_can_fix(run, command, tmp_path, capsys, more, message):
    named = [str(run) if word == "RUN" else word for word in more]
    assert main([*command[:-2], *named, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

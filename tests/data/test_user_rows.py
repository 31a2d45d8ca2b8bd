"""Manifests and units written by hand: each fault of type is one line with file, line, field, value and fix."""

import json
import re

import making_sources as making
import pytest
from making_sources import sound, write

from zipper_jax.cli import main as cli
from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.speech.corpus import read_header
from zipper_jax.speech.manifest import read_manifest

GOOD = {"id": "a", "split": "train", "text": "open the door"}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"audio": "b.wav", "start": 0.2}, "start = 0.2: without seconds; give both, or neither for the whole file"),
        ({"audio": None}, "audio = null: expected a string; repair the line"),
        ({"audio": ""}, 'audio = "": expected a string of length >= 1; repair'),
        ({"text": 5}, "text = 5: expected a string; repair"),
        ({"audio": "b.wav", "seconds": "1.4"}, 'seconds = "1.4": expected a number; repair'),
        ({"audio": "b.wav", "start": None, "seconds": 1}, "start = null: expected a number; repair"),
        ({"audio": "b.wav", "start": -1, "seconds": 1}, "start = -1: expected a number >= 0.0; repair"),
        ({"split": "dev"}, 'split = "dev": expected one of train, validation, test, test_other; repair'),
        ({"id": 7}, "id = 7: expected a string; repair"),
        ({"id": None}, "id = null: expected a string; repair"),
        ({"units": [1, 1.5]}, "units[1] = 1.5: expected an integer; repair"),
        ({"units": "1 2"}, 'units = "1 2": expected a list; repair'),
        ({"voice": ["v"]}, 'voice = ["v"]: expected a string; repair'),
        ({"channel": -1}, "channel = -1: expected an integer >= 0; repair"),
    ],
)
@pytest.mark.parametrize("command", ["prepare", "inspect"])
def test_a_row_of_other_types(tmp_path, capsys, command, row, message):
    sound(tmp_path / "b.wav", seconds=1.0)
    path = write(tmp_path / "manifest.jsonl", json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"id": "b"} | row) + "\n")
    arguments = {"prepare": ["--corpus", str(tmp_path), "--out", str(tmp_path / "out")], "inspect": [str(tmp_path)]}
    assert cli.main(["data", command, *arguments[command]]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: '{path}' line 3: {message}"), error
    assert not any("Traceback" in line for line in progress)


def test_a_corpus_json_written_by_hand_to_describe_units(tmp_path, capsys):
    write(tmp_path / "manifest.jsonl", json.dumps(GOOD | {"units": [1, 2]}) + "\n")
    about = write(tmp_path / "corpus.json", '{"units": {"num_units": 20, "rate_hz": "25"}}')
    assert read_header(tmp_path)["format_version"] == 1
    arguments = ["data", "prepare", "--corpus", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert f"error: '{about}': units.rate_hz = \"25\": expected a number; give num_units" in capsys.readouterr().err
    write(about, "[]")
    assert cli.main(arguments) == 2
    assert "corpus.json' is not a JSON object but []; repair it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "field, value, problem",
    [
        ("id", None, 'line that is no JSON object with "id" and "units"'),
        ("text", 5, "text that is no string"),
        ("split", ["test"], "split that is no name"),
        ("units", [1, 1.5], "units that are no list of integers"),
        ("units", [True], "units that are no list of integers"),
    ],
)
def test_units_with_fields_of_other_types_are_counted(tmp_path, field, value, problem):
    path = making.units(tmp_path / "u", count=3)
    row = json.loads(path.read_text().split("\n")[0])
    with path.open("a") as file:
        file.write(json.dumps({**row, "id": "bad", field: value}) + "\n")
    header = import_corpus("units", [path], tmp_path / "out", ImportSettings(0, 0), processes=1)
    assert {name: about["count"] for name, about in header["dropped"].items()} == {problem: 1}
    assert re.fullmatch(r"u\d", read_manifest(tmp_path / "out")[-1]["id"])

"""No modality is special: only tools for text and speech, and formats whose columns are called so, name them."""

import ast
from pathlib import Path

import pytest

import zipper_jax

PACKAGE = Path(zipper_jax.__file__).parent
NAMES = ("text", "speech")
ALLOWED = {
    "tasks.py": "the defaults: our modalities and tasks",
    "speech/": "speech tools; a corpus of speech has a column of text",
    "data/sources/": "import formats whose own column is called text",
    "data/import_corpus.py": "the manifest's own column of transcripts, from which splits and counts are made",
    "evaluation/evaluator.py": "the ASR/TTS evaluator: examples' transcripts, and results of speech",
    "evaluation/utterances.py": "the ASR evaluator, sentence by sentence",
    "evaluation/transcription.py": "the ASR evaluator's error rates",
    "sweep/": "a recipe for text and speech",
    "cli/speak.py": "the argument of a speech tool is called text",
    "cli/transcribe.py": "the line that a speech tool writes has a field text",
}
"""File or folder of the package -> why it may name them."""


def named(file: Path) -> list[int]:
    """Lines of ``file`` with one of the names as a whole string: in f-strings, keys and defaults, too."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [node.lineno for node in nodes if isinstance(node, ast.Constant) and node.value in NAMES]


def test_only_these_files_name_text_and_speech():
    found = {}
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        if lines := named(file):
            found[name] = lines
    free = {name: lines for name, lines in found.items() if not name.startswith(tuple(ALLOWED))}
    assert not free, f"take the names from configuration, or from zipper_jax/tasks.py: {free}"
    unused = [entry for entry in ALLOWED if not any(name.startswith(entry) for name in found)]
    assert not unused, f"no longer needed: {unused}"


@pytest.mark.parametrize(
    "source", ['x = "text"', 'f"{a}text{b}"', '{"speech": 1}', 'def f(x="text"): ...', 'match x:\n  case "speech": ...']
)
def test_whole_strings_are_found_wherever_they_are(tmp_path, source):
    (tmp_path / "x.py").write_text(source)
    assert named(tmp_path / "x.py")
    (tmp_path / "y.py").write_text('"""The text of speech."""\nx = f"{y} text", "text_lm"')
    assert not named(tmp_path / "y.py")

"""docs/architecture.md says where to change what: the files it names exist, and no answer needs more than three."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = (
    "tower family", "modality", "task", "fusion", "range", "kernel", "optimizer", "dataset", "checkpoint", "command",
)  # fmt: skip


def rows():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## Where do I change")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    return {subject.strip(): re.findall(r"`((?:zipper_jax|gin)/[^`]+)`", files) for subject, files in lines}


def test_each_question_has_an_answer_in_files_that_exist():
    found = rows()
    for subject in SUBJECTS:
        assert any(subject in row for row in found), f"no row for {subject!r}"
    for subject, files in found.items():
        assert files, subject
        for name in files:
            assert (ROOT / name).exists(), f"{subject}: there is no {name}"


def test_an_answer_is_at_most_three_files():
    for subject, files in rows().items():
        if "family" not in subject:
            assert len(files) <= 3, subject
    family = next(files for subject, files in rows().items() if "family" in subject)
    assert len(family[:2]) <= 3 and len(family[2:]) <= 3  # a family alone; a family that needs a new option of towers


def test_packages_are_listed_as_the_linter_has_them():
    """The order in the text is that of the contract in pyproject.toml."""
    import tomllib

    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sentence = text.split("further down this list")[1].split("\n\n")[0].split(":", 1)[1]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c for c in contracts if c["type"] == "layers")["layers"]
    listed = [{name.removesuffix(".py") for name in re.findall(r"`([a-z_.]+)`", part)} for part in sentence.split(";")]
    assert listed == [set(layer.split(" | ")) for layer in layers]

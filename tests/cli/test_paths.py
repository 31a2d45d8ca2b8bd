"""Paths: `~` is expanded, URLs that cannot be used are refused at once, path-valued macros are strings as they are."""

import argparse
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gin
from zipper_jax.cli import gin_bindings, gin_flags  # noqa: F401  (the former registers what flags may name)
from zipper_jax.cli.gin_path import search_paths
from zipper_jax.cli.main import COMMANDS, command_parser, main
from zipper_jax.training.config import DataConfig, RestoreCheckpointConfig
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.paths import any_path, folder_path, folder_text, local_path, path_text, require_different

URL = "gs://bucket/r"
OTHER = "https://bucket/r"
ONLY_BUCKETS = "of URLs only folders of buckets are supported; give gs://BUCKET/FOLDER"
NO_PATHS = {
    "launch", "completion", "doctor", "train",  # their paths are gin flags, or there are none
}  # fmt: skip


@given(st.sampled_from(["gs", "s3", "https", "file", "hf", "a+b.c-d"]), st.text("ab/ ", max_size=5))
def test_urls_are_refused_and_home_is_expanded(scheme, rest):
    for url in (f"{scheme}://{rest}", Path(f"{scheme}://x{rest}")):
        with pytest.raises(UserError, match=r"^--out = .*URLs and object stores are not supported here; give a path"):
            local_path(url, "--out")
    assert local_path(f"~/{rest}", "--out") == f"{os.path.expanduser('~')}/{rest}"
    for plain in (f"{rest}x", f"runs/lr=1e-3 {rest}", f"./gs:/{rest}", "2024_11_28", "a~b"):
        assert local_path(plain, "--out") == plain
    for wrong in ("", "~nobody_of_this_name/x"):
        with pytest.raises(UserError, match="--out"):
            local_path(wrong, "--out")


def path_arguments():
    """(command words, argument) of every option and positional of a path, subcommands included."""

    def of(words, parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, one in action.choices.items():
                    yield from of([*words, name], one)
            elif action.type in (Path, path_text, folder_text, folder_path):
                yield words, action

    for name in COMMANDS:
        yield from of([name], command_parser(name)[1])


def test_every_command_with_files_has_options_of_paths():
    assert {words[0] for words, _ in path_arguments()} == COMMANDS.keys() - NO_PATHS


CASES = [pytest.param(*one, id="-".join([*one[0], one[1].dest])) for one in path_arguments()]


@pytest.mark.parametrize(("words", "action"), CASES)
def test_a_url_is_refused_by_every_command_before_it_starts(words, action, tmp_path, monkeypatch, capsys):
    """Other required arguments are missing, so nothing but the check of this one can answer with its name."""
    monkeypatch.chdir(tmp_path)
    name = action.option_strings[0] if action.option_strings else action.dest
    of_buckets = action.type in (folder_text, folder_path)
    url = OTHER if of_buckets else URL
    given = [name, url] if action.option_strings else ["list"] * (words == ["sweep"]) + [url]
    assert main([*words, *given]) == 2
    refusal = (
        ONLY_BUCKETS if of_buckets else "URLs and object stores are not supported here; give a path on this machine"
    )
    message = f"error: {name} = '{url}': {refusal}"
    assert capsys.readouterr().err.splitlines()[0].startswith(message)
    assert not any(tmp_path.iterdir())


def test_home_is_expanded_in_options(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.txt").write_text("go on\noff\n" * 4)
    assert main(["data", "import", "text", "~/s.txt", "--out=~/c8"]) == 0
    assert (tmp_path / "c8" / "manifest.jsonl").is_file()
    assert not (tmp_path / "~").exists()
    assert main(["fuse", "--tower", f"text={OTHER}", "--tower", "b=c", "--zips", "text=1,b=1", "--out", "x"]) == 2
    assert f"error: --tower text = '{OTHER}': {ONLY_BUCKETS}" in capsys.readouterr().err


NAMES = ["runs/my run", "runs/lr=1e-3", "2024_11_28", "1e3", "None", "a,b", "x(1)", "it's", '"q"', "é ü", "[1]"]


@pytest.mark.parametrize("name", NAMES)
def test_path_macros_are_strings_as_they_are(name):
    plain = name.strip('"')
    flags = [f"--gin.{macro}={name}" for macro in ("MODEL_DIR", "DATA", "TEXT_RUN", "SPEECH_RUN", "FUSED")]
    gin_flags.apply(gin_flags.parse(flags))
    for macro in ("MODEL_DIR", "DATA", "TEXT_RUN", "SPEECH_RUN", "FUSED"):
        assert gin.query_parameter(f"{macro}/gin.macro.value") == plain


def test_the_known_path_macros_are_those_of_the_gin_files():
    found = set()
    for folder in search_paths()[2:]:
        for file in Path(folder).rglob("*.gin"):
            text = file.read_text()
            for parameter in ("model_dir", "folder", "path", "initialise_from", "task_folders", "DATA"):
                for value in re.findall(rf"\b{parameter}\s*=\s*(.*)", text):
                    found |= set(re.findall(r"%([A-Z_]+)", value))
    assert found
    assert found <= gin_flags.PATHS


@pytest.mark.parametrize("macro", ["MODEL_DIR", "DATA", "TEXT_RUN", "SPEECH_RUN"])
@pytest.mark.parametrize("more", [["--dry_run"], ["--print_config"], []])
def test_a_url_in_a_gin_flag_is_refused_in_the_dry_run_too(macro, more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = {"MODEL_DIR": "r", "TEXT_RUN": "t", "SPEECH_RUN": "s", "DATA": "d", macro: OTHER}
    flags = [f"--gin.{name}={value}" for name, value in values.items()]
    assert main(["train", "--gin_file=runs/fuse.gin", *flags, *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --gin.{macro} = '{OTHER}': {ONLY_BUCKETS}")
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_url_in_a_gin_file_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.gin").write_text(f"include 'runs/fuse.gin'\nDATA = '{OTHER}'\n")
    assert main(["train", "--gin_file=mine.gin", "--gin.MODEL_DIR=r", "--dry_run"]) == 2
    assert f"= '{OTHER}': {ONLY_BUCKETS}" in capsys.readouterr().err


def test_configurations_refuse_urls_and_expand_home():
    home = os.path.expanduser("~")
    assert DataConfig("~/d", "asr_tts", {}, task_folders={"tts": "~/t"}).folder == f"{home}/d"
    assert DataConfig("d", "asr_tts", {}, task_folders={"tts": "~/t"}).task_folders == {"tts": f"{home}/t"}
    assert RestoreCheckpointConfig("~/r").path == f"{home}/r"
    assert DataConfig("gs://bucket/d/", "asr", {}).folder == "gs://bucket/d"
    for make in (lambda: DataConfig(OTHER, "asr", {}), lambda: RestoreCheckpointConfig(OTHER)):
        with pytest.raises(UserError, match=ONLY_BUCKETS):
            make()
    for wrong in (
        "gs://bucket",
        "gs:/bucket/r",
        "gs://bucket//r",
        "gs://bucket/../r",
        "s3://Bucket/r",
        "gs://bucket/r?x\n",
    ):
        with pytest.raises(UserError, match=r"^DATA = .* is no folder of a bucket; write it as gs://BUCKET/FOLDER"):
            any_path(wrong, "DATA")


def test_an_output_that_is_an_input_is_refused_and_the_input_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"prompt": []}\n')
    same = {
        "--output = 'p.jsonl' is --input": ["generate", "--model", "d", "--input", "p.jsonl", "--output", "p.jsonl"],
        "--out = 'link' is --data": ["eval", "--run", ".", "--data", "d", "--split", "test", "--out", "link"],
        "--out = 'd' is --corpus": ["eval", "--run", ".", "--data", ".", "--corpus", "link", "--out", "d"],
        "--out = './d' is the folder": ["data", "inspect", "d", "--out", "./d"],
        "--out = 'd/' is --corpus": ["data", "prepare", "--corpus", "d", "--out", "d/"],
    }
    for message, words in same.items():
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith(f"error: {message}"), error
    assert lines.read_text() == '{"prompt": []}\n'
    assert not any((tmp_path / "d").iterdir())
    with pytest.raises(UserError, match=r"RestoreCheckpointConfig.path, which is only read"):
        require_different("d", "MODEL_DIR", {"RestoreCheckpointConfig.path": tmp_path / "link"})

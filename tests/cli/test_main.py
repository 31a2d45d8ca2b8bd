import json
import platform
import subprocess
import sys
import types

import pytest

import zipper_jax
from zipper_jax.cli import generate, transcribe
from zipper_jax.cli import main as cli
from zipper_jax.sweep.scores import read_results
from zipper_jax.utils.errors import UserError


def command(monkeypatch, run):
    module = types.ModuleType("a_command", "What it does.")
    module.add_arguments = lambda parser: parser.add_argument("--name")
    module.run = run
    monkeypatch.setitem(sys.modules, "a_command", module)
    monkeypatch.setitem(cli.COMMANDS, "try", ("a_command", "tries"))


def test_help_lists_every_command_with_an_example(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, summary) in cli.COMMANDS.items():
        assert f"  {name}" in text
        assert summary in text
    assert "example:" in text


def test_without_arguments_it_helps_and_fails(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_version_prints_the_environment(capsys):
    assert cli.main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"zipper {zipper_jax.__version__} (Python {platform.python_version()}, jax ")
    assert out.count("\n") == 1
    assert cli.main(["--version", "--devices"]) == 0
    assert "devices: 8 x cpu" in capsys.readouterr().out
    assert cli.main(["--version", "--device"]) == 2
    assert "takes --devices or nothing" in capsys.readouterr().err


def test_unknown_command(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: zipper has no command 'trian'; did you mean 'train'?\n"


def test_arguments_and_extras_reach_the_command(monkeypatch):
    seen = []
    command(monkeypatch, lambda args, extra: seen.append((args.name, extra)) or 7)
    sys.modules["a_command"].TAKES_GIN_FLAGS = True
    assert cli.main(["try", "--name", "x", "--gin_file=a.gin", "--gin.A.b=1", "--nam=y"]) == 7
    assert seen == [("x", ["--gin_file=a.gin", "--gin.A.b=1", "--nam=y"])]  # no abbreviations


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("mend this"), 2, "error: mend this\n"),
        (IsADirectoryError(21, "Is a directory", "lines/"), 2, "error: 'lines/': Is a directory\n"),
        (
            OSError(28, "No space"),
            2,
            "error: no room to write ([Errno 28] No space); make room, then run the same command again\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume\n"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, status, line):
    def run(args):
        raise error

    command(monkeypatch, run)
    assert cli.main(["try"]) == status
    assert capsys.readouterr().err == line


def test_lines_of_json_end_at_newlines_alone(tmp_path):
    """JSON may hold other characters that end lines elsewhere, such as U+2028."""
    path = tmp_path / "lines.jsonl"
    row = {"prompt": [["text", "one\u2028two\x85"]], "audio": "a\u2029.wav", "model": "m", "beams": 1}
    path.write_text(2 * (json.dumps(row, ensure_ascii=False) + "\n"), encoding="utf-8")
    assert [request for _, request in generate._read(path, ["text"])] == 2 * [{"outputs": ["text"], **row}]
    assert transcribe._finished(path, path, {"model": "m", "beams": 1}) == {"a\u2029.wav"}
    counts = dict.fromkeys(("seed", "steps", "rows_per_step", "flops", "flops_before", "trained", "frozen"), 1)
    score = {"arm": "a\u2028", **counts, "measures": {"asr": [[0, 1]]}, "letters": [3]}
    path.write_text(json.dumps(score, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_results(path) == [score]


def test_output_into_a_folder_that_is_missing(tmp_path, capsys):
    (tmp_path / "in").write_text("")
    arguments = ["--model", "none", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "no" / "x.jsonl")]
    assert cli.main(["generate", *arguments]) == 2
    assert capsys.readouterr().err.endswith("x.jsonl: the folder does not exist\n")


def test_unknown_options_are_refused_with_a_hint(monkeypatch, capsys):
    command(monkeypatch, lambda args: 0)
    assert cli.main(["try", "--nam=y"]) == 2
    assert capsys.readouterr().err == "error: zipper try has no option '--nam=y'; did you mean '--name'?\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    def run(args):
        raise RuntimeError("a bug")

    command(monkeypatch, run)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["try"])


def test_a_commands_help(monkeypatch, capsys):
    command(monkeypatch, lambda args: 0)
    assert cli.main(["try", "--help"]) == 0
    assert "What it does." in capsys.readouterr().out
    assert cli.main(["try", "--name"]) == 2


def test_importing_the_package_and_the_help_import_neither_jax_nor_tensorflow():
    code = (
        "import sys, zipper_jax; from zipper_jax.cli.main import main; main(['--help']); main(['--version']);"
        "assert not {'jax', 'tensorflow', 'seqio', 'gin'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

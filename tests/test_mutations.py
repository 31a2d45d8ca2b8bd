"""The table of mutations fits the package: a fault that can no longer be put in would prove nothing."""

import re
import subprocess
import sys

import pytest
from mutations import MUTATIONS, ROOT, problems


def test_every_mutation_can_be_put_in():
    """Its text occurs exactly once, its test file exists, its name is its own."""
    assert problems() == []


@pytest.mark.parametrize("command", sorted({m.tests for m in MUTATIONS}))
def test_the_tests_of_a_mutation_are_there(command):
    file, *options = next(m.command for m in MUTATIONS if m.tests == command)
    tests = re.findall(r"def (test_\w+)", (ROOT / file).read_text())
    words = options[1].split(" and ")[0] if options else "test"
    assert options[:1] in ([], ["-k"])
    assert any(words in name for name in tests), f"no test of {file} has {words!r} in its name"


def test_a_table_that_does_not_fit_stops_before_anything_runs(tmp_path):
    script = (ROOT / "tests" / "mutations.py").read_text()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "mutations.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "tests" / "mutations.py"), "length penalty"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "length penalty ignored: 'total / tokens" in done.stderr
    assert "occurs 0 times in decoding/beam.py, not once" in done.stderr
    assert not (tmp_path / "benchmarks").exists()

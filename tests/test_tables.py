"""Tables in the docs are those of the committed results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("script", "name", "page"),
    [
        ("benchmarks/pods.py", "pods", "pods.md"),
        ("benchmarks/preparation.py", "preparation", "your_data.md"),
        ("benchmarks/compute.py", "compute", "findings/README.md"),
        ("benchmarks/attention_tpu.py", "attention_tpu", "performance.md"),
        ("benchmarks/vocab_loss_tpu.py", "vocab_loss_tpu", "performance.md"),
        ("benchmarks/cpu_step.py", "cpu_step", "performance.md"),
        ("benchmarks/packed_rows.py", "packed_rows", "performance.md"),
        ("tests/fuzz/long_run.py", "fuzz", "reliability.md"),
        ("benchmarks/transcribe.py", "transcribe", "performance.md"),
    ],
)
def test_a_table_is_that_of_its_results(script, name, page):
    command = [sys.executable, script, f"--out=benchmarks/results/{name}.json", "--table"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=environment)
    assert done.stdout.strip() in (ROOT / "docs" / page).read_text()

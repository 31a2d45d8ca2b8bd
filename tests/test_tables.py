"""Tables in the docs are those of the committed results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("pods", "pods.md"),
        ("preparation", "your_data.md"),
        ("prepare_shards", "your_data.md"),
        ("bucket_rows", "your_data.md"),
        ("memory", "your_data.md"),
        ("units", "your_data.md"),
        ("compute", "findings/README.md"),
        ("attention_tpu", "performance.md"),
        ("vocab_loss_tpu", "performance.md"),
        ("cpu_step", "performance.md"),
        ("profiles_tpu", "performance.md"),
        ("maxtext_step", "performance.md"),
        ("packed_rows", "performance.md"),
        ("fuzz", "reliability.md"),
        ("transcribe", "performance.md"),
        ("smoke_arms", "smoke.md"),
    ],
)
def test_a_table_is_that_of_its_results(name, page):
    command = [sys.executable, f"benchmarks/{name}.py", f"--out=benchmarks/results/{name}.json", "--table"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=environment)
    assert done.stdout.strip() in (ROOT / "docs" / page).read_text()

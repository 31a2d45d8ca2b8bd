"""A conversion streams: its memory does not grow with the checkpoint."""

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "conversion_memory.py"


@pytest.mark.slow
def test_two_gigabytes_are_converted_in_less_than_one_and_a_half(tmp_path):
    found = runpy.run_path(str(BENCHMARK))["measure"](tmp_path)
    assert found["checkpoint_bytes"] > 1.9e9
    assert found["peak_bytes"] < 1.5e9, found

"""docs/walkthrough.md, typed block by block into one shell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_every_block_of_the_walkthrough_works(tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, line in (("zipper", "-m zipper_jax.cli.main "), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {line}"$@"\n')
        (commands / name).chmod(0o755)
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "walkthrough.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "XLA_FLAGS": "",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail"], input="\n".join(blocks), text=True, cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "errors" / "utterances.html").is_file()
    found = json.loads((tmp_path / "errors" / "utterances.json").read_text())
    assert found["rates"]["asr_wer_test"] < 0.4
    assert found["rates"]["asr_wer_shuffled_audio"] > 0.8
    heard = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert len(heard) == 5
    assert (tmp_path / "off.wav").stat().st_size > 10_000

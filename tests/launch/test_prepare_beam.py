"""Shards in a real Beam pipeline: several workers, one of which is killed in the middle of its shard."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BEAM = ROOT / ".cache" / "beam" / "bin" / "python"

sys.path.append(str(ROOT / "tests" / "data"))
from test_prepare import contents, write_corpus  # noqa: E402
from test_shards import AUDIO, KILLED  # noqa: E402

from zipper_jax.data import prepare_rows  # noqa: E402

needs_beam = pytest.mark.skipif(not BEAM.is_file(), reason="no .cache/beam: see CONTRIBUTING.md")
OPTIONS = ["--text_length=24", "--speech_length=60", "--text_vocabulary_size=24", "--num_units=8", "--open_rows=3"]
OPTIONS += ["--unit_features=log-mel"]
OPTIONS += ["--max_unknown=1", "--shifts=2", "--processes=1"]


def beam(*arguments):
    return subprocess.run(
        [BEAM, ROOT / "launch" / "prepare_beam.py", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@needs_beam
def test_beam_gives_the_bytes_of_one_shard(tmp_path):
    corpus, whole, folder = write_corpus(tmp_path / "corpus"), tmp_path / "whole", tmp_path / "p"
    prepare_rows.prepare(corpus, whole, AUDIO, processes=1)
    (tmp_path / "killed.py").write_text(KILLED)
    zipper = tmp_path / "zipper"
    zipper.write_text(
        f"""#!/bin/sh
export PYTHONPATH={ROOT}
echo "$*" >>{tmp_path}/log
case "$*" in
*--shard=0/4*) mkdir {tmp_path}/once 2>/dev/null && exec {sys.executable} {tmp_path}/killed.py 2 "$@" ;;
esac
exec {sys.executable} -m zipper_jax.cli.main "$@"
"""
    )
    zipper.chmod(0o755)
    command = ["--", str(zipper), "data", "prepare", f"--corpus={corpus}", f"--out={folder}", *OPTIONS]
    workers = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    done = beam("--shards=4", *workers, *command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert contents(folder) == contents(whole)
    runs = (tmp_path / "log").read_text()
    assert [runs.count(f"--shard={index}/4") for index in range(4)] == [2, 1, 1, 1]
    again = beam("--shards=4", *workers, *command[:-3], "--num_units=9")
    assert again.returncode == 2
    assert "num_units was 8, now 9" in again.stderr


@needs_beam
def test_a_dry_run_prints_the_steps():
    done = beam("--dry_run", "--shards=3", "--runner=DirectRunner", "--", "zipper", "data", "prepare", "--out=a b")
    assert done.stdout.splitlines() == [
        "zipper data prepare '--out=a b' --fit",
        "# in a Beam pipeline, --runner=DirectRunner, I from 0 to 2:",
        "zipper data prepare '--out=a b' --shard=I/3",
        "zipper data prepare '--out=a b' --finish",
    ]
    assert "give the command after --" in beam("--shards=3").stderr

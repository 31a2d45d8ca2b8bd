"""Metrics to Weights & Biases, offline: by TensorBoard's names, resumed under one id."""

import json
import struct
import sys
import time
from pathlib import Path

import pytest
from running import run

from zipper_jax.training.config import WandbConfig
from zipper_jax.training.goodput import Goodput
from zipper_jax.training.monitor import Monitor
from zipper_jax.training.sinks import further
from zipper_jax.utils.errors import UserError

OFFLINE = WandbConfig(project="zipper-tests", name="a run", mode="offline")
# wandb's own threads and sockets, and protobuf's.
THEIRS = pytest.mark.filterwarnings("ignore")


BLOCK = 32_768


def records(folder: Path) -> list:
    """The records of an offline run's file, in order: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no header fits into the rest of the block
            at += BLOCK - at % BLOCK
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def history(found: list) -> list[dict]:
    lines = [r.history.item for r in found if r.WhichOneof("record_type") == "history"]
    return [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items} for items in lines]


@THEIRS
def test_weights_and_biases_gets_what_tensorboard_gets(text_run, tmp_path):
    """Two attempts: the second one continues the run of the first one."""
    pytest.importorskip("wandb")
    config = text_run(wandb=OFFLINE)
    ids = []
    for number, start in enumerate((0, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Monitor(
            folder, start=start, total=4, flops_per_step=1.0, peak=None, more=further(config, folder)
        ) as monitor:
            goodput = Goodput(None, 0.0)
            for step in (start + 1, start + 2):
                monitor.train(step, 1.0 / step, {"towers": {}, "tasks": {}}, {"grad_norm": 2.0}, goodput)
            monitor.validation(start + 2, {"towers": {"text": {"loss": 0.5}}, "tasks": {}}, {})
        deadline = time.monotonic() + 60
        while not (found := records(folder)) or found[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < deadline  # wandb's own process writes the file
            time.sleep(0.1)
        (about,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
        assert (about.project, about.display_name) == ("zipper-tests", "a run")
        assert {item.key: json.loads(item.value_json) for item in about.config.update}["train"]["steps"] == 6
        ids.append(about.run_id)
        lines = history(found)
        train = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
        assert train == {start + 1: 1.0 / (start + 1), start + 2: 1.0 / (start + 2)}
        assert {line["step"]: line["training_eval/loss"] for line in lines if "training_eval/loss" in line} == {
            start + 2: 0.5
        }
        assert all("seconds/restore" in line for line in lines if "train/loss" in line)
    assert ids == [json.loads((Path(config.model_dir) / "wandb.json").read_text())["id"]] * 2


def test_a_sink_that_is_not_installed_is_reported_before_anything_is_written(text_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = text_run(wandb=OFFLINE)
    with pytest.raises(UserError, match=r"WandbConfig.project = 'zipper-tests': the package wandb is not installed"):
        run(config)
    assert not (Path(config.model_dir) / "config.json").exists()
    with pytest.raises(UserError, match=r"WandbConfig.mode='of': give online or offline"):
        WandbConfig(mode="of")

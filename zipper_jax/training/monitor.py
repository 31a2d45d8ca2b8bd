"""What a run tells about itself: ``metrics.jsonl``, TensorBoard, and a line on the console.

``metrics.jsonl`` has one JSON object per line, ``split`` "train" or "validation":
    step, loss, towers {name: {loss, accuracy, tokens}}, tasks {name: {loss, accuracy, tokens}}; tokens are those with a
    loss weight. Training lines also have grad_norm, learning_rate, tokens_per_second (tokens of all towers),
    flops_per_second, and gates {zip: {gate: [tanh(gate) per member]}} where the model has zips.
Losses are of that step alone, not averaged since the last line, so a resumed run writes the same values.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.training.step import Sums

PLAIN_LINE_SECONDS = 10.0
"""Without a terminal, a line is printed at most this often."""


def losses(sums: Mapping[str, Sums], tasks: Sequence[str]) -> dict[str, Any]:
    """``{"towers": {...}, "tasks": {...}}`` from sums on the host; parts without a weighted token are left out."""

    def means(nll: float, correct: float, weight: float) -> dict[str, float]:
        return {"loss": nll / weight, "accuracy": correct / weight, "tokens": weight}

    towers: dict[str, dict[str, float]] = {}
    per_task = np.zeros((3, len(tasks)), np.float64)
    for name, tower in sorted(sums.items()):
        parts = np.array([tower.nll, tower.correct, tower.weight], np.float64)
        per_task += parts
        if parts[2].sum() > 0:
            towers[name] = means(*parts.sum(axis=1).tolist())
    named = {task: means(*per_task[:, i].tolist()) for i, task in enumerate(tasks) if per_task[2, i] > 0}
    return {"towers": towers, "tasks": named}


def nest_gates(flat: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """``{"zips/NAME/into_text/attention_gate": [Z]}`` to ``{NAME: {"into_text/attention_gate": [Z values]}}``."""
    gates: dict[str, dict[str, list[float]]] = {}
    for path, leaf in sorted(flat.items()):
        _, name, rest = path.split("/", 2)
        gates.setdefault(name, {})[rest] = np.asarray(leaf, np.float64).reshape(-1).tolist()
    return gates


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line cut short by a kill is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class Monitor:
    """Writes one run's metrics.

    Args:
        run_dir: The run folder.
        start: Steps done before; later lines of an earlier attempt are dropped, they will be written again.
        total: Steps in all.
        flops_per_step: Estimated arithmetic of a step.
        peak: FLOP/s of all devices together; None when unknown.
        stream: The console; None: standard error.
        quiet: Nothing on the console (all but one process of a group).
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start: int,
        total: int,
        flops_per_step: float,
        peak: float | None,
        stream: Any = None,
        quiet: bool = False,
    ) -> None:
        from tensorboardX import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        self._total, self._flops, self._peak, self._quiet = total, flops_per_step, peak, quiet
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._drop_lines_after(start)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else None)
        self._clock_step, self._clock_tokens = start, 0.0
        self._clock = time.perf_counter()
        self._paused = 0.0
        self._printed = -math.inf
        self._width = 0

    def _drop_lines_after(self, step: int) -> None:
        kept = [line for line in read_metrics(self._path.parent) if line["step"] <= step]
        aside = self._path.with_name(f".metrics.jsonl.{os.getpid()}")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        aside.replace(self._path)

    def start_clock(self, step: int) -> None:
        """Speed is counted from here: call it once the first step is done, so that compiling is not in it."""
        self._clock, self._clock_step, self._clock_tokens, self._paused = time.perf_counter(), step, 0.0, 0.0

    def add_tokens(self, tokens: float) -> None:
        """Count a step's tokens."""
        self._clock_tokens += tokens

    def pause(self, seconds: float) -> None:
        """Take time that was not spent training (validation, saving) off the clock."""
        self._paused += seconds

    def train(self, step: int, loss: float, parts: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Log one training step.

        Args:
            step: Updates done, this one included.
            loss: What was minimised.
            parts: From :func:`losses`.
            values: grad_norm, learning_rate, and gates.
        """
        seconds = max(time.perf_counter() - self._clock - self._paused, 1e-9)
        done = step - self._clock_step
        speed = {
            "tokens_per_second": self._clock_tokens / seconds if done else 0.0,
            "flops_per_second": self._flops * done / seconds,
        }
        left = (self._total - step) * seconds / done if done else math.nan
        if done:
            self.start_clock(step)
        record = {"split": "train", "step": step, "loss": loss, **parts, **values, **speed}
        self._write(record)
        self._show(self._line(record, left), last=step == self._total)

    def validation(self, step: int, loss: float, parts: Mapping[str, Any]) -> None:
        """Log one validation."""
        self._write({"split": "validation", "step": step, "loss": loss, **parts})
        self.say(f"step {step}  validation loss {loss:.4f}  {_parts(parts)}")

    def say(self, text: str) -> None:
        """A line of its own that stays on the console."""
        if self._quiet:
            return
        clear = f"\r{' ' * self._width}\r" if self._live and self._width else ""
        self._width = 0
        print(f"{clear}{text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Flush and close the files."""
        if self._live and self._width and not self._quiet:
            print(file=self._stream, flush=True)
        self._file.close()
        self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in _scalars(record):
            self._board.add_scalar(f"{record['split']}/{name}", value, record["step"])
        self._board.flush()

    def _line(self, record: Mapping[str, Any], left: float) -> str:
        rate = record["tokens_per_second"]
        flops = record["flops_per_second"]
        speed = f"{flops / 1e9:.1f} GFLOP/s"
        if self._peak:
            speed = f"MFU {100 * flops / self._peak:.1f} %"
        return (
            f"step {record['step']}/{self._total}  loss {record['loss']:.4f}  {_parts(record)}  "
            f"{rate:,.0f} tok/s  {speed}  left {duration(left)}"
        )

    def _show(self, line: str, last: bool) -> None:
        if self._quiet:
            return
        if self._live:
            padded = line.ljust(self._width)
            self._width = len(line)
            print(f"\r{padded}", end="", file=self._stream, flush=True)
        elif last or time.monotonic() - self._printed >= PLAIN_LINE_SECONDS:
            self._printed = time.monotonic()
            print(line, file=self._stream, flush=True)


def _parts(record: Mapping[str, Any]) -> str:
    """``text 2.10 speech 3.05 | asr 2.10 tts 3.05``; one part alone would repeat the loss and is left out."""
    groups = [" ".join(f"{k} {v['loss']:.3f}" for k, v in record[g].items()) for g in ("towers", "tasks")]
    return " | ".join(text for text, g in zip(groups, ("towers", "tasks"), strict=True) if len(record[g]) > 1)


def _scalars(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            found += [(f"{prefix}{name}/{i}", float(v)) for i, v in enumerate(value)]
        elif isinstance(value, int | float) and name != "step":
            found.append((f"{prefix}{name}", float(value)))
    return found


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``; ``?`` when unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

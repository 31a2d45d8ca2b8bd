"""Metrics of a run: ``metrics.jsonl``, other sinks (`training.sinks`), and progress on the console.

``metrics.jsonl`` has one JSON object per line; its fields depend on ``split``:
    train, validation   step, loss, towers {name: {loss, accuracy, tokens}}, tasks {name: {loss, accuracy, tokens}};
                        tokens are those with a loss weight; next_modality {name: {...}}, the same of each tower's end
                        tokens, where the model chooses what follows them. Training lines also have grad_norm,
                        learning_rate, tokens_per_second (tokens of all towers), flops_per_second, goodput (share of the
                        run's wall time so far), and gates {zip: {gate: [tanh(gate) per member]}} where the model has
                        zips
    inference           step, tasks {name: {metric: value}}: scores of decoded validation examples
    skipped             step, batch, loss, grad_norm, limit: an update that was not applied
    rollback            step, batches [start, stop]: a return to a checkpoint, and the batches it skips
Losses are those of one step, not averages since the last line, so a resumed run writes the same values.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from zipper_jax.models.choice import choice_of, tower_of
from zipper_jax.training import bad_batches
from zipper_jax.training.goodput import Goodput
from zipper_jax.training.sinks import Sink, tensorboard
from zipper_jax.training.step import Metrics, Sums
from zipper_jax.utils import user_json
from zipper_jax.utils.files import write_text
from zipper_jax.utils.readable import duration
from zipper_jax.utils.storage import AnyPath, as_path

logger = logging.getLogger(__name__)

TENSORBOARD = {"validation": "training_eval", "inference": "inference_eval"}
"""t5x's names of the splits in TensorBoard: train/loss, training_eval/asr/loss, inference_eval/asr/wer."""

PLAIN_LINE_SECONDS = 10.0
"""Without a terminal, the shortest interval between two progress lines, in seconds."""


def losses(sums: Mapping[str, Sums], tasks: Sequence[str]) -> dict[str, Any]:
    """``{"towers": {...}, "tasks": {...}}`` from sums on the host; omits parts without a weighted token.

    With choices of the next modality also ``"next_modality"``: tower -> their means, which no task's loss includes.
    """

    def means(nll: float, correct: float, weight: float) -> dict[str, float]:
        return {"loss": nll / weight, "accuracy": correct / weight, "tokens": weight}

    towers: dict[str, dict[str, float]] = {}
    choices: dict[str, dict[str, float]] = {}
    per_task = np.zeros((3, len(tasks)), np.float64)
    for name, tower in sorted(sums.items()):
        parts = np.array([tower.nll, tower.correct, tower.weight], np.float64)
        chooser = tower_of(name)
        per_task += parts if chooser is None else 0
        if parts[2].sum() > 0:
            group = towers if chooser is None else choices
            group[chooser or name] = means(*parts.sum(axis=1).tolist())
    named = {task: means(*per_task[:, i].tolist()) for i, task in enumerate(tasks) if per_task[2, i] > 0}
    return {"towers": towers, "tasks": named, **({"next_modality": choices} if choices else {})}


def nest_gates(flat: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """``{"zips/NAME/into_text/attention_gate": [Z]}`` to ``{NAME: {"into_text/attention_gate": [Z values]}}``."""
    gates: dict[str, dict[str, list[float]]] = {}
    for path, leaf in sorted(flat.items()):
        _, name, rest = path.split("/", 2)
        gates.setdefault(name, {})[rest] = np.asarray(leaf, np.float64).reshape(-1).tolist()
    return gates


def read_metrics(run_dir: str | AnyPath) -> list[dict[str, Any]]:
    """Read the lines of ``metrics.jsonl``, except a last line truncated by a kill.

    Raises:
        UserError: A line is damaged.
    """
    fix, found = "remove the line: only reports show it", []
    for place, line in user_json.read_lines(as_path(run_dir) / "metrics.jsonl", fix, unfinished=True):
        user_json.convert(line, _KINDS.get(str(line.get("split")), _Line), place, fix)
        found.append(line)
    return found


class _Line(msgspec.Struct):
    """What readers use of every line."""

    split: str
    step: user_json.Natural


class _Mean(msgspec.Struct):
    loss: float
    accuracy: float = math.nan


class _Losses(_Line):
    loss: float
    towers: dict[str, _Mean] = {}
    tasks: dict[str, _Mean] = {}
    next_modality: dict[str, _Mean] = {}
    gates: dict[str, dict[str, list[float]]] = {}


class _Skipped(_Line):
    batch: user_json.Natural


class _Rollback(_Line):
    batches: tuple[user_json.Natural, user_json.Natural]


_KINDS: dict[str, type[_Line]] = {
    "train": _Losses,
    "validation": _Losses,
    "skipped": _Skipped,
    "rollback": _Rollback,
}


class Monitor:
    """Writes one run's metrics.

    Args:
        run_dir: The run folder.
        start: Steps done before; later lines of an earlier attempt are dropped, they will be written again.
        batch: The next batch; what is said of this one and later ones is dropped, too.
        total: Steps in all.
        flops_per_step: Estimated arithmetic of a step.
        peak: FLOP/s of all devices together; None when unknown.
        silent: No file is written and no bar is drawn (all but one process of a group).
        more: Sinks of scalars beside TensorBoard; closed at the end.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start: int,
        batch: int = 0,
        total: int,
        flops_per_step: float,
        peak: float | None,
        silent: bool = False,
        more: Sequence[Sink] = (),
    ) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._total, self._flops, self._peak, self._silent = total, flops_per_step, peak, silent
        self._file: Any = None
        self._boards: list[Sink] = []
        self._more = tuple(more)
        self._open(start, batch)
        self._clock_step, self._clock_tokens = start, 0.0
        self._clock = time.perf_counter()
        self._paused = 0.0
        self._printed = -math.inf
        self._bar = _status_line() if sys.stderr.isatty() and not silent else None

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for sink in self._more:
            sink.close()

    def _open(self, start: int, batch: int) -> None:
        """Open the files for appending, after dropping lines past step ``start`` or from ``batch`` on."""
        if self._silent:
            return
        self._drop_lines_after(start, batch)
        self._file = self._path.open("a", encoding="utf-8")
        self._boards = tensorboard(self._path.parent, start)

    def _drop_lines_after(self, step: int, batch: int) -> None:
        def stays(line: Mapping[str, Any]) -> bool:
            if line["split"] == "skipped":
                return line["batch"] < batch
            if line["split"] == "rollback":
                return line["batches"][1] <= batch
            return line["step"] <= step

        kept = [line for line in read_metrics(self._path.parent) if stays(line)]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def start_clock(self, step: int) -> None:
        """Restart the speed measurement; called after the first step, so that compilation is not counted."""
        self._clock, self._clock_step, self._clock_tokens, self._paused = time.perf_counter(), step, 0.0, 0.0

    def add_tokens(self, tokens: float) -> None:
        """Count a step's tokens."""
        self._clock_tokens += tokens

    def pause(self, seconds: float) -> None:
        """Exclude time that was not spent training (validation, saving) from the speed measurement."""
        self._paused += seconds

    def train(
        self, step: int, loss: float, parts: Mapping[str, Any], values: Mapping[str, Any], goodput: Goodput
    ) -> None:
        """Log one training step.

        Args:
            step: Applied updates, including this one.
            loss: The minimised loss.
            parts: From :func:`losses`.
            values: grad_norm, learning_rate, and gates.
            goodput: The run's wall time by category so far.
        """
        seconds = max(time.perf_counter() - self._clock - self._paused, 1e-9)
        done = step - self._clock_step
        speed = {
            "goodput": goodput.share(),
            "tokens_per_second": self._clock_tokens / seconds if done else 0.0,
            "flops_per_second": self._flops * done / seconds,
        }
        left = (self._total - step) * seconds / done if done else math.nan
        if done:
            self.start_clock(step)
        record = {"split": "train", "step": step, "loss": loss, **parts, **values, **speed}
        self._write(record, {f"seconds/{part}": spent for part, spent in goodput.seconds().items()})
        self._show(self._line(record, left), last=step == self._total)

    def validation(self, step: int, parts: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, float]:
        """Log one validation, with ``weights`` (lambda per term); returns its values by TensorBoard name."""
        chosen = {choice_of(tower): mean for tower, mean in parts.get("next_modality", {}).items()}
        terms = parts["towers"] | chosen
        loss = math.fsum(weights.get(name, 1.0) * term["loss"] for name, term in terms.items())
        self._write({"split": "validation", "step": step, "loss": loss, **parts})
        logger.info(f"step {step}  validation loss {loss:.4f}  {_parts(parts)}")
        return dict(_scalars({"loss": loss, **parts}))

    def inference(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Log scores of decoded output, task -> metric -> value; returns them by name, ``inference/TASK/METRIC``."""
        self._write({"split": "inference", "step": step, "tasks": scores})
        flat = dict(_scalars(scores))
        logger.info(f"step {step}  decoded  " + "  ".join(f"{name} {value:.4f}" for name, value in flat.items()))
        return {f"inference/{name}": value for name, value in flat.items()}

    def skipped(self, step: int, batch: int, metrics: Metrics, kept: AnyPath) -> None:
        """Log an update that was not applied, and where its batch is kept."""
        values = {name: float(getattr(metrics, name)) for name in ("loss", "grad_norm", "limit")}
        # JSON has no infinities, so values that are not finite are written as strings.
        encoded = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        self._write({"split": "skipped", "step": step, "batch": batch, **encoded})
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        why = f"a spike above {values['limit']:.4g}" if finite else f"gradient norm {values['grad_norm']:.4g}"
        logger.info(
            f"step {step + 1}: loss {values['loss']:.4g}, {why}: the update is not applied, batch {batch} is skipped; "
            f"inspect it with `{bad_batches.command(kept)}`"
        )

    def rolled_back(self, step: int, batches: tuple[int, int], times: int) -> None:
        """Log a return to a checkpoint, dropping the lines logged after that checkpoint."""
        self.close()
        self._open(step, batches[1])
        self._write({"split": "rollback", "step": step, "batches": list(batches)})
        self.start_clock(step)
        logger.info(
            f"too many bad updates in a row: back to step {step}, skipping batches {batches[0]} to "
            f"{batches[1] - 1} (rollback {times})"
        )

    def close(self) -> None:
        """Flush and close the files."""
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self._file.close()
        for sink in self._boards:
            sink.close()

    def _write(self, record: dict[str, Any], more: Mapping[str, float] | None = None) -> None:
        """Write a line, and its scalars (and ``more``) to the sinks."""
        if self._file is None:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        prefix = TENSORBOARD.get(record["split"], record["split"])
        values = {f"{prefix}/{name.removeprefix('tasks/')}": value for name, value in _scalars(record)}
        for sink in (*self._boards, *self._more):
            sink.add({**values, **(more or {})}, record["step"])

    def _line(self, record: Mapping[str, Any], left: float) -> str:
        rate = record["tokens_per_second"]
        flops = record["flops_per_second"]
        speed = f"{flops / 1e9:.1f} GFLOP/s"
        if self._peak:
            speed = f"MFU {100 * flops / self._peak:.1f} %"
        return (
            f"step {record['step']}/{self._total}  loss {record['loss']:.4f}  {_parts(record)}  "
            f"{rate:,.0f} tok/s  {speed}  goodput {100 * record['goodput']:.0f} %  left {duration(left)}"
        )

    def _show(self, line: str, last: bool) -> None:
        if self._bar is not None:
            self._bar.set_description_str(line)
        if last or time.monotonic() - self._printed >= PLAIN_LINE_SECONDS:
            self._printed = time.monotonic()
            logger.log(logging.DEBUG if self._bar is not None else logging.INFO, line)


def _status_line() -> Any:
    """A line that is redrawn; None on a machine with jax, flax, optax and orbax-checkpoint alone."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(file=sys.stderr, bar_format="{desc}", dynamic_ncols=True)


def _parts(record: Mapping[str, Any]) -> str:
    """``text 2.10 speech 3.05 | asr 2.10 tts 3.05``; omits a group of one part, which would repeat the loss."""
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

"""What `zipper data prepare` will cost, from the manifest alone."""

from collections.abc import Iterator
from typing import Any

from zipper_jax.data.prepare_fit import modalities_of, open_source
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.speech.tokenizer import RATE_HZ, UnitTokenizer
from zipper_jax.speech.whisper_units import WhisperUnits
from zipper_jax.tasks import SPEECH
from zipper_jax.utils.errors import UserError

HOURS_PER_CORE_HOUR: dict[str, float] = {"log-mel": 900.0, "whisper": 10.0}
"""Hours of audio at 16 kHz that one core encodes in an hour, by the kind of unit: measured by
benchmarks/prepare_shards.py, and by benchmarks/units.py (0.1 s a second)."""
FINISH_HOURS_PER_CORE_HOUR = 30_000.0
"""Hours of audio whose examples one core joins and packs for one task in an hour: benchmarks/prepare_shards.py."""
_BYTES_PER_UNIT = {"examples": 4.9, "rows": 2.0}  # a number of 0 to 1,023 with comma and blank; 16 bits, for each task
_BYTES_PER_EXAMPLE = {"examples": 150, "rows": 40}
_HOUR = 3600


def estimate(
    corpus: Any, settings: PrepareSettings, rate: float | None = None, price: float | None = None
) -> Iterator[str]:
    """Yield lines: hours of audio, core hours, cost, size of the output.

    Args:
        corpus: Corpus folder.
        settings: How it would be prepared.
        rate: Hours of audio that one core encodes in an hour; None: as measured.
        price: Of one core for one hour, in any currency; None: no cost.

    Raises:
        UserError: The rate of a given tokenizer is not known, or a number is not positive.
    """
    for name, value in (("rate", rate), ("price", price)):
        if value is not None and not value > 0:
            raise UserError(f"{name} = {value:g}: give a positive number")
    source = open_source(corpus, settings)
    kind, where = source.settings.unit_features.partition(":")[0], "as measured"
    per_second = float(RATE_HZ if kind == "log-mel" else settings.unit_rate)
    if source.given is not None:
        per_second, made = source.given.rate_hz, getattr(source.given, "base", source.given)
        kind = {UnitTokenizer: "log-mel", WhisperUnits: "whisper"}.get(type(made), "given")
    rows, unknown, seconds, encoded, text, examples = 0, 0, 0.0, 0.0, 0, 0
    of_task = dict.fromkeys(settings.tasks, 0)
    tasks = {task: settings.task_set.tasks[task] for task in settings.tasks}
    copies = {name: 1 if task.interleaving is None else task.interleaving.copies for name, task in tasks.items()}
    written = [m.field for m in settings.task_set.modalities.values() if m.vocabulary != "units"]
    for row in source.rows():
        shifts = settings.shifts if row["split"] == "train" else 1
        rows, unknown = rows + 1, unknown + ("audio" in row and "seconds" not in row)
        duration, there = float(row.get("seconds") or 0.0), set(modalities_of(row, settings.task_set))
        seconds, examples = seconds + duration, examples + shifts
        encoded += duration * shifts * ("audio" in row and "units" not in row)
        text += sum(len(row.get(field) or "") for field in written)
        for name, task in tasks.items():
            of_task[name] += shifts * copies[name] * (there >= set(task.modalities))
    if rate is None and encoded and kind not in HOURS_PER_CORE_HOUR:
        raise UserError("rate: how fast this tokenizer encodes is not known; give --rate HOURS of audio per core hour")
    if rate is not None:
        where = "--rate"
    yield f"corpus: {rows:,} rows, {seconds / _HOUR:,.1f} hours of audio, {text:,} characters of text"
    if unknown:
        yield f"of {unknown:,} rows with audio the manifest has no seconds: they are not counted"
    speed = rate or HOURS_PER_CORE_HOUR.get(kind, 1.0)
    # Of an interleaved example: at most, for a word is there as text or as units.
    speaking = sum(copies[name] for name, task in tasks.items() if SPEECH in task.modalities)
    finish = seconds / _HOUR * max(speaking, 1) / FINISH_HOURS_PER_CORE_HOUR
    encoding = encoded / _HOUR / speed
    if encoded:
        yield f"encoding: {encoding:,.1f} core hours ({speed:g} hours of audio per core hour, {where}), in any shards"
    yield f"finish: {finish:,.1f} hours of one core, after them ({FINISH_HOURS_PER_CORE_HOUR:g} per task, as measured)"
    if price is not None:
        yield f"cost: {(encoding + finish) * price:,.2f} at {price:g} per core hour"
    units = (encoded or seconds) * per_second
    sizes = {
        "examples": units * _BYTES_PER_UNIT["examples"] + examples * _BYTES_PER_EXAMPLE["examples"] + text,
        "rows": units * _BYTES_PER_UNIT["rows"] * speaking + sum(of_task.values()) * _BYTES_PER_EXAMPLE["rows"],
    }
    parts = ", ".join(f"{name} {size / 1e9:,.2f}" for name, size in sizes.items())
    yield f"output: about {sum(sizes.values()) / 1e9:,.2f} GB ({parts}), and as much as the examples meanwhile"

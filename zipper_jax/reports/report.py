"""Writes ``report.html``, a self-contained page, from the results of training and evaluation.

    folder/results.json      figures; missing keys were not measured
    folder/samples.json      sentences with the models' transcripts and speech; folder/audio/ has the audio
    folder/attention.npz     cross-attention weights from text to speech
    RUN/metrics.jsonl        losses and gates, see zipper_jax/training/monitor.py

Axes: N heads, T text tokens, S speech units.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import SequenceMatcher
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import numpy as np

from zipper_jax.metrics.error_rates import percent
from zipper_jax.metrics.normalisers import Policy, policy
from zipper_jax.reports.page import page, player, plots, section, table
from zipper_jax.reports.plots import attention, curves
from zipper_jax.reports.tables import (
    ASR_ROWS,
    OTHER,
    PERPLEXITY_ROWS,
    TTS_ROWS,
    Row,
    Verdict,
    not_possible,
    number,
    other_figures,
    verdicts,
)
from zipper_jax.training.monitor import read_metrics
from zipper_jax.utils import user_json
from zipper_jax.utils.arrays import read_archive
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_bytes
from zipper_jax.utils.readable import duration
from zipper_jax.utils.storage import AnyPath

_LABELS = {
    "zipper": "Zipper",
    "single_decoder": "Single Decoder",
    "identity": "Zipper, identity-preserving projection",
    "gold_units": "Gold units",
    "gold": "True recording",
    "raw_audio": "True recording",
}
_FIX = "run the evaluation again"
_COLUMNS = ("Zipper", "Single Decoder")
_NOT_MEASURED = '<span class="none">not measured</span>'


class _Results(msgspec.Struct):
    """The objects in ``results.json``; its figures are read by `tables.number`."""

    settings: dict[str, Any] | None = None
    seconds: dict[str, float | None] | None = None
    sentences: dict[str, int] | None = None
    parameters: dict[str, dict[str, float | None]] | None = None


class _Sample(TypedDict, total=False):
    id: str | int
    reference: str
    audio: dict[str, str] | None
    asr: dict[str, str | None] | None
    tts_judged: dict[str, str | None] | None


def write_report(folder: Path, runs: Mapping[str, AnyPath]) -> Path:
    """Write ``folder/report.html``: one file with its plots and audio embedded.

    Args:
        folder: Folder with results.json and, optionally, samples.json and attention.npz.
        runs: Name -> run folder, in the order shown; a missing metrics.jsonl is noted in the report.

    Returns:
        The page's path.

    Raises:
        UserError: results.json is missing, or a file is malformed.
    """
    folder = Path(folder)
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: run the evaluation first")
    results = user_json.read_object(path, _FIX)
    user_json.convert(results, _Results, repr(str(path)), _FIX)
    try:
        compared = policy(str(_mapping(results, "settings").get("normaliser") or "default"))
    except UserError as error:
        raise UserError(f"{str(path)!r}: settings.normaliser: {error}; {_FIX}") from error
    path = folder / "samples.json"
    samples = user_json.read_list(path, _Sample, _FIX) if path.is_file() else []
    metrics = {name: read_metrics(path) for name, path in runs.items()}
    goals = verdicts(results)
    finished = datetime.fromtimestamp((folder / "results.json").stat().st_mtime, UTC)
    body = [
        _header(folder, results, goals, finished),
        _error_rates(results, goals),
        _perplexities(results),
        _samples(folder, samples, compared),
        _attention(folder / "attention.npz"),
        _losses(metrics),
        _gates(metrics),
        _cost(results),
        _settings(results),
    ]
    path = folder / "report.html"
    write_bytes(path, page(f"Zipper report: {folder.resolve().name}", "\n".join(body)).encode())
    return path


def _label(name: str) -> str:
    return escape(_LABELS.get(name, name.replace("_", " ")))


def _mapping(results: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return results.get(key) or {}


def _total(seconds: Mapping[str, Any]) -> float | None:
    parts = [number(seconds, stage) for stage in seconds if stage != "total"]
    known = [part for part in parts if part is not None]
    return number(seconds, "total") or (sum(known) if known and len(known) == len(parts) else None)


def _header(folder: Path, results: Mapping, goals: Mapping[str, Verdict], finished: datetime) -> str:
    total = _total(_mapping(results, "seconds"))
    took = f"it took {duration(total)}" if total else "its duration was not measured"
    models = [_label(name) for name in _mapping(results, "parameters")]
    counts = [f"{n:,} {escape(split)}" for split, n in _mapping(results, "sentences").items()]
    met = sum(goal.met is True for goal in goals.values())
    listed = "".join(f"<li>{_verdict(goal)}</li>" for goal in goals.values())
    return f"""<header>
<h1>Zipper report: {escape(folder.resolve().name)}</h1>
<p class="soft">Evaluated {finished:%Y-%m-%d %H:%M} UTC; {took}.{f" Models: {', '.join(models)}." if models else ""}
{f"Sentences: {', '.join(counts)}." if counts else ""}</p>
<p>A zipper joins a decoder trained on text and one trained on speech by cross-attention, for speech to text
(recognition) and text to speech (synthesis). This page shows the results.
<b>{met} of {len(goals)} goals are met.</b></p>
<ul class="goals">{listed}</ul>
</header>"""


def _verdict(goal: Verdict) -> str:
    kind, sign = {True: ("met", "✓ met"), False: ("unmet", "✗ not met"), None: ("none", "– open")}[goal.met]
    return f'<span class="{kind}"><b>{sign}</b></span> {escape(goal.text).replace(" %", "&nbsp;%")}'


def _error_rates(results: Mapping[str, Any], goals: Mapping[str, Verdict]) -> str:
    head = ["Word error rate", *_COLUMNS]
    normaliser = str(results.get("normaliser", "not recorded"))
    judge = str(results.get("judge", "an independent recogniser"))
    both = (
        "The Single Decoder is the usual baseline: one decoder for text and speech tokens, trained on the same pairs."
    )
    asr = section(
        "Speech to text",
        "The word error rate is the number of substituted, deleted and inserted words per 100 words of the reference: "
        f"0 % is perfect, and it can exceed 100 %. {both} The control rows expose a model that ignores its input. "
        f"References and hypotheses are normalised: {escape(normaliser)}.",
        table(head, _rows(ASR_ROWS, results, goals), "figures"),
    )
    tts = section(
        "Text to speech",
        f"A judge ({escape(judge)}), independent of the models, transcribes the generated speech; its word error rate "
        "is shown. The judge makes errors itself, so compare each rate with gold units and the other controls. "
        f"References and transcripts are normalised: {escape(str(results.get('judge_normaliser', normaliser)))}.",
        table(head, _rows(TTS_ROWS, results, goals), "figures"),
    )
    return f"{asr}\n{tts}"


def _rows(rows: Sequence[Row], results: Mapping[str, Any], goals: Mapping[str, Verdict]) -> list[str]:
    lines = []
    rows = [row for row in rows if row.key in results or not row.optional]
    for row, before in zip(rows, (None, *rows), strict=False):
        if row.control and before and not before.control:
            lines.append('<tr class="control"><td class="group" colspan="3">Controls</td></tr>')
        marks = "".join(f'<span class="goal">{_verdict(goals[name])}</span>' for name in row.goals)
        first = f'<th scope="row">{escape(row.label)}<span class="why">{escape(row.why)}</span>{marks}</th>'
        own, other = (number(results, prefix + row.key) for prefix in ("", OTHER))
        if row.shared and other is None and own is not None:
            both = '<span class="none">either model</span>'
            cells = f'<td class="n both" colspan="2" data-of="either model">{both} {percent(own)}</td>'
        else:
            kind = "n" if row.control else "n main"
            cells = "".join(
                f'<td class="{kind}" data-of="{name}">{_percent(value, not_possible(results, prefix + row.key))}</td>'
                for name, value, prefix in zip(_COLUMNS, (own, other), ("", OTHER), strict=True)
            )
        lines.append(f'<tr class="{"control" if row.control else "result"}">{first}{cells}</tr>')
    return lines


def _percent(value: float | None, why_not: str = "") -> str:
    if why_not:
        return f'<span class="none">{escape(why_not)}</span>'
    return _NOT_MEASURED if value is None else percent(value)


def _perplexities(results: Mapping[str, Any]) -> str:
    rows = []
    for label, why, *keys in PERPLEXITY_ROWS:
        cells = ""
        for key, when in zip(keys, ("Before", "After"), strict=True):
            value = number(results, key)
            if value is None and key.startswith("text_ppl_unimodal"):
                value = number(results, "text_ppl_unimodal")
            cells += f'<td class="n" data-of="{when}">{_NOT_MEASURED if value is None else f"{value:,.2f}"}</td>'
        rows.append(f'<tr><th scope="row">{escape(label)}<span class="why">{escape(why)}</span></th>{cells}</tr>')
    return section(
        "Perplexity of each modality alone",
        "Perplexity on held-out sentences of one modality: lower is better, and 1 is the minimum. Compare before and "
        "after fusion; both columns are the Zipper's.",
        table(["Perplexity", "Before fusion", "After fusion"], rows, "figures"),
    )


def _samples(folder: Path, samples: Sequence[Any], text: Policy) -> str:
    head = "Samples"
    if not samples:
        return section(head, _NOT_MEASURED)
    rows = []
    for sample in samples:
        reference = str(sample.get("reference", ""))
        audio, judged = dict(sample.get("audio") or {}), dict(sample.get("tts_judged") or {})
        if "raw_audio" in judged:  # the judge's row of the true recording
            judged["gold"] = judged.pop("raw_audio")
        name = f' <span class="none">{escape(str(sample["id"]))}</span>' if "id" in sample else ""
        rows.append(f'<tr class="sentence"><th colspan="3" scope="rowgroup">{escape(reference)}{name}</th></tr>')
        for model, words in (sample.get("asr") or {}).items():
            compared = _compare(reference, words, text)
            rows.append(f"<tr><td>{_label(model)} transcript</td><td></td><td>{compared}</td></tr>")
        kinds = [k for k in ("gold", "gold_units") if k in audio or k in judged]
        for kind in dict.fromkeys([*kinds, *audio, *judged]):
            what = "" if kind in kinds else " speech"
            words = (
                f'<span class="none">judge:</span> {_compare(reference, judged[kind], text)}' if kind in judged else ""
            )
            sound = player(folder, audio[kind]) if kind in audio else ""
            rows.append(f"<tr><td>{_label(kind)}{what}</td><td>{sound}</td><td>{words}</td></tr>")
    return section(
        head,
        "Test sentences with the models' transcripts and generated speech. “judge” marks the judge's transcript of "
        "the audio. <del>Crossed out</del>: a deleted word of the reference; <ins>with a plus</ins>: an inserted word.",
        table([], rows, "samples"),
    )


def _compare(reference: str, hypothesis: Any, text: Policy) -> str:
    """The hypothesis as HTML, with deletions and insertions marked."""
    true, found = text(reference).split(), text(str(hypothesis or "")).split()
    if not found:
        return '<span class="none">(nothing)</span>'
    parts = []
    for kind, a, b, c, d in SequenceMatcher(None, true, found, autojunk=False).get_opcodes():
        deleted, inserted = escape(" ".join(true[a:b])), escape(" ".join(found[c:d]))
        if kind == "equal":
            parts.append(inserted)
        else:
            parts += [f"<del>{deleted}</del>"] * bool(deleted) + [f"<ins>{inserted}</ins>"] * bool(inserted)
    return " ".join(parts)


def _attention(path: Path) -> str:
    head = "Cross-attention from text to speech"
    if not path.is_file():
        return section(head, _NOT_MEASURED)
    found = read_archive(path, _FIX)
    try:
        tokens, step = [str(token) for token in found["tokens"]], float(found["seconds_per_unit"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} has {sorted(found)} ({error}): it needs tokens, seconds_per_unit and weights_0, weights_1, …"
        ) from error
    pictures = []
    for name in sorted((n for n in found if re.fullmatch(r"weights_\d+", n)), key=lambda n: int(n.split("_")[1])):
        weights, zip_number = found[name], int(name.split("_")[1]) + 1
        if weights.ndim != 3 or weights.shape[1] != len(tokens) or 0 in weights.shape:
            raise UserError(f"{path}: {name} has shape {weights.shape}: give [heads, {len(tokens)} tokens, units]")
        title = f"Zip {zip_number}, mean of {len(weights)} heads"
        svg = attention(weights.astype(np.float32), tokens, step, title=f"{title}: text tokens against speech time")
        pictures.append((title, svg))
    return section(
        head,
        "Attention weights for one test sentence, one plot per zip, from the first to the last. Each row is a text "
        "token; darker (in dark mode: brighter) means a larger weight, relative to the row's maximum. A diagonal means "
        "that the model has aligned the words with the speech.",
        plots(pictures, "no zip has weights"),
    )


def _losses(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    pictures = []
    for name, lines in metrics.items():
        by_split = {
            split: [(x["step"], x["loss"]) for x in lines if x["split"] == split] for split in ("train", "validation")
        }
        caption = _LABELS.get(name, name.replace("_", " "))
        draw = partial(curves, x_label="step", y_label="loss (nats per token)")
        pictures.append((caption, draw(by_split, title=f"Loss of {caption} by step", faint=("train",))))
        tasks: dict[str, list[tuple[float, float]]] = {}
        for x in (line for line in lines if line["split"] == "validation"):
            for task, part in x.get("tasks", {}).items():
                tasks.setdefault(task, []).append((x["step"], part["loss"]))
        if len(tasks) > 1:
            svg = draw(tasks, title=f"Validation loss of {caption} by task")
            pictures.append((f"{caption}: validation by task", svg))
    missing = [_label(name) for name, lines in metrics.items() if not lines]
    note = f'<p class="none">No metrics.jsonl yet: {", ".join(missing)}.</p>' if missing else ""
    return section(
        "Training curves",
        "Loss on the training rows and on held-out ones (validation). A validation loss that rises while the training "
        "loss falls means overfitting. Runs with several towers sum their losses, so loss levels of different runs "
        "cannot be compared.",
        plots(pictures, "no run has metrics"),
        note,
    )


def _gates(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    pictures = []
    for name, lines in metrics.items():
        found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
        for line in (line for line in lines if line["split"] in ("train", "validation")):
            for zipped, gates in line.get("gates", {}).items():
                for gate, values in gates.items():
                    series = found.setdefault((zipped, gate), {})
                    for i, value in enumerate(values):
                        key = f"zip {i + 1}" if len(values) > 1 else "gate"
                        series.setdefault(key, []).append((line["step"], value))
        for (zipped, gate), series in found.items():
            caption = f"{_LABELS.get(name, name)}: {zipped}, {gate.replace('/', ', ').replace('_', ' ')}"
            svg = curves(series, title=caption, x_label="step", y_label="tanh(gate)", from_zero=True)
            pictures.append((caption, svg))
    return section(
        "Gates of the zips",
        "Each zip's output is scaled by a gate between −1 and 1. The paper starts all gates at 0, where a zip has no "
        "effect; a gate that stays there means an unused zip. The sign alone has no meaning.",
        plots(pictures, "no run has gates"),
    )


def _cost(results: Mapping[str, Any]) -> str:
    rows = []
    for name, counts in _mapping(results, "parameters").items():
        frozen, trained = (number(counts, key) or 0.0 for key in ("frozen", "trained"))
        share = percent(trained / (frozen + trained)) if frozen + trained else "–"
        cells = "".join(f'<td class="n">{text}</td>' for text in (f"{frozen:,.0f}", f"{trained:,.0f}", share))
        rows.append(f'<tr><th scope="row">{_label(name)}</th>{cells}</tr>')
    sizes = table(["Parameters", "Frozen", "Trained", "Trained share"], rows) if rows else f"<p>{_NOT_MEASURED}</p>"
    seconds = _mapping(results, "seconds")
    total = _total(seconds)
    rows = []
    for stage in (stage for stage in seconds if stage != "total"):
        value = number(seconds, stage)
        bar = f'<span class="bar" style="width:{100 * value / total:.1f}%"></span>' if value and total else ""
        shown = _NOT_MEASURED if value is None else duration(value)
        rows.append(
            f'<tr><th scope="row">{_label(stage)}</th><td class="bars">{bar}</td><td class="n">{shown}</td></tr>'
        )
    if rows and total:
        rows.append(
            f'<tr class="control"><th scope="row">Total</th><td></td><td class="n main">{duration(total)}</td></tr>'
        )
    times = table(["Stage", "", "h:mm:ss"], rows) if rows else f"<p>{_NOT_MEASURED}</p>"
    return section(
        "Cost",
        "Frozen parameters keep their pretrained values; only trained ones are updated. Times are wall-clock times.",
        sizes,
        times,
    )


def _settings(results: Mapping[str, Any]) -> str:
    others = {key: results[key] for key in other_figures(results)}
    flat = [*_flat(_mapping(results, "settings")), *_flat(others)]
    if not flat:
        return section("Settings", _NOT_MEASURED)
    entries = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in flat)
    return section("Settings", "Evaluation settings, and figures without a table above.", f"<dl>{entries}</dl>")


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            found.append((f"{prefix}{key}", f"{value:.6g}" if math.isfinite(value) else "not a number"))
        else:
            found.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return found

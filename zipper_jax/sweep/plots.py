"""Figures of the sweep report, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.sweep.plan import MEASURES, Figure
from zipper_jax.sweep.statistics import spread

Lines = Mapping[str, Sequence[Mapping[str, Any]]]
"""arm -> its result lines."""

_LENGTHS = 12  # points of a curve over lengths


def draw(figure: Figure, lines: Lines, path: Path) -> bool:
    """Draw ``figure`` into ``path``; returns False, and writes nothing, where none of its arms has been scored."""
    from matplotlib.figure import Figure as Canvas  # not pyplot, which has global state and may need a display

    canvas = Canvas(figsize=(6.4, 4.0), layout="constrained")
    axes = canvas.add_subplot()
    drawn = list[float]()
    for label, points in figure.series.items():
        x, y, error = _by_length(lines, points[0][1]) if figure.by_length else _by_arm(figure, lines, points)
        if len(x):
            axes.errorbar(x, y, yerr=error, label=label, marker="o", markersize=3, linewidth=1.2, capsize=2)
            drawn.extend(x)
    if not drawn:
        return False
    axes.set(title=figure.title, xlabel=figure.x_label, ylabel=_heading(figure.measure), ylim=(0, None))
    if figure.log_x:
        axes.set_xscale("log")
        axes.set_xticks(sorted(set(drawn)), [f"{x:g}" for x in sorted(set(drawn))])
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=120, metadata={"Software": None})  # identical bytes with every matplotlib version
    return True


def _by_arm(figure: Figure, lines: Lines, points: Sequence[tuple[float, str]]):
    """x, mean and standard deviation over seeds of each scored arm."""
    found = [(x, *spread(lines.get(arm, ()), figure.measure)) for x, arm in sorted(points)]
    found = [row for row in found if row[3]]
    scale = scale_of(figure.measure)
    x, y, error = (np.array([row[i] for row in found]) for i in range(3))
    return x, y * scale, np.nan_to_num(error) * scale


def _by_length(lines: Lines, arm: str):
    """Error rate over texts of at most x letters, all seeds together (the paper's Figure 2)."""
    own = [line for line in lines.get(arm, ()) if "tts" in line["measures"]]
    if not own:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    letters = np.concatenate([line["letters"] for line in own])
    pairs = np.concatenate([line["measures"]["tts"] for line in own])
    limits = np.unique(np.quantile(letters, np.linspace(0.1, 1, _LENGTHS)).round())
    rates = [pairs[letters <= limit, 0].sum() / pairs[letters <= limit, 1].sum() for limit in limits]
    return limits, 100 * np.array(rates), np.zeros(len(limits))


def scale_of(measure: str) -> float:
    """Error rates are shown in percent."""
    return 1.0 if measure.endswith("_nats") else 100.0


def _heading(measure: str) -> str:
    return MEASURES[measure] if measure.endswith("_nats") else f"{MEASURES[measure]}, %"

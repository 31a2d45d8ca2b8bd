"""Plots of the report as inline SVG; colours are the page's CSS variables, for light and dark mode.

Axes: N heads, T text tokens, S speech units.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float

Points = Sequence[tuple[float, float]]

MOST_POINTS = 240
"""Maximum points per curve; more are averaged in groups, since the plot's width cannot show them."""

_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 112, 12, 36  # the right margin holds the curves' labels
_LINE = 13.0  # height of a label, so that labels do not overlap
_COLOURS = 8  # --c0 to --c7 in the page's CSS
_SHORT = 12  # characters of a token that fit beside the plot


def curves(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    from_zero: bool = False,
    faint: Sequence[str] = (),
    decimals: int = 2,
) -> str:
    """Draw curves, labelled at their ends with name and last value.

    Args:
        series: Name -> (x, y) in the order of x; points that are not finite are omitted.
        title: Text alternative, for screen readers.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        from_zero: Include 0 in the y axis.
        faint: Names of curves drawn thin, for noisy curves beside smooth ones.
        decimals: Decimals of the last values.

    Returns:
        The <svg> element; "" where no curve has a point.
    """
    series = {name: _thinned(points) for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points] + [0.0] * from_zero
    x_ticks, y_ticks = _ticks(0, max(xs), 4), _ticks(min(ys), max(ys), 5)
    x_low, x_high = 0.0, max(xs) or 1.0
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y_at(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in x_ticks:
        if tick <= x_high:
            parts.append(_text(x_at(tick), _HEIGHT - _BOTTOM + 16, _short(tick), "tick", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, x_label, "axis", "middle"))
    parts.append(_text(12, (_TOP + _HEIGHT - _BOTTOM) / 2, y_label, "axis", "middle", turned=True))
    ends = _spread([y_at(points[-1][1]) for points in series.values()])
    for number, ((name, points), label_y) in enumerate(zip(series.items(), ends, strict=True)):
        colour = f"var(--c{number % _COLOURS})"
        line = "M" + "L".join(f"{x_at(x):.1f} {y_at(y):.1f}" for x, y in points)
        thin = " thin" if name in faint else ""
        last_x, last_y = points[-1]
        parts.append(f'<path class="curve{thin}" stroke="{colour}" d="{line}"/>')
        if name not in faint and len(points) <= 40:
            parts += [f'<circle fill="{colour}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="2.2"/>' for x, y in points]
        # A connector from the curve's end to its label, which may have been moved.
        thread = f"M{x_at(last_x) + 3:.1f} {y_at(last_y):.1f}L{_WIDTH - _RIGHT + 12} {label_y:.1f}h5"
        parts.append(f'<path class="curve thin" stroke="{colour}" d="{thread}"/>')
        parts.append(
            f'<text class="name" x="{_WIDTH - _RIGHT + 20}" y="{label_y + 4:.1f}">{escape(name)} '
            f'<tspan class="last">{f"{last_y:.{decimals}f}".replace("-", "−")}</tspan></text>'
        )
    return _svg(_WIDTH, _HEIGHT, title, parts)


def attention(
    weights: Float[np.ndarray, "N T S"], tokens: Sequence[str], seconds_per_unit: float, *, title: str
) -> str:
    """Draw a heat map of the mean over heads: speech time to the right, text tokens downwards.

    Each row is scaled to its largest weight, so that tokens with spread-out attention stay visible.
    """
    mean = np.nan_to_num(np.asarray(weights, np.float64).mean(axis=0))
    T, S = mean.shape
    largest = mean.max(axis=1, keepdims=True) if S else np.zeros((T, 1))
    strength = np.divide(mean, largest, out=np.zeros_like(mean), where=largest > 0)
    left, right, top, bottom, row = 92, 12, 8, 38, 15
    width, height = _WIDTH - left - right, row * T
    seconds = S * seconds_per_unit
    parts = [
        f'<rect class="frame" x="{left}" y="{top}" width="{width}" height="{height}"/>',
        f'<image class="heat" x="{left}" y="{top}" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{_png(strength)}"/>',
    ]
    for t, token in enumerate(tokens):
        shown = token if len(token) <= _SHORT else token[: _SHORT - 1] + "…"
        parts.append(_text(left - 6, top + row * (t + 0.5) + 4, shown, "token", "end"))
    for tick in _ticks(0, seconds, 5):
        if tick <= seconds + 1e-9:
            x = left + width * tick / seconds
            parts.append(f'<path class="grid" d="M{x:.1f} {top + height}v4"/>')
            parts.append(_text(x, top + height + 16, _short(tick), "tick", "middle"))
    parts.append(_text(left + width / 2, top + height + 32, "seconds of speech", "axis", "middle"))
    parts.append(_text(12, top + height / 2, "text tokens", "axis", "middle", turned=True))
    return _svg(_WIDTH, top + height + bottom, title, parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, kind: str, anchor: str, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'


_LARGEST = 1e300  # ticks beyond the largest float would be infinite


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round tick values that enclose ``low`` to ``high``."""
    from matplotlib.ticker import MaxNLocator  # imported here: it takes 0.3 s

    low, high = (min(max(value, -_LARGEST), _LARGEST) for value in (low, high))
    if high - low < 1e-9 * max(abs(high), 1.0):
        low, high = low - 0.5 * (low != 0), high + 0.5
    return [float(tick) for tick in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _short(value: float) -> str:
    """``1500`` to ``1.5k``; no ``-0`` and no floating-point noise."""
    value = round(value, 10) + 0.0
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}".replace("-", "−")


def _thinned(points: Points) -> list[tuple[float, float]]:
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= MOST_POINTS:
        return finite
    groups = np.array_split(np.array(finite), MOST_POINTS)
    return [(float(x), float(y)) for x, y in (group.mean(axis=0) for group in groups)]


def _spread(heights: Sequence[float]) -> list[float]:
    """Label heights moved so that labels keep their order, do not overlap and stay inside the plot."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    lowest, floor = _HEIGHT - 6.0, _TOP - 2.0
    for i in order:
        placed[i] = max(heights[i], floor)
        floor = placed[i] + _LINE
    for i in reversed(order):
        placed[i] = min(placed[i], lowest)
        lowest = placed[i] - _LINE
    return placed


def _png(strength: Float[np.ndarray, "T S"]) -> str:
    """PNG of one colour with opacity ``strength`` (0 to 1), base64."""
    from matplotlib.image import imsave

    # An exponent below 1 keeps weights of a tenth of the largest visible.
    opacity = np.round(255 * strength**0.7).astype(np.uint8)
    pixels = np.empty((*strength.shape, 4), np.uint8)
    pixels[..., :3] = (0, 90, 170)
    pixels[..., 3] = opacity
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return base64.b64encode(file.getvalue()).decode()

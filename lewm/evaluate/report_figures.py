"""Small figures as text: SVG charts that take their colours from the page's style sheet, and pictures as data URIs.

Classes `s0`..`s5` are the series colours, `ink` the text, `grid` the thin lines; a page without them stays readable.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from markupsafe import Markup, escape

SERIES = 6
"""Series colours in the style sheet; further series start over."""
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34
PNG_BYTES, PICTURE = 3000, 96
"""Larger PNGs are stored as WebP, and larger pictures are shrunk: a report stays a file one can send."""


@dataclass(frozen=True)
class Line:
    """One line of a chart, or its dots."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    style: str = "s0"
    """CSS classes."""
    low: Sequence[float] | np.ndarray | None = None
    """Lower ends of the intervals."""
    high: Sequence[float] | np.ndarray | None = None
    dots: float = 0.0
    """Radius of the dots; 0 draws none."""
    joined: bool = True
    """Whether the points are connected."""


@dataclass(frozen=True)
class Axis:
    """A range, how it is written, and which numbers are marked."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    percent: bool = False

    def place(self, value: float) -> float:
        """Position in [0, 1]."""
        low, high, at = (math.log(max(v, 1e-9)) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def text(self, tick: float) -> str:
        """What is written at a tick."""
        return f"{100 * tick:.0f} %" if self.percent else f"{tick:.4g}"


def finite(*parts: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """All finite numbers of the given sequences."""
    numbers = [np.asarray(p, np.float64).ravel() for p in parts if p is not None]
    flat = np.concatenate(numbers) if numbers else np.zeros(0)
    return flat[np.isfinite(flat)]


def linear(label: str, values: np.ndarray, zero: bool = False, whole: bool = False) -> Axis:
    """An axis over `values` with about four round ticks; it starts at 0 when `zero`, has no fractions when `whole`."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    low = min(low, 0.0) if zero else low
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = (0.0, high or 1.0) if zero and high >= 0 else (low - 0.5, high + 0.5)
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(label, low, high, tuple(ticks))


def logarithmic(label: str, values: np.ndarray) -> Axis:
    """A logarithmic axis over positive `values`, in whole decades."""
    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.1, 10.0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    return Axis(label, 10.0**first, 10.0**last, tuple(10.0**i for i in range(first, last + 1)), log=True)


def share(label: str) -> Axis:
    """0 to 100 %."""
    return Axis(label, 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), percent=True)


def chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    title: str,
    width: int = 300,
    height: int = 190,
    threshold: float | None = None,
    marks: Sequence[float] = (),
) -> Markup:
    """A line chart. threshold: a dashed level. marks: ticks on the x axis. Points that are not finite are left out."""
    wide, high = width - LEFT - RIGHT, height - TOP - BOTTOM
    parts = []
    for tick in y.ticks:
        at = TOP + high * (1 - y.place(tick))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="ink" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{y.text(tick)}</text>')
    for tick in x.ticks:
        at = LEFT + wide * x.place(tick)
        parts.append(f'<text class="ink" x="{at:.1f}" y="{TOP + high + 14}" text-anchor="middle">{x.text(tick)}</text>')
    parts.append(
        f'<text class="ink name" x="{LEFT + wide / 2}" y="{height - 4}" text-anchor="middle">{escape(x.label)}</text>'
    )
    up = TOP + high / 2
    turned = f'y="{up}" text-anchor="middle" transform="rotate(-90 11 {up})"'
    parts.append(f'<text class="ink name" x="11" {turned}>{escape(y.label)}</text>')
    if threshold is not None and y.low <= threshold <= y.high:
        at = TOP + high * (1 - y.place(threshold))
        parts.append(f'<line class="threshold" x1="{LEFT}" x2="{width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for mark in marks:
        at = LEFT + wide * x.place(mark)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP + high - 5}" y2="{TOP + high}"/>')
    for line in lines:
        parts.append(_line(line, x, y, wide, high))
    return _svg(width, height, title, parts)


def _line(line: Line, x: Axis, y: Axis, wide: float, high: float) -> str:
    """The intervals, the connected stretches and the dots of one line."""
    xs, ys = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)

    def across(value: float) -> float:
        return LEFT + wide * x.place(value)

    def up(value: float) -> float:
        return TOP + high * (1 - y.place(value))

    parts: list[str] = []
    stretch: list[str] = []
    stretches: list[list[str]] = []
    for i in range(len(xs)):
        if not (math.isfinite(xs[i]) and math.isfinite(ys[i])):
            stretches, stretch = [*stretches, stretch], []
            continue
        stretch.append(f"{across(xs[i]):.1f},{up(ys[i]):.1f}")
        if line.low is not None and line.high is not None:
            ends = f'y1="{up(float(line.low[i])):.1f}" y2="{up(float(line.high[i])):.1f}"'
            parts.append(
                f'<line class="interval {line.style}" x1="{across(xs[i]):.1f}" x2="{across(xs[i]):.1f}" {ends}/>'
            )
    for points in (*stretches, stretch):
        if line.joined and len(points) > 1:
            parts.append(f'<polyline class="line {line.style}" points="{" ".join(points)}"/>')
        if line.dots:
            for point in points:
                cx, cy = point.split(",")
                parts.append(f'<circle class="dot {line.style}" cx="{cx}" cy="{cy}" r="{line.dots:g}"/>')
    return "".join(parts)


def interval_bar(value: float, low: float, high: float, style: str = "s0") -> Markup:
    """A success rate with its interval on a track from 0 to 100 %."""
    width, height = 120, 14
    tick, span = min(width - 3.0, max(0.0, width * value - 1.5)), max(2.0, width * (high - low))
    parts = [
        f'<rect class="track" x="0" y="5" width="{width}" height="4" rx="2"/>',
        f'<rect class="span {style}" x="{width * low:.1f}" y="3" width="{span:.1f}" height="8" rx="2"/>',
        f'<rect class="fill {style}" x="{tick:.1f}" y="0" width="3" height="14" rx="1"/>',
    ]
    return _svg(
        width, height, f"{100 * value:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %", parts, "bar"
    )


def milliseconds(value: float) -> str:
    """A time with as many digits as matter."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def time_bars(
    rows: Sequence[tuple[str, float, float, float, str]], title: str = "milliseconds per plan, encoder and search"
) -> Markup:
    """Bars of milliseconds: (name, encoder, search, end of the whisker, style) from top to bottom."""
    longest = max((len(name) for name, *_ in rows), default=0)
    left, row, width = 16 + 5.8 * longest, 28, 340
    room = width - left - 112
    most = max([max(encode + search, p95) for _, encode, search, p95, _ in rows], default=0.0) or 1.0
    parts = []
    for number, (name, encode, search, p95, style) in enumerate(rows):
        y = 6 + number * row
        first, second, end = (room * v / most for v in (encode, search, p95))
        parts += [
            f'<text class="ink" x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="fill encode" x="{left}" y="{y}" width="{first:.1f}" height="16"/>',
            f'<rect class="fill {style}" x="{left + first:.1f}" y="{y}" width="{max(second, 1):.1f}" height="16"/>',
            f'<line class="whisker" x1="{left + first + second:.1f}" x2="{left + end:.1f}" y1="{y + 8}" y2="{y + 8}"/>',
            f'<line class="whisker" x1="{left + end:.1f}" x2="{left + end:.1f}" y1="{y + 4}" y2="{y + 12}"/>',
            f'<text class="ink strong" x="{left + max(end, first + second) + 8:.1f}" y="{y + 12}">'
            f"{milliseconds(encode + search)}{f', encoder {milliseconds(encode)}' if encode else ''}</text>",
        ]
    return _svg(width, 10 + row * len(rows), title, parts)


def latent_chart(
    cloud_F2: np.ndarray, seen_F2: np.ndarray, rollouts_RP2: np.ndarray, goal_2: np.ndarray, style: str
) -> Markup:
    """The path through latent space: recorded frames as dust, imagined rollouts as thin lines, the goal as a star."""
    width, height, edge = 300, 190, 12
    points = np.concatenate([cloud_F2, seen_F2, rollouts_RP2.reshape(-1, 2), goal_2[None]])
    low, high = points.min(0), points.max(0)
    scale = min((width - 2 * edge) / max(high[0] - low[0], 1e-9), (height - 2 * edge) / max(high[1] - low[1], 1e-9))
    middle = (low + high) / 2

    def at(point: np.ndarray) -> tuple[float, float]:
        return width / 2 + scale * (point[0] - middle[0]), height / 2 - scale * (point[1] - middle[1])

    def path(points_P2: np.ndarray) -> str:
        return " ".join("{:.1f},{:.1f}".format(*at(p)) for p in points_P2)

    dust = "".join("M{:.1f} {:.1f}h0".format(*at(p)) for p in cloud_F2)
    parts = [f'<path class="dust" d="{dust}"/>'] if dust else []
    parts += [f'<polyline class="rollout" points="{path(rollout_P2)}"/>' for rollout_P2 in rollouts_RP2]
    parts.append(f'<polyline class="line {style}" points="{path(seen_F2)}"/>')
    parts += ['<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="1.8"/>'.format(style, *at(p)) for p in seen_F2[1:]]
    parts.append('<circle class="start {}" cx="{:.1f}" cy="{:.1f}" r="4"/>'.format(style, *at(seen_F2[0])))
    x, y = at(goal_2)
    corner = [
        (r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5))
        for i in range(10)
        for r in (7 if i % 2 == 0 else 3,)
    ]
    parts.append(f'<polygon class="star" points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corner)}"/>')
    return _svg(width, height, "path through latent space", parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str], style: str = "chart") -> Markup:
    body = "".join(parts)
    # Every part is made of numbers, our own class names and escaped text.
    return Markup(
        f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def picture(pixels_YXC: np.ndarray) -> str:
    """An RGB picture as a data URI: PNG while that is small, else WebP; shrunk to at most `PICTURE` pixels a side."""
    image = cv2.cvtColor(np.ascontiguousarray(pixels_YXC), cv2.COLOR_RGB2BGR)
    if (longest := max(image.shape[:2])) > PICTURE:
        size = [max(1, round(side * PICTURE / longest)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    if len(png) <= PNG_BYTES:
        return f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"
    webp = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 85])[1]
    return f"data:image/webp;base64,{base64.b64encode(webp.tobytes()).decode()}"

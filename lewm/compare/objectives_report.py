"""The report of a comparison: one HTML file with the table, the curves of all objectives, and what each says.

It shares the style sheet and the charts of the evaluation report.
"""

import math
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

import lewm.evaluate
from lewm import __version__
from lewm.compare.objectives_rows import COLLAPSED_RANK, COLLAPSED_STD, CompareRow, CurvePoint
from lewm.compare.objectives_table import Summary, summarise
from lewm.evaluate.report_figures import (
    SERIES,
    Axis,
    Line,
    chart,
    finite,
    interval_bar,
    linear,
    logarithmic,
    share,
    time_bars,
)
from lewm.schema import write_json

PATTERNS = ("", "dashed", "dotted")
"""Strokes of the first, second and third half dozen of objectives, which share the colours."""
WIDTH, HEIGHT = 340, 220
Measure = Callable[[CurvePoint], float | None]


@dataclass(frozen=True)
class R2Axis(Axis):
    """R2 from 0 to almost 1, in equal steps for every tenth of the unexplained variance; lower values count as 0."""

    @classmethod
    def over(cls, label: str, values: np.ndarray) -> "R2Axis":
        """Up to as many nines as the best of the values has, 1 to 5."""
        best = float(values.max(initial=0.0))
        nines = min(5, max(1, math.ceil(-math.log10(max(1 - best, 1e-5)) - 1e-9)))
        half = (0.5,) if nines <= 3 else ()
        return cls(label, 0.0, 1 - 10.0**-nines, (0.0, *half, *(1 - 10.0**-n for n in range(1, nines + 1))))

    def place(self, value: float) -> float:
        """Position in [0, 1]."""
        return math.log10(1 - min(max(value, 0.0), self.high)) / math.log10(1 - self.high)


def write_outputs(rows: Sequence[CompareRow], out: Path, configs: Mapping[str, str]) -> Path:
    """Write `out/summary.json` and `out/report.html`; returns the latter."""
    write_json([asdict(summary) for summary in summarise(rows)], out / "summary.json")
    return write_report(rows, out / "report.html", configs)


def write_report(rows: Sequence[CompareRow], path: Path, configs: Mapping[str, str] | None = None) -> Path:
    """Write the self-contained page. configs: the resolved run by task, shown at the end.

    Raises ValueError when there is nothing to report.
    """
    if not rows:
        raise ValueError("there is no row to report: compare at least one objective first")
    names = list(dict.fromkeys(row.objective for row in rows))
    styles = {name: f"s{i % SERIES} {PATTERNS[i // SERIES % len(PATTERNS)]} o{i}" for i, name in enumerate(names)}
    summaries = summarise(rows)
    tasks = list(dict.fromkeys(row.task for row in rows))
    loader = jinja2.FileSystemLoader([Path(__file__).parent, *lewm.evaluate.__path__])
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    html = page.get_template("compare.html.jinja").render(
        title=f"{len(names)} objective{'s' * (len(names) > 1)} on the same recordings",
        styles=styles,
        tasks=[
            _task([s for s in summaries if s.task == task], [r for r in rows if r.task == task], styles)
            for task in tasks
        ],
        collapsed_rank=COLLAPSED_RANK,
        collapsed_std=COLLAPSED_STD,
        facts={
            "hardware": ", ".join(sorted({row.hardware for row in rows})),
            "software": f"lewm {__version__}, torch {', '.join(sorted({row.torch for row in rows}))}, "
            f"Python {platform.python_version()}",
            "report written by": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        },
        configs=dict(configs or {}),
        version=__version__,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def _task(group: Sequence[Summary], rows: Sequence[CompareRow], styles: Mapping[str, str]) -> dict[str, Any]:
    """Everything the page says about one task."""
    best = group[0]
    methods = list(dict.fromkeys(s.method for s in best.success))
    bars = [
        [interval_bar(s.success, s.low, s.high, f"s{methods.index(s.method) % SERIES}") for s in x.success]
        for x in group
    ]
    curves = {name: [row for row in rows if row.objective == name and row.curve] for name in styles}
    return {
        "name": best.task,
        "steps": ", ".join(str(steps) for steps in sorted({x.steps for x in group})),
        "seeds": sorted({seed for x in group for seed in x.seeds}),
        "goals": list(dict.fromkeys(s.goals for s in best.success)),
        "methods": [(method, f"s{i % SERIES}") for i, method in enumerate(methods)],
        "group": list(zip(group, bars)),
        "factors": list(best.linear_r2),
        "charts": _curve_charts(curves, styles) if any(curves.values()) else [],
        "linear": _factor_charts(curves, list(best.linear_r2), styles, "linear"),
        "mlp": _factor_charts(curves, list(best.mlp_r2), styles, "MLP"),
        "horizon": _horizon(group, styles),
        "speed": _speed(group, styles),
    }


def mean_curve(rows: Sequence[CompareRow], measure: Measure, style: str, dots: float = 0.0) -> Line:
    """A measure against the step, averaged over the seeds that have it at that step."""
    at: dict[int, list[float]] = {}
    for point in (point for row in rows for point in row.curve):
        if (value := measure(point)) is not None:
            at.setdefault(point.step, []).append(value)
    steps = sorted(at)
    return Line(steps, [float(np.mean(at[step])) for step in steps], style, dots=dots)


def collapses(rows: Sequence[CompareRow], measure: Measure, style: str) -> Line:
    """A ring where each collapsed seed collapsed."""
    fallen = [point for row in rows for point in row.curve if point.step == row.collapsed_at]
    values = [math.nan if (value := measure(point)) is None else value for point in fallen]
    return Line([point.step for point in fallen], values, f"{style} ring", dots=4.5, joined=False)


def _panel(lines: Sequence[Line], y: Axis, title: str, threshold: float | None = None) -> Markup:
    """Lines against the training step."""
    x = linear("training step", finite(*(line.x for line in lines)), zero=True, whole=True)
    return chart(lines, x, y, title, WIDTH, HEIGHT, threshold)


def _curve_charts(curves: Mapping[str, Sequence[CompareRow]], styles: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """Rank and spread, with rings where latents collapsed, and the prediction error."""

    def rank(point: CurvePoint) -> float:
        return point.effective_rank / point.ideal_rank

    def std(point: CurvePoint) -> float:
        return point.std_mean

    ranks, stds = (
        [draw(rows, measure, styles[name]) for draw in (mean_curve, collapses) for name, rows in curves.items()]
        for measure in (rank, std)
    )
    errors = [mean_curve(rows, lambda point: point.rollout_error[0], styles[name]) for name, rows in curves.items()]
    std_axis = logarithmic("mean std", finite(*(line.y for line in stds)))
    error_axis = logarithmic("error / variance", finite(*(line.y for line in errors)))
    return [
        ("Effective rank", _panel(ranks, share("share of the ideal rank"), "effective rank by step", COLLAPSED_RANK)),
        ("Standard deviation", _panel(stds, std_axis, "standard deviation by step", COLLAPSED_STD)),
        ("Prediction error, one block", _panel(errors, error_axis, "prediction error by step")),
    ]


def _factor_charts(
    curves: Mapping[str, Sequence[CompareRow]], factors: Sequence[str], styles: Mapping[str, str], probe: str
) -> list[tuple[str, Markup]]:
    """R2 in the course of the training, one panel per state factor that varies."""
    panels = []
    for factor in factors:

        def measure(point: CurvePoint, factor: str = factor) -> float | None:
            return (point.mlp_r2 if probe == "MLP" else point.linear_r2).get(factor)

        dots = 2.5 if probe == "MLP" else 0.0
        lines = [mean_curve(rows, measure, styles[name], dots) for name, rows in curves.items()]
        if len(values := finite(*(line.y for line in lines))):
            panel = _panel(lines, R2Axis.over("R²", values), f"R2 of {factor} by step, {probe} probe")
            panels.append((f"{factor}, {probe} probe", panel))
    return panels


def _horizon(group: Sequence[Summary], styles: Mapping[str, str]) -> Markup:
    """Rollout error at the end of the training against the blocks rolled out."""
    lines = [
        Line(range(1, len(x.rollout_error) + 1), [e.mean for e in x.rollout_error], styles[x.objective], dots=2.5)
        for x in group
    ]
    x_axis = linear("blocks ahead", finite(*(line.x for line in lines)), whole=True)
    y_axis = logarithmic("error / variance", finite(*(line.y for line in lines)))
    return chart(lines, x_axis, y_axis, "rollout error by horizon", WIDTH, HEIGHT)


def _speed(group: Sequence[Summary], styles: Mapping[str, str]) -> Markup:
    """Milliseconds per training step, the fastest on top; the whisker adds one standard deviation over seeds."""
    timed = [(x, x.seconds_per_step) for x in group if x.seconds_per_step is not None]
    rows = [
        (x.objective, 0.0, 1000 * s.mean, 1000 * (s.mean + (s.std or 0.0)), styles[x.objective])
        for x, s in sorted(timed, key=lambda pair: pair[1].mean)
    ]
    return time_bars(rows, "milliseconds per training step")

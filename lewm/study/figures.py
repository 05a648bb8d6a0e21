"""What the figures of all studies share: a canvas, rows of dots with intervals, a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lewm.study.bootstrap import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110


def canvas(width: float, height: float) -> "Figure":
    """An empty figure in inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write the PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def dots(
    axes: "Axes",
    rows: Sequence[Estimate | None],
    height: Sequence[float],
    colour: str,
    label: str | None = None,
    filled: bool = True,
) -> None:
    """Estimates as dots on horizontal intervals at the given heights; what was not measured is left out."""
    known = [(estimate, y) for estimate, y in zip(rows, height, strict=True) if estimate is not None]
    if not known:
        return
    value, y = [estimate.value for estimate, _ in known], [y for _, y in known]
    # A percentile interval need not hold the value itself, and matplotlib draws no bar of negative length.
    ends = [[max(0.0, e.value - e.low) for e, _ in known], [max(0.0, e.high - e.value) for e, _ in known]]
    face = colour if filled else "white"
    axes.errorbar(value, y, xerr=ends, fmt="o", color=colour, mfc=face, markersize=5, elinewidth=1.2, label=label)


def named_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Name the heights 0, 1, ... from top to bottom."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)


def band(axes: "Axes", x: Sequence[float], line: Sequence[Estimate | None], colour: str, label: str) -> None:
    """A line through estimates with its interval as a shade."""
    known = [(at, estimate) for at, estimate in zip(x, line, strict=True) if estimate is not None]
    if not known:
        return
    at, values = [at for at, _ in known], [estimate for _, estimate in known]
    axes.plot(at, [e.value for e in values], "o-", color=colour, markersize=3, linewidth=1.3, label=label)
    axes.fill_between(at, [e.low for e in values], [e.high for e in values], color=colour, alpha=0.15, linewidth=0)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text, columns as wide as their longest cell."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)

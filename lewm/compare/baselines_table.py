"""The comparison of baselines as Markdown: methods by manifests, training seeds pooled."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

import numpy as np

from lewm.compare.over_seeds import over_seeds
from lewm.evaluate.results import ResultRow, search
from lewm.evaluate.seeds import difference_p, interquartile_mean, resampled_goals, resampled_success
from lewm.evaluate.significance import privileged
from lewm.evaluate.statistics import SIGNIFICANT, holm, wilson
from lewm.tables import markdown

LEGEND = (
    "Success in %, with Wilson's 95 % interval for as many goals as the manifest has: seeds share them, so that "
    "several are averaged and count once; ± is their standard deviation. **Bold**: the best on a manifest, "
    "those told the true state or the recorded way aside. ≈: the difference to it may be chance (paired bootstrap over "
    f"goals and over the training seeds of either, Holm over the methods, {100 * SIGNIFICANT:g} %; of a row with one "
    "seed it says nothing about other trainings). Milliseconds per plan are medians, one problem at a time."
)
"""What stands under the table."""
SEEDS = (
    "Success in % over all manifests and training seeds, of the methods that have as many seeds, and how likely a "
    "seed of the best beats one of this row, with 95 % intervals of a bootstrap over seeds within each manifest:"
)
"""What stands above the table over seeds."""


@dataclass(frozen=True)
class Cell:
    """One method on one manifest, over its training seeds."""

    rows: tuple[ResultRow, ...]
    """By seed."""

    @property
    def success(self) -> float:
        """Mean over seeds."""
        return fmean(row.success for row in self.rows)

    @property
    def reached_MN(self) -> np.ndarray:
        """Which goals were reached, by seed and goal; rows of an older lewm do not say it."""
        return np.array([row.by_goal for row in self.rows])

    @property
    def text(self) -> str:
        """`97.3 (94.0 - 98.9) ± 0.6`."""
        n = self.rows[0].n
        low, high = wilson(round(self.success * n), n)
        spread = f" ± {100 * stdev(row.success for row in self.rows):.1f}" if len(self.rows) > 1 else ""
        return f"{100 * self.success:.1f} ({100 * low:.1f} - {100 * high:.1f}){spread}"


def table(rows: Sequence[ResultRow]) -> str:
    """All rows of a comparison. Raises ValueError for rows of one goal set that were measured on different goals."""
    if not rows:
        return "no rows"
    goals = list(dict.fromkeys(row.goals for row in rows))
    cells: dict[tuple[str, str], Cell] = {}
    for key in dict.fromkeys((row.method, row.goals) for row in rows):
        mine = sorted((row for row in rows if (row.method, row.goals) == key), key=lambda row: row.seed)
        cells[key] = Cell(tuple(mine))
    first = {row.goals: row for row in reversed(rows)}
    rng = np.random.default_rng(0)
    resamples = {n: resampled_goals(n, rng) for n in {row.n for row in rows}}
    marks: dict[tuple[str, str], str] = {}
    for name in goals:
        if len({row.manifest for row in rows if row.goals == name}) > 1:
            raise ValueError(f"goals {name}: the rows were measured on different manifests; evaluate them on one")
        column = {method: cell for (method, of), cell in cells.items() if of == name}
        marks |= {(method, name): mark for method, mark in _marks(column, resamples[first[name].n], rng).items()}
    head = ["method", "search", "seeds", *(f"{g}, n = {first[g].n}, {first[g].budget} steps" for g in goals)]
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        found = [marks[method, g].format(cells[method, g].text) if (method, g) in cells else "-" for g in goals]
        seeds = str(len({row.seed for row in mine}))
        times = f"{median(row.plan_ms_p50 for row in mine):.1f}" if mine[0].candidates else "-"
        learned = next((row.trained for row in mine if row.trained), "-")
        lines.append([method, search(mine[0]), seeds, *found, times, learned])
    threads = ", ".join(sorted({str(row.threads) for row in rows}))
    machines = ", ".join(sorted({row.hardware for row in rows}))
    cells_by_row = [[*head, "ms per plan", "learned from"], *lines]
    if len(goals) > len(lines):  # the longer side goes down the page
        cells_by_row = [list(column) for column in zip(*cells_by_row)]
    parts = [
        markdown(cells_by_row[0], cells_by_row[1:]),
        f"{LEGEND} Torch threads: {threads}; {machines}.",
    ]
    return "\n\n".join(parts + _over_seeds(cells, goals))


def _over_seeds(cells: dict[tuple[str, str], Cell], goals: Sequence[str]) -> list[str]:
    """The methods that were measured on all goals with the most training seeds; nothing for fewer than two of them."""
    seeds = max(len(cell.rows) for cell in cells.values())
    scores = {}
    for method in dict.fromkeys(method for method, _ in cells):
        mine = [cells[method, g].rows for g in goals if (method, g) in cells]
        if len(mine) == len(goals) and all(len(rows) == seeds for rows in mine):
            scores[method] = [[row.success for row in rows] for rows in mine]
    if seeds == 1 or len(scores) < 2:
        return []
    fair = [method for method in scores if not privileged(cells[method, goals[0]].rows[0])]
    best = max(fair or scores, key=lambda method: interquartile_mean(scores[method]))
    return [SEEDS, over_seeds(scores, best, "method")]


def _marks(column: dict[str, Cell], counts_RN: np.ndarray, rng: np.random.Generator) -> dict[str, str]:
    """How the text of every cell of a manifest is shown, as a format string. counts_RN: resamples of its goals."""
    fair = {method: cell for method, cell in column.items() if not privileged(cell.rows[0])}
    best = max(fair or column, key=lambda method: column[method].success)
    told = {method: cell.reached_MN for method, cell in column.items() if all(row.reached for row in cell.rows)}
    success = {method: resampled_success(reached_MN, counts_RN, rng) for method, reached_MN in told.items()}
    others = [method for method in success if method != best and best in success]
    p_values = holm([difference_p(success[method], success[best]) for method in others])
    equal = {method for method, p in zip(others, p_values) if p >= SIGNIFICANT}
    return {method: "**{}**" if method == best else "≈ {}" if method in equal else "{}" for method in column}

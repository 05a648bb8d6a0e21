"""The rows of an evaluation as one small Markdown table: methods by goal sets, with what may be chance."""

from collections.abc import Sequence
from statistics import median

from lewm.evaluate.results import ResultRow, search
from lewm.evaluate.significance import Verdict, verdicts
from lewm.tables import markdown


def summary(rows: Sequence[ResultRow], against: str | None = None) -> str:
    """Markdown with a row per method and a column per goal set: success in percent with its Wilson 95 % interval.

    Milliseconds per plan are the median over the goal sets of their p50. A method without a row has a dash. What
    learning took is in the last column, where any row says it. against: the method that the others are tested against;
    None takes the best of every goal set. Raises ValueError as `verdicts` does.
    """
    found = verdicts(rows, against)
    goals = list(dict.fromkeys(row.goals for row in rows))
    sizes = {row.goals: f"{row.goals}, n = {row.n}, {row.budget} steps" for row in rows}
    learned = any(row.trained for row in rows)
    head = ["method", "search", *(sizes[name] for name in goals), "ms per plan", *["learned from"] * learned]
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = {row.goals: row for row in rows if row.method == method}
        first = next(iter(mine.values()))
        rates = [_cell(mine[g], found.get((g, method))) if g in mine else "-" for g in goals]
        times = f"{median(row.plan_ms_p50 for row in mine.values()):.1f}" if first.candidates else "-"
        lines.append([method, search(first), *rates, times, *[first.trained or "-"] * learned])
    return markdown(head, lines)


def _cell(row: ResultRow, verdict: Verdict | None) -> str:
    """One success rate; the row's verdict where there is one."""
    rate = f"{100 * row.success:.1f} ({100 * row.low:.1f} - {100 * row.high:.1f})"
    if verdict is None:
        return rate
    return f"**{rate}**" if verdict.is_reference else rate if verdict.differs else f"≈ {rate}"

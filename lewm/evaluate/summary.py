"""The rows of an evaluation as one small Markdown table: methods by goal sets, with what may be chance."""

from collections.abc import Sequence
from statistics import median

from lewm.evaluate.results import ResultRow, search
from lewm.evaluate.significance import privileged
from lewm.evaluate.statistics import SIGNIFICANT, holm, mcnemar

LEGEND = (
    "**Bold**: the row that the others are tested against, the best of those that are not told the true state or the "
    "recorded way unless another is named. ≈: the difference to it may be chance (exact paired McNemar on the same "
    f"goals, Holm over the rows of a goal set, {100 * SIGNIFICANT:g} %)."
)
"""What stands below it."""


def summary(rows: Sequence[ResultRow], against: str | None = None) -> str:
    """Markdown with a row per method and a column per goal set: success in percent with its Wilson 95 % interval.

    Milliseconds per plan are the median over the goal sets of their p50. A method without a row has a dash. What
    learning took is in the last column, where any row says it. against: the method that the others are tested against;
    None takes the best of every goal set. Raises ValueError where no row is of that method.
    """
    if against is not None and against not in {row.method for row in rows}:
        known = ", ".join(dict.fromkeys(row.method for row in rows))
        raise ValueError(f"there is no row {against!r} to compare with; the rows are {known}")
    goals = list(dict.fromkeys(row.goals for row in rows))
    sizes = {row.goals: f"{row.goals}, n = {row.n}, {row.budget} steps" for row in rows}
    learned = any(row.trained for row in rows)
    marks = {name: _marks([row for row in rows if row.goals == name], against) for name in goals}
    head = ["method", "search", *(sizes[name] for name in goals), "ms per plan", *["learned from"] * learned]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in dict.fromkeys(row.method for row in rows):
        mine = {row.goals: row for row in rows if row.method == method}
        first = next(iter(mine.values()))
        rates = [marks[g][method].format(_rate(mine[g])) if g in mine else "-" for g in goals]
        times = f"{median(row.plan_ms_p50 for row in mine.values()):.1f}" if first.candidates else "-"
        cells = [method, search(first), *rates, times, *[first.trained or "-"] * learned]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(row: ResultRow) -> str:
    return f"{100 * row.success:.1f} ({100 * row.low:.1f} - {100 * row.high:.1f})"


def _marks(group: Sequence[ResultRow], against: str | None) -> dict[str, str]:
    """How the cell of every method of a goal set is shown, as a format string.

    Rows that do not say which goals were reached, or were measured on others, are shown as they are.
    """
    named = [row for row in group if row.method == against]
    fair = [row for row in group if not privileged(row)]
    if against is not None and not named:
        return {row.method: "{}" for row in group}
    first = max(named or fair or group, key=lambda row: row.successes)
    paired = [row for row in group if row is not first and _comparable(row, first)]
    p_values = holm([mcnemar(_reached(row), _reached(first)) for row in paired])
    equal = {row.method for row, p in zip(paired, p_values) if p >= SIGNIFICANT}
    return {row.method: "**{}**" if row is first else "≈ {}" if row.method in equal else "{}" for row in group}


def _comparable(one: ResultRow, other: ResultRow) -> bool:
    return bool(one.reached and other.reached) and one.manifest == other.manifest


def _reached(row: ResultRow) -> list[bool]:
    return [digit == "1" for digit in row.reached]

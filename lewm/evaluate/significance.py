"""Which rows of a goal set differ from the best one, or from a chosen one, by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

from lewm.evaluate.results import ResultRow, markdown, table
from lewm.evaluate.statistics import SIGNIFICANT, holm, mcnemar

PRIVILEGED = ("oracle", "replay")
"""Kinds of methods that use what no agent has, the true simulator or the recorded way: never the best row by
themselves."""


@dataclass(frozen=True)
class Verdict:
    """One row beside the reference of its goal set."""

    reference: str
    """Method it is compared with."""
    is_reference: bool
    p: float
    """Exact McNemar p-value on the same goals, adjusted (Holm) for the rows of the goal set."""
    won: int
    """Goals that this row reached and the reference did not."""
    lost: int
    """Goals that the reference reached and this row did not."""

    @property
    def differs(self) -> bool:
        """Whether chance is an unlikely reason for the difference."""
        return self.p < SIGNIFICANT

    @property
    def mark(self) -> str:
        """The cell of a table: the reference, `≈` for a row that does not differ, and the p-value."""
        if self.is_reference:
            return "reference"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return p if self.differs else f"≈ {p}"


Verdicts = dict[tuple[str, str], Verdict]
"""Goal set and method to verdict."""


def verdicts(rows: Sequence[ResultRow], reference: str | None = None) -> Verdicts:
    """A verdict for every row, goal set by goal set, but those of an older lewm, which do not say what was reached.

    reference: the method that all are compared with; None takes the best row of each goal set, the first of several,
    oracle and replay aside. Raises ValueError where the reference has no row, or rows of one goal set were measured on
    different goals.
    """
    found: Verdicts = {}
    told = [row for row in rows if row.reached]
    for goals in dict.fromkeys(row.goals for row in told):
        group = [row for row in told if row.goals == goals]
        if len({row.manifest for row in group}) > 1:
            raise ValueError(f"goals {goals}: the rows were measured on different manifests; compare those of one")
        first = best(group) if reference is None else _named(group, reference)
        others = [row for row in group if row is not first]
        pairs = [(row.by_goal, first.by_goal) for row in others]
        found[goals, first.method] = Verdict(first.method, True, 1.0, 0, 0)
        for row, (ours, theirs), p in zip(others, pairs, holm([mcnemar(*pair) for pair in pairs])):
            won, lost = (sum(a == w and b != w for a, b in zip(ours, theirs)) for w in (True, False))
            found[goals, row.method] = Verdict(first.method, False, p, won, lost)
    return found


def best(group: Sequence[ResultRow]) -> ResultRow:
    """The row with most goals reached, of those of methods that know no more than an agent does where there are any."""
    return max([row for row in group if not privileged(row)] or group, key=lambda row: row.successes)


def privileged(row: ResultRow) -> bool:
    """Whether the method uses what no agent has. Rows of an older lewm have no kind; there the cost tells."""
    return row.true_state or row.kind in PRIVILEGED or row.cost.startswith("true distance")


def legend(reference: str | None = None) -> str:
    """What the marks mean, in one line."""
    what = "the goal set's best row, oracle, replay and the true state aside," if reference is None else reference
    return (
        f"≈: the difference to {what} may be chance (exact paired McNemar on the same goals, Holm over the rows, "
        f"{100 * SIGNIFICANT:g} %)"
    )


def marked_table(rows: Sequence[ResultRow], reference: str | None = None) -> str:
    """The rows as aligned text, with what is significant."""
    return table(rows, _marks(rows, reference), legend(reference))


def marked_markdown(rows: Sequence[ResultRow], reference: str | None = None) -> str:
    """The rows as Markdown, with what is significant."""
    return markdown(rows, _marks(rows, reference), legend(reference))


def _marks(rows: Sequence[ResultRow], reference: str | None) -> dict[tuple[str, str], str]:
    found = verdicts(rows, reference)
    keys = [(row.goals, row.method) for row in rows]
    return {key: found[key].mark if key in found else "not recorded" for key in keys}


def _named(group: Sequence[ResultRow], method: str) -> ResultRow:
    for row in group:
        if row.method == method:
            return row
    raise ValueError(
        f"goals {group[0].goals}: there is no row {method!r} to compare with; the rows are "
        f"{', '.join(row.method for row in group)}"
    )

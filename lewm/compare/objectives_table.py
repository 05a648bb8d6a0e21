"""The comparison over seeds: mean and spread of every measure, success pooled, as a table."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lewm.compare.objectives_rows import CompareRow
from lewm.compare.over_seeds import over_seeds
from lewm.evaluate.statistics import wilson
from lewm.tables import markdown

SEEDS = (
    "Success in % over all goal sets, planning costs and training seeds, and how likely a seed of the first row beats "
    "one of this row, with 95 % intervals of a bootstrap over seeds within each goal set and cost:"
)
"""What stands above the table over seeds."""


@dataclass(frozen=True)
class Spread:
    """A measure over seeds."""

    mean: float
    """Over the seeds that have it."""
    std: float | None
    """Sample standard deviation; None for one seed."""
    n: int
    """Seeds that have it."""

    def text(self, digits: int) -> str:
        """`0.98 ± 0.01`, or `0.98` for one seed."""
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f" ± {self.std:.{digits}f}")


@dataclass(frozen=True)
class PooledSuccess:
    """One planning cost on one goal set, the goals of all seeds together."""

    goals: str
    """Name of the goal set."""
    method: str
    """Name of the planning method."""
    n: int
    """Goals tried, over all seeds."""
    successes: int
    """Goals reached."""
    success: float
    """Share of the goals reached."""
    low: float
    """Lower end of the Wilson 95 % interval over all goals and seeds, as if they were independent."""
    high: float
    """Upper end of it."""
    by_seed: tuple[float, ...]
    """Share of the goals reached with each seed."""


@dataclass(frozen=True)
class Summary:
    """One objective on one task over its seeds."""

    task: str
    """Task name, as in `envs.TASKS`."""
    objective: str
    """Name in `OBJECTIVES`, and after a + those of add-ons."""
    change: str
    """What differs from the published constants; empty for none."""
    steps: int
    """Optimiser steps."""
    seeds: tuple[int, ...]
    """Training seeds, in the order of every list by seed."""
    effective_rank: Spread
    """At the end, on held-out episodes, as all that follows."""
    ideal_rank: Spread
    """Of an isotropic Gaussian of the same size."""
    condition_number: Spread | None
    """None where it was infinite, or not measured, with every seed."""
    std_mean: Spread
    """Mean over dimensions of the standard deviation."""
    std_min: Spread
    """Standard deviation of the dimension that varies least."""
    linear_r2: dict[str, Spread | None]
    """R2 of a linear probe by state factor; None where it does not vary."""
    mlp_r2: dict[str, Spread | None]
    """The same for a small MLP."""
    rollout_error: tuple[Spread, ...]
    """After 1, 2, ... blocks."""
    seconds_per_step: Spread | None
    """Training alone; None if it was not timed."""
    collapsed_at: tuple[int | None, ...]
    """By seed; None for never."""
    success: tuple[PooledSuccess, ...]
    """Every planning cost on every goal set."""

    @property
    def reached(self) -> float:
        """Share of all goals reached, over goal sets and planning costs: what rows are sorted by."""
        n = sum(s.n for s in self.success)
        return sum(s.successes for s in self.success) / n if n else 0.0

    @property
    def condition(self) -> str:
        """The mean condition number, as short as its size allows."""
        if self.condition_number is None:
            return "-"
        mean = self.condition_number.mean
        return f"{mean:,.0f}" if mean < 1e6 else f"{mean:.1e}"

    @property
    def collapsed(self) -> int:
        """Seeds whose latent collapsed."""
        return sum(step is not None for step in self.collapsed_at)

    @property
    def collapse(self) -> str:
        """`never`, or how many seeds collapsed and at which steps."""
        if not self.collapsed:
            return "never"
        steps = ", ".join(str(step) for step in self.collapsed_at if step is not None)
        seeds = f"{self.collapsed} of {len(self.seeds)}, " if len(self.seeds) > 1 else ""
        return f"{seeds}at {steps}"


def over(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of one or more numbers."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def spread(values: Iterable[float | None]) -> Spread | None:
    """The same of the numbers that were measured; None if there are none."""
    known = [value for value in values if value is not None]
    return over(known) if known else None


def summarise(rows: Sequence[CompareRow]) -> list[Summary]:
    """One summary per task and objective; tasks in the order of the rows, objectives by goals reached, most first.

    Raises ValueError for rows of one objective that cannot be pooled: of different steps, settings, goal sets or
    methods, or twice of the same seed.
    """
    groups: dict[tuple[str, str], list[CompareRow]] = {}
    for row in rows:
        groups.setdefault((row.task, row.objective), []).append(row)
    tasks = list(dict.fromkeys(row.task for row in rows))
    found = [_summarise(sorted(group, key=lambda row: row.seed)) for group in groups.values()]
    return sorted(found, key=lambda summary: (tasks.index(summary.task), -summary.reached))


def _summarise(rows: Sequence[CompareRow]) -> Summary:
    first = rows[0]
    what = f"{first.objective} on {first.task}"
    if len({row.seed for row in rows}) < len(rows):
        raise ValueError(f"two rows are {what} with the same seed; seeds are {[row.seed for row in rows]}")
    kinds = [(row.steps, row.settings, row.change, [(s.goals, s.method) for s in row.success]) for row in rows]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"rows of {what} differ in steps, settings, goal sets or methods; pool rows of one kind")

    return Summary(
        task=first.task,
        objective=first.objective,
        change=first.change,
        steps=first.steps,
        seeds=tuple(row.seed for row in rows),
        effective_rank=over([row.effective_rank for row in rows]),
        ideal_rank=over([row.ideal_rank for row in rows]),
        condition_number=spread(row.condition_number for row in rows),
        std_mean=over([row.std_mean for row in rows]),
        std_min=over([row.std_min for row in rows]),
        linear_r2={name: spread(row.linear_r2[name] for row in rows) for name in first.linear_r2},
        mlp_r2={name: spread(row.mlp_r2[name] for row in rows) for name in first.mlp_r2},
        rollout_error=tuple(over(errors) for errors in zip(*(row.rollout_error for row in rows), strict=True)),
        seconds_per_step=spread(row.seconds_per_step for row in rows),
        collapsed_at=tuple(row.collapsed_at for row in rows),
        success=tuple(_pool(rows, i) for i in range(len(first.success))),
    )


def _pool(rows: Sequence[CompareRow], i: int) -> PooledSuccess:
    """The i-th goal set and method of all rows."""
    each = [row.success[i] for row in rows]
    n, reached = sum(s.n for s in each), sum(s.successes for s in each)
    rates = tuple(s.success for s in each)
    return PooledSuccess(each[0].goals, each[0].method, n, reached, reached / n, *wilson(reached, n), rates)


def table(rows: Sequence[CompareRow]) -> str:
    """The comparison as Markdown: per task a table of all measures, and one of R2 by state factor."""
    if not rows:
        return "no rows"
    summaries = summarise(rows)
    parts = []
    for task in dict.fromkeys(summary.task for summary in summaries):
        group = [summary for summary in summaries if summary.task == task]
        parts += [_caption(group), _measures(group)]
        if all(len(summary.seeds) > 1 for summary in group):
            scores = {x.objective: [success.by_seed for success in x.success] for x in group}
            parts += [SEEDS, over_seeds(scores, group[0].objective, "objective")]
        parts += ["R2 by state factor, linear probe / MLP:", _factors(group)]
        if growth := _growth([row for row in rows if row.task == task], group):
            parts += [
                "R2 of the worst state factor as the training goes on, MLP probe of the clips of a point:",
                growth,
            ]
        if changes := sorted(f"{s.objective}: {s.change}" for s in group if s.change):
            parts.append("\n".join(["Constants other than the published ones:", *(f"- {c}" for c in changes)]))
    return "\n\n".join(parts)


def _caption(group: Sequence[Summary]) -> str:
    seeds, steps = sorted({s for x in group for s in x.seeds}), sorted({x.steps for x in group})
    text = f"{group[0].task}: {', '.join(map(str, steps))} steps, seed{'s' * (len(seeds) > 1)} "
    text += f"{', '.join(map(str, seeds))}, most goals reached first. Success in % with its Wilson 95 % interval"
    if len(seeds) == 1:
        return text + "."
    return f"{text} over the goals of all seeds together; other numbers are mean ± standard deviation over seeds."


def _measures(group: Sequence[Summary]) -> str:
    plans = [f"{s.goals} {s.method}" for s in group[0].success]
    head = ["objective", *plans, "collapsed", "rank / ideal", "condition", "std mean", "std min"]
    head += ["worst linear R2", "worst MLP R2", "rollout error", "s/step"]
    lines = []
    for x in group:
        cells = [f"{100 * s.success:.0f} ({100 * s.low:.0f}-{100 * s.high:.0f})" for s in x.success]
        cells += [x.collapse, f"{x.effective_rank.text(1)} / {x.ideal_rank.mean:.1f}"]
        cells.append(x.condition)
        cells += [x.std_mean.text(3), x.std_min.text(3), _worst(x.linear_r2), _worst(x.mlp_r2)]
        cells.append(x.rollout_error[-1].text(3))
        cells.append("-" if x.seconds_per_step is None else x.seconds_per_step.text(3))
        lines.append([x.objective, *cells])
    return markdown(head, lines)


def _factors(group: Sequence[Summary]) -> str:
    names = list(group[0].linear_r2)
    lines = [[x.objective, *(f"{_text(x.linear_r2[name])} / {_text(x.mlp_r2[name])}" for name in names)] for x in group]
    return markdown(["objective", *names], lines)


def _growth(rows: Sequence[CompareRow], group: Sequence[Summary]) -> str:
    """The factor with the lowest R2 at each point of the curves that has an MLP probe, mean over seeds."""
    lines, columns = [], sorted({point.step for row in rows for point in row.curve if point.mlp_r2})
    for x in group:
        curves = [row.curve for row in rows if row.objective == x.objective]
        at = {
            step: spread(
                min(r2) if (r2 := _known(point.mlp_r2)) else None
                for curve in curves
                for point in curve
                if point.step == step
            )
            for step in columns
        }
        lines.append([x.objective, *(_text(at[step]) for step in columns)])
    return markdown(["objective", *(f"{step} steps" for step in columns)], lines) if columns else ""


def _known(r2: dict[str, float | None]) -> list[float]:
    return [value for value in r2.values() if value is not None]


def _worst(r2: dict[str, Spread | None]) -> str:
    """The factor with the lowest mean."""
    return _text(min((s for s in r2.values() if s is not None), key=lambda s: s.mean, default=None))


def _text(value: Spread | None) -> str:
    return "-" if value is None else value.text(3)

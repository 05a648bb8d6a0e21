"""`lewm compare runs`: two evaluated results on the same manifest, goal by goal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lewm.evaluate.fingerprint import fingerprint
from lewm.evaluate.logged import Logged, load_logged
from lewm.evaluate.statistics import RESAMPLES, SIGNIFICANT, bootstrap_difference, mcnemar

SHOWN = 20
"""Goals of a list that the text names."""


@dataclass(frozen=True)
class Versus:
    """One method of each run on one goal set: a is the first run's, b the second's."""

    task: str
    goals: str
    manifest: str
    """Fingerprint of the manifest that both were measured on."""
    run_a: str
    run_b: str
    method_a: str
    method_b: str
    n: int
    """Goals."""
    both: int
    """Goals that both reached."""
    neither: int
    p: float
    """Exact two-sided McNemar test."""
    difference: float
    """Success rate of a minus that of b."""
    low: float
    """95 % interval of it, paired bootstrap."""
    high: float
    only_a: tuple[int, ...]
    """Numbers of the problems that only a reached."""
    only_b: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """What a comparison is made of."""

    a: Logged
    b: Logged


def pair_up(
    run_a: Path, run_b: Path, method_a: str | None = None, method_b: str | None = None, goals: str | None = None
) -> list[Pair]:
    """One pair per goal set on which both were measured, or for `goals` alone; a run's first method by default.

    Raises ValueError for goal sets or methods that are not there, for a run that was cut off, for different manifests
    under one name, and where both sides would be the same row.
    """
    rows_a, rows_b = _by_goals(run_a), _by_goals(run_b)
    shared = [name for name in rows_a if name in rows_b and goals in (None, name)]
    if not shared:
        raise ValueError(
            f"{run_a} has goal sets {', '.join(rows_a)} and {run_b} has {', '.join(rows_b)}"
            + (f", so {goals} cannot be compared" if goals else "")
            + ": evaluate both on the same manifest"
        )
    both = [name for name in shared if _has(rows_a[name], method_a) and _has(rows_b[name], method_b)]
    pairs = []
    for name in both or shared[:1]:  # where no goal set has both methods, say what the first one has
        a, b = _pick(rows_a[name], method_a, run_a), _pick(rows_b[name], method_b, run_b)
        if run_a.resolve() == run_b.resolve() and a.row.method == b.row.method:
            raise ValueError(f"both sides are {a.row.method} of {run_a}: name two methods with --methods A B")
        one, other = fingerprint(a.manifest), fingerprint(b.manifest)
        if one != other:
            raise ValueError(
                f"{name}: {run_a} was measured on manifest {one[:12]} and {run_b} on {other[:12]}, which are other "
                f"goals: evaluate one again with --manifest {run_a / 'evaluation' / f'manifest_{name}.json'}"
            )
        for run, side in ((run_a, a), (run_b, b)):
            if len(side.outcomes) < len(a.manifest.problems):
                raise ValueError(
                    f"{run}: {side.row.method} on {name} has {len(side.outcomes)} of {len(a.manifest.problems)} "
                    "outcomes; run `lewm evaluate` again to finish it"
                )
        pairs.append(Pair(a, b))
    return pairs


def versus(pair: Pair, run_a: Path, run_b: Path, seed: int = 0) -> Versus:
    """Counts, test and interval of one pair; the bootstrap draws from `seed`."""
    a, b = ([o.success for o in side.outcomes] for side in (pair.a, pair.b))
    numbers = [o.problem for o in pair.a.outcomes]
    low, high = bootstrap_difference(a, b, np.random.default_rng(seed))
    row = pair.a.row
    return Versus(
        task=row.task,
        goals=row.goals,
        manifest=fingerprint(pair.a.manifest),
        run_a=str(run_a),
        run_b=str(run_b),
        method_a=row.method,
        method_b=pair.b.row.method,
        n=len(a),
        both=sum(x and y for x, y in zip(a, b)),
        neither=sum(not x and not y for x, y in zip(a, b)),
        p=mcnemar(a, b),
        difference=(sum(a) - sum(b)) / len(a),
        low=low,
        high=high,
        only_a=tuple(i for i, x, y in zip(numbers, a, b) if x and not y),
        only_b=tuple(i for i, x, y in zip(numbers, a, b) if y and not x),
    )


def worth_watching(row: Versus, count: int) -> list[int]:
    """At most `count` problems that one side alone reached, from both lists in turn, the longer one first."""
    longer, shorter = sorted((row.only_a, row.only_b), key=len, reverse=True)
    turns = [i for pair in zip(longer, shorter) for i in pair] + list(longer[len(shorter) :])
    return turns[:count]


def text(row: Versus) -> str:
    """The comparison as a few lines."""
    won, lost = len(row.only_a), len(row.only_b)
    rates = [100 * (row.both + alone) / row.n for alone in (won, lost)]
    verdict = (
        "the difference may be chance" if row.p >= SIGNIFICANT else f"{'A' if won > lost else 'B'} reaches more goals"
    )
    p = f"{row.p:.2g}" if row.p < 0.01 else f"{row.p:.3f}"
    return "\n".join(
        [
            f"{row.task}, {row.goals}: {row.n} goals, manifest {row.manifest[:12]}",
            f"  A  {row.method_a} of {row.run_a}: {rates[0]:.1f} %",
            f"  B  {row.method_b} of {row.run_b}: {rates[1]:.1f} %",
            f"  {'':<13} {'B reached':>10} {'B did not':>10}",
            f"  {'A reached':<13} {row.both:>10} {won:>10}",
            f"  {'A did not':<13} {lost:>10} {row.neither:>10}",
            f"  A - B {100 * row.difference:+.1f} points, 95 % interval {100 * row.low:+.1f} to {100 * row.high:+.1f} "
            f"(paired bootstrap, {RESAMPLES} resamples)",
            f"  exact McNemar p = {p}: {verdict}",
            f"  only A reached {_listed(row.only_a)}",
            f"  only B reached {_listed(row.only_b)}",
        ]
    )


def _listed(numbers: Sequence[int]) -> str:
    if not numbers:
        return "none"
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"{', '.join(map(str, numbers[:SHOWN]))}{more}"


def _by_goals(run: Path) -> dict[str, list[Logged]]:
    found: dict[str, list[Logged]] = {}
    for logged in load_logged(run):
        found.setdefault(logged.row.goals, []).append(logged)
    return found


def _has(rows: Sequence[Logged], method: str | None) -> bool:
    return method is None or any(logged.row.method == method for logged in rows)


def _pick(rows: Sequence[Logged], method: str | None, run: Path) -> Logged:
    for logged in rows:
        if method in (None, logged.row.method):
            return logged
    raise ValueError(
        f"{run} has no method {method} on {rows[0].row.goals}; its methods are {', '.join(r.row.method for r in rows)}"
    )

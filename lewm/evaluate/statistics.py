"""Intervals and paired tests for success counts on one set of goals."""

import math
from collections.abc import Sequence

import numpy as np

SIGNIFICANT = 0.05
"""Largest p-value that counts as a difference."""
RESAMPLES = 10_000
"""Bootstrap resamples; their own noise moves the end of an interval by about a hundredth of its width."""


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a success rate (95 % by default); (0, 1) when nothing was measured."""
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}; successes must lie in 0..n")
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Exact two-sided McNemar p-value for two methods run on the same problems."""
    wins, losses = _discordant("mcnemar", ours, theirs)
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many there are (Holm 1979), in the given order.

    Rejecting those below 0.05 makes one false rejection or more in at most 5 % of such families, whatever the tests'
    dependence.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def bootstrap_difference(
    ours: Sequence[bool],
    theirs: Sequence[bool],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the difference of two success rates (ours - theirs), goals resampled in pairs.

    How often goals won, lost and tied are drawn is multinomial, so the counts are drawn and not the goals. Where the
    methods never differ the interval is (0, 0): a bootstrap knows nothing of goals it did not see. Raises ValueError
    without goals, and for outcomes that do not pair up.
    """
    wins, losses = _discordant("bootstrap_difference", ours, theirs)
    n = len(ours)
    if n == 0:
        raise ValueError("bootstrap_difference: there are no outcomes; give at least one goal")
    drawn = rng.multinomial(n, (wins / n, losses / n, (n - wins - losses) / n), size=resamples)
    return percentile_interval((drawn[:, 0] - drawn[:, 1]) / n, level)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled values."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, such as 0.95")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _discordant(what: str, ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[int, int]:
    """How many problems only we, and only they, have solved."""
    if len(ours) != len(theirs):
        raise ValueError(f"{what}: {len(ours)} outcomes against {len(theirs)}; both methods must run the same manifest")
    wins = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    losses = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    return wins, losses

"""Intervals and paired tests for success counts."""

import math


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


def mcnemar(ours: list[bool], theirs: list[bool]) -> float:
    """Exact two-sided McNemar p-value for two methods run on the same problems."""
    if len(ours) != len(theirs):
        raise ValueError(
            f"mcnemar: {len(ours)} outcomes against {len(theirs)}; both methods must run the same manifest"
        )
    wins = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    losses = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)

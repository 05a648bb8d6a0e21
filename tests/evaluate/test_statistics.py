"""Intervals and paired tests against published or hand-made numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lewm.evaluate.statistics import bootstrap_difference, holm, mcnemar, wilson


@pytest.mark.parametrize(
    "successes, n, low, high",
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (200, 200, 0.9812, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@settings(derandomize=True, deadline=None, database=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_refuses_impossible_counts() -> None:
    for successes, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
            wilson(successes, n)


def paired(wins: int, losses: int, both: int, neither: int) -> tuple[list[bool], list[bool]]:
    ours = [True] * wins + [False] * losses + [True] * both + [False] * neither
    theirs = [False] * wins + [True] * losses + [True] * both + [False] * neither
    return ours, theirs


@pytest.mark.parametrize(
    "wins, losses, p",
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (10, 0, 2 / 1024), (8, 2, 112 / 1024), (5, 5, 1.0), (1, 9, 22 / 1024)],
)
def test_mcnemar(wins: int, losses: int, p: float) -> None:
    """Only the problems on which the methods differ count."""
    for both, neither in ((0, 0), (50, 7)):
        ours, theirs = paired(wins, losses, both, neither)
        assert mcnemar(ours, theirs) == pytest.approx(p)
        assert mcnemar(theirs, ours) == pytest.approx(p)


def test_mcnemar_needs_the_same_problems() -> None:
    with pytest.raises(ValueError, match="2 outcomes against 1; both methods must run the same manifest"):
        mcnemar([True, True], [False])


def test_holm() -> None:
    """By hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04 raised to what came before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.7, 0.01]) == pytest.approx([1.0, 1.0, 0.03])
    assert holm([0.2]) == [0.2] and holm([]) == []


def exact_bootstrap(wins: int, losses: int, n: int, level: float) -> tuple[float, float]:
    """The percentile interval of all resamples of n goals, each counted as often as it occurs."""
    chance: dict[int, float] = {}
    ties = n - wins - losses
    for w in range(n + 1):
        for lost in range(n + 1 - w):
            ways = math.comb(n, w) * math.comb(n - w, lost)
            p = ways * (wins / n) ** w * (losses / n) ** lost * (ties / n) ** (n - w - lost)
            chance[w - lost] = chance.get(w - lost, 0.0) + p
    ends, below = [], 0.0
    for difference in sorted(chance):
        for edge in ((1 - level) / 2, (1 + level) / 2):
            if below < edge <= below + chance[difference]:
                ends.append(difference / n)
        below += chance[difference]
    return ends[0], ends[1]


@pytest.mark.parametrize(
    "wins, losses, n, interval", [(5, 1, 12, (0.0, 2 / 3)), (3, 0, 20, (0.0, 0.3)), (2, 9, 30, (-13 / 30, -1 / 30))]
)
def test_the_bootstrap_resamples_goals_in_pairs(wins: int, losses: int, n: int, interval: tuple[float, float]) -> None:
    ours, theirs = paired(wins, losses, 1, n - wins - losses - 1)
    assert exact_bootstrap(wins, losses, n, 0.95) == pytest.approx(interval)
    assert bootstrap_difference(ours, theirs, np.random.default_rng(0)) == pytest.approx(interval)


def test_the_bootstrap_of_many_goals_is_the_normal_interval() -> None:
    ours, theirs = paired(160, 80, 500, 260)
    low, high = bootstrap_difference(ours, theirs, np.random.default_rng(1), resamples=50_000)
    half = 1.96 * math.sqrt((0.24 - 0.08**2) / 1000)
    assert (low, high) == pytest.approx((0.08 - half, 0.08 + half), abs=0.0015)
    narrow = bootstrap_difference(ours, theirs, np.random.default_rng(1), level=0.5)
    assert low < narrow[0] < 0.08 < narrow[1] < high


def test_the_bootstrap_draws_from_its_generator() -> None:
    ours, theirs = paired(5, 2, 10, 10)
    draw = [bootstrap_difference(ours, theirs, np.random.default_rng(seed), resamples=40) for seed in (0, 0, 1, 2, 3)]
    assert draw[0] == draw[1] and len(set(draw)) > 1
    assert bootstrap_difference([True] * 5, [True] * 5, np.random.default_rng(0)) == (0.0, 0.0)


def test_the_bootstrap_refuses_what_it_cannot_resample() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="there are no outcomes; give at least one goal"):
        bootstrap_difference([], [], rng)
    with pytest.raises(ValueError, match="1 outcomes against 2; both methods must run the same manifest"):
        bootstrap_difference([True], [True, False], rng)
    with pytest.raises(ValueError, match=r"level is 95; it must lie between 0 and 1, such as 0\.95"):
        bootstrap_difference([True], [False], rng, level=95)

"""Intervals and paired tests against published or hand-made numbers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lewm.evaluate.statistics import mcnemar, wilson


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

"""Interquartile mean, probability of improvement and their intervals over training seeds, against naive ones."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lewm.compare.objectives_rows import load_rows
from lewm.compare.objectives_table import table
from lewm.evaluate.seeds import (
    difference_p,
    interquartile_mean,
    interquartile_mean_interval,
    probability_of_improvement,
    probability_of_improvement_interval,
    resampled_goals,
    resampled_success,
)
from lewm.evaluate.statistics import bootstrap_difference, mcnemar


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert interquartile_mean([[1, 2, 3, 4], [8, 7, 6, 5]]) == 4.5  # 3, 4, 5, 6
    assert interquartile_mean([[0, 10, 50]]) == 20  # a quarter of three is no whole score
    assert interquartile_mean([[-90, 1], [2, 3, 99]]) == 2
    assert interquartile_mean([[0.25]]) == 0.25


def test_its_interval_is_that_of_all_resamples() -> None:
    """Two strata of three seeds have 27 x 27 equally likely resamples."""
    strata = [(0.1, 0.4, 0.5), (0.6, 0.9, 0.8)]
    every = []
    for one, other in itertools.product(*(itertools.product(stratum, repeat=3) for stratum in strata)):
        middle = sorted([*one, *other])[1:5]
        every.append(sum(middle) / 4)
    low, high = interquartile_mean_interval(strata, np.random.default_rng(0), resamples=40_000)
    assert (low, high) == pytest.approx(np.quantile(every, [0.025, 0.975]).tolist(), abs=0.006)
    assert low < interquartile_mean(strata) < high


def test_seeds_are_resampled_within_their_stratum() -> None:
    """Six scores in one stratum would mix; three equal ones in each of two cannot."""
    rng = np.random.default_rng(0)
    assert interquartile_mean_interval([[0, 0, 0], [1, 1, 1]], rng) == (0.5, 0.5)
    low, high = interquartile_mean_interval([[0, 0, 0, 1, 1, 1]], rng)
    assert low < 0.25 < 0.75 < high
    assert interquartile_mean_interval([[0.3], [0.5]], rng) == (0.4, 0.4)  # nothing to resample


def test_the_probability_of_improvement_counts_pairs() -> None:
    assert probability_of_improvement([[1, 2]], [[1, 3]]) == 0.375  # tie, lost, won, lost
    assert probability_of_improvement([[1, 2], [5]], [[1, 3], [4, 4, 4]]) == pytest.approx((0.375 + 1) / 2)
    assert probability_of_improvement([[3, 4]], [[1, 2]]) == 1
    ours, theirs = [[0.1, 0.7, 0.5]], [[0.2, 0.5]]
    assert probability_of_improvement(ours, theirs) + probability_of_improvement(theirs, ours) == 1


def test_its_interval_is_that_of_all_resamples_of_both() -> None:
    ours, theirs = (0.2, 0.6, 0.7), (0.3, 0.5)
    every = [
        np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
        for a in itertools.product(ours, repeat=3)
        for b in itertools.product(theirs, repeat=2)
    ]
    found = probability_of_improvement_interval([ours], [theirs], np.random.default_rng(0))
    assert found == pytest.approx(np.quantile(every, [0.025, 0.975]).tolist())
    assert probability_of_improvement_interval([(1, 2)], [(0, 0)], np.random.default_rng(0)) == (1, 1)


def outcomes(*successes: int, n: int = 200) -> np.ndarray:
    """One row per training seed, which reaches the first so many goals."""
    return np.array([np.arange(n) < reached for reached in successes])


def test_one_seed_each_is_the_paired_bootstrap_over_goals() -> None:
    """60 goals of 200 are reached by one of two methods alone, 40 by the first."""
    ours, theirs = outcomes(120), outcomes(100)
    theirs[0, 100:120] = ours[0, :20] = True
    ours[0, 100:120], theirs[0, :40] = False, False
    rng = np.random.default_rng(0)
    goals = resampled_goals(200, rng)
    assert goals.shape == (10_000, 200) and (goals.sum(1) == 200).all()
    a, b = (resampled_success(reached, goals, rng) for reached in (ours, theirs))
    assert a.mean() == pytest.approx(0.5, abs=0.001) and b.mean() == pytest.approx(0.4, abs=0.001)
    found = np.quantile(a - b, [0.025, 0.975]).tolist()
    assert found == pytest.approx(bootstrap_difference(ours[0], theirs[0], rng), abs=0.006)
    assert difference_p(a, b) == pytest.approx(mcnemar(ours[0], theirs[0]), abs=0.01)
    assert difference_p(a, a) == 1
    assert difference_p(a + 1, a) == 2 / 10_001


def test_the_luck_of_a_training_is_no_difference() -> None:
    """Seeds of 190, 60 and 60 goals against three of 105: either is ahead with some, and the first alone would win."""
    rng = np.random.default_rng(0)
    goals = resampled_goals(200, rng)
    lucky, steady, alone = (
        resampled_success(outcomes(*reached), goals, rng) for reached in ((190, 60, 60), (105, 105, 105), (190,))
    )
    assert difference_p(alone, steady) < 0.001
    assert difference_p(lucky, steady) > 0.5
    assert lucky.std() == pytest.approx(np.std([0.95, 0.3, 0.3]) / np.sqrt(3), rel=0.05)  # seeds outweigh goals


def test_what_cannot_be_pooled_is_refused() -> None:
    for scores in ([], [[0.1], []]):
        with pytest.raises(ValueError, match="each must have at least one"):
            interquartile_mean(scores)
    with pytest.raises(ValueError, match="2 strata against 1; both must be scored on the same ones"):
        probability_of_improvement([[1], [2]], [[1]])


def test_the_comparison_of_objectives_says_it_of_several_seeds() -> None:
    """Committed rows of one seed, once more under a second one in which nothing was reached."""
    committed = Path(__file__).parent.parent.parent / "docs" / "results" / "compare" / "objectives_two_room.json"
    first = [row for row in load_rows(committed) if row.objective in ("sigreg", "vicreg") and row.seed == 0]
    assert "interquartile mean" not in table(first)
    failed = [replace(s, successes=0, success=0.0, low=0.0, high=0.05) for s in first[0].success]
    text = table([*first, *(replace(row, seed=1, success=tuple(failed)) for row in first)])
    part = text[text.index("Success in % over all goal sets") :].split("\n\n")[1].splitlines()
    assert len(part) == 4 and part[0].startswith("| objective | success, interquartile mean |")
    best = part[2].split(" | ")
    rates = [[s.success, 0.0] for s in next(r for r in first if f"| {r.objective}" == best[0]).success]
    assert best[1].startswith(f"{100 * interquartile_mean(rates):.1f} (") and best[2] == "- |"
    assert part[3].split(" | ")[2].startswith("0.")

"""Statistics against naive formulas, and intervals that know episodes from frames."""

import numpy as np
import pytest

from lewm.study.bootstrap import Estimate, auroc, means, r2, written

RNG = np.random.default_rng(0)
EPISODE = np.repeat(np.arange(40), 25)


def only(estimates: list[Estimate | None]) -> Estimate:
    (found,) = estimates
    assert found is not None
    return found


def test_a_mean_and_its_interval() -> None:
    """Independent samples: the interval is that of the normal approximation, 1.96 standard errors of episode means."""
    value = RNG.normal(3, 1, (1000, 1))
    found = only(means(value, EPISODE, 0))
    assert found.value == pytest.approx(value.mean()) and found.n == 40
    error = value.reshape(40, 25).mean(1).std(ddof=1) / 40**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.low < found.value < found.high


def test_frames_of_an_episode_are_no_independent_samples() -> None:
    """1000 frames that say the same within each of 40 episodes are 40 samples."""
    value = np.repeat(RNG.normal(0, 1, 40), 25)[:, None]
    honest, naive = only(means(value, EPISODE, 0)), only(means(value, np.arange(1000), 0))
    assert (honest.high - honest.low) / (naive.high - naive.low) == pytest.approx(5, rel=0.15)


def test_nan_entries_do_not_count_and_roots_are_taken_of_the_mean() -> None:
    value = np.array([[1.0, 4.0], [3.0, np.nan], [np.nan, np.nan], [5.0, 8.0]])
    found = means(value, np.array([0, 0, 1, 1]), 0)
    assert [e.value for e in found if e] == [3, 6]
    assert only(means(value[:, :1], np.array([0, 0, 1, 1]), 0, root=True)).value == pytest.approx(3**0.5)
    assert means(np.full((4, 1), np.nan), np.array([0, 0, 1, 1]), 0) == [None]


def test_r2_is_the_usual_one() -> None:
    true = RNG.normal(5, 2, (1000, 2))
    found = true + RNG.normal(0, 1, (1000, 2))
    estimates = r2(found, true, EPISODE, 0)
    for column, estimate in enumerate(estimates):
        assert estimate is not None
        t, f = true[:, column], found[:, column]
        assert estimate.value == pytest.approx(1 - ((f - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())
        assert estimate.low < 0.75 < estimate.high
    assert only(r2(true[:, :1], true[:, :1], EPISODE, 0)) == Estimate(1, 1, 1, 40)
    assert r2(found[:, :1], np.full((1000, 1), 0.3), EPISODE, 0) == [None]


def test_auroc_counts_pairs() -> None:
    high, low = RNG.normal(1, 1, 60), np.round(RNG.normal(0, 1, 80), 1)
    high[:20] = low[:20]
    wins = [1.0 if h > x else 0.5 if h == x else 0.0 for h in high for x in low]
    found = auroc(high, low, RNG.integers(0, 9, 60), RNG.integers(0, 9, 80), 0)
    assert found.value == pytest.approx(np.mean(wins))
    assert found.low < found.value < found.high


def test_auroc_of_the_same_scores_is_one_half_and_of_apart_ones_one() -> None:
    score, episode = RNG.normal(size=50), np.arange(50) // 5
    same = auroc(score, score, episode, episode, 0)
    assert (same.value, same.n) == (0.5, 10) and same.low == pytest.approx(0.5) and same.high == pytest.approx(0.5)
    apart = auroc(score + 100, score, episode, episode, 0)
    assert (apart.value, apart.low, apart.high) == (1, 1, 1)


def test_intervals_of_few_episodes_lie_around_the_value() -> None:
    """Scores that beat those of their own episode only: copies of an episode must not be compared with each other."""
    low = np.arange(6.0)
    found = auroc(low + 0.5, low, np.arange(6), np.arange(6), 0)
    assert found.value == pytest.approx((6 + 15) / 36) and found.low <= found.value <= found.high
    middle = np.mean([found.low, found.high])
    assert middle == pytest.approx(found.value, abs=0.05)


def test_the_seed_decides_the_interval_and_nothing_else() -> None:
    value = RNG.normal(size=(1000, 1))
    one, again, other = (only(means(value, EPISODE, seed)) for seed in (1, 1, 2))
    assert one == again and one.value == other.value and one.low != other.low


def test_an_interval_needs_two_episodes() -> None:
    with pytest.raises(ValueError, match="at least two held-out episodes, and there is 1: record more"):
        means(np.ones((5, 1)), np.zeros(5, np.int64), 0)
    with pytest.raises(ValueError, match="0 scores against 2"):
        auroc(np.array([]), np.ones(2), np.arange(0), np.arange(2), 0)


def test_how_it_is_written() -> None:
    assert written(Estimate(0.98765, 0.9, 0.999, 5), 2) == "0.99 [0.90, 1.00]"
    assert written(None) == "-"

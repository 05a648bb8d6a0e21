"""Intervals by the bootstrap: whole episodes are drawn again, because frames of one episode are no independent samples.

Shapes: E episodes, R resamples, M numbers that one statistic gives.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
MOST_NAN = 0.5
"""Share of resamples in which a statistic may be undefined before it has no interval."""

Statistic = Callable[[Array], Array]
"""count_RE -> value_RM: the statistic when episode e counts count_RE[r, e] times."""


@dataclass(frozen=True)
class Estimate:
    """A number measured on held-out episodes."""

    value: float
    """On all of them."""
    low: float
    """2.5th percentile over the resamples."""
    high: float
    """97.5th percentile. An interval of no width says that all episodes agree, not that the number is certain."""
    n: int
    """Episodes that were drawn from."""

    def text(self, digits: int = 3) -> str:
        """`0.981 [0.975, 0.986]`."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def written(estimate: Estimate | None, digits: int = 3) -> str:
    """The same for tables, `-` for what could not be measured."""
    return "-" if estimate is None else estimate.text(digits)


def bootstrap(statistic: Statistic, episodes: int, seed: int) -> list[Estimate | None]:
    """The M numbers of a statistic with percentile intervals (95 %); None for one that is undefined.

    Raises ValueError for fewer than two episodes, of which no interval can be made.
    """
    if episodes < 2:
        raise ValueError(
            f"an interval needs at least two held-out episodes, and there is {episodes}: record more episodes, or hold "
            "out a larger share (train.held_out)"
        )
    share = np.full(episodes, 1 / episodes)
    count_RE = np.random.default_rng(seed).multinomial(episodes, share, RESAMPLES).astype(np.float64)
    value_M = statistic(np.ones((1, episodes)))[0]
    value_RM = statistic(count_RE)
    found: list[Estimate | None] = []
    for value, value_R in zip(value_M.tolist(), value_RM.T, strict=True):
        known_R = value_R[np.isfinite(value_R)]
        if not np.isfinite(value) or len(known_R) < MOST_NAN * RESAMPLES:
            found.append(None)
            continue
        low, high = np.percentile(known_R, [2.5, 97.5]).tolist()
        found.append(Estimate(value, low, high, episodes))
    return found


def numbered(episode_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Episode ids as 0, 1, ... E - 1, and E."""
    ids, number_N = np.unique(episode_N, return_inverse=True)
    return number_N, len(ids)


def by_episode(value_NM: Array, number_N: NDArray[np.int64], episodes: int) -> Array:
    """total_EM: the sum over the samples of each episode."""
    total_EM = np.zeros((episodes, value_NM.shape[1]))
    np.add.at(total_EM, number_N, value_NM)
    return total_EM


def means(value_NM: Array, episode_N: NDArray[np.int64], seed: int, root: bool = False) -> list[Estimate | None]:
    """Means over samples of the M columns, or their square roots; NaN entries do not count."""
    known_NM = np.isfinite(value_NM)
    number_N, episodes = numbered(episode_N)
    total_EM = by_episode(np.where(known_NM, value_NM, 0), number_N, episodes)
    count_EM = by_episode(known_NM.astype(np.float64), number_N, episodes)

    def statistic(count_RE: Array) -> Array:
        mean_RM = _ratio(count_RE @ total_EM, count_RE @ count_EM)
        return np.sqrt(mean_RM) if root else mean_RM

    return bootstrap(statistic, episodes, seed)


def r2(found_NM: Array, true_NM: Array, episode_N: NDArray[np.int64], seed: int) -> list[Estimate | None]:
    """R2 of each column; None where the truth never changes."""
    number_N, episodes = numbered(episode_N)
    centred_NM = true_NM - true_NM.mean(0)
    parts = ((found_NM - true_NM) ** 2, centred_NM, centred_NM**2, np.ones_like(true_NM))
    residual_EM, sum_EM, square_EM, size_EM = (by_episode(part, number_N, episodes) for part in parts)

    def statistic(count_RE: Array) -> Array:
        total_RM = count_RE @ square_EM - (count_RE @ sum_EM) ** 2 / (count_RE @ size_EM)
        return 1 - _ratio(count_RE @ residual_EM, np.where(total_RM > 1e-9, total_RM, 0))

    return bootstrap(statistic, episodes, seed)


def auroc(
    high_N: Array, low_M: Array, high_episode_N: NDArray[np.int64], low_episode_M: NDArray[np.int64], seed: int
) -> Estimate:
    """Probability that a score of the first kind exceeds one of the second, ties counting one half.

    The two kinds come from the same episodes, and an episode that is drawn again brings its scores of both kinds.
    Copies of an episode are not compared with each other: pairs within an episode keep their share in every resample.
    Raises ValueError when a kind has no score.
    """
    if not len(high_N) or not len(low_M):
        raise ValueError(f"auroc: {len(high_N)} scores against {len(low_M)}; both kinds need at least one")
    number, episodes = numbered(np.concatenate([high_episode_N, low_episode_M]))
    high_number_N, low_number_M = number[: len(high_N)], number[len(high_N) :]
    won_NM = (high_N[:, None] > low_M).astype(np.float64) + 0.5 * (high_N[:, None] == low_M)
    won_EE = by_episode(by_episode(won_NM, high_number_N, episodes).T, low_number_M, episodes).T
    high_E, low_E = (np.bincount(part, minlength=episodes) for part in (high_number_N, low_number_M))
    pairs_EE = np.outer(high_E, low_E).astype(np.float64)
    share = float(pairs_EE.trace() / pairs_EE.sum())

    def across(count_RE: Array, each_EE: Array) -> Array:
        across_R: Array = ((count_RE @ (each_EE - np.diag(each_EE.diagonal()))) * count_RE).sum(1)
        return across_R

    def statistic(count_RE: Array) -> Array:
        within_R = _ratio(count_RE @ won_EE.diagonal(), count_RE @ pairs_EE.diagonal())
        across_R = _ratio(across(count_RE, won_EE), across(count_RE, pairs_EE))
        within_R, across_R = (np.where(np.isnan(x), y, x) for x, y in ((within_R, across_R), (across_R, within_R)))
        return (share * within_R + (1 - share) * across_R)[:, None]

    (found,) = bootstrap(statistic, episodes, seed)
    assert found is not None
    return found


def _ratio(above: Array, below: Array) -> Array:
    """NaN where the lower part is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)

"""What several training seeds say together, after Agarwal et al. 2021 (Deep RL at the statistical precipice).

Scores are one list per stratum (a task, a goal set), one score per training seed; lists may differ in length.
"""

from collections.abc import Sequence

import numpy as np

from lewm.evaluate.statistics import RESAMPLES, percentile_interval

Scores = Sequence[Sequence[float]]
"""Strata, each with the scores of its training seeds."""


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all scores (section 4.3): a quarter, rounded down, is cut off at either end.

    Raises ValueError without scores.
    """
    _check("interquartile_mean", scores)
    return float(_iqm(np.concatenate([np.asarray(stratum, np.float64) for stratum in scores])[None])[0])


def interquartile_mean_interval(
    scores: Scores, rng: np.random.Generator, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean, seeds resampled within each stratum (section 4.1).

    With one seed per stratum there is nothing to resample, and it is the mean itself twice.
    """
    _check("interquartile_mean_interval", scores)
    drawn = [_resample(np.asarray(stratum, np.float64), rng, resamples) for stratum in scores]
    return percentile_interval(_iqm(np.concatenate(drawn, 1)), level)


def probability_of_improvement(ours: Scores, theirs: Scores) -> float:
    """How likely a seed of ours beats a seed of theirs on a stratum, ties counting half, averaged over the strata."""
    _check_pair("probability_of_improvement", ours, theirs)
    pairs = [(np.asarray(x, np.float64)[None], np.asarray(y, np.float64)[None]) for x, y in zip(ours, theirs)]
    return float(np.mean([_better(x, y)[0] for x, y in pairs]))


def probability_of_improvement_interval(
    ours: Scores, theirs: Scores, rng: np.random.Generator, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of it; the seeds of both are resampled within each stratum."""
    _check_pair("probability_of_improvement_interval", ours, theirs)
    each = [
        _better(*(_resample(np.asarray(stratum, np.float64), rng, resamples) for stratum in pair))
        for pair in zip(ours, theirs)
    ]
    return percentile_interval(np.mean(each, axis=0), level)


def resampled_success(reached_MN: np.ndarray, counts_RN: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Success in R resamples of the goals and of the training seeds, (R,).

    reached_MN: by training seed and goal, True where it was reached. counts_RN: how often each resample has each goal;
    rows drawn by `resampled_goals` and given to two methods keep their goals paired. As many seeds as there are are
    drawn with replacement, so that one seed alone adds no spread of its own.
    """
    success_RM = counts_RN @ np.asarray(reached_MN, np.float64).T / counts_RN.sum(1, keepdims=True)
    drawn_RM = rng.integers(len(reached_MN), size=success_RM.shape)
    return np.asarray(np.take_along_axis(success_RM, drawn_RM, 1).mean(1))


def resampled_goals(n: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each of n goals is in each resample, (R, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def difference_p(ours_R: np.ndarray, theirs_R: np.ndarray) -> float:
    """Two-sided bootstrap p-value of no difference: twice the smaller share of resamples on either side of it.

    Resamples in which both are equal count for both sides; it is at least 2 / (R + 1).
    """
    below, above = (1 + int(np.sum(side)) for side in (ours_R <= theirs_R, ours_R >= theirs_R))
    return min(1.0, 2 * min(below, above) / (len(ours_R) + 1))


def _iqm(score_RM: np.ndarray) -> np.ndarray:
    """The mean of the middle half of each row."""
    cut = score_RM.shape[1] // 4
    middle_RM = np.sort(score_RM, axis=1)[:, cut : score_RM.shape[1] - cut]
    return np.asarray(middle_RM.mean(1))


def _resample(score_M: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """(R, M): as many scores as there are, drawn with replacement."""
    return score_M[rng.integers(len(score_M), size=(resamples, len(score_M)))]


def _better(ours_RM: np.ndarray, theirs_RN: np.ndarray) -> np.ndarray:
    """(R,): share of the M x N pairs that ours wins."""
    above = (ours_RM[:, :, None] > theirs_RN[:, None, :]).mean((1, 2))
    return np.asarray(above + 0.5 * (ours_RM[:, :, None] == theirs_RN[:, None, :]).mean((1, 2)))


def _check(what: str, scores: Scores) -> None:
    if not scores or any(len(stratum) == 0 for stratum in scores):
        raise ValueError(f"{what}: {[len(s) for s in scores]} scores by stratum; each must have at least one")


def _check_pair(what: str, ours: Scores, theirs: Scores) -> None:
    _check(what, ours)
    _check(what, theirs)
    if len(ours) != len(theirs):
        raise ValueError(f"{what}: {len(ours)} strata against {len(theirs)}; both must be scored on the same ones")

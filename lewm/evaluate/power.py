"""How many goals it takes to tell two success rates apart, run on the same goals (paired) or on others (unpaired)."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lewm.evaluate.statistics import SIGNIFICANT

MOST = 100_000
"""Goals beyond which no answer is sought."""


@dataclass(frozen=True)
class PowerRow:
    """Goals needed for one pair of rates at one agreement."""

    low: float
    """Success rate of the worse method."""
    high: float
    """Success rate of the better method."""
    agreement: float
    """Share of the goals on which both succeed or both fail."""
    what: str
    """Why this agreement is in the table."""
    paired: int
    """Goals, the same for both methods, for the exact McNemar test."""
    unpaired: int
    """Goals of each method, all different, for the two-proportion z test."""
    chance: float | None = None
    """Probability of finding the difference with a given number of shared goals; None where none was given."""


def unpaired_goals(low: float, high: float, power: float = 0.8, alpha: float = SIGNIFICANT) -> int:
    """Goals per method for a two-sided z test of two proportions (Fleiss et al. 2003, equation 4.14, uncorrected)."""
    _check_rates(low, high)
    _check_levels(power, alpha)
    mean = (low + high) / 2
    under_null = _z(1 - alpha / 2) * math.sqrt(2 * mean * (1 - mean))
    under_truth = _z(power) * math.sqrt(low * (1 - low) + high * (1 - high))
    return math.ceil(((under_null + under_truth) / (high - low)) ** 2)


def agreement_range(low: float, high: float) -> tuple[float, float]:
    """The least and the most that two methods of these rates can agree."""
    return abs(low + high - 1), 1 - abs(high - low)


def independent_agreement(low: float, high: float) -> float:
    """How much they agree when a goal that is hard for one is no harder for the other."""
    return low * high + (1 - low) * (1 - high)


def mcnemar_power(n: int, low: float, high: float, agreement: float, alpha: float = SIGNIFICANT) -> float:
    """Exact probability that McNemar's exact two-sided test on `n` shared goals says p < alpha.

    The number of goals on which the methods differ is binomial, and so is the number of those that the better one wins.
    """
    wins, losses = _discordance(low, high, agreement)
    differ = wins + losses
    counts = np.arange(n + 1)
    chance = _binomial(n, differ)
    likely = counts[chance > 1e-10]
    return float(sum(chance[d] * _rejects(int(d), wins / differ, alpha) for d in likely))


def paired_goals(low: float, high: float, agreement: float, power: float = 0.8, alpha: float = SIGNIFICANT) -> int:
    """Fewest shared goals for which McNemar's exact test finds the difference with probability `power`.

    Starts from the normal approximation (Connor 1987) and searches around it with the exact power. Raises ValueError
    for rates and agreements that cannot be.
    """
    _check_levels(power, alpha)
    wins, losses = _discordance(low, high, agreement)
    differ, gap = wins + losses, abs(high - low)
    root = _z(1 - alpha / 2) * math.sqrt(differ) + _z(power) * math.sqrt(max(0.0, differ - gap**2))
    guess = max(1, math.ceil((root / gap) ** 2))
    if guess > MOST:
        raise ValueError(
            f"telling {low:g} from {high:g} takes about {guess} goals, more than the {MOST} this looks at: "
            "give a larger difference"
        )

    def enough(n: int) -> bool:
        return mcnemar_power(n, low, high, agreement, alpha) >= power

    # The exact test wants about 1 / gap goals more than its approximation.
    step, most = math.ceil(1 / gap), guess
    while not enough(most):
        most += step
    least = max(0, most - step)
    while least > 0 and enough(least):
        least = max(0, least - step)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most


def power_rows(
    pairs: Sequence[tuple[float, float]],
    agreement: float | None = None,
    power: float = 0.8,
    alpha: float = SIGNIFICANT,
    n: int | None = None,
) -> list[PowerRow]:
    """Goals needed for every pair of rates: at the given agreement, or at no, half and full relation between methods.

    With full relation the worse method never reaches a goal that the better one misses. n: shared goals whose chance
    of finding the difference is wanted too.
    """
    if n is not None and not 1 <= n <= MOST:
        raise ValueError(f"--n is {n}; it must lie in 1..{MOST} goals")
    rows = []
    for rates in pairs:
        low, high = min(rates), max(rates)
        _check_rates(low, high)
        unpaired = unpaired_goals(low, high, power, alpha)
        alone, most = independent_agreement(low, high), agreement_range(low, high)[1]
        levels = [(alone, "independent"), ((alone + most) / 2, "half-way"), (most, "most possible")]
        unlike = {round(level, 9): (level, what) for level, what in reversed(levels)}
        for level, what in reversed(unlike.values()) if agreement is None else [(agreement, "given")]:
            paired = paired_goals(low, high, level, power, alpha)
            chance = None if n is None else mcnemar_power(n, low, high, level, alpha)
            rows.append(PowerRow(low, high, level, what, paired, unpaired, chance))
    return rows


def rates_at(difference: float) -> list[tuple[float, float]]:
    """Pairs of rates this far apart, from the middle of the scale to its upper end."""
    if not 0 < difference < 1:
        raise ValueError(f"--difference is {difference:g}; it must lie between 0 and 1, such as 0.05")
    tops = [0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
    return [(round(top - difference, 10), top) for top in tops if top - difference >= 0]


def table(rows: Sequence[PowerRow], power: float, alpha: float, n: int | None = None) -> str:
    """The rows as aligned text."""
    head = f"goals needed for {100 * power:g} % power, two-sided at {100 * alpha:g} %"
    more = "" if n is None else f"   found with {n}, paired"
    lines = [head, f"{'rates':<17} {'agreement':>9}  {'':<13} {'paired':>7} {'unpaired, each':>15}{more}"]
    for row in rows:
        rates = f"{100 * row.low:g} % and {100 * row.high:g} %"
        found = "" if row.chance is None else f"{100 * row.chance:>{len(more) - 2}.0f} %"
        needed = f"{row.what:<13} {row.paired:>7} {row.unpaired:>15}{found}"
        lines.append(f"{rates:<17} {100 * row.agreement:>7.1f} %  {needed}")
    lines.append("paired: both methods on the same manifest, exact McNemar; unpaired: each on goals of its own, z test")
    return "\n".join(lines)


def _discordance(low: float, high: float, agreement: float) -> tuple[float, float]:
    """Probabilities that only the better, and only the worse, method reaches a goal."""
    _check_rates(low, high)
    least, most = agreement_range(low, high)
    if not least - 1e-9 <= agreement <= most + 1e-9:
        raise ValueError(
            f"agreement is {agreement:g}; two methods with rates {low:g} and {high:g} agree on {least:g} to {most:g} "
            "of the goals"
        )
    differ, gap = 1 - agreement, high - low
    return (differ + gap) / 2, max(0.0, (differ - gap) / 2)


@functools.lru_cache(maxsize=100_000)
def _rejects(differ: int, share: float, alpha: float) -> float:
    """Probability of p < alpha given on how many goals the methods differ, each won with probability `share`."""
    tail = np.cumsum(_binomial(differ, 0.5))
    critical = int(np.searchsorted(2 * tail, alpha))
    if critical == 0:
        return 0.0
    won = _binomial(differ, share)
    return float(won[:critical].sum() + won[differ - critical + 1 :].sum())


def _binomial(n: int, p: float) -> np.ndarray:
    """(n + 1,): probability of every count."""
    if p <= 0 or p >= 1:
        return np.eye(n + 1)[n if p >= 1 else 0]
    counts, log_factorial = np.arange(n + 1), _log_factorials(1 << n.bit_length())[: n + 1]
    log_ways = log_factorial[n] - log_factorial - log_factorial[::-1]
    return np.asarray(np.exp(log_ways + counts * math.log(p) + (n - counts) * math.log1p(-p)))


@functools.lru_cache
def _log_factorials(most: int) -> np.ndarray:
    """(most + 1,): logarithms of 0!, 1!, ..."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _check_rates(low: float, high: float) -> None:
    if not 0 <= low < high <= 1:
        raise ValueError(f"the rates are {low:g} and {high:g}; they must differ and lie in 0..1, such as 0.8 and 0.9")


def _check_levels(power: float, alpha: float) -> None:
    if not 0.5 <= power < 1 or not 0 < alpha < 0.5:
        raise ValueError(
            f"power is {power:g} and alpha {alpha:g}; power must lie in 0.5..1 and alpha in 0..0.5, such as 0.8, 0.05"
        )

"""What several training seeds say together, as Markdown: interquartile means and probabilities of improvement."""

from collections.abc import Mapping

import numpy as np

from lewm.evaluate.seeds import (
    Scores,
    interquartile_mean,
    interquartile_mean_interval,
    probability_of_improvement,
    probability_of_improvement_interval,
)
from lewm.tables import markdown


def over_seeds(scores: Mapping[str, Scores], best: str, what: str) -> str:
    """A table of rows by name, from their success by stratum and training seed; all on the same strata.

    best: the row that the others are compared with. what: what a row is.
    """
    lines = []
    for name, ours in scores.items():
        rng = np.random.default_rng(0)
        low, high = interquartile_mean_interval(ours, rng)
        cells = [name, f"{100 * interquartile_mean(ours):.1f} ({100 * low:.1f}-{100 * high:.1f})", "-"]
        if name != best:
            p_low, p_high = probability_of_improvement_interval(scores[best], ours, rng)
            cells[-1] = f"{probability_of_improvement(scores[best], ours):.2f} ({p_low:.2f}-{p_high:.2f})"
        lines.append(cells)
    return markdown([what, "success, interquartile mean", f"{best} is better"], lines)

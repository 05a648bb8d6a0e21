"""Golden traces: a change of any number a planner computes shows here. Renew them only when that is the intention."""

import pytest
from toys import TOYS

from planners import CEM, ICEM, MPPI, PlannerConfig, PredictiveSampling, RandomShooting, noise_table

SIZE = {"horizon": TOYS["around a disc"].horizon, "candidates": 64, "iterations": 4}
GOLDEN: dict[str, tuple[PlannerConfig, list[float], list[float], list[float], float]] = {
    "cem": (
        CEM(**SIZE, momentum=0.1),
        [0.40774, 0.10268, 0.29602, 0.40205],
        [1.0, 0.68654, 0.55895, 0.46167],
        [0.31448, 0.2939],
        3.34660,
    ),
    "mppi": (
        MPPI(**SIZE, momentum=0.1),
        [0.40774, 0.37081, 0.11789, 0.00363],
        [1.0, 0.6127, 0.45947, 0.35043],
        [0.54374, 0.30396],
        0.00212,
    ),
    "cem, decaying": (
        CEM(**SIZE, decay=1.5, elites=8),
        [0.40774, 0.09764, 0.37868, 0.46664],
        [1.0, 0.62127, 0.40373, 0.29598],
        [0.08173, 0.09855],
        1.75884,
    ),
    "icem": (
        ICEM(**SIZE),
        [0.29699, 0.06932, 0.06932, 0.00495],
        [1.0, 0.59983, 0.45108, 0.3691],
        [0.61419, 0.46176],
        0.00495,
    ),
    "icem, spline": (
        ICEM(**SIZE, knots=3, noise_beta=1.0),
        [0.50665, 0.3094, 0.13252, 0.01819],
        [1.0, 0.61056, 0.4063, 0.36288],
        [0.8, 0.8],
        0.01819,
    ),
    "mppi, smooth": (
        MPPI(**SIZE, noise_beta=2.0),
        [0.29699, 0.00138, 0.03866, 0.04106],
        [1.0, 0.5399, 0.34656, 0.23614],
        [-0.2949, 0.20757],
        0.04889,
    ),
    "predictive_sampling": (
        PredictiveSampling(**SIZE, knots=3),
        [1.64963, 0.06024, 0.10544, 0.06144],
        [0.3, 0.3, 0.3, 0.3],
        [-0.42953, 0.59613],
        0.06024,
    ),
    "random_shooting": (
        RandomShooting(**SIZE),
        [0.40774, 1.39403, 0.40196, 0.67146],
        [1.0, 1.0, 1.0, 1.0],
        [0.04516, 0.8],
        0.40196,
    ),
}
"""Planner: best cost and spread of each iteration, first planned action, cost."""


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN)
def test_trace_is_the_recorded_one(case: tuple[PlannerConfig, list[float], list[float], list[float], float]) -> None:
    planner, best, spread, action, cost = case
    toy, row = TOYS["around a disc"], 3
    plan = planner.plan(toy.cost([row]), noise_table([(0, row, 0)], planner, 2), toy.box)
    assert plan.best_cost_BI[0].tolist() == pytest.approx(best, abs=1e-3)
    assert plan.spread_BI[0].tolist() == pytest.approx(spread, abs=1e-3)
    assert plan.action_BHA[0, 0].tolist() == pytest.approx(action, abs=1e-3)
    assert plan.cost_B.item() == pytest.approx(cost, abs=1e-3)

"""Golden traces: a change of any number a planner computes shows here. Renew them only when that is the intention."""

import pytest
from toys import TOYS

from planners import (
    CEM,
    ICEM,
    MPPI,
    PLANNERS,
    AugmentedLagrangian,
    CategoricalCEM,
    FeasibleFirst,
    Gradient,
    Grasp,
    Hybrid,
    PlannerConfig,
    PredictiveSampling,
    RandomShooting,
    noise_table,
)

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
    "gradient": (
        Gradient(horizon=4, candidates=8, iterations=6, noise=0.1),
        [0.62447, 0.73319, 0.59497, 0.36964, 0.21636, 0.19394],
        [0.6557, 0.59281, 0.55327, 0.52108, 0.49892, 0.49525],
        [-0.02242, -0.27862],
        0.19394,
    ),
    "hybrid": (
        Hybrid(search=CEM(horizon=4, candidates=32, iterations=3, elites=6), steps=4),
        [0.40774, 0.24602, 0.27568],
        [1.0, 0.55794, 0.36429],
        [0.76061, 0.42948],
        0.09404,
    ),
    "grasp": (
        Grasp(horizon=20, candidates=4, iterations=4, sync_every=2, sync_steps=2),
        [1.64236, 0.61228, 0.61228, 0.47918],
        [0.49933, 0.48008, 0.47445, 0.45715],
        [-0.45107, 0.93403],
        0.47918,
    ),
    "categorical_cem": (
        CategoricalCEM(horizon=3, candidates=32, iterations=4, elites=6),
        [1.12519, 0.54132, 0.77551, 0.6311],
        [1.0, 0.8552, 0.7637, 0.5934],
        [1.0, 0.0],
        0.54132,
    ),
    "feasible_first": (
        FeasibleFirst(search=CEM(horizon=4, candidates=64, iterations=4, elites=8)),
        [0.29334, 0.44975, 0.31421, 0.40632],
        [1.0, 0.62004, 0.41439, 0.286],
        [-0.85997, 0.96646],
        0.29334,
    ),
    "augmented_lagrangian": (
        AugmentedLagrangian(search=CEM(horizon=4, candidates=64, iterations=2, elites=8), rounds=2),
        [0.29334, 0.73033, 0.51929, 0.28828],
        [1.0, 0.71293, 0.5, 0.35657],
        [0.90013, 0.90198],
        0.28828,
    ),
}
"""Planner: best cost and spread of each iteration, first planned action, cost."""
ELSEWHERE = {"grasp": "gap", "categorical_cem": "chain", "feasible_first": "fence", "augmented_lagrangian": "fence"}
"""Cases that are not around a disc."""


def test_every_planner_has_a_trace() -> None:
    assert {planner.name for planner, *_ in GOLDEN.values()} == set(PLANNERS)


@pytest.mark.parametrize("name", GOLDEN)
def test_trace_is_the_recorded_one(name: str) -> None:
    planner, best, spread, action, cost = GOLDEN[name]
    toy, row = TOYS[ELSEWHERE.get(name, "around a disc")], 3
    plan = planner.plan(toy.cost([row]), noise_table([(0, row, 0)], planner, len(toy.box.low_A)), toy.box)
    assert plan.best_cost_BI[0].tolist() == pytest.approx(best, abs=1e-3)
    assert plan.spread_BI[0].tolist() == pytest.approx(spread, abs=1e-3)
    assert plan.action_BHA[0, 0].tolist() == pytest.approx(action, abs=1e-3)
    assert plan.cost_B.item() == pytest.approx(cost, abs=1e-3)

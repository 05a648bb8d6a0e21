"""Golden traces: a change of any number a planner computes shows here. Renew them only when that is the intention."""

import pytest
from toys import TOYS

from planners import PLANNERS, noise_table

GOLDEN = {
    "cem": ([0.40774, 0.10268, 0.29602, 0.40205], [1.0, 0.68654, 0.55895, 0.46167], [0.31448, 0.2939], 3.34660),
    "mppi": ([0.40774, 0.37081, 0.11789, 0.00363], [1.0, 0.6127, 0.45947, 0.35043], [0.54374, 0.30396], 0.00212),
}
"""Planner: best cost and spread of each iteration, first planned action, cost; candidates 64, momentum 0.1."""


@pytest.mark.parametrize("name", GOLDEN)
def test_trace_is_the_recorded_one(name: str) -> None:
    toy, row = TOYS["around a disc"], 3
    planner = PLANNERS[name](horizon=toy.horizon, candidates=64, iterations=4, momentum=0.1)
    plan = planner.plan(toy.cost([row]), noise_table([(0, row, 0)], planner, 2), toy.box)
    best, spread, action, cost = GOLDEN[name]
    assert plan.best_cost_BI[0].tolist() == pytest.approx(best, abs=1e-3)
    assert plan.spread_BI[0].tolist() == pytest.approx(spread, abs=1e-3)
    assert plan.action_BHA[0, 0].tolist() == pytest.approx(action, abs=1e-3)
    assert plan.cost_B.item() == pytest.approx(cost, abs=1e-3)

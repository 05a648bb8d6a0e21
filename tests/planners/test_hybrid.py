"""Hybrid: at least as good as its search, and better where a gradient helps."""

import pytest
import torch
from toys import TOYS

from planners import CEM, ICEM, MPPI, Hybrid, noise_table
from planners.hybrid import Cheapest

ROWS = list(range(16))
CONTINUOUS = [name for name, toy in TOYS.items() if "gradient" in toy.offers]


@pytest.mark.parametrize("toy_name", CONTINUOUS)
@pytest.mark.parametrize("search", [CEM, ICEM, MPPI])
@pytest.mark.parametrize("rate", [0.05, 5.0], ids=["good steps", "absurd steps"])
def test_never_costs_more_than_the_answer_of_its_search(
    toy_name: str, search: type[CEM | ICEM | MPPI], rate: float
) -> None:
    toy = TOYS[toy_name]
    alone = search(horizon=toy.horizon, candidates=48, iterations=3)
    hybrid = Hybrid(search=alone, learning_rate=rate, steps=2)
    noise = noise_table([(0, row, 0) for row in ROWS], hybrid, 2)
    found, refined = (planner.plan(toy.cost(ROWS), noise, toy.box) for planner in (alone, hybrid))
    # A cost of one candidate may round otherwise than beside others.
    assert (refined.cost_B <= found.cost_B * (1 + 1e-5) + 1e-7).all()
    assert torch.equal(refined.best_cost_BI, found.best_cost_BI), "the search is the same"


def test_beats_its_search_at_the_same_number_of_scorings() -> None:
    """600 + 1 + 4 x 11 scorings and 40 gradients against 700 scorings: measured mean costs 0.0003 and 0.0058."""
    toy = TOYS["around a disc"]
    hybrid = Hybrid(search=CEM(horizon=4, candidates=100, iterations=6, elites=20), refine=4, steps=10)
    search = CEM(horizon=4, candidates=100, iterations=7, elites=20, execute="best")
    costs = []
    for planner in (hybrid, search):
        noise = noise_table([(0, row, 0) for row in range(64)], planner, 2)
        costs.append(planner.plan(toy.cost(range(64)), noise, toy.box).cost_B.mean())
    assert costs[0] < 0.2 * costs[1]


def test_refines_the_answer_and_the_cheapest_candidates_ever_scored() -> None:
    toy = TOYS["around a disc"]
    search = CEM(horizon=4, candidates=20, iterations=3, elites=4)
    planner = Hybrid(search=search, refine=3)
    calls: list[torch.Tensor] = []

    def watch(action_BNHA: torch.Tensor) -> torch.Tensor:
        calls.append(action_BNHA.detach().clone())
        return toy.cost([0])(action_BNHA)

    noise = noise_table([(0, 0, 0)], planner, 2)
    planner.plan(watch, noise, toy.box)
    assert [call.shape[1] for call in calls] == [20] * 3 + [1] + [3] * 11
    every = torch.cat(calls[:3], 1)
    cheapest = every[0, toy.cost([0])(every)[0].argsort()[:2]]
    assert torch.equal(calls[4][0, :1], search.plan(toy.cost([0]), noise, toy.box).action_BHA)
    assert torch.equal(calls[4][0, 1:], cheapest)


def test_cheapest_remembers_over_calls_and_ignores_failures() -> None:
    cheapest = Cheapest(lambda a: a.sum((2, 3)), 2)
    for numbers in ([5.0, 3.0, torch.nan], [4.0, torch.inf, 9.0], [1.0, 8.0, 8.0]):
        cheapest(torch.tensor(numbers).reshape(1, 3, 1, 1))
    assert cheapest.cost_BN[0].tolist() == [[1, 3]]
    assert cheapest.action_BNHA[0].flatten().tolist() == [1, 3]


def test_a_better_answer_is_where_the_next_search_starts() -> None:
    toy, planner = TOYS["valley"], Hybrid(search=CEM(horizon=1, candidates=16, iterations=2, elites=4))
    plan = planner.plan(toy.cost(ROWS), noise_table([(0, row, 0) for row in ROWS], planner, 2), toy.box)
    assert torch.equal(plan.mean_BHA, plan.action_BHA)


def test_sizes_are_those_of_the_search() -> None:
    planner = Hybrid(search=MPPI(horizon=7, candidates=40, iterations=2))
    assert noise_table([(0,)], planner, 3).shape == (1, 2, 40, 7, 3)


def test_trace_is_the_recorded_one() -> None:
    """Golden: renew only when a change of numbers is the intention."""
    toy, row = TOYS["around a disc"], 3
    planner = Hybrid(search=CEM(horizon=4, candidates=64, iterations=4, momentum=0.1))
    plan = planner.plan(toy.cost([row]), noise_table([(0, row, 0)], planner, 2), toy.box)
    assert plan.cost_B.item() == pytest.approx(0.00006, abs=1e-3)
    assert plan.action_BHA[0, 0].tolist() == pytest.approx([-0.79259, 0.72018], abs=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("refine", 0, r"lie in 1\.\.300, the candidates of the search"),
        ("refine", 301, r"lie in 1\.\.300, the candidates of the search"),
        ("steps", 0, "be at least 1"),
        ("learning_rate", 0.0, "be positive and finite"),
    ],
)
def test_bad_config_value_is_refused(field: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"Hybrid: {field} is {value!r}; it must {allowed}"):
        Hybrid(**{field: value})

"""MPPI: its weights hit the effective sample size they are asked for."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from planners import MPPI, ActionBox, WarmStart, noise_table
from planners.mppi import ess_weights

COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "squares": torch.square,
    "heavy tail": lambda x: torch.exp(2 * x),
    "huge": lambda x: 1e12 * x,
    "tiny": lambda x: 1e-12 * x,
    "offset": lambda x: x.square() + 1,
    "some failed, one absurd": lambda x: x.where(x < 0.5, torch.inf).index_fill(1, torch.tensor([0]), 1e15),
}


@pytest.mark.parametrize("ess", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("candidates", [64, 300])
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_effective_sample_size_hits_the_target(cost: Callable[[Tensor], Tensor], candidates: int, ess: float) -> None:
    cost_BN = cost(torch.randn(100, candidates, generator=torch.Generator().manual_seed(0)))
    weight_BN = ess_weights(cost_BN, ess)
    torch.testing.assert_close(weight_BN.sum(1), torch.ones(100))
    torch.testing.assert_close(1 / weight_BN.square().sum(1), torch.full((100,), ess * candidates), rtol=0.03, atol=0)
    assert (weight_BN[cost_BN.isinf()] == 0).all()
    order = weight_BN.gather(1, cost_BN.argsort(1))
    assert (order.diff() <= 0).all(), "a cheaper candidate never weighs less"


def test_two_candidates_by_hand() -> None:
    # w^2 + (1 - w)^2 = 1 / 1.5 has the solution w = (1 + sqrt(1/3)) / 2, whatever the cost gap.
    for gap in (1e-3, 1.0, 1e9):
        assert ess_weights(torch.tensor([[gap, 0.0]]), 0.75)[0, 1].item() == pytest.approx(0.788675, abs=0.005)


def test_one_iteration_by_hand() -> None:
    box = ActionBox.from_bounds(torch.tensor([-1.0]), torch.tensor([1.0]))
    noise = torch.tensor([0.5, -0.5, 0.0, 0.0]).reshape(1, 2, 2, 1, 1)
    planner = MPPI(horizon=1, candidates=2, iterations=2, ess=0.75, keep_mean=False, min_std=0.0)
    plan = planner.plan(lambda a: (a - 0.5).square().sum((2, 3)), noise, box)
    # Mean 0.5 (2w - 1), std sqrt(w (1 - w)); the second iteration draws the mean twice.
    assert plan.action_BHA.item() == pytest.approx(0.288675, abs=0.005)
    assert plan.spread_BI.tolist()[0] == pytest.approx([1, 0.408248], abs=0.005)


def test_ties_and_failures_share_the_weight() -> None:
    inf = torch.inf
    flat, few, none, tied = ess_weights(
        torch.tensor([[3.0] * 8, [1.0, 2.0, inf, inf, inf, inf, inf, inf], [inf] * 8, [0.0] * 5 + [1.0] * 3]), 0.5
    )
    assert flat.tolist() == pytest.approx([1 / 8] * 8)
    assert few.tolist() == pytest.approx([0.5, 0.5] + [0] * 6)
    assert none.tolist() == pytest.approx([1 / 8] * 8)
    assert tied.tolist() == pytest.approx([0.2] * 5 + [0] * 3)


def test_fixed_std_stays_and_the_mean_moves() -> None:
    box = ActionBox.from_bounds(torch.tensor([-1.0]), torch.tensor([1.0]))
    planner = MPPI(horizon=1, candidates=64, iterations=4, adapt_std=False, initial_std=0.4, momentum=0.3)
    noise = noise_table([(0,)], planner, 1)
    plan = planner.plan(lambda a: (a - 0.5).square().sum((2, 3)), noise, box)
    assert plan.spread_BI[0].tolist() == pytest.approx([0.4] * 4)
    assert plan.action_BHA.item() == pytest.approx(0.5, abs=0.05)
    warm = WarmStart(plan.mean_BHA, torch.full((1, 1, 1), 0.15))
    again = planner.plan(lambda a: (a - 0.5).square().sum((2, 3)), noise, box, warm)
    assert again.spread_BI[0].tolist() == pytest.approx([0.15] * 4), "that of a learned proposal stays too"


def test_td_mpc2s_rule_by_hand() -> None:
    """Costs 0.25, 1, 4 and 2.25: of the two cheapest the second weighs exp(-0.75 / 2) of the first."""
    box = ActionBox.from_bounds(torch.tensor([-4.0]), torch.tensor([4.0]))
    noise = torch.tensor([0.5, -1.0, 2.0, -1.5]).reshape(1, 1, 4, 1, 1).repeat(1, 2, 1, 1, 1)
    planner = MPPI(
        horizon=1,
        candidates=4,
        iterations=2,
        elites=2,
        temperature=2.0,
        keep_mean=False,
        min_std=0.0,
        initial_std=0.25,
        warm_std=0.25,
    )
    plan = planner.plan(lambda a: a.square().sum((2, 3)), noise, box)
    weight = 1 / (1 + math.exp(-0.75 / 2))
    mean, std = 0.5 * weight - (1 - weight), 1.5 * math.sqrt(weight * (1 - weight))
    assert plan.spread_BI.tolist()[0] == pytest.approx([0.25, std / 4])
    second = sorted((mean + std * draw for draw in (0.5, -1.0, 2.0, -1.5)), key=abs)[:2]
    share = 1 / (1 + math.exp(-(second[1] ** 2 - second[0] ** 2) / 2))
    assert plan.mean_BHA.item() == pytest.approx(share * second[0] + (1 - share) * second[1], abs=1e-6)


def test_a_fixed_temperature_stands_failures() -> None:
    planner = MPPI(candidates=4, temperature=0.5, horizon=1)
    cost = torch.tensor([[1.0, 1.5, torch.inf, torch.inf], [torch.inf] * 4])
    action = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)[:, :, None, None]
    mean, std = planner._fit(cost, action)
    weight = 1 / (1 + math.exp(-1))
    assert mean[0].item() == pytest.approx(weight + 2 * (1 - weight)) and std is not None
    assert std[0].item() == pytest.approx(math.sqrt(weight * (1 - weight)))
    assert mean[1].item() == pytest.approx(2.5), "equal weights, which the search does not use"


def test_effective_sample_size_is_that_of_the_elites() -> None:
    """All weight on the two cheapest of eight, and equal: 1 / sum(w^2) is all of the elites."""
    planner = MPPI(candidates=8, elites=2, ess=1.0, horizon=1)
    action = torch.arange(8.0)[None, :, None, None]
    assert planner._fit(torch.arange(8.0)[None], action)[0].item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"elites": 5, "ess": 0.1}, r"MPPI: ess is 0\.1; it is a fraction of the elites and must lie in \[1/5, 1\]"),
        ({"elites": 301}, r"MPPI: elites is 301; it must lie in 1\.\.300, the candidates"),
        ({"elites": 0}, r"MPPI: elites is 0; it must"),
        ({"temperature": 0.0}, r"MPPI: temperature is 0\.0; it must be positive"),
    ],
)
def test_bad_rules_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPPI(**changes)


def test_a_rule_with_a_temperature_needs_no_effective_sample_size() -> None:
    assert MPPI(candidates=4, temperature=1.0).ess == 0.1


@pytest.mark.parametrize("ess", [0.0, 0.003, 1.1, float("nan")])
def test_bad_ess_is_refused(ess: float) -> None:
    with pytest.raises(ValueError, match=rf"MPPI: ess is {ess}; .* must lie in \[1/300, 1\]"):
        MPPI(ess=ess)

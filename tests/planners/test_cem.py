"""CEM against arithmetic done by hand."""

import pytest
import torch
from torch import Tensor

from planners import CEM, ActionBox, WarmStart
from planners.cem import fit_elites

BOX = ActionBox.from_bounds(torch.tensor([-1.0]), torch.tensor([1.0]))
# Candidates of the first iteration: the mean 0 (noise 9 unused), 0.5, -0.5, 3 clipped to 1.
NOISE = torch.tensor([[9.0, 0.5, -0.5, 3.0], [9.0, 1.0, -1.0, 2.0]]).reshape(1, 2, 4, 1, 1)


def cost(action_BNHA: Tensor) -> Tensor:
    """Costs 0.16, 0.01, 0.81, 0.36 for 0, 0.5, -0.5, 1."""
    return (action_BNHA - 0.4).square().sum((2, 3))


def test_one_iteration_by_hand() -> None:
    planner = CEM(horizon=1, candidates=4, iterations=1, elites=2, min_std=0.0)
    plan = planner.plan(cost, NOISE[:, :1], BOX)
    assert plan.mean_BHA.item() == pytest.approx(0.25), "elites 0 and 0.5"
    assert plan.action_BHA.item() == pytest.approx(0.25)
    assert plan.cost_B.item() == pytest.approx(0.0225)
    assert plan.best_cost_BI.item() == pytest.approx(0.01)
    assert plan.spread_BI.item() == 1


def test_two_iterations_with_momentum_by_hand() -> None:
    planner = CEM(horizon=1, candidates=4, iterations=2, elites=2, min_std=0.0, momentum=0.2)
    plan = planner.plan(cost, NOISE, BOX)
    # First: mean 0.8 x 0.25 = 0.2, std 0.8 x 0.25 + 0.2 x 1 = 0.4. Second: candidates 0.2, 0.6, -0.2, 1.0, of which
    # 0.2 and 0.6 cost 0.04 each: mean 0.8 x 0.4 + 0.2 x 0.2 = 0.36.
    assert plan.spread_BI.tolist()[0] == pytest.approx([1, 0.4])
    assert plan.best_cost_BI.tolist()[0] == pytest.approx([0.01, 0.04])
    assert plan.mean_BHA.item() == pytest.approx(0.36)
    assert plan.cost_B.item() == pytest.approx(0.0016)


def test_min_std_and_warm_std_are_in_units_of_the_box() -> None:
    box = ActionBox(torch.tensor([-10.0]), torch.tensor([10.0]), torch.tensor([0.0]), torch.tensor([4.0]))
    planner = CEM(horizon=1, candidates=4, iterations=2, elites=1, min_std=0.3, warm_std=0.5)
    drawn: list[Tensor] = []

    def watch(action_BNHA: Tensor) -> Tensor:
        drawn.append(action_BNHA.flatten())
        return cost(action_BNHA)

    plan = planner.plan(watch, NOISE, box, WarmStart(torch.full((1, 1, 1), 1.0)))
    assert drawn[0].tolist() == pytest.approx([1, 2, 0, 7]), "1 + 0.5 x 4 x noise"
    # The one elite is 0 (cost 0.16): std 0 is lifted to 0.3 x 4 = 1.2.
    assert drawn[1].tolist() == pytest.approx([0, 1.2, -1.2, 2.4])
    assert plan.spread_BI.tolist()[0] == pytest.approx([0.5, 0.3])


def test_without_keep_mean_candidate_0_is_drawn() -> None:
    planner = CEM(horizon=1, candidates=4, iterations=1, elites=1, keep_mean=False, execute="best")
    noise = torch.tensor([0.4, 0.5, -0.5, 3.0]).reshape(1, 1, 4, 1, 1)
    assert planner.plan(cost, noise, BOX).action_BHA.item() == pytest.approx(0.4)


def test_best_executes_a_candidate_and_mean_the_mean() -> None:
    planner = CEM(horizon=1, candidates=4, iterations=1, elites=2, execute="best")
    plan = planner.plan(cost, NOISE[:, :1], BOX)
    assert plan.action_BHA.item() == pytest.approx(0.5)
    assert plan.cost_B.item() == pytest.approx(0.01)
    assert plan.mean_BHA.item() == pytest.approx(0.25)


def test_cheapest_elite_stands_in_for_failed_ones() -> None:
    action = torch.tensor([0.1, 0.5, 0.9, -0.3]).reshape(1, 4, 1, 1)
    mean, std = fit_elites(torch.tensor([[torch.inf, 2.0, torch.inf, 1.0]]), action, 3)
    assert mean.item() == pytest.approx((0.5 - 0.3 - 0.3) / 3)
    assert std.item() == pytest.approx((0.8**2 * 2 / 9) ** 0.5)


@pytest.mark.parametrize("elites", [0, 301])
def test_bad_elites_are_refused(elites: int) -> None:
    with pytest.raises(ValueError, match=rf"CEM: elites is {elites}; it must lie in 1\.\.300, the candidates"):
        CEM(elites=elites)

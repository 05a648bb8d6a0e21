"""Random shooting and predictive sampling: they keep the best, and differ in where they look."""

import pytest
import torch
from torch import Tensor
from toys import TOYS

from planners import ActionBox, PredictiveSampling, RandomShooting, WarmStart, noise_table

BOX = ActionBox(torch.tensor([-4.0]), torch.tensor([4.0]), torch.tensor([1.0]), torch.tensor([2.0]))
NOISE = torch.tensor([[9.0, 0.5, -0.5, 3.0], [0.25, 1.0, -1.0, -9.0]]).reshape(1, 2, 4, 1, 1)
ROWS = list(range(16))


def watch(planner: RandomShooting | PredictiveSampling, start: WarmStart | None) -> tuple[list[list[float]], float]:
    """Candidates of each iteration and the action executed, for a cost that is the distance from -1."""
    seen = []

    def cost(action_BNHA: Tensor) -> Tensor:
        seen.append(action_BNHA.flatten().tolist())
        return (action_BNHA + 1).abs().sum((2, 3))

    plan = planner.plan(cost, NOISE, BOX, start)
    assert plan.cost_B.item() == pytest.approx(abs(plan.action_BHA.item() + 1))
    assert plan.best_cost_BI[0].tolist() == pytest.approx([min(abs(a + 1) for a in actions) for actions in seen])
    return seen, plan.action_BHA.item()


def test_random_shooting_by_hand() -> None:
    planner = RandomShooting(horizon=1, candidates=4, iterations=2)
    # 1 + 2 x noise, clipped; the first candidate is the centre of the box.
    seen, action = watch(planner, None)
    assert seen == [[1, 2, 0, 4], [1.5, 3, -1, -4]]
    assert action == -1
    seen, _ = watch(planner, WarmStart(torch.full((1, 1, 1), -1.25)))
    assert seen == [[-1.25, 2, 0, 4], [1.5, 3, -1, -4]], "a warm start is scored, and draws stay where they were"
    start = WarmStart(torch.full((1, 1, 1), -2.0), torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 3.5))
    seen, _ = watch(planner, start)
    assert seen == [[-2, 3.5, -2.25, -0.5], [-1.875, -1.5, -2.5, -4]], "one with a std moves them; seeds are scored"


def test_predictive_sampling_by_hand() -> None:
    planner = PredictiveSampling(horizon=1, candidates=4, iterations=2, std=0.5)
    seen, action = watch(planner, WarmStart(torch.full((1, 1, 1), 1.0)))
    # 1 + 0.5 x 2 x noise; then from the best, 0.5.
    assert seen == [[1, 1.5, 0.5, 4], [0.75, 1.5, -0.5, -4]]
    assert action == -0.5


def test_best_of_all_iterations_is_executed() -> None:
    toy = TOYS["around a disc"]
    for Planner in (RandomShooting, PredictiveSampling):
        planner = Planner(horizon=toy.horizon, candidates=20, iterations=6)
        plan = planner.plan(toy.cost(ROWS), noise_table([(0, row) for row in ROWS], planner, 2), toy.box)
        assert torch.equal(plan.cost_B, plan.best_cost_BI.amin(1))
        assert torch.equal(plan.mean_BHA, plan.action_BHA)
        assert (plan.spread_BI == plan.spread_BI[0, 0]).all(), "the std never changes"


def test_predictive_sampling_is_never_worse_than_its_warm_start() -> None:
    """Warm starts from poor to optimal, replan after replan, with one changed sequence beside the start."""
    toy = TOYS["around a disc"]
    planner = PredictiveSampling(horizon=toy.horizon, candidates=2)
    start = WarmStart(torch.linspace(-0.8, 0.8, 16)[:, None, None].expand(16, toy.horizon, 2))
    costs = [toy.cost(ROWS)(start.mean_BHA[:, None])[:, 0]]
    for replan in range(30):
        noise = noise_table([(0, row, replan) for row in ROWS], planner, 2)
        plan = planner.plan(toy.cost(ROWS), noise, toy.box, start)
        costs.append(plan.cost_B)
        start = plan.warm_start(0, toy.box)
    assert (torch.stack(costs).diff(dim=0) <= 1e-6).all()
    assert costs[-1].mean() < 0.5 * costs[0].mean()


@pytest.mark.parametrize("std", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_std_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=f"PredictiveSampling: std is {std}; it must be positive and finite"):
        PredictiveSampling(std=std)

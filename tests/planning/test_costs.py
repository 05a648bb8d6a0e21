"""Goal costs by hand: a world whose latent is the running sum of its actions."""

import pytest
import torch
from torch import Tensor
from toy_models import toy_head, toy_model

from lewm.planning.costs import DISTANCES, CostConfig, GoalCost, Situation


class Adder:
    """latent after block h = latent now + the sum of actions up to h; K = 1, D = A = 2."""

    def rollout(self, latent_BTKD: Tensor, past_BTA: Tensor, action_BNHA: Tensor) -> Tensor:
        return latent_BTKD[:, None, -1:] + action_BNHA.cumsum(2)[:, :, :, None]


class Manhattan(torch.nn.Module):
    """Distance in blocks: sum of absolute differences."""

    def forward(self, latent_KD: Tensor, goal_KD: Tensor) -> Tensor:
        return (latent_KD - goal_KD).abs().sum((-2, -1))


SITUATION = Situation(torch.tensor([[[[9.0, 9.0]], [[1.0, 0.0]]]]), torch.zeros(1, 1, 2))
GOAL = torch.tensor([[[3.0, 0.0]]])
ACTION = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 0.0], [4.0, 0.0]]]])
"""From (1, 0) to (3, 0): candidate 0 visits (2, 0), (3, 0), (4, 0); candidate 1 visits (1, 2), (1, 2), (5, 2)."""


@pytest.mark.parametrize(
    "terms, reduce, expected",
    [
        ({"latent_l2": 1.0}, "terminal", [0.5, 4.0]),
        ({"latent_l2": 1.0}, "sum", [(0.5 + 0 + 0.5) / 3, 4.0]),
        ({"latent_l2": 1.0}, "min", [0.0, 4.0]),
        ({"cost_to_go": 1.0}, "terminal", [1.0, 4.0]),
        ({"cost_to_go": 1.0}, "sum", [2 / 3, 4.0]),
        ({"cost_to_go": 1.0}, "min", [0.0, 4.0]),
        ({"cost_to_go": 2.0, "latent_l2": 0.5}, "terminal", [2.25, 10.0]),
        ({"cost_to_go": 2.0, "latent_l2": 0.5}, "sum", [2 * 2 / 3 + 0.5 / 3, 10.0]),
    ],
)
def test_reductions_by_hand(terms: dict[str, float], reduce: str, expected: list[float]) -> None:
    cost = GoalCost(Adder(), Manhattan(), CostConfig(terms, reduce), SITUATION, GOAL)(ACTION)
    torch.testing.assert_close(cost, torch.tensor([expected]))


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("reduce", ["terminal", "sum", "min"])
def test_every_distance_gives_a_finite_cost_per_problem_and_candidate(name: str, reduce: str) -> None:
    model = toy_model()
    generator = torch.Generator().manual_seed(0)
    situation = Situation(torch.randn(3, 1, 1, 4, generator=generator), torch.zeros(3, 0, model.action_dim))
    goal = torch.randn(3, 1, 4, generator=generator)
    action = torch.randn(3, 5, 2, model.action_dim, generator=generator)
    head = toy_head(model)
    cost = GoalCost(model, head, CostConfig({name: 1.0}, reduce), situation, goal)(action)
    assert cost.shape == (3, 5) and cost.isfinite().all()
    alone = Situation(situation.latent_BTKD[1:2], situation.past_BTA[1:2])
    one = GoalCost(model, head, CostConfig({name: 1.0}, reduce), alone, goal[1:2])(action[1:2])
    torch.testing.assert_close(one, cost[1:2])


def test_a_cost_is_lowest_at_the_goal_itself() -> None:
    latent = torch.randn(1, 6, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    distance = DISTANCES["latent_l2"](latent, latent[:, 3, 0], None)
    assert distance[0, :, 0].argmin() == 3 and distance[0, 3, 0] == 0


def test_cost_to_go_without_a_head_says_how_to_get_one() -> None:
    cost = GoalCost(Adder(), None, CostConfig(), SITUATION, GOAL)
    with pytest.raises(ValueError, match=r"no cost-to-go head; fit one with `lewm train --cost-to-go-only`"):
        cost(ACTION)


def test_terms_are_checked() -> None:
    with pytest.raises(ValueError, match=r"no distance is called 'l2'; there are latent_l2, latent_l1"):
        CostConfig({"l2": 1.0})
    with pytest.raises(ValueError, match=r"cost\.terms is empty"):
        CostConfig({})


def test_labels() -> None:
    assert CostConfig().label == "cost_to_go (sum)"
    assert CostConfig({"cost_to_go": 1.0, "latent_l2": 0.3}, "min").label == "cost_to_go + 0.3 latent_l2 (min)"

"""Goal costs by hand: a world whose latent is the running sum of its actions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy_models import FACTS, toy_head, toy_model, toy_readout

from lewm.nets.predictors import MLPConfig, PredictorConfig, RotaryConfig
from lewm.planning.costs import DISTANCES, CostConfig, GoalCost, Heads, Situation


class Adder:
    """latent after block h = latent now + the sum of actions up to h; K = 1, D = A = 2."""

    facts = FACTS
    action_dim = 2

    picture_dim = 2

    def scale_action(self, action: Tensor) -> Tensor:
        return 2 * action

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
        ({"latent_l1": 1.0}, "terminal", [0.5, 2.0]),
        ({"latent_l1": 1.0}, "sum", [1 / 3, 2.0]),
        ({"cosine": 1.0}, "terminal", [0.0, 1 - 5 / 29**0.5]),
        ({"cosine": 1.0}, "min", [0.0, 1 - 5 / 29**0.5]),
        ({"cost_to_go": 1.0}, "discounted", [(1 + 0.25 * 1) / 1.75, 4.0]),
        ({"cost_to_go": 2.0, "latent_l2": 0.5}, "terminal", [2.25, 10.0]),
        ({"cost_to_go": 2.0, "latent_l2": 0.5}, "sum", [2 * 2 / 3 + 0.5 / 3, 10.0]),
    ],
)
def test_reductions_by_hand(terms: dict[str, float], reduce: str, expected: list[float]) -> None:
    cost = GoalCost(Adder(), Manhattan(), CostConfig(terms, reduce, discount=0.5), SITUATION, GOAL)(ACTION)
    torch.testing.assert_close(cost, torch.tensor([expected]))


def test_the_action_penalty_is_the_mean_square_of_scaled_actions() -> None:
    """Adder scales by 2, so the candidates' squares are 12 and 80 over six entries."""
    plain, with_penalty = (
        GoalCost(Adder(), Manhattan(), CostConfig(action_penalty=weight), SITUATION, GOAL)(ACTION)
        for weight in (0.0, 0.3)
    )
    torch.testing.assert_close(with_penalty - plain, 0.3 * torch.tensor([[12 / 6, 80 / 6]]))


def test_a_limit_on_the_change_of_the_action() -> None:
    """Two blocks of two raw actions of two entries: (0, 0), (0.5, 0.5), (1, 0), (0, 0), scaled by 2."""
    action = torch.tensor([[[[0.0, 0.0, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0]]]])
    cost = GoalCost(Adder(), Manhattan(), CostConfig(max_change=1.0), SITUATION, GOAL)
    torch.testing.assert_close(cost.violation(action), torch.tensor([[[0.0, 0.0, 0.0, 0.0, 1.0, -1.0]]]))
    with pytest.raises(ValueError, match=r"keeps limits, but the cost has none: set cost\.max_change"):
        GoalCost(Adder(), Manhattan(), CostConfig(), SITUATION, GOAL).violation(action)


SHORT = RotaryConfig(context=2, width=16, layers=2, heads=2)


@pytest.mark.parametrize("predictor", [MLPConfig(width=16), replace(SHORT, context=8), SHORT])
@pytest.mark.parametrize("seen", [1, 2])
def test_following_the_rolled_out_states_gives_the_rollout(predictor: PredictorConfig, seen: int) -> None:
    """Predicting each block from the states the rollout itself visited repeats the rollout, sliding window included."""
    model = toy_model(predictor)
    seen = min(seen, model.context)
    generator = torch.Generator().manual_seed(0)
    latent, past = torch.randn(3, seen, 1, 4, generator=generator), torch.randn(3, seen - 1, 4, generator=generator)
    cost = GoalCost(model, None, CostConfig({"latent_l2": 1.0}), Situation(latent, past), latent[:, 0])
    action = torch.randn(3, 5, 4, model.action_dim, generator=generator)
    rolled_BNHS = model.rollout(latent, past, action).flatten(3)
    before_BNHS = torch.cat([torch.full_like(rolled_BNHS[:, :, :1], torch.nan), rolled_BNHS[:, :, :-1]], 2)
    torch.testing.assert_close(cost.follow(before_BNHS, action), rolled_BNHS, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cost.distance(rolled_BNHS).mean(-1), cost(action), atol=1e-6, rtol=1e-4)


def test_a_cost_can_be_differentiated_by_the_actions() -> None:
    model = toy_model()
    situation = Situation(torch.randn(2, 1, 1, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 0, 4))
    action = torch.zeros(2, 3, 2, model.action_dim, requires_grad=True)
    GoalCost(model, toy_head(model), CostConfig(), situation, situation.latent_BTKD[:, 0] + 1)(action).sum().backward()
    assert action.grad is not None and (action.grad != 0).any(-1).all()


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("reduce", ["terminal", "sum", "min"])
def test_every_distance_gives_a_finite_cost_per_problem_and_candidate(name: str, reduce: str) -> None:
    model = toy_model()
    generator = torch.Generator().manual_seed(0)
    model.picture_dim = 2  # as if the two last entries were measured
    measured = torch.randn(3, 2, generator=generator)
    now = torch.randn(3, 1, 1, 4, generator=generator)
    situation = Situation(now, torch.zeros(3, 0, model.action_dim), goal_measured_BM=measured)
    goal = torch.randn(3, 1, 4, generator=generator)
    action = torch.randn(3, 5, 2, model.action_dim, generator=generator)
    head = toy_head(model)
    config, readout = CostConfig({name: 1.0}, reduce), toy_readout(model)
    cost = GoalCost(model, head, config, situation, goal, readout=readout)(action)
    assert cost.shape == (3, 5) and cost.isfinite().all()
    alone = Situation(situation.latent_BTKD[1:2], situation.past_BTA[1:2], goal_measured_BM=measured[1:2])
    one = GoalCost(model, head, config, alone, goal[1:2], readout=readout)(action[1:2])
    torch.testing.assert_close(one, cost[1:2])


def test_a_cost_is_lowest_at_the_goal_itself() -> None:
    latent = torch.randn(1, 6, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    distance = DISTANCES["latent_l2"](latent, latent[:, 3, 0], Heads())
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
    for field, value in {"discount": 0.0, "action_penalty": -1.0, "max_change": 0.0}.items():
        with pytest.raises(ValueError, match=rf"cost\.{field} is {value}; it must be"):
            CostConfig(**{field: value})


def test_labels() -> None:
    assert CostConfig().label == "cost_to_go (sum)"
    assert CostConfig(reduce="discounted", action_penalty=0.1).label == "cost_to_go + 0.1 action (discounted 0.9)"
    assert CostConfig({"cost_to_go": 1.0, "latent_l2": 0.3}, "min").label == "cost_to_go + 0.3 latent_l2 (min)"


def test_distances_of_token_grids_are_means_over_tokens_and_width() -> None:
    """Three tokens of four entries, one entry off by 3: 9 / 12 and 3 / 12, however many tokens a frame has."""
    goal = torch.zeros(1, 3, 4)
    latent = torch.zeros(1, 1, 1, 3, 4)
    latent[..., 1, 2] = 3.0
    assert DISTANCES["latent_l2"](latent, goal, Heads()).item() == 0.75
    assert DISTANCES["latent_l1"](latent, goal, Heads()).item() == 0.25
    more = latent.repeat(1, 1, 1, 5, 1), goal.repeat(1, 5, 1)
    assert DISTANCES["latent_l1"](*more, Heads()).item() == 0.25

"""Gradient planners on the costs of a world model."""

import pytest
import torch
from toy_models import toy_checkpoint, toy_head, toy_model

from lewm.nets.predictors import MLPConfig, PredictorConfig, RotaryConfig
from lewm.planning.action_limits import action_box
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_rollout import prepare
from lewm.world_model import WorldModel
from planners import CEM, Gradient, Grasp, Hybrid, Planner, StateCost, noise_table

SHORT = RotaryConfig(context=3, width=16, layers=2, heads=2)
PLANNERS: dict[str, Planner] = {
    "gradient": Gradient(horizon=4, candidates=4, iterations=12),
    "grasp": Grasp(horizon=4, candidates=4, iterations=6, sync_every=3, sync_steps=3),
    "hybrid": Hybrid(search=CEM(horizon=4, candidates=8, iterations=2, elites=3)),
}
planners = pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
predictors = pytest.mark.parametrize("predictor", [MLPConfig(width=16), SHORT], ids=["mlp", "rotary"])
fast = pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])


def goal_cost(model: WorldModel, config: CostConfig, fast: bool) -> GoalCost:
    generator = torch.Generator().manual_seed(0)
    now, goal = torch.randn(2, 3, 1, 1, 4, generator=generator)
    head = toy_head(model)
    situation = Situation(now, torch.zeros(3, 0, model.action_dim))
    return GoalCost(model, head, config, situation, goal[:, 0], prepare(model, head) if fast else None)


@planners
@predictors
@fast
@pytest.mark.parametrize("reduce", ["terminal", "sum"])
def test_a_plan_costs_less_than_its_best_start(
    planner: Planner, predictor: PredictorConfig, fast: bool, reduce: str
) -> None:
    model = toy_model(predictor)
    cost = goal_cost(model, CostConfig({"latent_l2": 1.0, "cost_to_go": 0.1}, reduce), fast)
    box, noise = action_box(model), noise_table([(0, row) for row in range(3)], planner, model.action_dim)
    starts = (box.mean_A + box.std_A * noise[:, 0]).clamp(box.low_A, box.high_A)
    with torch.no_grad():
        plan = planner.plan(cost, noise, box)
        assert (plan.cost_B < cost(starts).amin(1)).all()
        torch.testing.assert_close(cost(plan.action_BHA[:, None])[:, 0], plan.cost_B, rtol=1e-4, atol=1e-5)


@planners
def test_weights_that_are_still_being_trained_get_no_gradient(planner: Planner) -> None:
    model = toy_model().requires_grad_(True)
    noise = noise_table([(0, row) for row in range(3)], planner, model.action_dim)
    plan = planner.plan(goal_cost(model, CostConfig({"latent_l2": 1.0}), fast=False), noise, action_box(model))
    assert not plan.cost_B.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@predictors
@fast
def test_states_of_a_rollout_are_what_the_model_imagines(predictor: PredictorConfig, fast: bool) -> None:
    model = toy_model(predictor)
    cost = goal_cost(model, CostConfig(), fast)
    assert isinstance(cost, StateCost)
    action = torch.randn(3, 5, 6, model.action_dim, generator=torch.Generator().manual_seed(1))
    imagined = model.rollout(cost.situation.latent_BTKD, cost.situation.past_BTA, action)
    torch.testing.assert_close(cost.rollout(action), imagined.flatten(3), rtol=1e-4, atol=1e-5)


@planners
def test_an_agent_plans_with_it(planner: Planner) -> None:
    checkpoint = toy_checkpoint(toy_model())
    agent = Agent(checkpoint, planner, CostConfig({"latent_l2": 1.0}))
    frames = torch.randint(0, 256, (2, 2, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    agent.reset(frames[0])
    for _ in range(3):  # the third is planned from a warm start
        action = agent.act(frames[1])
    assert action.shape == (2, 2) and abs(action).max() <= 1
    assert agent.last is not None and agent.last.step == 2
    assert agent.last.plan.cost_B.isfinite().all()

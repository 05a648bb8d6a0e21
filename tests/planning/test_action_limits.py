"""Limits of action entries: the box they make, what is executed, that plans are judged by it, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_models import FACTS, SIZE, toy_checkpoint, toy_model

from lewm.checkpoint import Checkpoint
from lewm.nets.predictors import MLPConfig
from lewm.planning.action_limits import ActionLimits, action_box
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig
from planners import CEM, PLANNERS

SKIP = 2
L2 = CostConfig({"latent_l2": 1.0})
GRIPPER = ActionLimits(low=(-0.5, -1.0), high=(0.25, 1.0), std=(0.2, 0.9), held=(1,), dead_zone=(0.0, 0.25))
"""An arm's step, and a gripper that keeps its command and ignores small ones."""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return toy_checkpoint(toy_model(MLPConfig(width=16), SKIP))


def actions_of(agent: Agent, episodes: int = 4) -> np.ndarray:
    """Actions (steps, B, a) towards random pictures."""
    rng = np.random.default_rng(0)
    agent.reset(rng.integers(0, 256, (episodes, SIZE, SIZE, 3), np.uint8))
    frames = rng.integers(0, 256, (3 * SKIP, episodes, SIZE, SIZE, 3), np.uint8)
    return np.stack([agent.act(frame) for frame in frames])


def test_the_box_has_the_bounds_and_the_spread_that_are_asked_for(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    box, recorded = GRIPPER.box(model), action_box(model)
    assert box.low_A.tolist() == [-0.5, -1.0] * SKIP and box.high_A.tolist() == [0.25, 1.0] * SKIP
    assert box.std_A.tolist() == pytest.approx([0.2, 0.9] * SKIP) and box.steps == recorded.steps == SKIP
    assert recorded.low_A.tolist() == list(FACTS.action_low) * SKIP
    only_high = ActionLimits(high=(0.5, 0.5)).box(model)
    assert torch.equal(only_high.low_A, recorded.low_A) and torch.equal(only_high.std_A, recorded.std_A)
    above = ActionLimits(low=(0.5, 0.75)).box(model)  # the recorded mean lies outside: the search begins at the bound
    assert above.mean_A.tolist() == [0.5, 0.75] * SKIP


def test_held_entries_follow_the_first_step_and_small_values_become_zero() -> None:
    block = torch.tensor([[0.1, 0.3, -0.6, 0.9], [0.2, -0.2, 0.4, 0.8]])
    assert torch.equal(GRIPPER.executed(block, 2), torch.tensor([[0.1, 0.3, -0.6, 0.3], [0.2, 0.0, 0.4, 0.0]]))
    assert ActionLimits(low=(-0.5, -0.5)).executed(block, 2) is block
    leaf = block.clone().requires_grad_()
    GRIPPER.executed(leaf, 2).sum().backward()
    assert leaf.grad.tolist() == [[1, 2, 1, 0], [1, 0, 1, 0]]  # through what is executed, and nothing else


@pytest.mark.parametrize("name", [name for name, kind in PLANNERS.items() if "choices" not in kind.needs])
def test_every_planner_keeps_them(name: str, checkpoint: Checkpoint) -> None:
    planner, cost = PLANNERS[name](), replace(L2, max_change=1.0)
    action = actions_of(Agent(checkpoint, planner, cost, actions=GRIPPER), episodes=1).reshape(-1, SKIP, 2)
    assert (action[..., 0] >= -0.5).all() and (action[..., 0] <= 0.25).all()
    assert (action[:, :1, 1] == action[..., 1]).all()
    gripper = np.abs(action[..., 1])
    assert ((gripper == 0) | (gripper >= 0.25)).all()


def test_a_plan_is_judged_by_what_is_executed(checkpoint: Checkpoint) -> None:
    agent = Agent(checkpoint, CEM(candidates=16, iterations=2, elites=4, horizon=3), L2, actions=GRIPPER)
    free = Agent(checkpoint, agent.planner, L2)
    rng = np.random.default_rng(0)
    agent.reset(rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8))
    agent.act(rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8))
    assert agent.last is not None and agent.goal_BKD is not None
    situation, plan = agent.last.situation, agent.last.plan
    planned = torch.rand(2, 5, 3, 2 * SKIP, generator=torch.Generator().manual_seed(1)) - 0.5
    executed = GRIPPER.executed(planned, 2)
    assert not torch.equal(planned, executed)
    cost, plain = agent._cost(situation, agent.goal_BKD), free._cost(situation, agent.goal_BKD)
    assert torch.equal(cost(planned), plain(executed)) and not torch.equal(cost(planned), plain(planned))
    assert torch.equal(cost.rollout(planned), plain.rollout(executed))
    states = plain.rollout(executed)
    assert torch.equal(cost.follow(states, planned), plain.follow(states, executed))
    assert torch.equal(plan.cost_B, plain(plan.action_BHA[:, None])[:, 0])


def test_without_limits_nothing_changes(checkpoint: Checkpoint) -> None:
    planner = CEM(candidates=16, iterations=2, elites=4, horizon=3)
    assert np.array_equal(
        actions_of(Agent(checkpoint, planner, L2)), actions_of(Agent(checkpoint, planner, L2, actions=ActionLimits()))
    )


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"low": (0.0,)}, "actions.low has 1 numbers; this model's actions have 2"),
        ({"dead_zone": (0.0, 0.0, 0.1)}, "actions.dead_zone has 3 numbers; this model's actions have 2"),
        ({"held": (2,)}, r"actions.held names entry 2; this model's actions have entries 0\.\.1"),
        ({"high": (1.0, 1.5)}, "entry 1 would be searched from -1.0 to 1.5; it must be a range inside the recordings'"),
        ({"high": (-2.0, 1.0)}, "entry 0 would be searched from -1.0 to -2.0; it must be a range inside"),
    ],
)
def test_limits_that_do_not_fit_the_model_are_refused(limits: dict, message: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match=message):
        Agent(checkpoint, CEM(), L2, actions=ActionLimits(**limits))


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"low": (0.5,), "high": (0.5,)}, "actions.low is 0.5 and actions.high is 0.5 for entry 0; raise high"),
        ({"std": (0.1, 0.0)}, "actions.std is 0.0 for entry 1; it must be above 0"),
        ({"dead_zone": (-0.1,)}, "actions.dead_zone is -0.1 for entry 0; it must be 0 or more"),
        ({"held": (1, 1)}, r"actions.held is \[1, 1\]; name each entry once"),
    ],
)
def test_limits_that_are_none_are_refused(limits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionLimits(**limits)

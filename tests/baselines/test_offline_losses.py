"""The losses of the offline baselines by hand, their gradients, and the blocks and goals they are computed on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_models import toy_model

from lewm.baselines.gcbc import gcbc_loss
from lewm.baselines.gciql import GCIQLConfig, build_gciql, critic_loss, ddpg_bc_loss
from lewm.baselines.gcivl import advantage, value_loss
from lewm.baselines.goal_data import GoalBatch, GoalTransitions
from lewm.baselines.heads import advantage_weighted, frozen, half_squared_error, raw_block, scaled_bounds
from lewm.baselines.hilp import directions, hilbert_value, progress
from lewm.baselines.inverse import GC_IDM
from lewm.cost_to_go import expectile_loss
from lewm.heads_training import Recorded
from lewm.proposal import beta_nll

ACTION = torch.tensor([[1.0, 2.0, 9.0, 9.0], [0.0, 0.0, 1.0, -1.0]])
KNOWN = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])


def blocks(reward: list[float], discount: list[float]) -> GoalBatch:
    none = torch.zeros(len(reward), 1, 1)
    return GoalBatch(none, none, none, ACTION, KNOWN, torch.tensor(reward), torch.tensor(discount))


def test_gcbc_by_hand() -> None:
    """First block: (1 + 4) / 2 / 2 over its two known entries; second: (0 + 0 + 1 + 1) / 2 / 4."""
    batch = blocks([-1.0, -1.0], [0.9, 0.9])
    mean = torch.zeros(2, 4, requires_grad=True)
    assert half_squared_error(mean, ACTION, KNOWN).tolist() == pytest.approx([1.25, 0.25])
    loss = gcbc_loss(mean, batch)
    assert loss.item() == pytest.approx(0.75)
    loss.backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, torch.tensor([[-0.25, -0.5, 0, 0], [0, 0, -0.125, 0.125]]))


def test_gcivl_value_by_hand() -> None:
    """Targets: member 1 -1 - 0.9 * 4 = -4.6 and -0.4; member 2 -1 - 0.9 * 2 = -2.8 and -0.4.

    Better? -1 - 0.9 * 4 >= mean(-3, -4)? no, weight 0.1. -0.4 >= mean(-1, -2)? yes, weight 0.9.
    """
    batch = blocks([-1.0, -0.4], [0.9, 0.0])
    now = torch.tensor([[-3.0, -1.0], [-4.0, -2.0]])
    following = torch.tensor([[-4.0, -7.0], [-2.0, -7.0]])
    value = torch.tensor([[-2.0, -1.0], [-3.0, 0.0]])
    first = (0.1 * (-4.6 + 2) ** 2 + 0.9 * (-0.4 + 1) ** 2) / 2
    second = (0.1 * (-2.8 + 3) ** 2 + 0.9 * (-0.4 - 0) ** 2) / 2
    assert value_loss(value, now, following, batch, 0.9).item() == pytest.approx(first + second)
    assert first + second == pytest.approx(0.574)
    torch.testing.assert_close(advantage(now, following, batch), torch.tensor([-1 - 0.9 * 3 + 3.5, -0.4 + 1.5]))


def test_advantage_weighted_regression_by_hand() -> None:
    """exp(2 * 0.5) and exp(2 * -1) weigh the errors 3 and 4; e^20 counts 100. No gradient goes through the weight."""
    error = torch.tensor([3.0, 4.0], requires_grad=True)
    better = torch.tensor([0.5, -1.0], requires_grad=True)
    loss = advantage_weighted(error, better, 2.0)
    assert loss.item() == pytest.approx((3 * math.e + 4 * math.exp(-2)) / 2)
    loss.backward()
    assert better.grad is None and error.grad is not None
    torch.testing.assert_close(error.grad, torch.tensor([math.e, math.exp(-2)]) / 2)
    assert advantage_weighted(torch.ones(1), torch.tensor([10.0]), 2.0).item() == 100
    assert advantage_weighted(error, better, 0.0).item() == pytest.approx(3.5)


def test_gciql_by_hand() -> None:
    """Critics against -1.9 and -0.2; the value's expectile; the policy's Q of -2 and -3 in units of their mean."""
    batch = blocks([-1.0, -0.2], [0.9, 0.0])
    target = batch.outcome(torch.tensor([-1.0, -5.0]))
    torch.testing.assert_close(target, torch.tensor([-1.9, -0.2]))
    quality = torch.tensor([[-1.9, -1.2], [-2.9, -0.2]])
    assert critic_loss(quality, target).item() == pytest.approx((0 + 1) / 2 + (1 + 0) / 2)
    best, value = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])
    assert expectile_loss(best, value, 0.9).item() == pytest.approx((0.9 * 1 + 0.1 * 4) / 2)
    quality = torch.tensor([[-2.0, -1.0], [-1.0, -3.0]], requires_grad=True)
    loss = ddpg_bc_loss(quality, torch.tensor([1.25, 0.25]), 0.4)
    assert loss.item() == pytest.approx(2.5 / 2.5 + 0.4 * 0.75, rel=1e-5)
    loss.backward()
    assert quality.grad is not None
    torch.testing.assert_close(quality.grad, torch.tensor([[-0.2, 0.0], [0.0, -0.2]]))


def test_the_policy_of_gciql_climbs_its_critics_without_moving_them() -> None:
    model = toy_model()
    torch.manual_seed(0)
    critic = build_gciql(model, GCIQLConfig(width=8, layers=1))["critic_1"]
    latent, goal = torch.randn(2, 3, 1, 4, generator=torch.Generator().manual_seed(0))
    action = torch.zeros(3, 4, requires_grad=True)
    answer = frozen(critic, latent, goal, action)
    torch.testing.assert_close(answer, critic(latent, goal, action))
    answer.sum().backward()
    assert action.grad is not None and action.grad.abs().min() > 0
    assert all(p.grad is None for p in critic.parameters())


def test_hilp_by_hand() -> None:
    """From (1, 1) to (4, 5) are 5; the unit direction is (0.6, 0.8); a move by (1, 0.5) makes 1.0 along it."""
    point, goal = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[4.0, 5.0], [2.0, 2.0]])
    point.requires_grad_()
    value = hilbert_value(point, goal)
    torch.testing.assert_close(value, torch.tensor([-5.0, -0.001]))
    value.sum().backward()
    torch.testing.assert_close(point.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    way = directions(point.detach(), goal)
    torch.testing.assert_close(way, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    moved = point.detach() + torch.tensor([1.0, 0.5])
    torch.testing.assert_close(progress(point.detach(), moved, way), torch.tensor([1.0, 0.0]))


def test_the_inverse_model_fits_its_mean_by_squared_error() -> None:
    """Its loss is the proposal's at beta 1: the gradient of the mean is its error, whatever the std."""
    assert (GC_IDM.beta, GC_IDM.horizon) == (1.0, 1)
    mean, std = torch.tensor([0.5, -1.0], requires_grad=True), torch.tensor([0.3, 2.0])
    beta_nll(mean, std, torch.zeros(2), torch.ones(2, dtype=torch.bool), GC_IDM.beta).backward()
    torch.testing.assert_close(mean.grad, torch.tensor([0.5, -1.0]) / 2)


def test_scaled_blocks_and_bounds() -> None:
    model = toy_model()
    low, high = scaled_bounds(model)
    torch.testing.assert_close(raw_block(model, low), torch.full((4,), -1.0))
    torch.testing.assert_close(raw_block(model, high), torch.full((4,), 1.0))


@pytest.fixture
def told() -> GoalTransitions:
    """Latents say (episode, frame), actions say the frame they leave, so everything drawn can be read off."""
    lengths = np.array([7, 2, 12, 5])
    rows = torch.tensor([(e, t, 0, 0) for e, n in enumerate(lengths) for t in range(n + 1)], dtype=torch.float32)
    model = toy_model()
    recorded = Recorded(rows[:, None], rows[:, None] + 0.5, np.arange(4), lengths)
    return GoalTransitions(recorded, rows[:, :2], model, 0.9)


def test_blocks_earn_what_they_took(told: GoalTransitions) -> None:
    """Blocks of 2: a goal 1 step ahead is half a block away and the end; one 2 or more ahead is still to come."""
    batch = told.draw(5000, torch.Generator().manual_seed(0), 1.0)
    (episode, frame), goal = batch.latent_BKD[:, 0, :2].T, batch.goal_BKD[:, 0] - 0.5
    assert torch.equal(batch.next_BKD[:, 0, 1], frame + 2) and torch.equal(goal[:, 0], episode)
    ahead = goal[:, 1] - frame
    assert ahead.min() == 1 and ahead.max() == 12
    torch.testing.assert_close(batch.reward_B, torch.where(ahead < 2, -ahead / 2, -1.0))
    torch.testing.assert_close(batch.discount_B, torch.where(ahead < 2, 0.0, 0.9**2))
    raw = raw_block(told.model, batch.action_BA)
    torch.testing.assert_close(raw, torch.stack([episode, frame, episode, frame + 1], 1), atol=1e-5, rtol=0)
    assert torch.equal(batch.known_BA, torch.stack([ahead > 0, ahead > 0, ahead > 1, ahead > 1], 1).float())


def test_shares_of_goals(told: GoalTransitions) -> None:
    batch = told.draw(20_000, torch.Generator().manual_seed(1), 1.0, current=0.2, elsewhere=0.3)
    here = (batch.goal_BKD - 0.5 == batch.latent_BKD).all(-1).all(-1)
    arrived = batch.reward_B == 0
    assert (arrived <= here).all() and not batch.discount_B[arrived].any() and not batch.known_BA[arrived].any()
    assert abs(arrived.float().mean() - 0.2) < 0.01
    other = batch.goal_BKD[:, 0, 0] - 0.5 != batch.latent_BKD[:, 0, 0]
    assert (batch.reward_B[other] == -1).all() and (batch.discount_B[other] > 0).all()
    frames = np.array([8, 3, 13, 6])
    weights = np.array([6, 1, 11, 4]) / 22  # frames with a block left, per episode
    expected = 0.3 * float((weights * (1 - frames / 30)).sum())
    assert abs(other.float().mean() - expected) < 0.01


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 0}, r"gciql\.width is 0; it must be at least 1"),
        ({"discount": 1.0}, r"gciql\.discount is 1\.0; it must lie between 0 and 1"),
        ({"nearness": 0.0}, r"gciql\.nearness is 0\.0; it must be positive"),
        ({"cloning": -1.0}, r"gciql\.cloning is -1\.0; it must be 0 or more"),
        ({"current": 0.8}, r"gciql\.current is 0\.8 and gciql\.elsewhere 0\.3; they are shares of one whole"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GCIQLConfig(), **changes)

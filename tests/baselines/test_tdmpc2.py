"""TD-MPC2: its numbers by hand, the rows it learns from, the return it plans by, its policy among the candidates."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import toy_checkpoint, toy_model

from lewm.baselines.gciql import ddpg_bc_loss
from lewm.baselines.goal_data import GoalBatch, GoalTransitions
from lewm.baselines.heads import raw_block
from lewm.baselines.offline import searches
from lewm.baselines.tdmpc2 import Rows, TDMPC2Config, TDMPC2Heads, TDMPC2Method, fit_tdmpc2, prospect_loss
from lewm.baselines.tdmpc2_agent import ReturnCost, TDMPC2Agent
from lewm.baselines.two_hot import expected, symexp, symlog, two_hot, two_hot_loss
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.evaluate.methods import labels
from lewm.heads_training import Fit, Recorded
from lewm.nets.predictors import AdaLNConfig
from lewm.planning.action_limits import action_box
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_rollout import prepare
from lewm.planning.graph import PlanGraphs, Rerun
from lewm.schema import build
from lewm.world_model import WorldModel
from planners import CEM, ICEM, MPPI, Plan, WarmStart, noise_table

BINS = torch.linspace(-2.0, 2.0, 5)
SMALL = TDMPC2Config(width=8, layers=1, critics=3, batch=6)


def heads(model: WorldModel, config: TDMPC2Config = SMALL) -> TDMPC2Heads:
    """Untrained heads whose last layers do not stand at 0 any more."""
    generator = torch.Generator().manual_seed(0)
    group = TDMPC2Heads(model, config).eval().requires_grad_(False)
    for parameter in group.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return group


def test_symlog_by_hand() -> None:
    value = torch.tensor([0.0, math.e - 1, 1 - math.e, 21.0, -20.0])
    torch.testing.assert_close(symlog(value), torch.tensor([0.0, 1.0, -1.0, 3.0910425, -3.0445224]))
    torch.testing.assert_close(symexp(symlog(value)), value)


def test_two_hot_by_hand() -> None:
    """symlog of the four values: 0, -0.5, 1.25 and far beyond the last bin."""
    value = torch.tensor([0.0, 1 - math.exp(0.5), math.exp(1.25) - 1, -1e6])
    wanted = [[0, 0, 1, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0, 0.75, 0.25], [1, 0, 0, 0, 0]]
    torch.testing.assert_close(two_hot(value, BINS), torch.tensor(wanted, dtype=torch.float32))
    assert two_hot(torch.tensor([[1e6]]), BINS).tolist() == [[[0, 0, 0, 0, 1]]]


def test_discrete_regression_by_hand() -> None:
    """Half-way between the bins of chances 0.2 and 0.4; the mean bin of (0.1, 0.2, 0.4, 0.2, 0.1) is 0."""
    chance = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])
    logit = (chance.log() + 3).requires_grad_()
    loss = two_hot_loss(logit, torch.tensor(1 - math.exp(0.5)), BINS)
    assert loss.item() == pytest.approx(-(math.log(0.2) + math.log(0.4)) / 2)
    loss.backward()
    torch.testing.assert_close(logit.grad, chance - torch.tensor([0, 0.5, 0.5, 0, 0]))
    assert expected(logit, BINS).item() == pytest.approx(0, abs=1e-6)
    value = torch.tensor([-5.0, -0.3, 0.0, 2.0])
    torch.testing.assert_close(expected((two_hot(value, BINS) + 1e-12).log(), BINS), value, atol=1e-4, rtol=1e-4)


def test_a_head_says_nothing_before_it_is_trained() -> None:
    model = toy_model()
    group = TDMPC2Heads(model, SMALL)
    latent, action = torch.randn(2, 1, 4), torch.randn(2, 4)
    assert set(group) == {"reward", "critic_1", "critic_2", "critic_3", "actor"}
    assert group["reward"](latent, latent, action).abs().max() < 1e-5
    assert group["actor"](latent, latent)[1].min() > SMALL.min_std


def test_the_policy_loss_weighs_blocks() -> None:
    """Lower Q are -2 and -3 of weights 1 and 0.5: their mean is -7/3, and so is minus their mean size."""
    quality = torch.tensor([[-2.0, -1.0], [-1.0, -3.0]], requires_grad=True)
    loss = ddpg_bc_loss(quality, torch.tensor(0.5), 0.4, torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx(1 + 0.2, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(quality.grad, torch.tensor([[-2 / 7, 0.0], [0.0, -1 / 7]]))


def test_the_prospects_loss_by_hand() -> None:
    """Rewards and values share frames, goals and blocks; the critics' mean counts as much as the reward."""
    model = toy_model()
    group, draw = heads(model), torch.Generator().manual_seed(1)
    latent, goal = torch.randn(2, 3, 1, 4, generator=draw)
    action, none = torch.randn(3, 4, generator=draw), torch.zeros(3)
    rows = GoalBatch(latent, latent, goal, action, none, torch.tensor([-1.0, -0.5, -1.0]), none)
    target, weight = torch.tensor([-4.0, -0.5, -9.0]), torch.tensor([1.0, 1.0, 0.5])
    z, g = ((x[:, 0] - group["reward"].mean_D) / group["reward"].std_D for x in (latent, goal))
    features = torch.cat([z, g, z - g, action], 1)
    bins = np.linspace(-10, 10, 101)
    total = 0.0
    for name, share in (("reward", 1.0), ("critic_1", 1 / 3), ("critic_2", 1 / 3), ("critic_3", 1 / 3)):
        first, last = group[name].net[0], group[name].net[-1]
        logit = last(torch.nn.functional.silu(first(features))).numpy().astype(np.float64)
        log_chance = logit - np.log(np.exp(logit).sum(1, keepdims=True))
        for row, value in enumerate((rows.reward_B if name == "reward" else target).tolist()):
            at = (-math.log1p(-value) + 10) / 0.2
            below = math.floor(at)
            cross = -(1 - at + below) * log_chance[row, below] - (at - below) * log_chance[row, below + 1]
            total += share * weight[row].item() * cross / 2.5
    assert np.isclose(bins[1] - bins[0], 0.2)
    assert prospect_loss(group, group.critics, rows, weight, target).item() == pytest.approx(total, rel=1e-5)


@pytest.fixture
def told() -> GoalTransitions:
    """Latents say (episode, frame), actions say the frame they leave; three blocks of two steps fit everywhere."""
    lengths = np.array([9, 12])
    rows = torch.tensor([(e, t, 0, 0) for e, n in enumerate(lengths) for t in range(n + 1)], dtype=torch.float32)
    recorded = Recorded(rows[:, None], rows[:, None] + 0.5, np.arange(2), lengths)
    return GoalTransitions(recorded, rows[:, :2], toy_model(), 0.9, 3)


def test_rows_follow_one_goal_through_imagined_latents(told: GoalTransitions) -> None:
    model, count = told.model, 400
    config = replace(SMALL, batch=count)
    batch, weight = Rows(told, config).draw(torch.Generator().manual_seed(0), 1.0, current=0.2, elsewhere=0.2)
    rows = GoalBatch(**{name: value.unflatten(0, (3, count)) for name, value in vars(batch).items()})
    weight = weight.view(3, count)
    episode, first = rows.latent_BKD[0, :, 0, 0], rows.latent_BKD[0, :, 0, 1]
    goal = rows.goal_BKD[..., 0, :2] - 0.5
    assert torch.equal(goal[0], goal[1]) and torch.equal(goal[0], goal[2])
    ahead = torch.where(rows.reward_B[0] == -1, torch.inf, -2 * rows.reward_B[0])
    same = (goal[0, :, 0] == episode) & (goal[0, :, 1] >= first)
    for block in range(3):
        torch.testing.assert_close(rows.next_BKD[block, :, 0, 1], first + 2 * block + 2)
        left = goal[0, :, 1] - first - 2 * block
        soon = same & (weight[block] > 0) & (rows.discount_B[block] == 0)
        assert (left[soon] < 2).all() and torch.equal(rows.reward_B[block][soon], -left[soon] / 2)
    passed = ahead < 2
    assert passed.any() and (weight[0] == 1).all() and (weight[1:, passed] == 0).all()
    assert set(weight[1].tolist()) == {0.0, 0.5} and set(weight[2].tolist()) == {0.0, 0.25}
    latent = rows.latent_BKD[0]
    for block in range(2):
        latent = model.predict(latent[:, None], raw_block(model, rows.action_BA[block])[:, None])[:, 0]
        torch.testing.assert_close(rows.latent_BKD[block + 1], latent)


def situation(model: WorldModel, problems: int = 2) -> tuple[Situation, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    latent, goal = (torch.randn(problems, *shape, generator=draw) for shape in ((1, 1, 4), (1, 4)))
    return Situation(latent, torch.zeros(problems, 0, model.action_dim)), goal


def return_cost(model: WorldModel, fast: bool, config: TDMPC2Config = SMALL) -> ReturnCost:
    here, goal = situation(model)
    uncomputed = CostConfig({"latent_l2": 1.0})
    imagined = GoalCost(model, None, uncomputed, here, goal, prepare(model) if fast else None)
    return ReturnCost(heads(model, config), imagined, action_box(model))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("predictor", [None, AdaLNConfig(history=3, layers=1, heads=1)])
def test_the_return_by_hand(predictor: AdaLNConfig | None, fast: bool) -> None:
    """Block after block and candidate after candidate: rewards, discounted, and the critics' mean at the end."""
    model = toy_model(predictor)
    cost = return_cost(model, fast)
    here, goal, networks = cost.imagined.situation, cost.imagined.goal_BKD, cost.networks
    action = 2 * torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(3)) - 1
    found, gamma = cost(action), 0.99**2
    low, high = (model.scale_action(torch.full((4,), bound)) for bound in (-1.0, 1.0))
    for problem in range(2):
        for candidate in range(5):
            one, to = action[problem, candidate], goal[problem : problem + 1]
            path = [here.latent_BTKD[problem : problem + 1, 0]]
            path += model.rollout(
                here.latent_BTKD[problem : problem + 1], here.past_BTA[problem : problem + 1], one[None, None]
            )[0, 0].split(1)
            total = 0.0
            for step, (latent, block) in enumerate(zip(path, one, strict=False)):
                total += gamma**step * networks["reward"](latent, to, model.scale_action(block)[None]).item()
            last = networks["actor"](path[-1], to)[0].clamp(low, high)
            values = [networks[name](path[-1], to, last).item() for name in ("critic_1", "critic_2", "critic_3")]
            total += gamma**3 * sum(values) / 3
            assert found[problem, candidate].item() == pytest.approx(-total, abs=2e-4)


def test_the_policy_is_played_out_in_the_world_model() -> None:
    model = toy_model()
    cost = return_cost(model, fast=True)
    noise = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(4))
    noise[:, 0] = 0
    plans = cost.policy_plans(noise)
    here, goal = cost.imagined.situation.latent_BTKD[:, 0], cost.imagined.goal_BKD
    for sample in range(3):
        latent = here
        for block in range(2):
            mean, std = cost.networks["actor"](latent, goal)
            wanted = raw_block(model, mean + std * noise[:, sample, block]).clamp(-1, 1)
            torch.testing.assert_close(plans[:, sample, block], wanted, atol=1e-5, rtol=1e-5)
            latent = model.predict(latent[:, None], wanted[:, None])[:, 0]


class Watched(TDMPC2Agent):
    """Keeps what it was started with and what it scored."""

    def _search(self, situation: Situation, rows: np.ndarray, replan: int, start: WarmStart | None) -> Plan:
        self.scored: list[torch.Tensor] = []
        return super()._search(situation, rows, replan, start)

    def _cost(self, situation: Situation, goal_BKD: torch.Tensor) -> ReturnCost:
        cost = super()._cost(situation, goal_BKD)
        scored = self.scored

        class Keeps(ReturnCost):
            def __call__(self, action_BNHA: torch.Tensor) -> torch.Tensor:
                scored.append(action_BNHA.clone())
                return super().__call__(action_BNHA)

        return Keeps(cost.networks, cost.imagined, cost.box)


PLANNERS = {
    "mppi": MPPI(horizon=2, candidates=16, iterations=3, elites=4, temperature=2.0, keep_seeds=True),
    "cem": CEM(horizon=2, candidates=16, iterations=3, elites=4, keep_seeds=True),
    "icem": ICEM(horizon=2, candidates=16, iterations=3, elites=4),
}


@pytest.mark.parametrize("name", PLANNERS)
def test_the_policy_is_among_the_candidates_of_any_planner(name: str) -> None:
    """In every plan; in every iteration where seeds are kept. The noise of its plans changes from plan to plan."""
    planner = PLANNERS[name]
    model = toy_model()
    method = TDMPC2Method(path="x", planner=planner, policy_samples=5)
    agent = Watched(toy_checkpoint(model), method, heads(model), 0)
    goal, frames = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)
    agent.reset(goal)
    starts = []
    for plan in range(2):
        for _ in range(2):
            agent.act(frames)
        assert agent.last is not None
        cost = agent._cost(agent.last.situation, agent.goal_BKD)
        seeds = agent._informed(None, agent.last.situation, agent.goal_BKD, [(0, 0, plan)]).seeds_BSHA
        starts.append(seeds)
        first, *later = [scored for scored in agent.scored if scored.shape[1] > 1]
        kept = [first, *later] if getattr(planner, "keep_seeds", False) else [first]
        for scored in kept:
            for seed in seeds.unbind(1):
                assert (scored == seed[:, None]).all((2, 3)).any()
        assert cost(agent.last.plan.action_BHA[:, None]).item() == pytest.approx(
            agent.last.plan.cost_B.item(), abs=1e-4
        )
    assert torch.equal(starts[0][:, 0], starts[1][:, 0]), "the first sample has no noise"
    assert not torch.equal(starts[0][:, 1], starts[1][:, 1])


def test_without_samples_the_search_starts_as_any_other() -> None:
    model = toy_model()
    agent = TDMPC2Agent(toy_checkpoint(model), TDMPC2Method(path="x", policy_samples=0), heads(model), 0)
    here, goal = situation(model)
    assert agent._informed(None, here, goal, [(0, 0, 0), (0, 1, 0)]) is None


def test_a_method_as_a_run_says_it() -> None:
    """`planner: null` is the policy alone."""
    rows = [
        {"kind": "tdmpc2", "path": "x"},
        {"kind": "tdmpc2", "path": "x", "name": "policy", "planner": None},
        {"kind": "tdmpc2", "path": "x", "name": "small", "planner": {"name": "icem", "horizon": 4}},
    ]
    paper, policy, small = build(EvaluateConfig, {"methods": rows}, "run.yaml").methods
    assert [searches(method) for method in (paper, policy, small)] == [True, False, True]
    label = labels(paper)
    assert (label.planner, label.cost, label.candidates, label.iterations) == ("mppi", "predicted return", 512, 6)
    assert (labels(policy).planner, labels(policy).horizon) == ("tdmpc2", 1)
    assert (labels(small).planner, labels(small).horizon) == ("icem", 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"critics": 1}, r"tdmpc2\.critics is 1; it must be at least 2"),
        ({"horizon": 0}, r"tdmpc2\.horizon is 0; it must be at least 1"),
        ({"bins": 1}, r"tdmpc2\.bins is 1; it must be at least 2"),
        ({"decay": 0.0}, r"tdmpc2\.decay is 0\.0; it must lie in \(0, 1\]"),
        ({"cloning": -0.1}, r"tdmpc2\.cloning is -0\.1; it must be 0 or more"),
        ({"min_std": 0.0}, r"tdmpc2\.min_std is 0\.0; it must be positive"),
        ({"discount": 1.0}, r"tdmpc2\.discount is 1\.0; it must lie between 0 and 1"),
        ({"current": 0.9}, r"tdmpc2\.current is 0\.9 and tdmpc2\.elsewhere 0\.3; they are shares"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_more_policy_samples_than_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"method tdmpc2: policy_samples is 17; it must lie in 0\.\.16, the planner's"):
        TDMPC2Method(path="x", planner=PLANNERS["cem"], policy_samples=17)


def test_recordings_shorter_than_the_rows_are_refused(told: GoalTransitions, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lewm.heads_training.record_latents", lambda _: told.recorded)
        fit = Fit(told.model, None, tmp_path, 0.1, 0, True)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"tdmpc2\.horizon is 7 blocks of 2 steps, but the longest .* has 12"):
            fit_tdmpc2(replace(SMALL, horizon=7), fit)


def test_a_plan_can_be_recorded() -> None:
    """As a CUDA graph would: the same plan from buffers, the policy's candidates among what goes in."""
    model = toy_model()
    method = TDMPC2Method(path="x", planner=PLANNERS["mppi"], policy_samples=5)
    agent = TDMPC2Agent(toy_checkpoint(model), method, heads(model), 0)
    here, goal = situation(model)
    keys = [(0, 0, 0), (0, 1, 0)]
    noise, start = noise_table(keys, agent.planner, 4), agent._informed(None, here, goal, keys)
    eager = agent.planner.plan(agent._cost(here, goal), noise, agent.box, start)
    graphs = PlanGraphs(agent.planner, agent._cost, agent.box, Rerun())
    for _ in range(2):
        recorded = graphs(here, goal, noise, start)
        torch.testing.assert_close(recorded.action_BHA, eager.action_BHA, atol=1e-5, rtol=1e-5)

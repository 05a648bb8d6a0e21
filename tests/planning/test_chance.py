"""Planning in a stochastic world: the noise of the futures, and what mean, best and worst case choose."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_models import FACTS, SIZE, stir, toy_checkpoint, toy_model

from lewm.evaluate.methods import PlanConfig
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig
from lewm.nets.variable import DiscreteConfig, DiscreteVariable, GaussianConfig, GaussianVariable
from lewm.planning.agent import Agent
from lewm.planning.chance import chance_table
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_rollout import prepare
from lewm.planning.graph import PlanGraphs, Rerun
from lewm.world_model import ModelConfig, WorldModel
from planners import CEM, ActionBox, noise_table
from planners.risk import Risk, RiskKind

COIN = DiscreteVariable(DiscreteConfig(), 1, 1, 1)
NORMAL = GaussianVariable(GaussianConfig(dims=1), 1, 1, 1)

# What each of four actions leads to: distance left if the code is 0, if it is 1, and the probability of code 1.
DETOUR, SHORT_CUT, GAMBLE, LOTTERY = range(4)
OUTCOMES = torch.tensor([[4.0, 4.0], [7.0, 1.0], [8.0, 0.0], [9.0, -0.0]])
CHANCE = torch.tensor([0.5, 0.75, 0.25, 0.04])


class Outcome(nn.Module):
    """A predictor: the next latent is the outcome of action and code."""

    context = 1

    def forward(self, latent_BTKD: Tensor, read_BTA: Tensor) -> Tensor:
        action_BT = read_BTA[..., 0].round().clamp(0, 3).long()
        return OUTCOMES[action_BT, read_BTA[..., 1:].argmax(-1)][..., None, None]


class Odds(nn.Module):
    """A prior: how likely the codes of an action are."""

    def forward(self, read_A: Tensor) -> Tensor:
        p = CHANCE[read_A[..., -1].round().clamp(0, 3).long()]
        return torch.stack([1 - p, p], -1).log()


def risky_world() -> WorldModel:
    facts = replace(FACTS, action_low=(0.0,), action_high=(3.0,), action_mean=(0.0,), action_std=(1.0,))
    config = ModelConfig(ConvConfig(latent_dim=1, channels=(4, 4, 4)), MLPConfig(width=4), 1, variable=DiscreteConfig())
    model = WorldModel(config, facts).eval()
    model.predictor, model.variable.prior = Outcome(), Odds()  # type: ignore[union-attr, assignment]
    return model


def goal_cost(config: CostConfig, problems: int = 1) -> GoalCost:
    keys = [(0, problem, 0) for problem in range(problems)]
    now = Situation(torch.zeros(problems, 1, 1, 1), torch.zeros(problems, 0, 1))
    chance = chance_table(keys, COIN, config.samples, 1)
    return GoalCost(risky_world(), None, config, replace(now, chance_BMHV=chance), torch.zeros(problems, 1, 1))


def distance_with(kind: RiskKind, **settings: float) -> CostConfig:
    return CostConfig({"latent_l1": 1.0}, "terminal", risk=Risk(kind), **settings)  # type: ignore[arg-type]


EACH_ACTION = torch.arange(4.0).view(1, 4, 1, 1)


@pytest.mark.parametrize(
    ("kind", "costs", "choice"),
    [
        ("mean", (4.0, 2.5, 6.0), SHORT_CUT),  # 0.75 x 1 + 0.25 x 7, 0.75 x 8
        ("best", (4.0, 1.0, 0.0), GAMBLE),
        ("worst", (4.0, 7.0, 8.0), DETOUR),
    ],
)
def test_mean_best_and_worst_case_choose_three_different_ways(
    kind: RiskKind, costs: tuple[float, ...], choice: int
) -> None:
    """With eight futures, one from each eighth of the coin, probabilities of 1/4 are exact."""
    cost = goal_cost(distance_with(kind))
    torch.testing.assert_close(cost(EACH_ACTION)[0, :3], torch.tensor(costs))
    box = ActionBox(*(torch.tensor([x]) for x in (0.0, 2.4, 1.0, 1.0)), steps=1)
    planner = CEM(candidates=64, iterations=4, elites=8, horizon=1, execute="best")
    plan = planner.plan(cost, noise_table([(0, 0, 0)], planner, 1), box)
    assert plan.action_BHA.round().item() == choice


def test_a_lottery_does_not_make_the_best_case() -> None:
    """A future of 4 % is among 100 samples, and counts only where `likely` lets it: 9 or 0, and 0.96 x 9 on average."""
    lottery = EACH_ACTION[:, LOTTERY:]
    assert goal_cost(distance_with("best", samples=100))(lottery).item() == 9.0
    assert goal_cost(distance_with("best", samples=100, likely=0.03))(lottery).item() == 0.0
    assert goal_cost(distance_with("mean", samples=100))(lottery).item() == pytest.approx(0.96 * 9)


def test_without_a_risk_the_likeliest_future_counts() -> None:
    cost = goal_cost(CostConfig({"latent_l1": 1.0}, "terminal"))
    assert cost(EACH_ACTION[:, 1:]).tolist() == [[1.0, 8.0, 9.0]]


def test_all_candidates_share_their_futures() -> None:
    """Common random numbers: equal plans cost the same, and a candidate's cost does not depend on the others."""
    cost = goal_cost(distance_with("mean", samples=3), problems=2)
    twice = cost(EACH_ACTION[:, [1, 2, 1]].expand(2, 3, 1, 1))
    assert torch.equal(twice[:, 0], twice[:, 2])
    assert torch.equal(cost(EACH_ACTION[:, 2:3].expand(2, 1, 1, 1))[:, 0], twice[:, 1])


def test_an_action_penalty_is_added_once() -> None:
    config = replace(distance_with("mean"), action_penalty=2.0)
    torch.testing.assert_close(goal_cost(config)(EACH_ACTION)[0, 1], torch.tensor(2.5 + 2.0))


@pytest.mark.parametrize("variable", [COIN, NORMAL])
def test_chance_is_spread_evenly_and_belongs_to_its_problem(variable: DiscreteVariable | GaussianVariable) -> None:
    keys = [(0, 1, 2), (0, 2, 2), (0, 1, 3)]
    noise = chance_table(keys, variable, samples=4, horizon=6)
    assert noise.shape == (3, 4, 6, 1)
    quantile = noise if variable is COIN else torch.special.ndtr(noise)
    assert torch.equal((quantile * 4).long().sort(1).values, torch.arange(4)[None, :, None, None].expand(3, 4, 6, 1))
    order = (quantile[0, :, :, 0] * 4).long()
    assert len({tuple(column.tolist()) for column in order.T}) > 1  # futures are not the same quarter in every block
    assert torch.equal(chance_table(keys[1:2], variable, 4, 6)[0], noise[1])
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


def test_extreme_quantiles_of_a_normal_are_finite() -> None:
    assert NORMAL.from_uniform(torch.tensor([0.0, 1.0 - 2**-24])).isfinite().all()


def chancy_agent(risk: Risk | None, batch: int, kind: str = "discrete") -> Agent:
    torch.manual_seed(0)
    variable = DiscreteConfig(codes=3) if kind == "discrete" else GaussianConfig()
    config = ModelConfig(ConvConfig(latent_dim=4, channels=(4, 4, 4)), MLPConfig(width=16), 2, variable=variable)
    model = WorldModel(config, FACTS).eval().requires_grad_(False)
    stir(model)
    planner = CEM(candidates=16, iterations=2, elites=4, horizon=3)
    agent = Agent(toy_checkpoint(model), planner, CostConfig(risk=risk, samples=4))
    agent.reset(pictures(batch, seed=1))
    return agent


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("kind", ["discrete", "gaussian"])
def test_an_agent_plans_over_its_own_chances(kind: str) -> None:
    """Actions do not depend on the batch, and risk changes them."""
    now = pictures(3, seed=2)
    together = chancy_agent(Risk("worst"), 3, kind).act(now)
    alone = chancy_agent(Risk("worst"), 1, kind).act(now[:1])
    np.testing.assert_allclose(alone[0], together[0], rtol=0, atol=1e-5)
    others = [chancy_agent(risk, 3, kind).act(now) for risk in (Risk("best"), None)]
    assert all(np.abs(other - together).max() > 1e-3 for other in others)


def test_a_graph_reads_the_chances_of_every_plan() -> None:
    """Captured as on a GPU: a plan with other chances is that plan, not the one recorded."""
    agent = chancy_agent(Risk("worst"), 1, "gaussian")
    graphs = PlanGraphs(agent.planner, agent._cost, agent.box, Rerun())
    generator = torch.Generator().manual_seed(0)
    now, goal = torch.randn(1, 1, 1, 4, generator=generator), torch.randn(1, 1, 4, generator=generator)
    noise, seen = noise_table([(0, 0, 0)], agent.planner, 4), []
    for episode in range(3):
        chance = chance_table([(0, episode, 0)], agent.model.variable, 4, 3)  # type: ignore[arg-type]
        situation = Situation(now, torch.zeros(1, 0, 4), chance)
        seen.append(graphs(situation, goal, noise).action_BHA)
        eager = agent.planner.plan(agent._cost(situation, goal), noise, agent.box).action_BHA
        torch.testing.assert_close(seen[-1], eager)
    assert len(graphs.graphs) == 1 and (seen[0] - seen[1]).abs().max() > 1e-4


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cost.risk is worst, but the model of toy has no latent variable"):
        Agent(toy_checkpoint(toy_model()), CEM(horizon=3), CostConfig(risk=Risk("worst")))
    cost = goal_cost(distance_with("mean"))
    bare = replace(cost, situation=replace(cost.situation, chance_BMHV=None))
    with pytest.raises(ValueError, match=r"cost.risk is set, but the situation has no noise.*see chance_table"):
        bare(EACH_ACTION)
    with pytest.raises(
        ValueError, match=r"cost.risk samples futures, and this planner searches over the states of one"
    ):
        cost.follow(torch.zeros(1, 1, 1, 1), EACH_ACTION[:, :1])
    with pytest.raises(ValueError, match=r"prepare: this model has a latent variable, and the fast rollout draws none"):
        prepare(cost.model)
    with pytest.raises(ValueError, match=r"method m: realtime scores a plan again.*cannot with cost.risk"):
        PlanConfig("m", cost=distance_with("mean"), realtime=True)
    with pytest.raises(ValueError, match=r"cost.samples is 0; it must be at least 1"):
        CostConfig(samples=0)
    with pytest.raises(ValueError, match=r"cost.likely is 1.0; it must lie in \[0, 1\)"):
        CostConfig(likely=1.0)


def test_tables_say_how_a_risk_was_judged() -> None:
    assert CostConfig(risk=Risk("worst"), samples=4).label == "cost_to_go (sum, worst of 4)"
    assert CostConfig().label == "cost_to_go (sum)"

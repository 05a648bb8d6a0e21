"""The proposal at work: what it says in raw actions, how it starts a search, that it acts alone, what is refused."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import SIZE, toy_checkpoint, toy_model

from lewm.baselines import RandomConfig
from lewm.checkpoint import Checkpoint, load, save_checkpoint
from lewm.evaluate.evaluate import EvaluateConfig, evaluate
from lewm.evaluate.manifest import GoalSet, Manifest, Problem
from lewm.evaluate.methods import InverseModelConfig, PlanConfig, labels, make_policy
from lewm.evaluate.runner import run_batch
from lewm.planning.action_limits import action_box
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig
from lewm.planning.informed_start import Follow, informed_start, propose
from lewm.planning.policy import AgentPolicy
from lewm.proposal import Proposal, ProposalConfig
from lewm.schema import build
from planners import CEM, PLANNERS, ActionBox, Plan, PlannerConfig, WarmStart, noise_table
from planners.prior import product_of_gaussians

SMALL = CEM(candidates=8, iterations=2, elites=3, horizon=3)
L2 = CostConfig({"latent_l2": 1.0})
GAUSSIAN = [
    name
    for name, cls in PLANNERS.items()
    if not cls.needs and {"initial_std", "warm_std"} <= {f.name for f in fields(cls)}
]
gaussian_names = pytest.mark.parametrize("name", GAUSSIAN)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def checkpoint_with(head: bool = True, horizon: int = 3, **settings: float) -> Checkpoint:
    """A toy checkpoint with untrained weights, blocks of two steps and a proposal that spreads over the box."""
    checkpoint = toy_checkpoint(toy_model(), head)
    model = checkpoint.model
    config = ProposalConfig(width=16, layers=1, horizon=horizon, **settings)
    torch.manual_seed(3)
    proposal = Proposal(config, model.latent_dim, model.tokens, model.action_dim).requires_grad_(False)
    proposal.longest.fill_(20.0)
    proposal.net[-1].weight.mul_(4)
    return replace(checkpoint, proposal=proposal.eval())


def constant(checkpoint: Checkpoint, mean: float, std: float) -> Proposal:
    """The proposal of a checkpoint, made to say one mean and std everywhere, scaled."""
    proposal = checkpoint.proposal
    assert proposal is not None
    torch.nn.init.zeros_(proposal.net[-1].weight)
    bias = proposal.net[-1].bias.view(2, -1)
    bias[0], bias[1] = mean, float(np.log(np.expm1(std - proposal.config.min_std)))
    return proposal


LATENTS = torch.randn(2, 4, 1, 4, generator=torch.Generator().manual_seed(0))


def test_what_it_says_in_raw_actions() -> None:
    """Half a std above the mean, spread half of it; FACTS: mean (0.1, -0.1), std (0.5, 0.4), blocks of two steps."""
    checkpoint = checkpoint_with(blocks_left=4.0)
    box = action_box(checkpoint.model)
    mean, std = propose(constant(checkpoint, 0.5, 0.5), None, *LATENTS, box, 3)
    torch.testing.assert_close(mean, torch.tensor([0.35, 0.1]).repeat(2).expand(4, 3, 4))
    torch.testing.assert_close(std, torch.tensor([0.25, 0.2]).repeat(2).expand(4, 3, 4))
    mean, _ = propose(constant(checkpoint, -9.0, 0.5), None, *LATENTS, box, 3)
    torch.testing.assert_close(mean, box.low_A.expand(4, 3, 4))


@pytest.mark.parametrize("horizon", [1, 3, 5])
@pytest.mark.parametrize("left, steps", [(1.0, 2), (1.5, 3), (2.0, 4), (9.0, 6)])
def test_it_knows_nothing_beyond_the_goal_and_its_horizon(horizon: int, left: float, steps: int) -> None:
    checkpoint = checkpoint_with(blocks_left=left)
    box = action_box(checkpoint.model)
    mean, std = propose(constant(checkpoint, 0.5, 0.5), None, *LATENTS, box, horizon)
    assert mean.shape == std.shape == (4, horizon, 4)
    mean, std = mean.reshape(4, -1, 2), std.reshape(4, -1, 2)
    assert std[:, :steps].isfinite().all() and std[:, steps:].isposinf().all()
    torch.testing.assert_close(mean[:, steps:], box.mean_A[:2].expand_as(mean[:, steps:]))
    assert (mean[:, :steps] > box.mean_A[:2]).all()


def test_blocks_left_are_the_cost_to_go_and_at_least_one() -> None:
    checkpoint = checkpoint_with()
    proposal, head = checkpoint.proposal, checkpoint.cost_to_go
    assert proposal is not None and head is not None
    head.net[-1].bias.fill_(3.0)
    box, left = action_box(checkpoint.model), head(*LATENTS)
    assert (left > 1).all() and left.std() > 0.01
    asked: list[torch.Tensor] = []
    proposal.register_forward_pre_hook(lambda module, given: asked.append(given[2]))
    propose(proposal, head, *LATENTS, box, 3)
    head.net[-1].bias.fill_(-9.0)
    propose(proposal, head, *LATENTS, box, 3)
    propose(proposal, None, *LATENTS, box, 3)
    torch.testing.assert_close(asked, [left, torch.ones(4), torch.full((4,), 8.0)])


BOX = ActionBox(torch.full((2,), -3.0), torch.full((2,), 3.0), torch.tensor([0.5, 0.0]), torch.tensor([1.0, 2.0]))
MEAN, STD = torch.full((1, 2, 2), 0.7), torch.tensor([0.2, torch.inf]).expand(1, 2, 2)


def test_a_seed_leaves_the_gaussian_as_it_was() -> None:
    centre = BOX.mean_A.expand(1, 2, 2)
    first = informed_start("seed", None, MEAN, STD, CEM(initial_std=0.8), BOX)
    torch.testing.assert_close((first.mean_BHA, first.std_BHA), (centre, 0.8 * BOX.std_A.expand(1, 2, 2)))
    warm = WarmStart(torch.ones(1, 2, 2), None, torch.full((1, 3, 2, 2), 0.1))
    later = informed_start("seed", warm, MEAN, STD, CEM(warm_std=0.3), BOX)
    torch.testing.assert_close((later.mean_BHA, later.std_BHA), (warm.mean_BHA, 0.3 * BOX.std_A.expand(1, 2, 2)))
    assert later.seeds_BSHA is not None and warm.seeds_BSHA is not None
    torch.testing.assert_close(later.seeds_BSHA, torch.cat([MEAN[:, None], warm.seeds_BSHA], 1))


@pytest.mark.parametrize("stated", [None, 0.6])
def test_a_prior_narrows_it(stated: float | None) -> None:
    """A warm start's own std counts where it states one."""
    own = torch.full((1, 2, 2), stated) if stated else 0.3 * BOX.std_A.expand(1, 2, 2)
    warm = WarmStart(torch.ones(1, 2, 2), torch.full((1, 2, 2), stated) if stated else None)
    start = informed_start("prior", warm, MEAN, STD, CEM(warm_std=0.3), BOX)
    torch.testing.assert_close(
        (start.mean_BHA, start.std_BHA), product_of_gaussians(warm.mean_BHA, own, MEAN, STD.contiguous())
    )
    assert start.std_BHA is not None
    assert (start.std_BHA[..., 0] < 0.2).all()
    torch.testing.assert_close(start.std_BHA[..., 1], own[..., 1])
    torch.testing.assert_close(start.seeds_BSHA, MEAN[:, None])


def gaussian(name: str) -> PlannerConfig:
    return PLANNERS[name](horizon=3, candidates=64, iterations=2)


@gaussian_names
@pytest.mark.parametrize("use", ["seed", "prior"])
def test_every_gaussian_search_scores_it_and_stays_inside_the_box(name: str, use: str) -> None:
    """The goal is the proposal itself, so nothing else costs nothing."""
    planner = gaussian(name)
    generator = torch.Generator().manual_seed(1)
    guess = 2 * torch.randn(5, 3, 2, generator=generator).clamp(-1.4, 1.4)
    start = informed_start(use, None, guess, torch.full_like(guess, 0.3), planner, BOX)
    noise = noise_table([(0, row, 0) for row in range(5)], planner, 2)
    plan = planner.plan(lambda action: (action - guess[:, None]).square().sum((2, 3)), noise, BOX, start)
    torch.testing.assert_close(plan.best_cost_BI[:, 0], torch.zeros(5), atol=1e-10, rtol=0)
    assert (plan.action_BHA >= BOX.low_A).all() and (plan.action_BHA <= BOX.high_A).all()


@gaussian_names
@pytest.mark.parametrize("use", ["seed", "prior"])
def test_neighbours_do_not_matter(name: str, use: str) -> None:
    """Two plans in a row, so that the second has a warm start; tolerance as for MPPI's temperature in test_agent."""
    goals, frames = pictures(3, 1), pictures(3 * 3, 2).reshape(3, 3, SIZE, SIZE, 3)

    def act(rows: list[int]) -> np.ndarray:
        agent = Agent(checkpoint_with(), gaussian(name), CostConfig(), proposal=use)
        agent.reset(goals[rows], episodes=rows)
        return np.stack([agent.act(frame[rows]) for frame in frames])

    together = act([0, 1, 2])
    for row in range(3):
        np.testing.assert_allclose(act([row])[:, 0], together[:, row], atol=2e-3)


def plan_of(agent: Agent) -> Plan:
    agent.reset(pictures(2))
    agent.act(pictures(2, 1))
    assert agent.last is not None
    return agent.last.plan


def test_unused_it_changes_nothing_and_used_it_does() -> None:
    checkpoint = checkpoint_with()
    plain = plan_of(Agent(replace(checkpoint, proposal=None), SMALL, CostConfig()))
    unused = plan_of(Agent(checkpoint, SMALL, CostConfig()))
    assert torch.equal(plain.action_BHA, unused.action_BHA)
    seeded, narrowed = (plan_of(Agent(checkpoint, SMALL, CostConfig(), proposal=use)) for use in ("seed", "prior"))
    torch.testing.assert_close(seeded.spread_BI[:, 0], plain.spread_BI[:, 0])
    assert (narrowed.spread_BI[:, 0] < plain.spread_BI[:, 0]).all()
    assert not torch.equal(seeded.best_cost_BI, plain.best_cost_BI)


@pytest.mark.parametrize("head", [True, False])
def test_alone_it_is_a_policy_that_follows_the_proposal(head: bool) -> None:
    """Block by block, from the frames of the moment; what the search would have cost is not computed."""
    checkpoint = checkpoint_with(head)
    policy = make_policy(InverseModelConfig(), checkpoint, 0)
    assert isinstance(policy, AgentPolicy)
    agent, goals = policy.agent, pictures(2)
    agent.reset(goals)
    model, proposal = checkpoint.model, checkpoint.proposal
    assert proposal is not None and agent.goal_BKD is not None
    for block in range(2):
        frames = pictures(2, 1 + block)
        actions = np.stack([agent.act(frames) for _ in range(2)], 1)
        now = model.encode(torch.from_numpy(frames).permute(0, 3, 1, 2)[:, None])[:, 0]
        mean, _ = propose(proposal, checkpoint.cost_to_go, now, agent.goal_BKD, agent.box, 3)
        np.testing.assert_allclose(actions.reshape(2, 4), mean[:, 0], atol=1e-6)
        assert agent.last is not None and agent.last.plan.cost_B.isnan().all()


def test_it_is_a_method_of_an_evaluation() -> None:
    """Parsed by its kind, labelled, and run on a manifest; its replan interval is checked against the proposal."""
    method = build(InverseModelConfig, {"kind": "proposal", "replan_every": 2}, "here")
    assert labels(method).planner == "proposal" and labels(method).replan_every == 2
    problem = Problem(0, 0, 0, 1, (0.2, 0.2), (0.3, 0.2), (), 0.1)
    manifest = Manifest("two_room", {"size": SIZE}, GoalSet("one", budget=4, offset=1, count=1), 0, 0, (problem,))
    assert len(run_batch(make_policy(method, checkpoint_with(), 0), manifest, [0])) == 1
    with pytest.raises(ValueError, match=r"replan_every is 4; it must lie in 1\.\.3"):
        make_policy(InverseModelConfig(replan_every=4), checkpoint_with(), 0)
    with pytest.raises(ValueError, match="method proposal: replan_every is 0; it must be at least 1"):
        InverseModelConfig(replan_every=0)


def test_outcomes_of_other_weights_are_not_reused(tmp_path: Path) -> None:
    """The log of an evaluation is keyed by the checkpoint also where only the proposal acts."""
    problem = Problem(0, 0, 0, 1, (0.2, 0.2), (0.3, 0.2), (), 0.1)
    manifest = Manifest("two_room", {"size": SIZE}, GoalSet("one", budget=2, offset=1, count=1), 0, 0, (problem,))
    keys = []
    for change in (0.0, 0.0, 0.5):
        made = checkpoint_with(False)
        constant(made, change, 0.5)
        save_checkpoint(tmp_path / "c", made.model, None, made.origin, {}, proposal=made.proposal)
        config = EvaluateConfig((manifest.goals,), (InverseModelConfig(),), timed_plans=1)
        evaluate(config, [manifest], load(tmp_path / "c"), tmp_path / "e", quiet=True)
        keys.append((tmp_path / "e" / "outcomes" / "one.proposal.jsonl").read_text().splitlines()[0])
    assert keys[0] == keys[1] != keys[2]


def test_a_checkpoint_without_one_is_refused_with_the_command() -> None:
    without = toy_checkpoint(toy_model())
    sentence = (
        r"proposal is 'prior', but toy has none: use 'none', or fit one with `lewm train RUN --proposal-only toy "
    )
    with pytest.raises(ValueError, match=sentence):
        Agent(without, SMALL, L2, proposal="prior")
    with pytest.raises(ValueError, match="proposal is 'seed', but toy has none"):
        make_policy(PlanConfig(planner=SMALL, proposal="seed"), without, 0)
    with pytest.raises(ValueError, match="proposal is 'seed', but toy has none"):
        make_policy(InverseModelConfig(), without, 0)
    with pytest.raises(ValueError, match="method proposal plans with a world model: pass --checkpoint"):
        make_policy(InverseModelConfig(), None, 0)
    make_policy(RandomConfig(), None, 0)
    with pytest.raises(ValueError, match="Follow was given no seed"):
        Agent(without, Follow(3), L2).reset(pictures(1)[0])
        Follow(3).plan(lambda action: action.sum((2, 3)), torch.zeros(1, 1, 1, 3, 4), action_box(without.model))

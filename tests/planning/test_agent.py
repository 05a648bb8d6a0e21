"""The agent: which frames it reads, that neighbours do not matter, what it remembers, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import FACTS, SIZE, toy_checkpoint, toy_model

import envs
from lewm.checkpoint import Checkpoint
from lewm.nets.predictors import MLPConfig, RotaryConfig
from lewm.planning.action_limits import action_box
from lewm.planning.agent import DEFAULT_PLANNERS, Agent
from lewm.planning.checks import check_planner
from lewm.planning.costs import CostConfig
from lewm.planning.policy import AgentPolicy, Start
from planners import CEM, ICEM, MPPI, PLANNERS, Grasp, Planner, Risk, WarmStart, shift

SMALL = CEM(candidates=8, iterations=2, elites=3, horizon=3)
L2 = CostConfig({"latent_l2": 1.0})


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def agent_of(
    stack: int = 1, stride: int = 1, skip: int = 2, every: int = 1, history: int = 1, planner: Planner = SMALL
) -> Agent:
    predictor = RotaryConfig(context=4, width=8, layers=1, heads=2) if history > 1 else MLPConfig(width=16)
    checkpoint = toy_checkpoint(toy_model(predictor, skip, stack, stride))
    return Agent(checkpoint, planner, CostConfig(), every, history)


def drive(agent: Agent, goals: np.ndarray, frames: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
    """Actions (steps, B, a) over given frames (steps, B, Y, X, 3), which need not follow from the actions."""
    agent.reset(goals)
    return np.stack([agent.act(frame, active) for frame in frames])


def frames_read(agent: Agent, plan_step: int) -> list[int]:
    """By the definition: the last `history` block starts, each with its stack, nothing before the first frame."""
    config = agent.model.config
    blocks = range(min(agent.history - 1, plan_step // agent.skip), -1, -1)
    stack = range(config.frame_stack - 1, -1, -1)
    return [max(0, plan_step - b * agent.skip - a * config.stack_stride) for b in blocks for a in stack]


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_it_asks_for_the_frames_it_reads_and_for_no_other(
    stack: int, stride: int, skip: int, every: int, history: int
) -> None:
    """Also where a stack reaches back over several blocks, or past the last plan."""
    agent = agent_of(stack, stride, skip, every, history, CEM(candidates=2, iterations=1, elites=1, horizon=3))
    read: list[list[int]] = []

    def spy(frames: list[np.ndarray], proprio: np.ndarray | None = None) -> torch.Tensor:
        read[-1] += [int(frame[0, 0, 0, 0]) for frame in frames]
        return Agent.encode_stacks(agent, frames)

    agent.encode_stacks = spy
    read.append([])
    agent.reset(np.full((SIZE, SIZE, 3), 255, np.uint8))
    period, asked = skip * every, []
    steps = 4 * period + 1
    for step in range(steps):
        read.append([])
        asked.append(agent.needs_frame)
        agent.act(np.full((SIZE, SIZE, 3), step, np.uint8) if agent.needs_frame else None)
        assert read[-1] == (frames_read(agent, step) if step % period == 0 else [])
    plans = range(0, 4 * steps, period)
    wanted = {t for plan in plans for t in frames_read(agent, plan)}
    assert [step for step in range(steps) if asked[step]] == [step for step in range(steps) if step in wanted]


def test_frames_nobody_asked_for_change_nothing_and_are_forgotten() -> None:
    frames = pictures(40)[:, None]
    sparse, dense = agent_of(2, 2, 5, 2, 2), agent_of(2, 2, 5, 2, 2)
    goal = pictures(1, 1)
    sparse.reset(goal)
    dense.reset(goal)
    for frame in frames:
        action = sparse.act(frame if sparse.needs_frame else None)
        np.testing.assert_array_equal(dense.act(frame), action)
        assert sparse.last is not None and dense.last is not None
        assert torch.equal(sparse.last.situation.latent_BTKD, dense.last.situation.latent_BTKD)
    assert len(dense.frames) <= 10 + 5 + 2


@pytest.mark.parametrize("planner", [SMALL, MPPI(candidates=8, iterations=2, horizon=3, ess=0.5)])
@pytest.mark.parametrize("history", [1, 3])
def test_a_batch_is_the_same_as_its_problems_alone(planner: Planner, history: int) -> None:
    """To rounding: MPPI's temperature is found on a grid of half a percent, so rounding may move it by one notch."""
    tolerance = 1e-5 if planner is SMALL else 2e-3
    goals, frames = pictures(5, 1), pictures(5 * 7, 2).reshape(7, 5, SIZE, SIZE, 3)
    together = agent_of(stack=2, history=history, planner=planner)
    actions = drive(together, goals, frames)
    assert together.last is not None
    for b in range(5):
        alone = agent_of(stack=2, history=history, planner=planner)
        alone.reset(goals[b], episodes=[b])
        ours = np.stack([alone.act(frame[b]) for frame in frames])
        assert ours.shape == (7, 2)
        np.testing.assert_allclose(ours, actions[:, b], atol=tolerance)
        assert alone.last is not None
        torch.testing.assert_close(alone.last.plan.cost_B[0], together.last.plan.cost_B[b], atol=tolerance, rtol=0)


def test_a_problem_in_a_batch_of_fifty() -> None:
    """Wherever it stands in the batch, by its episode number."""
    goals, frames = pictures(50, 1), pictures(50, 2)
    together, alone = agent_of(), agent_of()
    order = np.random.default_rng(0).permutation(50)
    together.reset(goals[order], episodes=order.tolist())
    actions = together.act(frames[order])
    assert together.last is not None
    for position in (0, 23, 49):
        problem = int(order[position])
        alone.reset(goals[problem], episodes=[problem])
        np.testing.assert_allclose(alone.act(frames[problem]), actions[position], atol=1e-5)
        assert alone.last is not None
        torch.testing.assert_close(alone.last.plan.cost_B[0], together.last.plan.cost_B[position], atol=1e-5, rtol=0)


def test_episodes_seeds_and_replans_have_their_own_noise() -> None:
    goals, frame = np.repeat(pictures(1, 1), 2, 0), np.repeat(pictures(1, 2), 2, 0)
    first = drive(agent_of(), goals, frame[None])[0]
    assert np.abs(first[0] - first[1]).max() > 1e-3
    agent = agent_of()
    agent.reset(goals, episodes=[4, 4])
    same = agent.act(frame)
    np.testing.assert_array_equal(same[0], same[1])
    other = agent_of()
    other.seed = 1
    other.reset(goals, episodes=[4, 4])
    assert np.abs(other.act(frame)[0] - same[0]).max() > 1e-3
    np.testing.assert_array_equal(drive(agent_of(), goals, frame[None])[0], first)


def test_reset_forgets_everything() -> None:
    goals, frames = pictures(2, 1), pictures(2 * 9, 2).reshape(9, 2, SIZE, SIZE, 3)
    agent = agent_of(stack=2, history=2)
    first = drive(agent, goals, frames)
    drive(agent, goals[::-1], frames[::-1])
    np.testing.assert_array_equal(drive(agent, goals, frames), first)


def test_inactive_problems_rest_and_do_not_disturb_the_others() -> None:
    goals, frames = pictures(3, 1), pictures(3 * 8, 2).reshape(8, 3, SIZE, SIZE, 3)
    everyone, some = agent_of(history=2), agent_of(history=2)
    full = drive(everyone, goals, frames)
    some.reset(goals)
    for step, frame in enumerate(frames):
        active = np.array([True, step < 3, False])  # the second one retires in the middle of a block
        actions = some.act(frame, active)
        np.testing.assert_allclose(actions[active], full[step][active], atol=1e-5)
        assert (actions[~active] == 0).all(), f"an inactive problem acts at step {step}"
        assert some.last is not None
        if some.last.step == step:
            assert some.last.rows.tolist() == np.flatnonzero(active).tolist()


@pytest.mark.parametrize("planner", [SMALL, ICEM(candidates=8, iterations=2, elites=3, horizon=3)])
def test_a_problem_that_acts_again_after_a_rest_plans_as_at_first(planner: Planner) -> None:
    """Though its neighbour starts warm; both act as they do alone, and the past of a rest is zeros."""
    goals, frames = pictures(2, 1), pictures(2 * 8, 2).reshape(8, 2, SIZE, SIZE, 3)
    works = [True, False, False, False, True, True, True, True]  # a plan every 2 steps
    agent = agent_of(history=2, planner=planner)
    agent.reset(goals)
    actions = []
    for step, frame in enumerate(frames):
        actions.append(agent.act(frame, np.array([True, works[step]])))
        if step == 4:
            assert agent.last is not None
            width_B = agent.last.plan.spread_BI[:, 0]
            assert width_B[1] == 1 and (width_B[0] < 1 or planner is not SMALL)  # iCEM's is always 1
            assert not agent.last.situation.past_BTA[1].any() and agent.last.situation.past_BTA[0].any()
    for row, active in enumerate(([True] * 8, works)):
        alone = agent_of(history=2, planner=planner)
        alone.reset(goals[row], episodes=[row])
        for step, frame in enumerate(frames):
            np.testing.assert_allclose(alone.act(frame[row], np.array([active[step]])), actions[step][row], atol=1e-5)


def test_a_problem_that_rests_between_plans_waits_for_the_next() -> None:
    agent, frames = agent_of(skip=3), pictures(4, 2)
    agent.reset(pictures(1)[0])
    works = [True, False, True, True]
    acted = [agent.act(frame, np.array([on])).any() for frame, on in zip(frames, works, strict=True)]
    assert acted == [True, False, False, True]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("categorical_cem", "planner CategoricalCEM searches discrete actions, .* use cem, icem, "),
        ("feasible_first", "planner FeasibleFirst keeps limits, and the cost sets none: .* max_change, or use cem"),
        ("augmented_lagrangian", "planner AugmentedLagrangian keeps limits, and the cost sets none"),
    ],
)
def test_a_planner_whose_needs_are_not_met_is_refused_before_the_first_episode(name: str, expected: str) -> None:
    checkpoint = toy_checkpoint(toy_model())
    with pytest.raises(ValueError, match=expected):
        Agent(checkpoint, PLANNERS[name](), L2)
    if name != "categorical_cem":
        Agent(checkpoint, PLANNERS[name](), replace(L2, max_change=0.5))


def test_a_planner_over_states_is_refused_where_futures_are_sampled() -> None:
    with pytest.raises(ValueError, match=r"planner Grasp searches over the states of one future, .*risk is mean"):
        check_planner(Grasp(), replace(L2, risk=Risk("mean")))


def test_nobody_active() -> None:
    agent = agent_of()
    agent.reset(pictures(2))
    assert (agent.act(pictures(2, 1), np.zeros(2, bool)) == 0).all()


@pytest.mark.parametrize("every", [1, 2])
def test_past_blocks_lie_between_the_frames_they_led_from_and_to(every: int) -> None:
    agent = agent_of(skip=2, every=every, history=3)
    frames = pictures(13, 2)
    agent.reset(pictures(1, 1)[0])
    executed: list[np.ndarray] = []
    for step, frame in enumerate(frames):
        executed.append(agent.act(frame))
        assert agent.last is not None
        if agent.last.step != step:
            continue
        situation = agent.last.situation
        seen = [step - 2 * b for b in reversed(range(min(3, step // 2 + 1)))]
        pixels = torch.from_numpy(frames[seen]).permute(0, 3, 1, 2)[None]
        torch.testing.assert_close(situation.latent_BTKD, agent.model.encode(pixels))
        blocks = [np.concatenate(executed[t : t + 2]) for t in seen[:-1]]
        expected = np.stack(blocks)[None] if blocks else np.zeros((1, 0, 4), np.float32)
        np.testing.assert_array_equal(situation.past_BTA.numpy(), expected)


def test_frames_before_the_start_fill_the_stack() -> None:
    agent = agent_of(stack=3, stride=2, skip=5)
    past, now, goal = pictures(4, 3), pictures(1, 4), pictures(1, 5)
    agent.reset(goal, past=[frame[None] for frame in past])
    agent.act(now)
    assert agent.last is not None
    stacked = torch.from_numpy(np.concatenate([past[0], past[2], now[0]], -1)).permute(2, 0, 1)[None, None]
    torch.testing.assert_close(agent.last.situation.latent_BTKD, agent.model.encode(stacked))
    still = torch.from_numpy(np.concatenate([goal[0]] * 3, -1)).permute(2, 0, 1)[None, None]
    torch.testing.assert_close(agent.goal_BKD, agent.model.encode(still)[:, 0])


def test_an_evaluation_paints_the_recorded_past() -> None:
    """Oldest first, one environment step apart; where the recording is shorter, its first frame stands in."""
    agent = agent_of(stack=2, stride=3, skip=5)
    task = envs.make("two_room", size=SIZE)
    task.set_state((0.3, 0.8))
    recorded = np.array([(0.1 + 0.05 * i, 0.8) for i in range(4)])
    for past, oldest in ((recorded, recorded[1]), (recorded[2:], recorded[2]), (recorded[:0], task.state)):
        policy = AgentPolicy(agent)
        policy.start([Start(0, task, np.array([0.2, 0.2]), past)])
        assert policy.needs_frame
        policy.act(task.render()[None], np.ones(1, bool))
        assert agent.last is not None
        stack = np.concatenate([task.goal_image(oldest), task.render()], -1)
        expected = agent.model.encode(torch.from_numpy(stack).permute(2, 0, 1)[None, None])
        torch.testing.assert_close(agent.last.situation.latent_BTKD, expected)


def test_a_caller_may_reuse_its_buffers() -> None:
    """A camera writes every frame into the same array; what the agent remembers must not change with it.

    Nor may what the caller does to an action change what the agent remembers having done.
    """
    goals, frames = pictures(1, 1), pictures(9, 2)[:, None]
    careful, careless = agent_of(stack=2, history=2), agent_of(stack=2, history=2)
    buffer = np.empty((1, SIZE, SIZE, 3), np.uint8)
    careful.reset(goals)
    careless.reset(goals)
    for frame in frames:
        buffer[:] = frame
        careful.act(frame)
        careless.act(buffer)[:] = 9.0
        assert careful.last is not None and careless.last is not None
        torch.testing.assert_close(careless.last.situation.latent_BTKD, careful.last.situation.latent_BTKD)
        torch.testing.assert_close(careless.last.situation.past_BTA, careful.last.situation.past_BTA)


def test_the_warm_start_is_the_shifted_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_starts, plan = [], CEM.plan

    def watch(self: CEM, cost_fn: object, noise: object, box: object, warm: WarmStart | None = None) -> object:
        warm_starts.append(warm)
        return plan(self, cost_fn, noise, box, warm)

    monkeypatch.setattr(CEM, "plan", watch)
    agent = agent_of(every=2)
    agent.reset(pictures(2))
    means = []
    for frame in pictures(2 * 9, 1).reshape(9, 2, SIZE, SIZE, 3):
        agent.act(frame)
        assert agent.last is not None
        means.append(agent.last.plan.mean_BHA)
    assert len(warm_starts) == 3 and warm_starts[0] is None
    for i in (1, 2):
        assert warm_starts[i] is not None
        torch.testing.assert_close(warm_starts[i].mean_BHA, shift(means[4 * i - 1], 2, agent.box))
    agent.reset(pictures(2))
    agent.act(pictures(2))
    assert warm_starts[-1] is None


def test_actions_stay_inside_the_recorded_bounds() -> None:
    checkpoint = toy_checkpoint(toy_model())
    facts = replace(FACTS, action_low=(-0.2, 0.0), action_high=(0.3, 0.1), action_mean=(0.0, 0.05))
    model = checkpoint.model
    model.facts = facts
    agent = Agent(checkpoint, SMALL, CostConfig())
    actions = drive(agent, pictures(3), pictures(3 * 6, 1).reshape(6, 3, SIZE, SIZE, 3))
    assert actions.dtype == np.float32 and actions.shape == (6, 3, 2)
    assert (actions >= np.float32([-0.2, 0.0])).all() and (actions <= np.float32([0.3, 0.1])).all()
    assert len(action_box(model).low_A) == 4


def test_one_problem_or_a_batch_of_one() -> None:
    goal, frame = pictures(1)[0], pictures(1, 1)[0]
    single, batch = agent_of(), agent_of()
    single.reset(goal)
    batch.reset(goal[None])
    ours, theirs = single.act(frame), batch.act(frame[None])
    assert ours.shape == (2,) and theirs.shape == (1, 2)
    np.testing.assert_array_equal(ours, theirs[0])


BAD = [
    (np.zeros((SIZE, SIZE), np.uint8), r"uint8 of shape \(32, 32\)"),
    (np.zeros((SIZE, SIZE, 1), np.uint8), r"uint8 of shape \(32, 32, 1\)"),
    (np.zeros((SIZE, SIZE, 4), np.uint8), r"uint8 of shape \(32, 32, 4\)"),
    (np.zeros((SIZE, SIZE, 3), np.float32), r"float32 of shape \(32, 32, 3\)"),
    (np.zeros((64, 64, 3), np.uint8), r"uint8 of shape \(64, 64, 3\)"),
    (np.zeros((3, SIZE, SIZE), np.uint8), r"uint8 of shape \(3, 32, 32\)"),
]


@pytest.mark.parametrize("picture, expected", BAD)
def test_pictures_that_do_not_fit_are_refused_in_a_sentence(picture: np.ndarray, expected: str) -> None:
    agent = agent_of()
    needs = r"; this model sees uint8 colour pictures of shape \(32, 32, 3\), or a batch of them$"
    with pytest.raises(ValueError, match=f"^the goal is {expected}{needs}"):
        agent.reset(picture)
    agent.reset(pictures(1)[0])
    with pytest.raises(ValueError, match=f"^the frame is {expected}{needs}"):
        agent.act(picture)
    with pytest.raises(ValueError, match=f"^a past frame is {expected}"):
        agent.reset(pictures(1)[0], past=[picture])


def test_calls_out_of_order_are_refused() -> None:
    agent = agent_of()
    with pytest.raises(RuntimeError, match=r"act was called before reset: call agent.reset\(goal\)"):
        agent.act(pictures(1)[0])
    agent.reset(pictures(2))
    with pytest.raises(ValueError, match="act needs a frame at step 0"):
        agent.act(None)
    with pytest.raises(ValueError, match="3 frames for 2 goals"):
        agent.act(pictures(3))
    with pytest.raises(ValueError, match="2 goals, but 3 episode numbers"):
        agent.reset(pictures(2), episodes=[1, 2, 3])


def test_settings_that_cannot_work_are_refused() -> None:
    checkpoint = toy_checkpoint(toy_model())
    with pytest.raises(ValueError, match=r"replan_every is 4; it must lie in 1\.\.3, the planner's horizon"):
        Agent(checkpoint, SMALL, L2, replan_every=4)
    with pytest.raises(ValueError, match=r"history is 2; this model's predictor can see 1\.\.1 frames"):
        Agent(checkpoint, SMALL, L2, history=2)
    with pytest.raises(ValueError, match="toy has no cost-to-go head; use latent_l2 or train one"):
        Agent(toy_checkpoint(toy_model(), head=False), SMALL, CostConfig())


def test_load_by_name(tiny_checkpoint: Checkpoint) -> None:
    path = tiny_checkpoint.path
    agent = Agent.load(path)
    assert agent.planner == DEFAULT_PLANNERS["cost_to_go"] and agent.cost == CostConfig()
    assert Agent.load(path, cost="latent_l2").planner == DEFAULT_PLANNERS["latent_l2"]
    other = Agent.load(str(path), "mppi", "latent_l2")
    assert (other.planner, other.cost.terms) == (MPPI(), L2.terms)
    assert Agent.load(path, SMALL, L2).planner is SMALL
    with pytest.raises(ValueError, match=r"no planner is called 'cme'; there are .*cem, .*mppi"):
        Agent.load(path, "cme")
    with pytest.raises(ValueError, match="no distance is called 'l3'"):
        Agent.load(path, cost="l3")

"""Planning while executing: the same acts as planning in turn in a predictable world, whatever the timing."""

import gc
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_models import SIZE, toy_checkpoint, toy_model

from lewm.checkpoint import Checkpoint
from lewm.data.store import Store
from lewm.evaluate.evaluate import EvaluateConfig, evaluate, held_out_manifests
from lewm.evaluate.manifest import GoalSet
from lewm.evaluate.methods import PlanConfig, labels, make_policy
from lewm.evaluate.trace import trace_problems
from lewm.nets.predictors import MLPConfig, RotaryConfig
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, GoalCost
from lewm.planning.frame_bank import FrameBank
from lewm.planning.policy import AgentPolicy
from lewm.planning.realtime import RealtimeAgent
from planners import CEM, Plan

SMALL = CEM(candidates=8, iterations=2, elites=3, horizon=3)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, SIZE, SIZE, 3), np.uint8)


def agent_of(kind: type[Agent] = RealtimeAgent, stack: int = 1, every: int = 1, history: int = 1) -> Agent:
    predictor = RotaryConfig(context=4, width=8, layers=1, heads=2) if history > 1 else MLPConfig(width=16)
    return kind(toy_checkpoint(toy_model(predictor, 2, stack)), SMALL, CostConfig(), every, history)


def drive(agent: Agent, goals: np.ndarray, frames: np.ndarray) -> np.ndarray:
    agent.reset(goals)
    return np.stack([agent.act(frame) for frame in frames])


class PredictableWorld:
    """Moves exactly as the model predicts. Its pictures only say which latent they show: (block, problem)."""

    def __init__(self, agent: Agent, problems: int) -> None:
        self.agent, self.problems = agent, problems
        generator = torch.Generator().manual_seed(0)
        first, self.goal_BKD = torch.randn(2, problems, 1, agent.model.latent_dim, generator=generator)
        self.latents, self.blocks = [first], list[Tensor]()
        agent.encode_stacks = self.encode  # type: ignore[method-assign]

    def picture(self, block: int) -> np.ndarray:
        frames = np.zeros((self.problems, SIZE, SIZE, 3), np.uint8)
        frames[..., 0], frames[:, 0, 0, 1] = block, range(self.problems)
        return frames

    def encode(self, frames: list[np.ndarray], proprio: np.ndarray | None = None) -> Tensor:
        where = [(int(f[0, 0, 0]), int(f[0, 0, 1])) for f in frames[-1]]
        return torch.stack([(self.goal_BKD if block == 255 else self.latents[block])[row] for block, row in where])

    def run(self, blocks: int) -> np.ndarray:
        """Actions (steps, B, a)."""
        self.agent.reset(self.picture(255))
        actions = []
        for block in range(blocks):
            # A picture within a block shows nothing: nobody may look at it.
            shown = [self.picture(block), *[self.picture(254)] * (self.agent.skip - 1)]
            done = [self.agent.act(frame) for frame in shown]
            actions += done
            self.blocks.append(torch.from_numpy(np.concatenate(done, 1)))
            seen = self.agent.model.context
            latent_BTKD = torch.stack(self.latents[-seen:], 1)
            action_BTA = torch.stack(self.blocks[-latent_BTKD.shape[1] :], 1)
            self.latents.append(self.agent.model.predict(latent_BTKD, action_BTA)[:, -1])
        return np.stack(actions)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("history", [1, 4])
@pytest.mark.parametrize("problems", [1, 3])
def test_in_a_predictable_world_it_acts_like_the_agent_that_plans_in_turn(
    every: int, history: int, problems: int
) -> None:
    """Which takes the same start states, history, past blocks, warm starts and noise in every plan."""
    ours, theirs = agent_of(RealtimeAgent, 1, every, history), agent_of(Agent, 1, every, history)
    actions = PredictableWorld(ours, problems).run(9)
    np.testing.assert_allclose(actions, PredictableWorld(theirs, problems).run(9), atol=1e-5)
    assert np.abs(np.diff(actions[::2], axis=0)).min(axis=(1, 2)).max() > 0, "the plans differ from block to block"
    assert ours.last is not None and theirs.last is not None
    torch.testing.assert_close(ours.last.situation.latent_BTKD, theirs.last.situation.latent_BTKD, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.last.situation.past_BTA, theirs.last.situation.past_BTA, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.last.plan.cost_B, theirs.last.plan.cost_B, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("history", [1, 3])
def test_a_plan_starts_from_the_frame_before_it_and_the_prediction(stack: int, history: int) -> None:
    """In any other world: latents seen up to one block ago, then one prediction, which is made from all of them."""
    agent, frames = agent_of(stack=stack, history=history), pictures(13, 2)
    actions = drive(agent, pictures(2, seed=1), frames)
    assert agent.last is not None and agent.last.step == 12
    model, situation = agent.model, agent.last.situation
    seen = [10 - 2 * back for back in reversed(range(history))]
    stacks = [np.concatenate([frames[t - age] for age in reversed(range(stack))], -1) for t in seen]
    latent_BTKD = model.encode(torch.from_numpy(np.stack(stacks, 1)).permute(0, 1, 4, 2, 3))
    block_BTA = torch.from_numpy(np.stack([np.concatenate(list(actions[t : t + 2]), -1) for t in seen], 1))
    predicted_BTKD = model.predict(latent_BTKD, block_BTA)[:, -1:]
    expected = torch.cat([latent_BTKD, predicted_BTKD], 1)[:, -history:]
    torch.testing.assert_close(situation.latent_BTKD, expected)
    torch.testing.assert_close(situation.past_BTA, block_BTA[:, 1:] if history > 1 else block_BTA[:, :0])


def test_the_first_plan_is_the_plain_agents() -> None:
    goals, frame = pictures(2), pictures(2, seed=1)
    ours, theirs = agent_of(RealtimeAgent), agent_of(Agent)
    np.testing.assert_array_equal(drive(ours, goals, frame[None]), drive(theirs, goals, frame[None]))
    assert ours.handovers == [] and ours.report().handovers == 0  # type: ignore[attr-defined]


def test_what_is_done_does_not_depend_on_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    goals, frames = pictures(2), pictures(12, 2, seed=1)
    expected = drive(agent_of(history=3), goals, frames)
    plan, naps = Agent._plan, iter([0.0, 0.02, 0.0, 0.01, 0.03, 0.0, 0.0, 0.01])

    def slow(self: Agent, *given: object) -> Plan:
        time.sleep(next(naps))
        return plan(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Agent, "_plan", slow)
        np.testing.assert_array_equal(drive(agent_of(history=3), goals, frames), expected)
    assert np.abs(expected - drive(agent_of(Agent, history=3), goals, frames)).max() > 1e-3, "else nothing is tested"


class Late:
    """A future whose worker is held until somebody asks for the result."""

    def __init__(self, future: Future[Any], gate: threading.Event) -> None:
        self.future, self.gate = future, gate
        self.done = future.done

    def result(self) -> Any:
        self.gate.set()
        return self.future.result()


def test_a_late_plan_is_waited_for_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, gate, plan = agent_of(), threading.Event(), Agent._plan
    assert isinstance(agent, RealtimeAgent)

    def held(self: Agent, situation: object, rows: object, replan: int, start: object) -> Plan:
        if replan == 2:
            assert gate.wait(10)
        return plan(self, situation, rows, replan, start)  # type: ignore[arg-type]

    monkeypatch.setattr(Agent, "_plan", held)
    agent.reset(pictures(1))
    frames = pictures(5, 1, seed=1)
    for frame in frames[:2]:
        agent.act(frame)
    assert agent._pending is not None
    wait([agent._pending])
    agent.act(frames[2])  # plan 1, in time; plan 2 is now held
    agent.act(frames[3])
    agent._pending = Late(agent._pending, gate)  # type: ignore[assignment]
    agent.act(frames[4])
    on_time, late = agent.handovers
    assert (on_time.step, on_time.missed, late.step, late.missed) == (2, False, 4, True)
    assert late.wait_ms > 0 and late.hidden_ms == max(0.0, late.planning_ms - late.wait_ms)
    report = agent.report()
    assert (report.handovers, report.misses, report.surprises) == (2, 1, 0)
    total = on_time.planning_ms + late.planning_ms
    assert report.hidden == pytest.approx((on_time.hidden_ms + late.hidden_ms) / total)
    assert report.wait_ms_p50 == pytest.approx((on_time.wait_ms + late.wait_ms) / 2)
    agent.reset(pictures(1))
    assert agent.handovers == []


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("lewm-plan")}


def test_an_error_in_the_worker_surfaces_in_act(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, plan = agent_of(), Agent._plan

    def failing(self: Agent, situation: object, rows: object, replan: int, start: object) -> Plan:
        if replan == 1:
            raise RuntimeError("the cost broke")
        return plan(self, situation, rows, replan, start)  # type: ignore[arg-type]

    frames = pictures(4, 1, seed=1)
    expected = drive(agent_of(), pictures(1), frames)
    with monkeypatch.context() as patched:
        patched.setattr(Agent, "_plan", failing)
        agent.reset(pictures(1))
        agent.act(frames[0])
        agent.act(frames[1])
        with pytest.raises(RuntimeError, match="the cost broke"):
            agent.act(frames[2])
    np.testing.assert_array_equal(drive(agent, pictures(1), frames), expected)


def test_no_thread_is_left_behind() -> None:
    """One worker per agent while it acts, none after close, none once the agent is forgotten."""
    others = workers()  # of agents that other tests forgot; they end when they are collected
    agent = agent_of()
    assert isinstance(agent, RealtimeAgent)
    for _ in range(3):
        drive(agent, pictures(1), pictures(7, 1))
    (own,) = workers() - others
    agent.close()
    assert not own.is_alive()
    drive(agent, pictures(1), pictures(3, 1))
    (own,) = workers() - others
    del agent
    gc.collect()
    own.join(10)
    assert not own.is_alive()


def test_a_reset_in_the_middle_of_a_plan_starts_afresh() -> None:
    goals, frames = pictures(2), pictures(9, 2, seed=1)
    agent = agent_of(stack=2, history=3)
    first = drive(agent, goals, frames)
    drive(agent, goals[::-1], frames[:1])  # its next plan is under way
    np.testing.assert_array_equal(drive(agent, goals, frames), first)


def test_a_batch_is_the_same_as_its_problems_alone() -> None:
    goals, frames = pictures(4), pictures(9, 4, seed=1)
    together = drive(agent_of(history=3), goals, frames)
    for row in range(4):
        alone = agent_of(history=3)
        alone.reset(goals[row], episodes=[row])
        np.testing.assert_allclose([alone.act(f[row]) for f in frames], together[:, row], atol=1e-5)


def test_problems_that_rest_do_not_disturb_the_others() -> None:
    goals, frames = pictures(3), pictures(11, 3, seed=1)
    full, agent = drive(agent_of(history=3), goals, frames), agent_of(history=3)
    agent.reset(goals)
    for step, frame in enumerate(frames):
        active = np.array([step < 7, step < 3, True])  # two retire in the middle of a block
        actions = agent.act(frame, active)
        np.testing.assert_allclose(actions[active], full[step][active], atol=1e-5)
        assert (actions[~active] == 0).all()
        assert agent.last is not None
        if agent.last.step == step:
            assert agent.last.rows.tolist() == np.flatnonzero(active).tolist()
            assert len(agent.last.plan.cost_B) == len(agent.last.situation.latent_BTKD) == active.sum()
    assert (agent.act(frames[0], np.zeros(3, bool)) == 0).all()
    with pytest.raises(ValueError, match="problem 1 acts again at step 12 after it rested"):
        agent.act(frames[0], np.array([False, True, True]))


def test_a_caller_may_reuse_its_buffers() -> None:
    goals, frames = pictures(1), pictures(9, 1, seed=1)
    expected, agent, buffer = drive(agent_of(), goals, frames), agent_of(), np.empty_like(frames[0])
    agent.reset(goals)
    for frame, action in zip(frames, expected, strict=True):
        buffer[:] = frame
        np.testing.assert_array_equal(agent.act(buffer), action)
        buffer[:] = 0


def test_surprise_is_the_cost_from_what_was_seen_above_the_cost_expected() -> None:
    agent, frames = agent_of(), pictures(7, 2, seed=1)
    assert isinstance(agent, RealtimeAgent)
    agent.recheck = 0.0
    agent.reset(pictures(2))
    plans = []
    for frame in frames:
        agent.act(frame)
        assert agent.last is not None
        plans.append(agent.last.plan)
    none, first, second = agent.handovers
    assert none.surprise_B is None, "the first plan was made from frames seen"
    assert agent.goal_BKD is not None
    for handover, step in ((first, 2), (second, 4)):
        latent = agent.model.encode(torch.from_numpy(frames[step]).permute(0, 3, 1, 2)[:, None])
        situation = replace(agent.last.situation, latent_BTKD=latent)
        cost = GoalCost(agent.model, agent.head, agent.cost, situation, agent.goal_BKD)
        expected = cost(plans[step].action_BHA[:, None])[:, 0] - plans[step].cost_B
        assert handover.surprise_B is not None
        np.testing.assert_allclose(handover.surprise_B, expected, atol=1e-5)
    found = np.concatenate([first.surprise_B, second.surprise_B])
    assert agent.report().surprises == (found > 0).sum()
    agent.recheck = float(np.sort(found)[1])
    assert agent.report().surprises == 2


def test_a_predictable_world_does_not_surprise() -> None:
    agent = agent_of(history=4)
    assert isinstance(agent, RealtimeAgent)
    agent.recheck = 1e-4
    PredictableWorld(agent, 2).run(6)
    surprises = [h.surprise_B for h in agent.handovers[1:]]
    assert len(surprises) == 4
    np.testing.assert_allclose(surprises, 0, atol=1e-5)
    assert agent.report().surprises == 0


def test_a_method_may_plan_while_executing(tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Through evaluation and traces; its outcomes do not depend on the batch, and it has its own label."""
    method = PlanConfig("while", planner=SMALL, realtime=True)
    config = EvaluateConfig((GoalSet("near", offset=10, budget=12, count=4),), (method,), batch=2, timed_plans=2)
    manifests = held_out_manifests(config, tiny_store, tiny_checkpoint, tmp_path)
    policy = make_policy(method, tiny_checkpoint, 0)
    assert isinstance(policy, AgentPolicy) and type(policy.agent) is RealtimeAgent
    assert labels(method).planner == "cem, realtime" and labels(replace(method, realtime=False)).planner == "cem"
    both = [
        evaluate(replace(config, batch=batch), manifests, tiny_checkpoint, tmp_path / str(batch), quiet=True)[0]
        for batch in (1, 4)
    ]
    assert both[0].outcomes == both[1].outcomes
    bank = FrameBank.from_store(tiny_store, tiny_checkpoint.model, count=20)
    assert all(trace.reproduced for trace in trace_problems(both[1], tiny_checkpoint, range(4), bank))

"""Sub-goals: which picture is pursued when, per problem, and what `lewm plan` makes of several pictures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_models import SIZE, toy_checkpoint, toy_model

import envs
from lewm.cli import main
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig
from lewm.planning.subgoals import SubGoalAgent, SubGoals
from planners import CEM

PLANNER = CEM(candidates=8, iterations=2, elites=3, horizon=2)
L2 = CostConfig({"latent_l2": 1.0})


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def agent_of(every: int = 1) -> SubGoalAgent:
    return SubGoalAgent(toy_checkpoint(toy_model()), PLANNER, L2, every)


def pursued(agent: SubGoalAgent, frames: np.ndarray) -> list[list[int]]:
    """Which picture each problem pursues after each act on frames (steps, B, Y, X, 3)."""
    found = []
    for frame in frames:
        agent.act(frame)
        found.append(agent.at_B.tolist())
    return found


def test_a_schedule_counts_environment_steps() -> None:
    """4, 10 and then the rest, as V-JEPA 2-AC's pick and place; a plan every 2 steps."""
    agent, goals = agent_of(), pictures(3)
    agent.begin(list(goals[:, None]), SubGoals((4, 10)))
    assert [at[0] for at in pursued(agent, pictures(20, 1)[:, None])] == [0] * 4 + [1] * 10 + [2] * 6


def test_actions_are_those_of_an_agent_with_that_goal() -> None:
    """Before the change; after it the same frames and past, another goal, and a search that starts as the first did."""
    goals, frames = pictures(2), pictures(4, 1)
    agent, first = agent_of(), Agent(toy_checkpoint(toy_model()), PLANNER, L2)
    agent.begin(list(goals), SubGoals((2,)))
    first.reset(goals[0])
    for frame in frames[:2]:
        np.testing.assert_array_equal(agent.act(frame), first.act(frame))
    goal_BKD = first.encode_stacks([goals[1][None]])
    first.goal_BKD = goal_BKD
    first.warm.clear()
    for frame in frames[2:]:
        np.testing.assert_array_equal(agent.act(frame), first.act(frame))


def test_only_a_problem_with_a_new_goal_searches_as_widely_as_at_first() -> None:
    goals, elsewhere = pictures(4).reshape(2, 2, SIZE, SIZE, 3), pictures(2, 9)
    agent, widths = agent_of(), []
    agent.begin(list(goals), SubGoals(reached=1e-6))
    for frame in (elsewhere, np.stack([elsewhere[0], goals[0, 1]])):
        for _ in range(agent.skip):
            agent.act(frame)
        assert agent.last is not None
        widths.append(agent.last.plan.spread_BI[:, 0].tolist())
    assert agent.at_B.tolist() == [0, 1]
    first, second = widths
    assert second == [pytest.approx(first[0] * PLANNER.warm_std / PLANNER.initial_std), pytest.approx(first[1])]


def test_a_picture_that_is_reached_makes_way_for_the_next() -> None:
    """One picture per plan, each problem by its own frames; the last one stays."""
    goals = pictures(6).reshape(3, 2, SIZE, SIZE, 3)
    elsewhere = pictures(2, 9)
    agent = agent_of()
    agent.begin(list(goals), SubGoals(reached=1e-6))
    seen = [elsewhere, np.stack([goals[0, 0], elsewhere[1]]), np.stack([goals[1, 0], goals[0, 1]]), goals[2]]
    found = []
    for frame in seen:
        found += pursued(agent, np.stack([frame, frame]))[::2]
    assert found == [[0, 0], [1, 0], [2, 1], [2, 1]]
    assert agent.distance_B[0] < 1e-6 < agent.distance_B[1]


def test_with_both_rules_whichever_comes_first() -> None:
    goals = pictures(3)
    agent = agent_of()
    agent.begin(list(goals), SubGoals((6, 4), reached=1e-6))
    frames = [goals[2], goals[2], goals[0], goals[0], *[goals[2]] * 4, *[pictures(1, 5)[0]] * 2]
    assert [at[0] for at in pursued(agent, np.stack(frames)[:, None])] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_a_problem_alone_acts_as_in_a_batch() -> None:
    goals, frames = pictures(6).reshape(3, 2, SIZE, SIZE, 3), pictures(20, 1).reshape(10, 2, SIZE, SIZE, 3)
    frames[4, 0] = goals[0, 0]
    together = agent_of()
    together.begin(list(goals), SubGoals((6, 6), reached=1e-6), episodes=[3, 8])
    actions = np.stack([together.act(frame) for frame in frames])
    for b, episode in enumerate((3, 8)):
        alone = agent_of()
        alone.begin(list(goals[:, b]), SubGoals((6, 6), reached=1e-6), episodes=[episode])
        np.testing.assert_allclose(np.stack([alone.act(frame[b]) for frame in frames]), actions[:, b], atol=1e-5)


def test_a_reset_forgets_the_pictures() -> None:
    agent, goals, frame = agent_of(), pictures(2), pictures(1, 1)[0]
    agent.begin(list(goals), SubGoals((2,)))
    agent.reset(goals[0])
    plain = Agent(toy_checkpoint(toy_model()), PLANNER, L2)
    plain.reset(goals[0])
    for _ in range(4):
        np.testing.assert_array_equal(agent.act(frame), plain.act(frame))


@pytest.mark.parametrize(
    ("count", "rule", "expected"),
    [
        (3, {"steps": (4,)}, "given for 1 pictures; 3 pictures need 2"),
        (2, {"steps": (4, 4)}, "given for 2 pictures; 2 pictures need 1"),
        (2, {"steps": (3,)}, "hold 3, but a plan is made every 2 steps: give multiples"),
        (0, {"reached": 1.0}, "there is no picture"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(count: int, rule: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        agent_of().begin(list(pictures(count)), SubGoals(**rule))


def test_rules_that_say_nothing_are_refused() -> None:
    for rule, expected in (
        ({}, "give steps, reached, or both"),
        ({"steps": (0,)}, "at least 1"),
        ({"reached": 0.0}, "positive"),
    ):
        with pytest.raises(ValueError, match=expected):
            SubGoals(**rule)
    with pytest.raises(ValueError, match=r"the pictures are for \[2, 1\] problems"):
        agent_of().begin([pictures(2), pictures(1)], SubGoals((2,)))


@pytest.fixture
def painted(tmp_path: Path) -> list[str]:
    task = envs.make("two_room", size=32)
    for i, state in enumerate(((0.2, 0.6), (0.3, 0.6))):
        picture = task.goal_image(np.array(state))
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), np.ascontiguousarray(picture[..., ::-1]))
    return [str(tmp_path / f"{i}.png") for i in range(2)]


def test_plan_follows_a_schedule(painted: list[str], tiny_checkpoint_path: Path, tmp_path: Path) -> None:
    words = ["plan", "--checkpoint", str(tiny_checkpoint_path), "--goal", *painted, "--out", str(tmp_path / "out")]
    main([*words, "--subgoal-steps", "5", "--budget", "11", "--start", "0.2,0.7"])
    trace = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert [step["goal"] for step in trace["steps"]] == [0] * 5 + [1] * 6
    assert (tmp_path / "out" / "episode.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (2, [], "add --subgoal-steps or --subgoal-reached"),
        (1, ["--subgoal-reached", "0.1"], "need at least two goal pictures"),
        (2, ["--subgoal-steps", "7"], "a plan is made every 5 steps"),
    ],
)
def test_plan_refuses_what_does_not_fit(
    count: int,
    options: list[str],
    expected: str,
    painted: list[str],
    tiny_checkpoint_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    words = [
        "plan",
        "--checkpoint",
        str(tiny_checkpoint_path),
        "--goal",
        *painted[:count],
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*words, *options])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("lewm plan: ") and expected in error and error.count("\n") == 1

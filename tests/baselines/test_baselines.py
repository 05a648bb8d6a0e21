"""The floor and the ceiling of every table: random is independent of its neighbours, the oracle solves the tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
from lewm.baselines import (
    BASELINES,
    OracleConfig,
    OraclePolicy,
    PeerMethod,
    RandomConfig,
    RandomPolicy,
    ReplayConfig,
    Sb3Method,
    ZeroConfig,
)
from lewm.evaluate.manifest import GoalSet, Manifest, Problem
from lewm.evaluate.runner import run_batch
from lewm.planning.policy import Policy, Start
from planners import CEM, MPPI

CONFIGS = {
    "random": RandomConfig(),
    "oracle": OracleConfig(planner=CEM(candidates=8, iterations=1, elites=3, horizon=2)),
    "replay": ReplayConfig(),
    "zero": ZeroConfig(),
}
DRAWING = ("random", "oracle", "peer")
"""Baselines whose seed matters."""


def problems(task: str, pairs: Sequence[tuple[Sequence[float], Sequence[float]]], budget: int) -> Manifest:
    env = envs.make(task, size=32)
    rows = [
        Problem(0, 0, 0, i + 1, tuple(start), tuple(goal), (), float(env.distance(np.array(start), np.array(goal))))
        for i, (start, goal) in enumerate(pairs)
    ]
    return Manifest(task, {"size": 32}, GoalSet("g", budget=budget, offset=1), 0, 0, tuple(rows))


def test_the_table_is_covered() -> None:
    others = {"sb3": Sb3Method("x"), "peer": PeerMethod("x")}
    assert CONFIGS.keys() | others.keys() == BASELINES.keys()
    for kind, config in (CONFIGS | others).items():
        assert config.kind == kind and config.name == kind


def actions(policy: Policy, indices: Sequence[int], steps: int) -> np.ndarray:
    """(steps, B, a) on TwoRoom from fixed states that move with the actions."""
    tasks = [envs.make("two_room", size=32) for _ in indices]
    for index, task in zip(indices, tasks, strict=True):
        task.set_state((0.1 + 0.01 * index, 0.8))
    policy.start(
        [
            Start(i, task, np.array([0.8, 0.2]), np.zeros((0, 2)), np.full((2 + i, 2), 0.1 * i))
            for i, task in zip(indices, tasks, strict=True)
        ]
    )
    rows = []
    for _ in range(steps):
        pixels = np.stack([task.render() for task in tasks]) if policy.needs_frame else None
        rows.append(np.array(policy.act(pixels, np.ones(len(tasks), bool))))
        for task, action in zip(tasks, rows[-1], strict=True):
            task.advance(action)
    return np.stack(rows)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_neighbour_changes_an_action(kind: str) -> None:
    check_neighbours(kind, CONFIGS[kind], needs_frame=False)


def test_no_neighbour_changes_an_action_of_a_trained_policy(tiny_sb3: Path) -> None:
    check_neighbours("sb3", Sb3Method(str(tiny_sb3)), needs_frame=tiny_sb3.name == "pixels")


def check_neighbours(kind: str, config: Any, needs_frame: bool) -> None:
    policy = BASELINES[kind](config, 3)
    assert policy.needs_frame == needs_frame
    together = actions(policy, [0, 1, 2, 3, 4], 7)
    assert together.shape == (7, 5, 2) and np.abs(together).max() <= 1
    for position, order in ((0, [2]), (1, [4, 2])):
        alone = actions(BASELINES[kind](config, 3), order, 7)
        np.testing.assert_array_equal(alone[:, position], together[:, 2])
    np.testing.assert_array_equal(actions(policy, [0, 1, 2, 3, 4], 7), together)
    reseeded = actions(BASELINES[kind](config, 4), [2], 7)[:, 0]
    assert np.array_equal(reseeded, together[:, 2]) == (kind not in DRAWING)


def test_random_holds_every_action_and_fills_the_space() -> None:
    held = actions(RandomPolicy(RandomConfig(hold=3), 0), list(range(20)), 12)
    for first in range(0, 12, 3):
        assert (held[first : first + 3] == held[first]).all()
    assert (held[0] != held[3]).all()
    assert held.min() < -0.9 and held.max() > 0.9 and abs(held.mean()) < 0.15


def test_random_ignores_who_is_still_active() -> None:
    policy = RandomPolicy(RandomConfig(hold=1), 0)
    expected = actions(policy, [0, 1], 2)
    task = envs.make("two_room", size=32)
    policy.start([Start(i, task, np.zeros(2), np.zeros((0, 2))) for i in (0, 1)])
    policy.act(None, np.array([False, True]))
    np.testing.assert_array_equal(policy.act(None, np.array([False, True]))[1], expected[1, 1])


ACROSS = [((0.1, 0.9), (0.9, 0.9)), ((0.9, 0.8), (0.2, 0.1)), ((0.3, 0.3), (0.7, 0.35)), ((0.1, 0.1), (0.8, 0.6))]


def test_the_oracle_goes_through_the_door() -> None:
    """And random does not: what the table's ceiling and floor stand for."""
    manifest = problems("two_room", ACROSS, budget=100)
    planner = CEM(candidates=32, iterations=3, elites=6, horizon=3)
    outcomes = run_batch(OraclePolicy(OracleConfig(planner=planner), 0), manifest, range(4))
    assert all(o.success for o in outcomes)
    env = envs.make("two_room", size=32)
    for outcome, problem in zip(outcomes, manifest.problems, strict=True):
        assert outcome.steps >= (problem.distance - env.success_distance) / (np.sqrt(2) * 0.03)
    outcomes = run_batch(RandomPolicy(RandomConfig(), 0), manifest, range(4))
    assert sum(o.success for o in outcomes) <= 1


@pytest.mark.parametrize(
    "planner", [CEM(candidates=48, iterations=3, elites=8, horizon=4), MPPI(horizon=4, candidates=48, iterations=3)]
)
def test_the_oracle_poses_the_arm(planner: CEM | MPPI) -> None:
    manifest = problems(
        "reacher", [((0.5, 1.0, 0, 0), (1.2, 0.4, 0, 0)), ((-2.0, -1.0, 0, 0), (-1.4, -1.6, 0, 0))], 100
    )
    outcomes = run_batch(OraclePolicy(OracleConfig(planner=planner), 0), manifest, [0, 1])
    assert all(o.success for o in outcomes)


def test_the_oracle_plans_only_for_those_who_still_act() -> None:
    policy = OraclePolicy(CONFIGS["oracle"], 0)
    task = envs.make("two_room", size=32)
    policy.start([Start(i, task, np.array([0.8, 0.2]), np.zeros((0, 2))) for i in (0, 1)])
    actions = policy.act(None, np.array([False, True]))
    assert (actions[0] == 0).all() and (actions[1] != 0).any()
    assert list(policy.warm) == [1]


def test_the_oracle_leaves_its_simulator_where_it_is() -> None:
    policy = OraclePolicy(CONFIGS["oracle"], 0)
    task = envs.make("reacher", size=32)
    task.set_state((0.5, 1.0, 0.3, -0.2))
    before = task.state
    policy.start([Start(0, task, np.array([1.0, 0.5, 0, 0]), np.zeros((0, 4)))])
    policy.act(None, np.ones(1, bool))
    np.testing.assert_array_equal(task.state, before)

"""Replay reaches what the recording reached, and says where there is none; zero stays where it is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import envs
from lewm.baselines import ReplayConfig, ReplayPolicy, ZeroConfig, ZeroPolicy
from lewm.data.collect import CollectConfig, collect
from lewm.data.store import Store
from lewm.evaluate.evaluate import EvaluateConfig, applicable, evaluate
from lewm.evaluate.manifest import GoalSet, Manifest, load_manifest, make_manifest, save_manifest
from lewm.evaluate.methods import labels
from lewm.evaluate.runner import run_batch
from lewm.planning.policy import Start

AHEAD = GoalSet("ahead", "ahead", offset=15, budget=30, count=12)
ACROSS = GoalSet("across", "across", budget=40, count=3)
ELSEWHERE = GoalSet("elsewhere", "elsewhere", budget=30, count=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = CollectConfig(episodes=12, steps=60, noise=0.5)
    return collect(config, "two_room", {"size": 32}, tmp_path_factory.mktemp("replay") / "data")


def drawn(goals: GoalSet, store: Store) -> Manifest:
    return make_manifest(goals, store, np.arange(store.num_episodes), 0)


@pytest.mark.parametrize("goals", [AHEAD, ACROSS])
def test_replay_reaches_every_recorded_goal(goals: GoalSet, store: Store) -> None:
    manifest = drawn(goals, store)
    outcomes = run_batch(ReplayPolicy(ReplayConfig(), 0), manifest, range(goals.count))
    for outcome, problem in zip(outcomes, manifest.problems, strict=True):
        assert outcome.success and outcome.steps <= problem.goal - problem.start


def test_a_problem_keeps_the_actions_from_start_to_goal(store: Store, tmp_path: Path) -> None:
    manifest = drawn(AHEAD, store)
    for p in manifest.problems:
        np.testing.assert_array_equal(np.array(p.actions, np.float32), store.actions(p.episode)[p.start : p.goal])
    assert {p.actions for p in drawn(ELSEWHERE, store).problems} == {()}
    save_manifest(manifest, tmp_path / "m.json")
    assert load_manifest(tmp_path / "m.json") == manifest


def test_replay_ends_with_zeros() -> None:
    task = envs.make("two_room", size=32)
    policy = ReplayPolicy(ReplayConfig(), 0)
    recorded = [np.array([[0.5, -0.5]]), np.array([[0.1, 0.2], [0.3, 0.4]])]
    policy.start([Start(i, task, np.zeros(2), np.zeros((0, 2)), actions) for i, actions in enumerate(recorded)])
    taken = np.stack([policy.act(None, np.ones(2, bool)) for _ in range(4)])
    expected = [[[0.5, -0.5], [0.1, 0.2]], [[0, 0], [0.3, 0.4]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    np.testing.assert_allclose(taken, expected, atol=1e-7)
    with pytest.raises(ValueError, match=r"method replay: problem 7 has no recorded actions to replay; leave"):
        policy.start([Start(7, task, np.zeros(2), np.zeros((0, 2)))])


def test_goals_elsewhere_get_no_replay_row(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = [drawn(replace(AHEAD, count=2), store), drawn(ELSEWHERE, store)]
    assert applicable([ReplayConfig(), ZeroConfig()], manifests[1]) == [ZeroConfig()]
    small = EvaluateConfig(methods=(ReplayConfig(), ZeroConfig()), timed_plans=2)
    only = {"replay", "zero"}
    rows = [e.row for e in evaluate(small, manifests, None, tmp_path) if e.row.method in only]
    assert [(row.goals, row.method) for row in rows] == [
        ("ahead", "replay"),
        ("ahead", "zero"),
        ("elsewhere", "zero"),
    ]
    assert (rows[0].success, rows[1].success) == (1.0, 0.0)
    assert "elsewhere: no replay, nothing recorded leads to goals elsewhere" in capsys.readouterr().err
    assert labels(ReplayConfig()).planner == "none"


def test_a_manifest_without_actions_is_refused_before_any_work(store: Store, tmp_path: Path) -> None:
    """As lewm wrote them before it kept actions: they load, and only a replay minds."""
    path = tmp_path / "old.json"
    save_manifest(drawn(AHEAD, store), path)
    old = json.loads(path.read_text())
    for problem in old["problems"]:
        del problem["actions"]
    path.write_text(json.dumps(old))
    manifest = load_manifest(path)
    assert applicable([ZeroConfig()], manifest) == [ZeroConfig()]
    with pytest.raises(ValueError, match=r"goals ahead: .*keeps no recorded actions.*delete its file.*method replay"):
        evaluate(EvaluateConfig(methods=(ReplayConfig(),)), [manifest], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zero_never_moves(store: Store) -> None:
    manifest = drawn(AHEAD, store)
    seen: list[np.ndarray] = []
    outcomes = run_batch(
        ZeroPolicy(ZeroConfig(), 0),
        manifest,
        range(AHEAD.count),
        lambda step, tasks, active: seen.append(np.array([task.state for task in tasks])),
    )
    assert not any(outcome.success for outcome in outcomes) and len(seen) == AHEAD.budget
    starts = np.array([p.start_state for p in manifest.problems])
    np.testing.assert_array_equal(np.stack(seen), np.broadcast_to(seen[0], (AHEAD.budget, *seen[0].shape)))
    np.testing.assert_allclose(seen[0], starts, atol=1e-6)

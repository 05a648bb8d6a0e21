"""Manifests: held-out, unsolved, reachable, reproducible, and a file that anybody can rerun."""

import json
from pathlib import Path

import numpy as np
import pytest

import envs
from lewm.config import RunConfig
from lewm.data.collect import CollectConfig, collect
from lewm.data.store import Store, split_episodes
from lewm.evaluate.manifest import PAST_FRAMES, GoalSet, Manifest, load_manifest, make_manifest, save_manifest

GOALS = {
    "ahead": GoalSet("ahead", "ahead", offset=12, budget=25, count=20),
    "across": GoalSet("across", "across", budget=40, count=6),
    "elsewhere": GoalSet("elsewhere", "elsewhere", budget=60, count=20),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = CollectConfig(episodes=12, steps=60, noise=0.5)
    return collect(config, "two_room", {"size": 32}, tmp_path_factory.mktemp("manifest") / "data")


@pytest.fixture(scope="module")
def held_out(store: Store) -> np.ndarray:
    return split_episodes(store.num_episodes, 0.5, 0)[1]


@pytest.mark.parametrize("kind", GOALS)
def test_every_pair_is_what_was_asked_for(kind: str, store: Store, held_out: np.ndarray) -> None:
    goals = GOALS[kind]
    manifest = make_manifest(goals, store, held_out, 3)
    env = envs.make("two_room", **manifest.settings)
    assert (manifest.task, manifest.goals, manifest.seed) == ("two_room", goals, 3)
    assert manifest.settings == store.meta.settings
    pairs = [(p.episode, p.start, p.goal_episode, p.goal) for p in manifest.problems]
    assert len(set(pairs)) == len(pairs) == goals.count
    for p in manifest.problems:
        assert {p.episode, p.goal_episode} <= set(held_out.tolist())
        start, goal = np.array(p.start_state), np.array(p.goal_state)
        np.testing.assert_array_equal(start, store.states(p.episode)[p.start])
        np.testing.assert_array_equal(goal, store.states(p.goal_episode)[p.goal])
        assert not env.is_success(start, goal)
        assert p.distance == pytest.approx(float(env.distance(start, goal)))
        past = store.states(p.episode)[max(0, p.start - PAST_FRAMES) : p.start]
        np.testing.assert_array_equal(np.array(p.past_states).reshape(-1, 2), past)
        env.set_state(start)  # a recorded state must be one the task can start from
        if kind == "elsewhere":
            assert p.goal_episode != p.episode
            continue
        assert p.goal_episode == p.episode and 0 < p.goal - p.start <= goals.budget
        if kind == "ahead":
            assert p.goal - p.start == goals.offset
        else:
            assert env.region(start) != env.region(goal)


@pytest.mark.parametrize("kind", ["ahead", "across"])
def test_the_recording_itself_reaches_the_goal_within_the_budget(kind: str, store: Store, held_out: np.ndarray) -> None:
    manifest = make_manifest(GOALS[kind], store, held_out, 0)
    env = envs.make("two_room", **manifest.settings)
    for p in manifest.problems:
        env.set_state(np.array(p.start_state))
        hits = []
        for action in store.actions(p.episode)[p.start : p.start + manifest.goals.budget]:
            env.advance(action)
            hits.append(bool(env.is_success(env.state, np.array(p.goal_state))))
        assert any(hits)


def test_goals_beyond_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match=r"goals far: offset is 60.*budget.*50"):
        GoalSet("far", "ahead", offset=60, budget=50)
    assert GoalSet("other", "elsewhere", offset=60, budget=50).budget == 50


def test_pairs_solved_at_the_start_are_left_out_and_counted(store: Store, held_out: np.ndarray) -> None:
    near = make_manifest(GoalSet("near", "ahead", offset=2, budget=5, count=10), store, held_out, 0)
    assert near.solved_at_start > 0


def test_the_same_seed_gives_the_same_pairs(store: Store, held_out: np.ndarray) -> None:
    first = make_manifest(GOALS["ahead"], store, held_out, 0)
    assert make_manifest(GOALS["ahead"], store, held_out, 0) == first
    assert make_manifest(GOALS["ahead"], store, held_out, 1).problems != first.problems


@pytest.mark.parametrize(
    "goals",
    [
        GoalSet("long", "ahead", offset=70, budget=100, count=3),
        GoalSet("many", "ahead", offset=59, budget=60, count=50),
    ],
)
def test_what_the_recordings_cannot_give_is_said(goals: GoalSet, store: Store, held_out: np.ndarray) -> None:
    expected = (
        rf"goals {goals.name}: only \d+ of {goals.count} pairs found in {len(held_out)} held-out episodes; record"
    )
    with pytest.raises(ValueError, match=expected):
        make_manifest(goals, store, held_out, 0)


def test_one_held_out_episode_has_no_elsewhere(store: Store) -> None:
    with pytest.raises(ValueError, match="only 0 of 2 pairs found in 1 held-out"):
        make_manifest(GoalSet("e", "elsewhere", count=2), store, np.array([3]), 0)


def test_counts_are_checked() -> None:
    for changes in ({"count": 0}, {"budget": 0}, {"offset": 0}):
        with pytest.raises(ValueError, match="goals g: count, budget and offset must be at least 1"):
            GoalSet("g", **changes)


def test_round_trip(store: Store, held_out: np.ndarray, tmp_path: Path) -> None:
    manifest = make_manifest(GOALS["across"], store, held_out, 0)
    path = tmp_path / "deep" / "m.json"
    save_manifest(manifest, path)
    assert load_manifest(path) == manifest
    assert [p.name for p in path.parent.iterdir()] == ["m.json"]


def test_damaged_manifests_are_named(store: Store, held_out: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    save_manifest(make_manifest(GOALS["ahead"], store, held_out, 0), path)
    good = json.loads(path.read_text())
    for change, expected in (
        (lambda m: m["problems"][2].pop("goal_state"), r"m\.json: problems\.2\.goal_state is missing"),
        (lambda m: m["problems"][1].update(distance="far"), r"m\.json: problems\.1\.distance is 'far'"),
        (lambda m: m.update(sed=3), r"m\.json: sed is unknown; did you mean seed\?"),
        (lambda m: m["goals"].update(count=0), r"m\.json: goals: goals ahead: count"),
    ):
        broken = json.loads(json.dumps(good))
        change(broken)
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=expected):
            load_manifest(path)
    path.write_text(json.dumps(good)[:100])
    with pytest.raises(ValueError, match=r"m\.json is not JSON"):
        load_manifest(path)


def test_goals_of_a_run_can_be_drawn_from_its_own_store(tiny_run: RunConfig, tiny_store: Store) -> None:
    ids = split_episodes(tiny_store.num_episodes, tiny_run.train.held_out, tiny_run.train.seed)[1]
    manifest = make_manifest(GoalSet("g", offset=20, budget=30, count=5), tiny_store, ids, 0)
    assert isinstance(manifest, Manifest) and len(manifest.problems) == 5

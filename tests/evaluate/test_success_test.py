"""The success test of a manifest: nearer, held, turned right, in another world; old manifests mean what they meant."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import envs
from lewm.baselines import BASELINES, RandomConfig, ReplayConfig, ZeroConfig
from lewm.data.store import Store
from lewm.evaluate.fingerprint import fingerprint, keep_manifest
from lewm.evaluate.manifest import GoalSet, Manifest, Problem, load_manifest, make_manifest, meets, save_manifest, stand
from lewm.evaluate.report_cards import success_distance
from lewm.evaluate.runner import Outcome, run_batch
from lewm.evaluate.timing import time_plans
from lewm.planning.policy import Start


class Scripted:
    """The same actions for every problem, one after another; zeros when they are spent."""

    needs_frame = False

    def __init__(self, moves: Sequence[float]) -> None:
        self.moves = moves

    def start(self, starts: Sequence[Start]) -> None:
        self.count, self.left = len(starts), list(self.moves)

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        move = self.left.pop(0) if self.left else 0.0
        return np.tile(np.float32([move, 0.0]), (self.count, 1))


def goal_right(distance: float, **test: object) -> Manifest:
    """One goal to the right of (0.06, 0.8); a whole move is 0.03, and success within 0.05."""
    goals = GoalSet("line", budget=12, offset=1, count=1, **test)  # type: ignore[arg-type]
    problem = Problem(0, 0, 0, 1, (0.06, 0.8), (0.06 + distance, 0.8), (), distance)
    return Manifest("two_room", {"size": 32}, goals, 0, 0, (problem,))


def end(manifest: Manifest, moves: Sequence[float]) -> tuple[bool, int]:
    outcome = run_batch(Scripted(moves), manifest, [0])[0]
    return outcome.success, outcome.steps


RIGHT = [1.0] * 12


def test_the_goal_must_be_met_that_near() -> None:
    """Distances on the way are 0.075, 0.045, 0.015, 0.015, 0.045, 0.075."""
    assert end(goal_right(0.105), RIGHT) == (True, 2)
    assert end(goal_right(0.105, tolerance=0.5), RIGHT) == (True, 3)
    assert end(goal_right(0.105, tolerance=0.1), RIGHT) == (False, 12)
    assert end(goal_right(0.105, tolerance=1.6), RIGHT) == (True, 1)
    assert success_distance(goal_right(0.105, tolerance=0.5)) == 0.025


def test_the_goal_must_be_met_that_long() -> None:
    """It is met at steps 2 to 5 when passed, and a stay is counted from its first step."""
    for hold, expected in ((2, (True, 3)), (4, (True, 5)), (5, (False, 12))):
        assert end(goal_right(0.105, hold=hold), RIGHT) == expected
    assert end(goal_right(0.105, hold=5), RIGHT[:3]) == (True, 6)
    there_and_back = [1, 1, -1, -1, 1, 1, 1]  # met at step 2, left, and met again from step 6 on
    assert end(goal_right(0.105, hold=1), there_and_back) == (True, 2)
    assert end(goal_right(0.105, hold=3), there_and_back) == (True, 8)
    assert end(goal_right(0.105, hold=7), there_and_back) == (True, 12)
    assert end(goal_right(0.105, hold=8), there_and_back) == (False, 12)


def test_holding_and_nearness_count_together() -> None:
    assert end(goal_right(0.105, hold=2, tolerance=0.5), RIGHT) == (True, 4)
    assert end(goal_right(0.105, hold=3, tolerance=0.5), RIGHT) == (False, 12)


class Turned(envs.GoalEnv):
    """States are a place and an angle, of which `distance` sees the place."""

    success_distance = 1.0
    success_turn = 0.4

    def __init__(self) -> None:
        pass

    def distance(self, state_S: np.ndarray, goal_S: np.ndarray) -> np.ndarray:
        return np.abs(state_S[..., 0] - goal_S[..., 0])

    def turn(self, state_S: np.ndarray, goal_S: np.ndarray) -> np.ndarray:
        return np.abs(state_S[..., 1] - goal_S[..., 1])


def test_orientation_counts_where_it_is_asked_for_and_there_is_one() -> None:
    task, goal = Turned(), np.zeros(2)
    near, turned = np.array([0.4, 0.3]), np.array([0.4, 0.5])
    plain, counted = GoalSet("g"), GoalSet("g", orientation=True)
    assert meets(plain, task, turned, goal) and not meets(counted, task, turned, goal)
    assert meets(counted, task, near, goal)
    assert not meets(replace(counted, tolerance=0.5), task, near, goal)  # within 0.2 rad then
    room = envs.make("two_room", size=32)
    assert room.success_turn is None and room.turn(np.zeros((3, 2)), np.zeros(2)).tolist() == [0, 0, 0]
    assert meets(counted, room, np.array([0.2, 0.5]), np.array([0.22, 0.5]))


def test_a_problem_has_its_own_world() -> None:
    """A disc half as fast needs twice the steps, for every policy, and the timing stands in that world too."""
    plain = goal_right(0.105)
    slow = replace(plain, problems=(replace(plain.problems[0], variation={"speed": 0.5, "agent": (20, 100, 200)}),))
    assert end(plain, RIGHT) == (True, 2) and end(slow, RIGHT) == (True, 4)
    task = stand(slow, slow.problems[0])
    assert task.variation == {"agent": (20, 100, 200), "speed": 0.5}
    assert not np.array_equal(task.render(), stand(plain, plain.problems[0]).render())
    seen: list[dict[str, object]] = []

    class Looks(Scripted):
        def start(self, starts: Sequence[Start]) -> None:
            super().start(starts)
            seen.extend(s.task.variation for s in starts)

    time_plans(Looks(RIGHT), slow, plans=1)
    assert all(variation == task.variation for variation in seen)


def test_the_shifted_worlds_of_a_goal_set(tiny_store: Store, tmp_path: Path) -> None:
    episodes = np.arange(tiny_store.num_episodes)
    plain = make_manifest(GoalSet("ahead_8", offset=8, budget=16, count=6), tiny_store, episodes, 0)
    goals = GoalSet("shifted", offset=8, budget=16, count=6, pairs="ahead_8", shift=("physics", "floor"))
    shifted = make_manifest(goals, tiny_store, episodes, 0)
    assert [replace(p, variation={}) for p in shifted.problems] == list(plain.problems)
    factors = envs.make("two_room").factors
    for problem in shifted.problems:
        assert problem.variation.keys() == {"floor", "speed"}
        for name, value in problem.variation.items():
            inside = [
                (np.array(low) <= value).all() and (value <= np.array(high)).all()
                for low, high in factors[name].shifted
            ]
            assert any(inside), (name, value)
    assert len({json.dumps(p.variation) for p in shifted.problems}) == 6
    assert make_manifest(goals, tiny_store, episodes, 0) == shifted
    assert make_manifest(goals, tiny_store, episodes, 1).problems[0].variation != shifted.problems[0].variation
    save_manifest(shifted, tmp_path / "m.json")
    assert load_manifest(tmp_path / "m.json") == shifted
    assert fingerprint(load_manifest(tmp_path / "m.json")) == fingerprint(shifted)


def test_goals_of_varied_recordings_lie_in_the_recorded_worlds(varied_store: Store) -> None:
    """The picture at a start is the recorded one, and repeating the recording reaches the goal, physics included."""
    episodes = np.arange(varied_store.num_episodes)
    manifest = make_manifest(GoalSet("ahead_8", offset=8, budget=8, count=20), varied_store, episodes, 0)
    worlds = {problem.episode: problem.variation for problem in manifest.problems}
    assert len(worlds) > 3 and len({json.dumps(world) for world in worlds.values()}) == len(worlds)
    for problem in manifest.problems:
        task = stand(manifest, problem)
        np.testing.assert_array_equal(task.render(), varied_store.pixels(problem.episode, [problem.start])[0])
    assert all(outcome.success for outcome in run_batch(BASELINES["replay"](ReplayConfig(), 0), manifest, range(20)))
    shifted = GoalSet("s", offset=8, budget=8, count=20, pairs="ahead_8", shift=("floor",))
    for problem in make_manifest(shifted, varied_store, episodes, 0).problems:
        same, changed = worlds[problem.episode], problem.variation
        assert {name for name in same if same[name] != changed[name]} == {"floor"}


def test_factors_that_are_none_are_named(tiny_store: Store) -> None:
    goals = GoalSet("g", offset=8, count=2, shift=("flor",))
    with pytest.raises(ValueError, match=r"goals g: shift names 'flor', did you mean 'floor'\?; it takes all, picture"):
        make_manifest(goals, tiny_store, np.arange(8), 0)


def test_pairs_that_the_task_counts_as_solved_are_left_out_of_strict_sets_too(tiny_store: Store) -> None:
    plain = GoalSet("p", offset=3, budget=8, count=8)
    strict = replace(plain, name="s", pairs="p", tolerance=0.5, hold=2)
    manifests = [make_manifest(goals, tiny_store, np.arange(8), 0) for goals in (plain, strict)]
    assert manifests[0].problems == manifests[1].problems
    assert manifests[0].solved_at_start == manifests[1].solved_at_start > 0
    assert all(p.distance >= 0.05 for p in manifests[1].problems)


def test_tests_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"goals g: tolerance is 0; it must be positive, such as 0\.5"):
        GoalSet("g", tolerance=0)
    with pytest.raises(ValueError, match=r"goals g: hold is 0; it must lie in 1\.\.50, the budget"):
        GoalSet("g", hold=0)
    with pytest.raises(ValueError, match=r"offset is 48, held for 4 steps; it must not exceed the budget, 50"):
        GoalSet("g", offset=48, hold=4)
    assert GoalSet("g", offset=47, hold=4).hold == 4


def test_an_older_manifest_is_first_hit_by_the_tasks_own_test(tmp_path: Path) -> None:
    manifest = goal_right(0.105)
    old = asdict(manifest)
    for name in ("pairs", "tolerance", "hold", "orientation", "shift"):
        del old["goals"][name]
    del old["held_out"], old["problems"][0]["variation"], old["problems"][0]["actions"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    loaded = load_manifest(tmp_path / "old.json")
    assert loaded == manifest and fingerprint(loaded) == fingerprint(manifest)
    assert end(loaded, RIGHT) == (True, 2)


def test_a_fingerprint_is_what_is_evaluated_and_nothing_else() -> None:
    manifest = goal_right(0.105)
    same = replace(manifest, seed=5, solved_at_start=3, held_out=(1, 2))
    assert fingerprint(same) == fingerprint(manifest)
    problem = manifest.problems[0]
    for other in (
        replace(manifest, goals=replace(manifest.goals, hold=2)),
        replace(manifest, goals=replace(manifest.goals, budget=13)),
        replace(manifest, settings={"size": 33}),
        replace(manifest, problems=(problem, problem)),
        replace(manifest, problems=(replace(problem, goal_state=(0.161, 0.8)),)),
        replace(manifest, problems=(replace(problem, variation={"speed": 0.5}),)),
        replace(manifest, problems=(replace(problem, past_states=((0.05, 0.8),)),)),
    ):
        assert fingerprint(other) != fingerprint(manifest)
    # Pinned: results that are committed carry it.
    assert fingerprint(manifest)[:12] == "a08186b537f3"


def test_another_manifest_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "manifest_line.json"
    keep_manifest(goal_right(0.105), path)
    keep_manifest(goal_right(0.105), path)
    with pytest.raises(ValueError, match=r"manifest_line\.json holds another manifest: choose another --out"):
        keep_manifest(goal_right(0.2), path)
    assert load_manifest(path) == goal_right(0.105)


@pytest.mark.parametrize("config", [RandomConfig(), ReplayConfig(), ZeroConfig()], ids=lambda config: config.name)
def test_baselines_obey_it(config: RandomConfig, tiny_store: Store) -> None:
    """Who reaches the strict goal also reaches the plain one, no later; replay stays where its recording ends."""
    plain = GoalSet("p", offset=8, budget=16, count=12)
    strict = replace(plain, name="s", pairs="p", tolerance=0.5, hold=4)

    def ends(goals: GoalSet) -> list[Outcome]:
        manifest = make_manifest(goals, tiny_store, np.arange(8), 0)
        return run_batch(BASELINES[config.kind](config, 0), manifest, range(12))

    for easy, hard in zip(ends(plain), ends(strict), strict=True):
        assert easy.success >= hard.success and easy.steps <= hard.steps
        assert hard.success == (config.kind == "replay")
        if hard.success:
            assert hard.steps <= 8 + 3 and hard.final < 0.025

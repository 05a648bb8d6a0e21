"""A policy of stable-baselines3 in an evaluation: what it sees, learns and says of itself, and whom it trusts."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import SAC
from test_offline_folder import command

import envs
from lewm.baselines import RandomConfig, RandomPolicy, Sb3Method, Sb3MethodPolicy
from lewm.checkpoint import Checkpoint
from lewm.config import RunConfig, dump
from lewm.data.store import Store, split_episodes
from lewm.evaluate import evaluate as module
from lewm.evaluate.evaluate import EvaluateConfig, evaluate
from lewm.evaluate.manifest import GoalSet, Manifest, Problem, make_manifest
from lewm.evaluate.methods import PlanConfig, weight_files
from lewm.evaluate.results import table
from lewm.evaluate.runner import run_batch, run_manifest
from lewm.evaluate.significance import best
from lewm.evaluate.summary import summary
from lewm.evaluate.timing import kept_times
from lewm.planning.policy import Start
from lewm.sb3 import train as module_sb3
from lewm.sb3.config import Sb3Config, read_card
from lewm.sb3.env import Sb3Env
from lewm.sb3.train import LAYERS, load_weights, train_sb3
from lewm.sb3.views import PixelView, StateView
from lewm.schema import build
from planners import CEM

GOALS = GoalSet("near", offset=8, budget=12, count=20)


def drawn(store: Store, goals: GoalSet = GOALS) -> Manifest:
    return make_manifest(goals, store, split_episodes(store.num_episodes, 0.25, 0)[1], 0)


def test_no_batch_size_changes_an_outcome(tiny_sb3: Path, tiny_store: Store, tmp_path: Path) -> None:
    """Bit for bit, as each problem is decided by itself."""
    manifest, policy = drawn(tiny_store), Sb3MethodPolicy(Sb3Method(str(tiny_sb3)), 0)
    one, five, all_of_them = (run_manifest(policy, manifest, tmp_path / f"{n}", "key", n) for n in (1, 5, 20))
    assert one == five == all_of_them


def test_it_acts_as_it_did_in_training(tiny_sb3: Path) -> None:
    """From the same start to the same goal: the environment's observations against those of the evaluation."""
    config = read_card(tiny_sb3).config
    task, view_task = (envs.make("two_room", size=32) for _ in range(2))
    view: Any = StateView(view_task) if config.observation == "state" else PixelView(view_task, 16, 2, 2)
    env, model = Sb3Env(view_task, view, "sparse", 10), load_weights(config, tiny_sb3 / "policy.zip")
    start, goal = (0.2, 0.8), (0.8, 0.3)
    task.set_state(start)
    seen, _ = env.reset(options={"state": start, "goal_state": goal})
    policy = Sb3MethodPolicy(Sb3Method(str(tiny_sb3)), 0)
    policy.start([Start(0, task, np.array(goal), np.zeros((0, 2)))])
    for _ in range(8):
        pixels = task.render()[None] if policy.needs_frame else None
        expected = model.predict(seen, deterministic=True)[0]
        np.testing.assert_array_equal(policy.act(pixels, np.ones(1, bool))[0], expected)
        task.advance(expected)
        seen, *_ = env.step(expected)
    assert not policy.act(task.render()[None], np.zeros(1, bool)).any()


def test_pixels_are_all_it_is_told(tiny_sb3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On pixels, another true state behind the same pictures changes nothing, but the recorded past does."""
    task, policy = envs.make("two_room", size=32), Sb3MethodPolicy(Sb3Method(str(tiny_sb3)), 0)
    task.set_state((0.2, 0.8))
    frame = task.render()[None]
    starts = [[Start(0, task, np.array([0.8, 0.3]), np.array(past).reshape(-1, 2))] for past in ([], [[0.3, 0.5]] * 4)]
    taken = []
    for start in starts:
        policy.start(start)
        taken.append(policy.act(frame, np.ones(1, bool)))
    policy.start(starts[0])
    task.set_state((0.9, 0.1))
    taken.append(policy.act(frame, np.ones(1, bool)))
    assert np.array_equal(taken[0], taken[2]) == policy.needs_frame != np.array_equal(taken[0], taken[1])
    assert policy.knows_state != policy.needs_frame


def evaluated(store: Store, checkpoint: Checkpoint, path: Path, out: Path) -> list[module.Evaluated]:
    planner = PlanConfig("ours", planner=CEM(candidates=4, iterations=1, elites=2, horizon=1))
    config = EvaluateConfig(methods=(planner, Sb3Method(str(path), "learner")), timed_plans=1)
    return evaluate(config, [drawn(store, replace(GOALS, count=4))], checkpoint, out, quiet=True)


def test_its_row_says_what_it_cost_and_what_it_is_told(
    tiny_sb3: Path, tiny_store: Store, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    results = evaluated(tiny_store, tiny_checkpoint, tiny_sb3, tmp_path)
    rows = {e.row.method: e.row for e in results}
    row, card, told = rows["learner"], read_card(tiny_sb3), tiny_sb3.name == "state"
    assert (row.kind, row.planner, row.candidates, row.device) == ("sb3", "sac", 1, "cpu")
    assert row.trained == f"20 environment steps in {card.wall_s:.0f} s" and row.true_state == told
    spent = kept_times(tiny_checkpoint.path.parent)["train"]
    assert (
        rows["ours"].trained == f"246 recorded frames, 6 optimiser steps in {spent.seconds:.0f} s"
        and not rows["ours"].true_state
    )
    assert rows["random"].trained == "" and rows["oracle"].true_state
    assert ("sac (true state) 1x1x1" in table(list(rows.values()))) == told
    head, _, *lines = summary(list(rows.values())).splitlines()
    assert head.endswith("| learned from |") and row.trained in lines[1] and lines[2].endswith("| - |")
    ahead = [replace(e.row, successes=e.row.n - (e.row.method == "ours")) for e in results[:2]]
    assert best(ahead).method == ("ours" if told else "learner"), "the true state is no reference for agents"


def test_outcomes_belong_to_the_policy(
    tiny_sb3: Path, tiny_store: Store, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    method, manifest = Sb3Method(str(tmp_path)), drawn(tiny_store)
    assert weight_files(method, None) == [tmp_path / "policy.zip", tmp_path / "card.json"]
    keys = set()
    for content in (b"a", b"b"):
        (tmp_path / "policy.zip").write_bytes(content)
        (tmp_path / "card.json").write_bytes(b"{}")
        keys.add(module.outcome_key(method, manifest, None, 0))
    assert len(keys) == 2


def test_other_goals_than_its_own_are_refused(tiny_sb3: Path) -> None:
    policy = Sb3MethodPolicy(Sb3Method(str(tiny_sb3), "m"), 0)
    for task, size in (("point_maze", 32), ("reacher", 32)):
        env = envs.make(task, size=size)
        with pytest.raises(
            ValueError, match=r"method m: .* was trained on two_room, and these goals are of another task"
        ):
            policy.start([Start(0, env, env.state, np.zeros((0, len(env.state))))])
    larger = envs.make("two_room", size=64)
    start = [Start(0, larger, larger.state, np.zeros((0, 2)))]
    if policy.needs_frame:
        with pytest.raises(
            ValueError, match=r"trained on pictures of shape \(32, 32, 3\), and these are \(64, 64, 3\)"
        ):
            policy.start(start)
    else:
        policy.start(start)


# Whom it trusts


class Bomb:
    """What a pickle can do."""

    def __reduce__(self) -> Any:
        return os.makedirs, (os.environ["LEWM_TEST_BOMB"], 0o777, True)


@pytest.fixture
def zip_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A policy as somebody else saved it, on states, with code in one of its pickles; and what that code makes."""
    bomb = tmp_path / "exploded"
    monkeypatch.setenv("LEWM_TEST_BOMB", str(bomb))
    task = envs.make("two_room", size=32)
    env = Sb3Env(task, StateView(task), "sparse", 10)
    model = SAC("MultiInputPolicy", env, buffer_size=10, seed=0, device="cpu", policy_kwargs={"net_arch": LAYERS})
    model.extra = Bomb()
    model.save(tmp_path / "theirs.zip")
    return tmp_path / "theirs.zip", bomb


def test_a_zip_is_loaded_only_when_it_is_trusted(zip_with_code: tuple[Path, Path], tiny_store: Store) -> None:
    path, bomb = zip_with_code
    with pytest.raises(ValueError, match=r"method m: .*holds pickles: loading it runs .* add trusted: true"):
        Sb3Method(str(path), "m")
    with pytest.raises(ValueError, match=r"methods\.0: method sb3: .*holds pickles"):
        build(EvaluateConfig, {"methods": [{"kind": "sb3", "path": str(path)}]}, "run.yaml")
    with pytest.raises(FileNotFoundError, match=r"card\.json is missing, so give theirs\.zip its `algorithm`"):
        Sb3MethodPolicy(Sb3Method(str(path), trusted=True), 0)
    assert not bomb.exists()
    policy = Sb3MethodPolicy(Sb3Method(str(path), trusted=True, algorithm="sac"), 0)
    assert bomb.exists() and policy.knows_state
    assert len(run_batch(policy, drawn(tiny_store), [0, 1])) == 2
    arm = envs.make("reacher", size=32)
    with pytest.raises(
        ValueError, match=r"sees .*\(2,\).*the task gives .*\(6,\).*observations of `lewm train-baseline`"
    ):
        policy.start([Start(0, arm, arm.state, np.zeros((0, 4)))])
    with pytest.raises(ValueError, match=r"theirs\.zip holds no policy of ppo"):
        Sb3MethodPolicy(Sb3Method(str(path), trusted=True, algorithm="ppo"), 0)
    with pytest.raises(ValueError, match="tells the algorithm; leave it out"):
        Sb3Method("folder", algorithm="sac")


def test_a_folder_runs_no_code_of_its_maker(
    zip_with_code: tuple[Path, Path], tiny_sb3: Path, tmp_path: Path, tiny_store: Store
) -> None:
    """Whoever made a folder: only numbers are read, even from a zip that holds pickles; they have to fit the card."""
    path, bomb = zip_with_code
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "card.json").write_bytes((tiny_sb3 / "card.json").read_bytes())
    (folder / "policy.zip").write_bytes(path.read_bytes())
    if tiny_sb3.name == "state":
        policy = Sb3MethodPolicy(Sb3Method(str(folder)), 0)
        assert len(run_batch(policy, drawn(tiny_store), [0, 1])) == 2
    else:
        with pytest.raises(ValueError, match=r"policy\.zip does not fit the card\.json beside it"):
            Sb3MethodPolicy(Sb3Method(str(folder)), 0)
    assert not bomb.exists()


def test_a_zip_on_pixels_is_read_by_its_shapes(tiny_sb3: Path, tiny_store: Store) -> None:
    """Our own file, taken for somebody else's: the same outcomes as from its folder, with pictures one step apart."""
    zipped = Sb3MethodPolicy(Sb3Method(str(tiny_sb3 / "policy.zip"), trusted=True), 0)
    assert zipped.needs_frame == (tiny_sb3.name == "pixels")
    outcomes = run_batch(zipped, drawn(tiny_store), [0, 1, 2])
    if not zipped.needs_frame:
        assert outcomes == run_batch(Sb3MethodPolicy(Sb3Method(str(tiny_sb3)), 0), drawn(tiny_store), [0, 1, 2])


# What it learns, and the command

FAST = {"size": 32, "max_move": 0.12, "door_y": 0.5, "door_opening": 1.0}
"""A world of one room and few steps, so that there is little to learn."""
NEAR = [((0.1 + 0.05 * i, 0.5 + 0.04 * j), (0.3 - 0.05 * i, 0.9 - 0.1 * j)) for i in range(4) for j in range(5)]


def one_room(pairs: Sequence[Any]) -> Manifest:
    env = envs.make("two_room", **FAST)
    rows = [
        Problem(0, 0, 0, i + 1, start, goal, (), float(env.distance(np.array(start), np.array(goal))))
        for i, (start, goal) in enumerate(pairs)
    ]
    return Manifest("two_room", FAST, GoalSet("g", budget=10, offset=1), 0, 0, tuple(rows))


def test_it_learns_to_go_to_a_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO in a hurry, on states. Measured: 20 of 20 goals with seeds 0 and 1 after 8,192 steps, random actions 2."""
    hasty = module_sb3.ARGUMENTS["ppo"] | {"learning_rate": 3e-3, "gamma": 0.8}
    monkeypatch.setattr(module_sb3, "ARGUMENTS", {"ppo": hasty})
    train_sb3(Sb3Config("two_room", FAST, "ppo", steps=8192, episode_steps=16, checkpoint_every=8192), tmp_path, True)
    learned, random = Sb3MethodPolicy(Sb3Method(str(tmp_path)), 0), RandomPolicy(RandomConfig(), 0)
    reached = [sum(o.success for o in run_batch(p, one_room(NEAR), range(len(NEAR)))) for p in (learned, random)]
    assert reached[0] >= reached[1] + 10 and read_card(tmp_path).success > 0.8


def test_from_the_command_line(
    tiny_run: RunConfig,
    tiny_store: Store,
    tiny_checkpoint_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "ppo"
    words = ["train-baseline", "ppo", "--data", str(tiny_store.path), "--out", str(out), "--steps", "9"]
    code, said = command(capsys, *words, "--evaluations", "1", "--device", "cpu", "--json", str(tmp_path / "card.json"))
    assert code == 0 and said.startswith("ppo on state: 1024 environment steps in ")
    assert f"{{kind: sb3, name: ppo, path: {out}}}" in said
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["algorithm"], card["steps"], card["config"]["her"], card["episodes"]) == ("ppo", 1024, False, 1)
    method = build(EvaluateConfig, {"methods": [{"kind": "sb3", "name": "ppo", "path": str(out)}]}, "test").methods
    run = replace(tiny_run, evaluate=EvaluateConfig((replace(GOALS, count=4),), method, timed_plans=1))
    (tmp_path / "run.yaml").write_text(dump(run))
    words = ["evaluate", str(tmp_path / "run.yaml"), "--checkpoint", str(tiny_checkpoint_path), "--device", "cpu"]
    code, said = command(capsys, *words, "--data", str(tiny_store.path), "--out", str(tmp_path / "e"))
    assert code == 0 and "ppo (true state) 1x1x1" in said
    assert "learned from 1,024 environment steps in" in (tmp_path / "e" / "report.html").read_text()
    code, said = command(capsys, "train-baseline", "ppo", "--keys")
    assert code == 0 and "--observation" in said and "--algorithm" not in said
    code, said = command(capsys, "train-baseline", "sac", "--out", str(tmp_path / "x"))
    assert code == 1 and "pass --task, or --data" in said and not (tmp_path / "x").exists()

"""Foreign environments through the commands: record, inspect, train, plan, evaluate; and the page about one's own."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import foreign  # noqa: F401  (registers)
import numpy as np
import pytest

import envs
from lewm import cli
from lewm.config import RunConfig, load
from lewm.data.store import Store, split_episodes
from lewm.evaluate.manifest import GoalSet, load_manifest, make_manifest, save_manifest
from lewm.evaluate.runner import run_batch
from lewm.planning.agent import Agent
from lewm.planning.policy import AgentPolicy
from planners import CEM

PAGE = (Path(__file__).parents[2] / "docs" / "own_task.md").read_text()

RUN = """
task: {task}
settings: {settings}
collect: {{episodes: 4, steps: 12, policies: {{correlated: 1.0, random: 1.0}}, shard_episodes: 2}}
model:
  encoder: {{name: conv, latent_dim: 8, channels: [8, 8, 8]}}
  predictor: {{name: mlp, width: 8}}
  frame_skip: 2
train: {{steps: 2, batch: 4, frames: 3, log_every: 1, probe_every: 0, checkpoint_every: 2, held_out: 0.5}}
cost_to_go: {{width: 16, steps: 3, batch: 16}}
evaluate:
  goals: [{{name: near, offset: 4, budget: 6, count: 2}}]
  methods:
    - {{name: ours, kind: world_model, planner: {{name: cem, candidates: 8, iterations: 1, elites: 2, horizon: 2}}}}
    - {{name: random, kind: random}}
    - {{name: oracle, kind: oracle, planner: {{name: cem, candidates: 8, iterations: 1, elites: 2, horizon: 2}}}}
  timed_plans: 1
"""
CART = "{size: 32, state: {attributes: [angle, speed]}, success: {entries: [angle], tolerance: 0.001}}"


def run_file(folder: Path, task: str, settings: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(RUN.format(task=task, settings=settings))
    return path


def lewm(*words: Any) -> None:
    cli.main([str(word) for word in words])


def row(task: str, settings: str, needs: str | None, gl: bool) -> Any:
    marks = [pytest.mark.gl] if gl else []
    if needs is not None and importlib.util.find_spec(needs) is None:
        marks.append(pytest.mark.skip(reason=f"{task} needs {needs}, which is not installed"))
    return pytest.param(task, settings, id=task, marks=marks)


@pytest.mark.filterwarnings("ignore")  # of other people's packages
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        row("gym:foreign/Choosing-v0", CART, None, False),
        row("gym:CartPole-v1", "{size: 32, success: {entries: [position], tolerance: 0.001}}", "pygame", False),
        row("gym:Reacher-v5", "{size: 32, camera: {distance: 0.6}, scatter: 5}", None, True),
    ],
)
def test_a_recording_gives_goals_that_an_agent_plans_to(task: str, settings: str, tmp_path: Path) -> None:
    path = run_file(tmp_path, task, settings)
    lewm("train", path, "--out", tmp_path, "--processes", 1, "--device", "cpu")
    store, run = Store.open(tmp_path / "data", verify=True), load(path)
    assert store.num_episodes == 4 and store.meta.task == task
    env = envs.make(store.meta.task, **store.meta.settings)
    assert store.meta.state_names == env.state_names and store.meta.frame == (32, 32, 3)
    replay(env, store)
    _, held_out = split_episodes(4, 0.5, run.train.seed)
    save_manifest(make_manifest(GoalSet("near", offset=4, budget=6, count=2), store, held_out, 0), tmp_path / "m.json")
    manifest = load_manifest(tmp_path / "m.json")
    search = CEM(candidates=8, iterations=1, elites=2, horizon=2)
    agent = Agent.load(tmp_path / "checkpoint", planner=search)
    outcomes = run_batch(AgentPolicy(agent), manifest, [0, 1])
    assert [outcome.problem for outcome in outcomes] == [0, 1] and all(1 <= o.steps <= 6 for o in outcomes)
    env.close()


def replay(env: envs.GoalEnv, store: Store) -> None:
    """Episode 1 once more, from its seed."""
    frame, _ = env.reset(seed=int(store.episodes["seed"][1]))
    pixels, states = store.pixels(1), store.states(1)
    assert np.array_equal(frame, pixels[0])
    for action, picture, state in zip(store.actions(1), pixels[1:], states[1:]):
        env.advance(action)
        assert np.array_equal(env.render(), picture) and np.array_equal(env.state.astype(np.float32), state)
    assert not np.array_equal(states[0], states[-1])


def test_processes_do_not_change_the_data(tmp_path: Path) -> None:
    path = run_file(tmp_path, "gym:foreign:foreign/Cart-v0", CART)
    for processes in (1, 2):
        lewm("collect", path, "--out", tmp_path / str(processes), "--processes", processes)
    one, two = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    for episode in range(4):
        assert np.array_equal(one.pixels(episode), two.pixels(episode))
        assert np.array_equal(one.states(episode), two.states(episode))


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 20
    (run_text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "bead.py").write_text(example)
    (tmp_path / "bead.yaml").write_text(run_text)
    monkeypatch.syspath_prepend(tmp_path)
    oracle = "{kind: oracle, planner: {name: cem, candidates: 16, iterations: 2, elites: 4, horizon: 2}}"
    short = {
        **{"settings.size": 32, "settings.scatter": 20, "collect.episodes": 6, "collect.steps": 30},
        **{"collect.shard_episodes": 6, "train.steps": 2, "train.batch": 4, "train.probe_every": 0},
        **{"train.held_out": 0.5, "cost_to_go.steps": 2, "evaluate.goals": "[{name: near, count: 2}]"},
        **{"evaluate.timed_plans": 1, "evaluate.methods": f"[{oracle}]"},
    }
    options = [word for key, value in short.items() for word in (f"--{key}", value)]
    lewm("demo", tmp_path / "bead.yaml", "--out", tmp_path / "run", "--processes", 1, "--device", "cpu", *options)
    assert "gym:bead:Bead-v0" in (tmp_path / "run" / "report.html").read_text()
    assert re.search(r"oracle +cem \(true state\) 16x2x2 +100\.0 %", capsys.readouterr().out)
    sys.modules.pop("bead")


def test_settings_of_the_page_are_the_settings_there_are() -> None:
    import inspect

    documented = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    there = list(inspect.signature(envs.make_goal_env).parameters)
    assert set(documented) == set(there) - {"id", "size"}


def test_pictures_alone_are_recorded_trained_on_and_planned_with(
    tmp_path: Path, tiny_run: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_file(tmp_path, "gym:foreign/Hidden-v0", "{size: 32, state: none}")
    lewm("train", path, "--out", tmp_path, "--processes", 1, "--device", "cpu")
    store = Store.open(tmp_path / "data", verify=True)
    assert store.states(0).shape == (13, 0) and np.isfinite(store.pixels(0)).all()
    cv2.imwrite(str(tmp_path / "goal.png"), store.pixels(1)[5])
    words = ["--goal", tmp_path / "goal.png", "--budget", 4, "--out", tmp_path / "plan", "--planner", "random_shooting"]
    lewm("plan", "--checkpoint", tmp_path / "checkpoint", "--device", "cpu", *words)
    assert "not scored" in capsys.readouterr().out and (tmp_path / "plan" / "episode.mp4").stat().st_size > 0
    with pytest.raises(SystemExit):
        lewm("evaluate", path, "--checkpoint", tmp_path / "checkpoint", "--data", tmp_path / "data", "--out", tmp_path)
    assert "foreign/Hidden-v0 was made with state='none', so there is no distance" in capsys.readouterr().err

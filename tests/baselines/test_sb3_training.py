"""What stable-baselines3 is given and how its training is kept: views, replay, resuming, the folder, its faults."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import envs
from lewm.baselines.trainers import TRAINERS, Job, settings
from lewm.data.store import Store
from lewm.sb3 import train as module
from lewm.sb3.config import Sb3Card, Sb3Config, read_card
from lewm.sb3.env import Sb3Env
from lewm.sb3.pixels import PictureReplay, PixelExtractor, replay_bytes
from lewm.sb3.train import load_weights, train_sb3
from lewm.sb3.views import PixelView, StateView, make_view

SMALL: dict[str, Any] = {
    "task": "two_room",
    "settings": {"size": 32},
    "steps": 40,
    "episode_steps": 10,
    "checkpoint_every": 20,
    "evaluations": 2,
}
PIXELS: dict[str, Any] = {"observation": "pixels", "size": 16}


def pixel_env(
    task: str = "two_room", frames: int = 1, stride: int = 1, steps: int = 10, reward: Any = "sparse"
) -> Sb3Env:
    env = envs.make(task, size=32)
    return Sb3Env(env, PixelView(env, 16, frames, stride), reward, steps)


def test_a_picture_is_averaged_down_and_its_state_comes_back() -> None:
    """Block means, independent of the library that shrinks; the goal's entry is the picture and then the state."""
    task = envs.make("reacher", size=32)
    view = PixelView(task, 16, 1, 1)
    state = np.array([0.5, -1.0, 0.25, 3.0])
    entry = view.goal(state)
    means = task.goal_image(state).reshape(16, 2, 16, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(entry[: 3 * 16 * 16].reshape(3, 16, 16), means, atol=0.5)
    assert entry.dtype == np.uint8 and view.space["desired_goal"].contains(entry)
    np.testing.assert_array_equal(view.states(np.stack([entry, entry])), [state, state])
    hidden = view.unknown(task.goal_image(state))
    np.testing.assert_array_equal(hidden[:768], entry[:768])
    assert not hidden[768:].any()


def test_stacked_pictures_are_those_of_so_many_steps_before() -> None:
    env = pixel_env(frames=3, stride=2)
    observation, _ = env.reset(seed=0)
    seen = [observation["achieved_goal"][:768].reshape(3, 16, 16)]
    np.testing.assert_array_equal(observation["observation"], np.concatenate([seen[0]] * 3))
    for step in range(1, 7):
        observation, *_ = env.step(np.float32([1, -1]))
        seen.append(observation["achieved_goal"][:768].reshape(3, 16, 16))
        expected = [seen[max(step - 4, 0)], seen[max(step - 2, 0)], seen[step]]
        np.testing.assert_array_equal(observation["observation"], np.concatenate(expected))
    observation, _ = env.reset(seed=1)
    now = observation["achieved_goal"][:768].reshape(3, 16, 16)
    np.testing.assert_array_equal(observation["observation"], np.concatenate([now] * 3))


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_both_views_are_rewarded_by_the_true_state(reward: Any) -> None:
    """The same episode seen in both ways; a goal achieved later earns what the task's own test says."""
    tasks = [envs.make("reacher", size=32) for _ in range(2)]
    views = (StateView(tasks[0]), PixelView(tasks[1], 16, 1, 1))
    pair = [Sb3Env(task, view, reward, 20) for task, view in zip(tasks, views, strict=True)]
    for env in pair:
        env.reset(seed=3)
    rng, entries, states = np.random.default_rng(0), [], []
    for _ in range(8):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        (_, earned, *_), (pictures, same, *_) = (env.step(action) for env in pair)
        assert earned == pytest.approx(same, abs=1e-6)
        entries.append(pictures["achieved_goal"])
        states.append(tasks[1].state)
    relabelled = pair[1].compute_reward(np.stack(entries), np.stack([entries[5]] * 8), None)
    distance = tasks[1].distance(np.stack(states), states[5])
    expected = -distance if reward == "dense" else np.where(distance < tasks[1].success_distance, 0.0, -1.0)
    np.testing.assert_allclose(relabelled, expected, atol=1e-9)
    assert relabelled[5] == 0 and relabelled.min() < 0


def test_the_networks_see_nothing_of_the_state() -> None:
    view = PixelView(envs.make("two_room", size=32), 16, 2, 1)
    torch.manual_seed(0)
    extractor = PixelExtractor(view.space, 3)
    goal = view.goal(np.array([0.2, 0.7]))
    batch = {
        "observation": np.zeros((1, 6, 16, 16)),
        "achieved_goal": goal[None] * 0.0,
        "desired_goal": goal[None] * 1.0,
    }
    inputs = {key: torch.tensor(value, dtype=torch.float32, requires_grad=True) for key, value in batch.items()}
    extractor(inputs).square().sum().backward()
    gradient = inputs["desired_goal"].grad
    assert gradient is not None and (gradient[:, :768] != 0).float().mean() > 0.9 and not gradient[:, 768:].any()
    assert inputs["achieved_goal"].grad is None
    other = {**inputs, "desired_goal": inputs["desired_goal"].detach().clone()}
    other["desired_goal"][:, 768:] = 255
    torch.testing.assert_close(extractor(other), extractor(inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("frames", "stride"), [(1, 1), (3, 2)])
def test_pictures_kept_once_are_the_transitions_that_hindsight_replay_keeps(frames: int, stride: int) -> None:
    """Beside stable-baselines3's own buffer, past the point where the oldest episodes are overwritten."""
    env = DummyVecEnv([lambda: Monitor(pixel_env(frames=frames, stride=stride, steps=5))])
    space = env.observation_space
    assert isinstance(space, gymnasium.spaces.Dict)
    theirs = HerReplayBuffer(20, space, env.action_space, env, "cpu")
    ours = PictureReplay(20, space, env.action_space, env, "cpu", episode_steps=5, channels=3, stride=stride)
    env.seed(0)
    seen, rng = env.reset(), np.random.default_rng(0)
    for _ in range(35):
        action = rng.uniform(-1, 1, (1, 2)).astype(np.float32)
        after, reward, done, infos = env.step(action)
        last = {key: value[None] for key, value in infos[0]["terminal_observation"].items()} if done[0] else after
        for buffer in (theirs, ours):
            buffer.add(seen, last, action, reward, done, infos)
        seen = after
    samples = []
    for buffer in (theirs, ours):
        np.random.seed(1)  # noqa: NPY002 (theirs)
        samples.append(buffer.sample(64))
    for one, other in zip(*samples, strict=True):
        for key in space if isinstance(one, dict) else [None]:
            pair = (one, other) if key is None else (one[key], other[key])
            assert (pair[0] is None and pair[1] is None) or torch.equal(*pair)
    assert samples[0].rewards.unique().tolist() == [-1.0, 0.0]
    kept = ours.observations["achieved_goal"].kept_ETF.nbytes + ours.observations["desired_goal"].kept_ETF.nbytes
    assert kept == replay_bytes(space, 20, 5) == 4 * 7 * (768 + 16)


def files(out: Path) -> dict[str, bytes]:
    """The numbers of a policy."""
    model = load_weights(read_card(out).config, out / "policy.zip")
    return {name: value.numpy().tobytes() for name, value in model.policy.state_dict().items()}


class Killed(BaseException):
    """A kill."""


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "sac", **PIXELS},
        {"algorithm": "td3", "her": False, **PIXELS},
        {"algorithm": "ppo", "steps": 2048, "checkpoint_every": 1024, **PIXELS},
    ],
    ids=lambda c: c["algorithm"],
)
def test_a_killed_training_goes_on_to_the_same_policy(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Sb3Config(**(SMALL | changes))
    monkeypatch.setitem(module.ARGUMENTS, "ppo", module.ARGUMENTS["ppo"] | {"n_epochs": 1})
    card = train_sb3(config, tmp_path / "whole", quiet=True)
    assert (card.steps, card.episodes, card.config) == (config.steps, 2, config.resolved) and card.wall_s > 0
    assert read_card(tmp_path / "whole") == card
    real, calls = module._train_stretch, [0]

    def then_die(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            (tmp_path / "cut" / "state" / f"{config.steps:09d}.partial").mkdir()
            raise Killed
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_train_stretch", then_die)
        with pytest.raises(Killed):
            train_sb3(config, tmp_path / "cut", quiet=True)
    assert not (tmp_path / "cut" / "policy.zip").exists()
    train_sb3(config, tmp_path / "cut", quiet=True)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    with pytest.raises(RuntimeError, match=r"belongs to a training with other settings: seed is 1 here and 0 there"):
        train_sb3(replace(config, seed=1), tmp_path / "cut", quiet=True)


def test_more_steps_train_on(tmp_path: Path) -> None:
    config = Sb3Config(**SMALL, **PIXELS)
    first = train_sb3(config, tmp_path, quiet=True)
    before = files(tmp_path)
    card = train_sb3(replace(config, steps=55), tmp_path, quiet=True)
    assert card.steps == 60 and card.wall_s > first.wall_s and files(tmp_path) != before
    assert {path.name for path in tmp_path.iterdir()} == {
        *("policy.zip", "card.json", "training.json", "state", "tensorboard")
    }
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["000000060"]


def test_a_memory_that_is_too_large_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """100,000 steps at 64 px: 102 pictures of 12,288 bytes and a state of 16 per 100 steps."""
    config = Sb3Config("two_room", {"size": 64}, observation="pixels", steps=200_000, memory_gb=1.0)
    with pytest.raises(
        ValueError, match=r"100000 steps with pictures of 64 pixels take 1\.3 GB .* memory_gb allows 1:"
    ):
        train_sb3(config, tmp_path / "o", quiet=True)
    assert not (tmp_path / "o").exists()
    space = make_view(envs.make("two_room", size=64), config).space
    assert replay_bytes(space, 100_000, 100) == 1000 * 102 * (12_288 + 16)
    with pytest.raises(ValueError, match="size is 96, but the task draws pictures of 64 pixels"):
        train_sb3(replace(config, size=96), tmp_path / "o", quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 32}, "size is 32, but states have no pictures"),
        ({"frames": 2}, "frames is 2, but states have no pictures"),
        ({"observation": "pixels", "frames": 0}, "frames is 0, it must be at least 1"),
        ({"observation": "pixels", "size": 8}, "size is 8, it must be at least 16"),
        ({"algorithm": "ppo", "her": True}, "ppo forgets every rollout"),
        ({"memory_gb": 0}, "memory_gb is 0, it must be positive"),
        ({"steps": 0}, "steps is 0, it must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sb3Config(**changes)


def test_the_task_comes_from_a_store_or_from_the_settings(tiny_store: Store, tmp_path: Path) -> None:
    quick = {key: SMALL[key] for key in ("steps", "episode_steps", "evaluations")}
    card = TRAINERS["td3"].train(settings("td3", quick), Job(tmp_path / "a", data=tiny_store.path, quiet=True))
    assert isinstance(card, Sb3Card) and card.algorithm == "td3"
    assert (card.config.task, card.config.settings) == ("two_room", dict(tiny_store.meta.settings))
    for changes, job, message in (
        ({}, Job(tmp_path / "b"), "sac learns by acting in a task: pass --task, or --data"),
        (
            {"task": "reacher"},
            Job(tmp_path / "b", data=tiny_store.path),
            "task is 'reacher', but .*'two_room': leave one",
        ),
        ({"task": "two_room"}, Job(tmp_path / "b", tmp_path), "sac learns by acting and uses no world model: leave"),
    ):
        with pytest.raises(ValueError, match=message):
            TRAINERS["sac"].train(settings("sac", changes), job)
    with pytest.raises(ValueError, match="--algorithm is decided by sac: leave it out"):
        settings("sac", {"algorithm": "ppo"})
    assert not (tmp_path / "b").exists()


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    train_sb3(Sb3Config(**SMALL), tmp_path / "a", quiet=True)
    with pytest.raises(
        FileNotFoundError, match=r"nowhere/card\.json is missing: .* pass the --out of .*train-baseline sac"
    ):
        read_card(tmp_path / "nowhere")
    copied = shutil.copytree(tmp_path / "a", tmp_path / "b")
    raw = json.loads((copied / "card.json").read_text())
    (copied / "card.json").write_text(json.dumps(raw | {"format": "other"}))
    with pytest.raises(ValueError, match=r"card\.json: this is not a lewm-sb3 of version 1; train it again"):
        read_card(copied)
    other = raw | {"config": asdict(Sb3Config(**(SMALL | {"task": "reacher"})).resolved)}
    (copied / "card.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"policy\.zip does not fit the card\.json beside it .*: train it again"):
        load_weights(read_card(copied).config, copied / "policy.zip")

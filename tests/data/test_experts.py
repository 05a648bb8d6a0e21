"""Mixtures with noise levels, replayed recordings and trained policies: who acted is exactly what was asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import envs
from lewm.data.collect import CollectConfig, collect
from lewm.data.experts import ReplayExpert, ScriptedExpert, make_performers, parse_policies
from lewm.data.sb3_policy import Sb3Policy, StateFeatures
from lewm.data.store import Store
from lewm.sb3.env import Sb3Env
from lewm.sb3.views import StateView
from lewm.schema import build

SETTINGS = {"size": 32}
MIXED = {"expert": 1.0, "weak": {"policy": "expert", "noise": 0.8, "weight": 3}}


def recorded(out: Path, **changes: Any) -> Store:
    config = CollectConfig(**({"episodes": 4, "steps": 12, "noise": 0.0, "seed": 5} | changes))
    return collect(config, "two_room", SETTINGS, out)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return recorded(tmp_path_factory.mktemp("experts") / "source", noise=0.4)


def test_a_mixture_keeps_its_shares_and_its_noise_levels(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s", episodes=60, steps=3, policies=MIXED)
    which = store.episodes["policy"]
    assert 36 <= (which == 1).sum() <= 53  # 3 to 1: mean 45, +-2.7 std of 3.35
    assert [(p.name, p.weight, p.noise) for p in store.meta.provenance.policies] == [
        ("expert", 1.0, 0.0),
        ("weak (expert)", 3.0, 0.8),
    ]
    env = envs.make("two_room", **SETTINGS)
    for episode in range(8):  # acted out again, with the noise of whoever was drawn
        policy = env.make_policy("expert", (0.0, 0.8)[which[episode]])
        env.reset(seed=int(store.episodes["seed"][episode]))
        policy.reset(np.random.default_rng(np.random.SeedSequence((5, episode)).spawn(3)[2]), env.state)
        for action in store.actions(episode):
            np.testing.assert_array_equal(policy.act(env.state), action)
            env.advance(action)


def test_entries_are_numbers_or_settings() -> None:
    experts = parse_policies(MIXED | {"again": {"policy": "replay", "path": "p", "noise": 0.5}})
    assert experts == {
        "expert": ScriptedExpert("expert", 1.0),
        "weak": ScriptedExpert("expert", 3, 0.8),
        "again": ReplayExpert("replay", "p", 1.0, 0.5),
    }
    config = build(CollectConfig, {"policies": {"expert": 1, "random": {"weight": 0.5}}}, "run.yaml")
    assert config.policies == {"expert": 1.0, "random": {"weight": 0.5}}


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({}, r"policies is \{\}: give at least one name"),
        ({"expert": {"wieght": 1}}, r"policies\.expert: wieght is unknown; did you mean weight\?"),
        ({"expert": {"noise": -1}}, r"policies\.expert: noise is -1.*0 or more"),
        ({"expert": {"weight": 0}}, r"policies\.expert: weight is 0.*above 0"),
        ({"a": {"policy": "replay"}}, r"policies\.a: path is missing; add it"),
        ({"a": {"policy": "sb3", "path": "x", "algorithm": "dqn"}}, r"policies\.a: algorithm is 'dqn'"),
        ({"a": {"policy": "sb3", "path": "x", "goal_steps": 0}}, r"policies\.a: goal_steps is 0"),
    ],
)
def test_bad_entries_are_named(policies: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CollectConfig(policies=policies)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"replai": 1.0},
            r"unknown policy 'replai', did you mean 'replay'\?.*expert, random_walk, random, and sb3 and",
        ),
        ({"weak": 1.0}, r"unknown policy 'weak'.*a label of your own needs `policy: NAME`"),
        (
            {"a": {"policy": "sb3", "path": "nowhere.zip"}},
            r"no policy nowhere\.zip: train one with `lewm train-expert`",
        ),
        ({"a": {"policy": "replay", "path": "nowhere"}}, r"nowhere is not a lewm store"),
    ],
)
def test_what_cannot_act_is_refused_before_anything_is_made(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        recorded(tmp_path / "s", policies=entry)
    assert not (tmp_path / "s").exists()


def replaying(store: Store, **settings: Any) -> dict[str, Any]:
    return {"again": {"policy": "replay", "path": str(store.path), **settings}}


def test_a_replay_without_noise_is_the_recording(source: Store, tmp_path: Path) -> None:
    again = recorded(tmp_path / "s", episodes=6, seed=9, policies=replaying(source))
    for episode in range(6):
        np.testing.assert_array_equal(again.states(episode), source.states(episode % 4))
        np.testing.assert_array_equal(again.actions(episode), source.actions(episode % 4))
        np.testing.assert_array_equal(again.pixels(episode), source.pixels(episode % 4))
        assert again.episodes["seed"][episode] == source.episodes["seed"][episode % 4]
    (policy,) = again.meta.provenance.policies
    assert policy.name.startswith("again (replay source ") and len(policy.name) == len("again (replay source )") + 12


def test_noise_disturbs_a_replay_but_not_its_start(source: Store, tmp_path: Path) -> None:
    again = recorded(tmp_path / "s", episodes=8, policies=replaying(source, noise=0.2))
    for episode in range(8):
        np.testing.assert_array_equal(again.states(episode)[0], source.states(episode % 4)[0])
    first, second = again.actions(0) - source.actions(0), again.actions(4) - source.actions(0)
    assert not np.array_equal(first, second)
    spread = np.concatenate([again.actions(i) - source.actions(i % 4) for i in range(8)]).std()
    assert 0.05 < spread < 0.3  # 0.2, less where the sum is clipped; 96 correlated steps


def test_a_replay_sets_the_start_that_its_seed_does_not_give(source: Store, tmp_path: Path) -> None:
    """As for an imported recording."""
    path = tmp_path / "foreign"
    recorded(path, noise=0.4)
    file = path / "shards" / "00000" / "episodes.npy"
    rows = np.load(file)
    rows["seed"] = 0
    np.save(file, rows)
    again = recorded(tmp_path / "s", policies=replaying(Store.open(path)))
    for episode in range(4):
        np.testing.assert_array_equal(again.pixels(episode)[0], source.pixels(episode)[0])
        np.testing.assert_allclose(again.states(episode), source.states(episode), atol=1e-6)


def test_recordings_that_do_not_fit_are_refused(source: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"episode of 12 steps, too few to replay 13: lower steps to 12 or less"):
        recorded(tmp_path / "s", steps=13, policies=replaying(source))
    with pytest.raises(
        ValueError, match=r"policies\.again: .* has states \(x, y\).*the task has \(shoulder.*this task"
    ):
        collect(CollectConfig(steps=3, policies=replaying(source)), "reacher", SETTINGS, tmp_path / "s")


# Trained policies


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learned nothing, as a user's own training would leave it: no card."""
    path = tmp_path_factory.mktemp("sb3") / "policy.zip"
    task = envs.make("two_room", **SETTINGS)
    env = Sb3Env(task, StateView(task), "dense", 10)
    PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, seed=1, device="cpu").save(path)
    return path


def sb3(path: Path, **settings: Any) -> dict[str, Any]:
    return {"student": {"policy": "sb3", "path": str(path), "algorithm": "ppo", **settings}}


def test_a_trained_policy_records_its_own_actions(trained: Path, tmp_path: Path) -> None:
    store = recorded(tmp_path / "s", episodes=2, policies=sb3(trained))
    env, model = envs.make("two_room", **SETTINGS), PPO.load(trained, device="cpu")
    env.reset(seed=int(store.episodes["seed"][0]))
    policy = Sb3Policy(env, model, deterministic=True, goal_steps=100)
    policy.reset(np.random.default_rng(np.random.SeedSequence((5, 0)).spawn(3)[2]), env.state)
    for action in store.actions(0):
        entries = {"observation": env.state, "achieved_goal": env.state, "desired_goal": policy.goal_S}
        observation = {key: value.astype(np.float32) for key, value in entries.items()}
        expected = model.predict(observation, deterministic=True)[0]
        np.testing.assert_array_equal(policy.act(env.state), action)
        np.testing.assert_allclose(action, np.clip(expected, -1, 1), atol=1e-6)
        env.advance(action)
    (meta,) = store.meta.provenance.policies
    assert meta.name.startswith("student (sb3 policy.zip ")


def test_drawn_actions_depend_on_the_episode_alone(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    policies = sb3(trained, deterministic=False)
    first = recorded(tmp_path / "a", episodes=3, policies=policies)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    second = recorded(tmp_path / "b", episodes=3, policies=policies, shard_episodes=1)
    mean = recorded(tmp_path / "c", episodes=3, policies=sb3(trained))
    for episode in range(3):
        np.testing.assert_array_equal(first.actions(episode), second.actions(episode))
        assert not np.array_equal(first.actions(episode), mean.actions(episode))


class Straight:
    """A model that heads for its goal."""

    def predict(self, observation: dict[str, np.ndarray], deterministic: bool) -> tuple[np.ndarray, None]:
        self.goal = observation["desired_goal"]
        way = self.goal - observation["observation"]
        return way / max(np.abs(way).max(), 0.03), None


def test_a_goal_that_is_reached_or_given_up_is_followed_by_another() -> None:
    env = envs.make("two_room", **SETTINGS)
    env.set_state((0.2, 0.5))
    policy = Sb3Policy(env, Straight(), deterministic=True, goal_steps=15)
    policy.reset(np.random.default_rng(0), env.state)
    ages, reasons = [0], set()
    for _ in range(300):
        goal = policy.goal_S
        reached = bool(env.is_success(env.state, goal))
        action = policy.act(env.state)
        if policy.goal_S is goal:
            assert not reached
            ages[-1] += 1
        else:
            reasons.add("reached" if reached else "given up")
            assert reached or ages[-1] == 15
            assert not env.is_success(env.state, policy.goal_S)
            ages.append(1)
        env.advance(action)
    assert max(ages) == 15 and reasons == {"reached", "given up"}


def test_policies_of_other_tasks_and_without_a_card_are_refused(trained: Path) -> None:
    arm = envs.make("reacher", **SETTINGS)
    with pytest.raises(ValueError, match=r"sees .*'observation': \(2,\).*the task gives .*\(6,\).*`lewm train-expert`"):
        make_performers(arm, parse_policies(sb3(trained)), 0.0, 5)
    room = envs.make("two_room", **SETTINGS)
    with pytest.raises(
        FileNotFoundError, match=r"card\.json is missing, so give policy\.zip its `algorithm`: sac, td3"
    ):
        make_performers(room, parse_policies(sb3(trained, algorithm=None)), 0.0, 5)
    card = trained.with_name("card.json")
    card.write_text(json.dumps({"algorithm": "ppo"}))
    try:
        assert len(make_performers(room, parse_policies(sb3(trained, algorithm=None)), 0.0, 5)) == 1
    finally:
        card.unlink()


def test_angles_are_seen_as_cosine_and_sine() -> None:
    features = StateFeatures.of(envs.make("reacher", **SETTINGS))
    state = np.array([[np.pi / 2, 0.0, 3.0, -4.0], [-np.pi, 1.0, 0.0, 0.5]])
    seen = features.encode(state)
    assert features.width == 6 and seen.dtype == np.float32
    np.testing.assert_allclose(seen[0], [0, 1, 1, 0, 3, -4], atol=1e-7)
    np.testing.assert_allclose(np.cos(features.decode(seen)), np.cos(state), atol=1e-6)
    np.testing.assert_allclose(features.decode(seen)[:, 1:], state[:, 1:], atol=1e-6)

"""Scripted policies, over every task and every policy it names."""

import numpy as np
import pytest
from task_rows import task_class, task_row, task_rows

import envs
from envs.policies import OrnsteinUhlenbeck

ROWS = [task_row(task, name) for task in envs.TASKS for name in task_class(task).policies]


def rollout(task: str, name: str, noise: float, seed: int, steps: int = 60) -> np.ndarray:
    env = envs.make(task)
    policy = env.make_policy(name, noise)
    _, info = env.reset(seed=seed)
    policy.reset(np.random.default_rng(1000 + seed), info["state"])
    actions = []
    for _ in range(steps):
        action = policy.act(env.state)
        assert env.action_space.contains(action)
        actions.append(action)
        env.advance(action)
    return np.array(actions)


@pytest.mark.parametrize(("task", "name"), ROWS)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_reproducible_inside_the_space_and_seeded(task: str, name: str, noise: float) -> None:
    first = rollout(task, name, noise, seed=1)
    assert np.array_equal(first, rollout(task, name, noise, seed=1))
    assert not np.array_equal(first, rollout(task, name, noise, seed=2))


@pytest.mark.parametrize(("task", "name"), ROWS)
def test_a_used_policy_forgets_at_reset(task: str, name: str) -> None:
    env = envs.make(task)
    policy = env.make_policy(name, 0.2)
    start = env.reset(seed=0)[1]["state"]
    runs = []
    for _ in range(2):
        policy.reset(np.random.default_rng(5), start)
        runs.append([policy.act(start) for _ in range(80)])
    assert np.array_equal(*runs)


@pytest.mark.parametrize("task", task_rows())
def test_noise_disturbs_the_expert(task: str) -> None:
    quiet, noisy = rollout(task, "expert", 0.0, seed=1), rollout(task, "expert", 0.4, seed=1)
    assert 0.1 < np.abs(quiet - noisy).mean() < 1.5


@pytest.mark.parametrize("task", task_rows())
def test_bad_policies(task: str) -> None:
    env = envs.make(task)
    with pytest.raises(ValueError, match=r"unknown policy 'export', did you mean 'expert'\?; this task's policies are"):
        env.make_policy("export", 0.0)
    for noise in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"noise is .*, but must be finite and >= 0"):
            env.make_policy("expert", noise)


def test_noise_has_the_stated_size_and_memory() -> None:
    process = OrnsteinUhlenbeck(width=500, std=0.4, memory=5.0)
    process.reset(np.random.default_rng(0))
    values = np.stack([process.draw() for _ in range(200)])
    assert values.std() == pytest.approx(0.4, rel=0.03)
    for lag in (1, 5):
        correlation = (values[:-lag] * values[lag:]).mean() / values.var()
        assert correlation == pytest.approx(np.exp(-lag / 5.0), abs=0.03)

"""Environments whose state cannot be set: what still works, and what is refused."""

from collections.abc import Callable
from typing import Any

import foreign  # noqa: F401  (registers)
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import GoalEnv
from envs.adapter import StatelessEnv


@pytest.fixture
def env() -> GoalEnv:
    return envs.make("gym:foreign/Hidden-v0", size=32, state="none")


def test_it_is_an_environment(env: GoalEnv) -> None:
    check_env(env, skip_render_check=True)
    assert isinstance(env, StatelessEnv) and env.state_names == () and env.state.shape == (0,)
    assert env.settings == {"size": 32, "state": "none", "control_dt": 0.05, "make_kwargs": {}}
    assert envs.make("gym:foreign/Hidden-v0", **env.settings).renderer_fingerprint() == env.renderer_fingerprint()
    larger = envs.make("gym:foreign/Hidden-v0", size=40, state="none")
    assert larger.renderer_fingerprint() != env.renderer_fingerprint()


def test_an_episode_follows_its_seed(env: GoalEnv) -> None:
    def episode(seed: int) -> np.ndarray:
        pixels, _ = env.reset(seed=seed)
        policy = env.make_policy("correlated", noise=0.1)
        policy.reset(np.random.default_rng(1), env.state)
        return np.stack([pixels, *(env.step(policy.act(env.state))[0] for _ in range(15))])

    first, again, other = episode(4), episode(4), episode(5)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len(np.unique(first.reshape(16, -1), axis=0)) > 10


def test_it_stands_still_after_its_end_until_the_next_reset(env: GoalEnv) -> None:
    env.reset(seed=0)
    inner: Any = env._env.unwrapped  # type: ignore[attr-defined]
    while np.cos(inner.angle) >= 0.0:
        env.advance([1.0])
    ended = env.render()
    _, reward, terminated, truncated, info = env.step([1.0])
    assert np.array_equal(env.render(), ended) and (reward, terminated, truncated) == (0.0, False, False)
    assert info["is_success"] is False
    start, _ = env.reset(seed=0)
    assert not np.array_equal(start, ended)
    env.advance([1.0])
    assert not np.array_equal(env.render(), start)


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda env: env.set_state([]), "set_state"),
        (lambda env: env.goal_image([]), "goal_image"),
        (lambda env: env.simulate([], np.zeros((1, 1, 1))), "simulate"),
        (lambda env: env.is_success([], []), "distance"),
        (lambda env: env.reset(options={"state": [0.0]}), "reset with state"),
    ],
)
def test_what_needs_a_state_is_refused(env: GoalEnv, ask: Callable[[GoalEnv], Any], what: str) -> None:
    with pytest.raises(
        RuntimeError, match=rf"foreign/Hidden-v0 was made with state='none', so there is no {what}: state"
    ):
        ask(env)


def test_settings_that_need_a_state_are_refused() -> None:
    for settings in ({"success": {"entries": ["x"], "tolerance": 1}}, {"camera": 0}, {"hide": ["x"]}):
        with pytest.raises(
            ValueError, match=r"state is 'none': success, camera, flags and hide have nothing to act on"
        ):
            envs.make("gym:foreign/Hidden-v0", state="none", **settings)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        envs.make("gym:foreign/Hidden-v0", state="none").step([0.0])

"""The contract of a goal-image task, over environments of other people: the tests of test_goal_env.py on them."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from test_goal_env import (  # noqa: F401  (tests, collected here with the fixture below)
    random_states,
    test_actions_are_clipped,
    test_bad_actions,
    test_bad_states,
    test_distance_is_a_distance,
    test_questions_do_not_disturb_the_episode,
    test_same_seed_same_episode,
    test_simulate_equals_stepping,
    test_simulate_of_a_sequence_does_not_depend_on_its_company,
    test_state_and_pixels_are_copies,
    test_state_round_trip,
)

import envs
from envs import GoalEnv
from envs.adapter import AdaptedEnv

pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's packages


def row(id: str, needs: str | None, gl: bool, **settings: Any) -> Any:
    marks = [pytest.mark.gl] if gl else []
    if needs is not None and importlib.util.find_spec(needs) is None:
        marks.append(pytest.mark.skip(reason=f"{id} needs {needs}, which is not installed"))
    return pytest.param((f"gym:{id}", {"size": 32, "scatter": 15} | settings), id=id, marks=marks)


CART = {
    "state": {"attributes": ["angle", "speed"], "angles": ["angle"]},
    "success": {"entries": ["angle"], "tolerance": 0.1},
}
ROWS = [
    row("foreign:foreign/Cart-v0", None, False, **CART),
    row("Reacher-v5", None, True, camera={"lookat": [0, 0, 0], "distance": 0.6, "elevation": -90}),
    row("Pusher-v5", None, True),
    row("CartPole-v1", "pygame", False),
    row("Pendulum-v1", "pygame", False),
    row("Acrobot-v1", "pygame", False),
    row("PointMaze_UMaze-v3", "gymnasium_robotics", True),
    row("dm_control/reacher-easy-v0", "shimmy", True),
    row("pointmaze-medium-v0", "ogbench", True),
    row("gym_pusht/PushT-v0", "gym_pusht", False),
    row("swm/TwoRoom-v1", "stable_worldmodel", False),
]


@pytest.fixture(params=ROWS, scope="module")
def env(request: pytest.FixtureRequest) -> Iterator[GoalEnv]:
    task, settings = request.param
    env = envs.make(task, **settings)
    yield env
    env.close()


def test_gymnasium_check_env(env: GoalEnv) -> None:
    check_env(env, skip_render_check=True)


def test_pictures_fill_the_declared_space_and_follow_the_state(env: GoalEnv) -> None:
    pixels, _ = env.reset(seed=0)
    assert pixels.flags.c_contiguous and env.observation_space.contains(pixels)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3
    states = random_states(env, 20)
    assert len({env.goal_image(state).tobytes() for state in states}) >= 19  # at 32 pixels two may look the same


def test_settings_rebuild_the_task(env: GoalEnv) -> None:
    assert isinstance(env, AdaptedEnv)
    again = envs.make(f"gym:{env.id}", **env.settings)
    assert again.settings == env.settings
    assert again.home_state == env.home_state and again.state_names == env.state_names
    assert again.renderer_fingerprint() == env.renderer_fingerprint()
    again.close()


def test_reward_follows_success(env: GoalEnv) -> None:
    home = np.array(env.home_state)
    far = next(state for state in random_states(env, 30, seed=9) if not env.is_success(home, state))
    _, info = env.reset(options={"state": home, "goal_state": far})
    assert np.array_equal(info["state"], home) and np.array_equal(info["goal_state"], far)
    still = np.zeros(env.action_space.shape)
    assert info["is_success"] is False and env.step(still)[1:4] == (0.0, False, False)
    ahead = env.simulate(home, still[None, None])[0, 0]
    env.reset(options={"state": home, "goal_state": ahead})
    _, reward, terminated, truncated, info = env.step(still)
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, False, False, True)


def test_drawn_goals_are_not_solved_at_the_start(env: GoalEnv) -> None:
    assert not any(env.reset(seed=seed)[1]["is_success"] for seed in range(20))


def test_recorded_states_can_be_set_and_meet_themselves(env: GoalEnv) -> None:
    """Stores keep states as float32."""
    for state in random_states(env, 10).astype(np.float32):
        env.set_state(state)
        np.testing.assert_allclose(env.state, state, rtol=1e-6, atol=1e-6)
        assert env.is_success(env.state, state)


def test_policies_stay_inside_and_repeat(env: GoalEnv) -> None:
    for name in env.policies:
        runs = []
        for _ in range(2):
            policy = env.make_policy(name, noise=0.3)
            policy.reset(np.random.default_rng(5), env.state)
            runs.append([policy.act(env.state) for _ in range(30)])
        assert np.array_equal(*runs) and np.abs(runs[0]).max() <= 1.0 and np.std(runs[0]) > 0.1


def test_a_long_episode_never_starts_again(env: GoalEnv) -> None:
    """No time limit and no termination of the environment's own puts it back to a start."""
    env.reset(seed=0)
    home = np.array(env.home_state)
    env.set_state(home)
    action = np.where(np.arange(len(env.action_names)) % 2, -0.3, 0.4)
    states = [home]
    for _ in range(1100):
        env.advance(action)
        states.append(env.state)
    wide = np.array(states)
    assert np.isfinite(wide).all()
    assert not any(np.array_equal(state, home) for state in states[30:])

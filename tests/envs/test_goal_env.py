"""The contract of a goal-image task, over every row of the task table."""

import subprocess
import sys
import warnings
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from task_rows import task_rows

import envs
from envs import GoalEnv

NAMES = task_rows()


@pytest.fixture(params=NAMES)
def env(request: pytest.FixtureRequest) -> Iterator[GoalEnv]:
    env = envs.make(request.param)
    yield env
    env.close()


def random_states(env: GoalEnv, count: int, seed: int = 0) -> np.ndarray:
    return np.stack([env.reset(seed=seed + i)[1]["state"] for i in range(count)])


def random_actions(env: GoalEnv, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.5, 1.5, (*shape, len(env.action_names)))


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_check_env(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(envs.TASKS[name].id, size=32).unwrapped)


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_make_truncates(name: str) -> None:
    task = envs.TASKS[name]
    env = gymnasium.make(task.id, size=32)
    env.reset(seed=0)
    still = np.zeros(env.action_space.shape, np.float32)
    flags = [env.step(still)[2:4] for _ in range(task.max_episode_steps)]
    assert flags[-1] == (False, True)
    assert set(flags[:-1]) == {(False, False)}


@pytest.mark.parametrize("name", NAMES)
def test_make_by_name_and_id_is_the_same_task(name: str) -> None:
    assert type(envs.make(name)) is type(envs.make(envs.TASKS[name].id))


def test_importing_envs_loads_no_simulator_and_no_torch() -> None:
    code = "import sys, envs; print([m for m in ('mujoco', 'cv2', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("size", [32, 64, 512])
def test_observations_fill_the_declared_space(env: GoalEnv, size: int) -> None:
    sized = envs.make(env_name(env), size=size)
    pixels, _ = sized.reset(seed=0)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and sized.observation_space.contains(pixels)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3  # something is drawn, with smooth edges


def test_same_seed_same_episode(env: GoalEnv) -> None:
    def episode(seed: int) -> list[np.ndarray]:
        pixels, info = env.reset(seed=seed)
        out = [pixels, info["state"], info["goal_state"]]
        for action in random_actions(env, 20):
            pixels, reward, *_, info = env.step(action)
            out += [pixels, info["state"], np.array(reward)]
        return out

    first, second, other = episode(7), episode(7), episode(8)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert not np.array_equal(first[1], other[1]) and not np.array_equal(first[2], other[2])


def test_state_round_trip(env: GoalEnv) -> None:
    for state in random_states(env, 20):
        env.set_state(state)
        assert np.array_equal(env.state, state)
        assert np.array_equal(env.render(), env.goal_image(state))


def test_state_and_pixels_are_copies(env: GoalEnv) -> None:
    pixels, info = env.reset(seed=0)
    before = env.state
    env.state[:] = 0
    info["state"][:] = 0
    info["goal_state"][:] = 0
    pixels[:] = 0
    assert np.array_equal(env.state, before)
    assert env.render().any()
    assert env.step(np.zeros(env.action_space.shape))[-1]["goal_state"].any()


def test_questions_do_not_disturb_the_episode(env: GoalEnv) -> None:
    actions = random_actions(env, 30)
    other = random_states(env, 1, seed=5)[0]

    def episode(ask: bool) -> tuple[np.ndarray, np.ndarray]:
        env.reset(seed=3)
        for action in actions:
            env.step(action)
            if ask:
                env.goal_image(other)
                env.simulate(other, actions[None])
                env.renderer_fingerprint()
                env.distance(env.state, other)
        return env.state, env.render()

    for plain, asked in zip(episode(False), episode(True)):
        assert np.array_equal(plain, asked)


def test_goal_images_tell_states_apart(env: GoalEnv) -> None:
    images = {env.goal_image(state).tobytes() for state in random_states(env, 50)}
    assert len(images) == 50


def test_simulate_equals_stepping(env: GoalEnv) -> None:
    actions_NTA = random_actions(env, 6, 60)
    start = random_states(env, 1, seed=4)[0]
    states_NTS = env.simulate(start, actions_NTA)
    assert states_NTS.shape == (6, 60, len(env.state_names))
    for actions, states in zip(actions_NTA, states_NTS):
        env.set_state(start)
        for action, state in zip(actions, states):
            env.advance(action)
            # bit for bit, except that a shoulder wound beyond a full turn is rounded differently
            np.testing.assert_allclose(env.state, state, rtol=0, atol=1e-9 if env.angle_names else 0)


def test_simulate_of_a_sequence_does_not_depend_on_its_company(env: GoalEnv) -> None:
    start, actions_NTA = random_states(env, 1)[0], random_actions(env, 40, 10)
    together = env.simulate(start, actions_NTA)
    assert np.array_equal(env.simulate(start, actions_NTA[7:8])[0], together[7])
    assert env.simulate(start, actions_NTA[:0]).shape == (0, 10, len(start))


def test_actions_are_clipped(env: GoalEnv) -> None:
    start = random_states(env, 1)[0]
    edge_A = np.where(np.arange(len(env.action_names)) % 2, -1.0, 1.0)
    wild = np.stack([np.tile(edge_A * np.linspace(7.0, 40.0, len(edge_A)), (5, 1)), np.tile(edge_A, (5, 1))])
    states_NTS = env.simulate(start, wild)
    assert np.array_equal(states_NTS[0], states_NTS[1])


def test_distance_is_a_distance(env: GoalEnv) -> None:
    states = random_states(env, 40)
    table = env.distance(states[:, None], states[None])
    assert table.shape == (40, 40)
    assert np.array_equal(np.diag(table), np.zeros(40))
    np.testing.assert_allclose(table, table.T, rtol=0, atol=1e-12)
    assert (table[~np.eye(40, dtype=bool)] > 0).all()
    assert (table[:, None, :] <= table[:, :, None] + table[None, :, :] + 1e-9).all()  # triangle inequality
    assert float(env.distance(states[0], states[1])) == table[0, 1]


def test_success_at_the_goal_and_at_the_edge(env: GoalEnv) -> None:
    goal = np.array(env.home_state)
    assert env.is_success(goal, goal).shape == ()
    for entry in range(2):
        for sign in (-1, 1):
            for share, expected in ((0.99, True), (1.01, False)):
                state = goal.copy()
                state[entry] += sign * share * env.success_distance
                assert bool(env.is_success(state, goal)) is expected


def test_reward_and_info_follow_success(env: GoalEnv) -> None:
    home = list(env.home_state)
    _, info = env.reset(options={"state": home, "goal_state": home})
    assert info["is_success"] is True
    _, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, False, False, True)
    far = random_states(env, 1, seed=9)[0]
    _, info = env.reset(options={"state": home, "goal_state": far})
    assert np.array_equal(info["state"], home) and np.array_equal(info["goal_state"], far)
    assert info["is_success"] is False and env.step(np.zeros(env.action_space.shape))[1] == 0.0


def test_drawn_goals_are_not_solved_at_the_start(env: GoalEnv) -> None:
    infos = [env.reset(seed=seed)[1] for seed in range(300)]
    assert not any(info["is_success"] for info in infos)


def test_settings_rebuild_the_task(env: GoalEnv) -> None:
    again = envs.make(env_name(env), **env.settings)
    assert again.settings == env.settings
    assert again.renderer_fingerprint() == env.renderer_fingerprint()


def test_fingerprint_sees_the_size(env: GoalEnv) -> None:
    assert len(env.renderer_fingerprint()) == 64
    assert envs.make(env_name(env), size=48).renderer_fingerprint() != env.renderer_fingerprint()


def test_docstring_is_the_specification(env: GoalEnv) -> None:
    text = type(env).__doc__ or ""
    headings = "Description|Action Space|Observation Space|State|Rewards|Starting State|Success|Episode end|Settings"
    positions = [text.find(f"\n    {heading}:") for heading in [*headings.split("|"), "Version history"]]
    assert positions[0] > 0 and positions == sorted(positions)
    assert all(name in text for name in (*env.state_names, *env.action_names))


@pytest.mark.parametrize("size", [31, 513, 64.0, True, "64", None])
def test_bad_size(env: GoalEnv, size: object) -> None:
    with pytest.raises(ValueError, match=r"size is .*, but must be an int from 32 to 512"):
        envs.make(env_name(env), size=size)


def test_bad_names_are_refused_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'two_rooms', did you mean 'two_room'\?; the tasks are"):
        envs.make("two_rooms")
    with pytest.raises(ValueError, match=r"no setting 'sise', did you mean 'size'\?"):
        envs.make("reacher", sise=64)
    with pytest.raises(ValueError, match=r"renderer is 'opengl', but must be one of painter, camera"):
        envs.make("reacher", renderer="opengl")
    with pytest.raises(ValueError, match=r"render_mode is 'human'"):
        envs.make("reacher", render_mode="human")


def test_bad_states(env: GoalEnv) -> None:
    width = len(env.state_names)
    before = env.state
    nan = np.array(env.home_state)
    nan[1] = np.nan
    still_NTA = np.zeros((1, 1, *env.action_space.shape))
    for call in (env.set_state, env.goal_image, lambda s: env.simulate(s, still_NTA)):
        with pytest.raises(ValueError, match=rf"a state has shape \({width + 1},\), but must be \({width},\)"):
            call(np.zeros(width + 1))
        with pytest.raises(ValueError, match=r"every entry must be finite"):
            call(nan)
    with pytest.raises(ValueError, match=r"states have shape \(3, 1\), but the last axis must hold"):
        env.distance(np.zeros((3, 1)), before)
    assert np.array_equal(env.state, before)


def test_bad_actions(env: GoalEnv) -> None:
    env.reset(seed=0)
    before, width = env.state, len(env.action_names)
    for call in (env.step, env.advance):
        with pytest.raises(ValueError, match=rf"an action has shape \({width + 1},\), but must be \({width},\)"):
            call(np.zeros(width + 1))
        with pytest.raises(ValueError, match=r"NaN or infinite"):
            call(np.array([0.0] * (width - 1) + [np.nan]))
    with pytest.raises(ValueError, match=rf"an action has shape \(5, {width}\), but must be \(N, T, {width}\)"):
        env.simulate(before, np.zeros((5, width)))
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        env.simulate(before, np.full((1, 1, width), np.inf))
    assert np.array_equal(env.state, before)


def test_bad_options_and_order(env: GoalEnv) -> None:
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"reset has no option 'goal'; the options are state, goal_state"):
        env.reset(options={"goal": env.home_state})
    with pytest.raises(ValueError, match=r"a state has shape"):
        env.reset(options={"goal_state": [0.0]})


def env_name(env: GoalEnv) -> str:
    return next(name for name, task in envs.TASKS.items() if task.entry_point.endswith(f":{type(env).__name__}"))

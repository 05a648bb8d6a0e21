"""Factors of variation: what every row of every task's table promises, and the picture factors by hand."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from task_rows import task_rows

import envs
from envs import GoalEnv
from envs.picture_factors import PICTURE_FACTORS, Finish
from envs.variation import Factor, colour, ratio


@pytest.fixture(params=task_rows(), scope="module")
def env(request: pytest.FixtureRequest) -> Iterator[GoalEnv]:
    env = envs.make(request.param)
    yield env
    env.close()


@pytest.fixture
def default(env: GoalEnv) -> GoalEnv:
    env.vary({})
    return env


def shifted(env: GoalEnv, name: str, seed: int = 0) -> dict[str, Any]:
    return {name: env.factors[name].draw(np.random.default_rng(seed), "shifted")}


def actions_of(env: GoalEnv, count: int, steps: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1.0, 1.0, (count, steps, len(env.action_names)))


def test_every_factor_changes_what_it_says_and_nothing_else(default: GoalEnv) -> None:
    """A picture factor changes the home picture and no simulated state; a physics factor the other way round.

    The physics acts from a start where the task's own motion begins at once: pushed through 20 steps of full actions.
    """
    env, home = default, default.home_state
    start = pushing(env)
    actions_NTA = np.sign(actions_of(env, 4, 1)).repeat(20, axis=1)
    picture, states = env.goal_image(home), env.simulate(start, actions_NTA)
    for name, factor in env.factors.items():
        env.vary(shifted(env, name))
        changed_picture = not np.array_equal(env.goal_image(home), picture)
        changed_states = not np.array_equal(env.simulate(start, actions_NTA), states)
        assert (changed_picture, changed_states) == (factor.acts == "picture", factor.acts == "physics"), name
    env.vary({})
    assert np.array_equal(env.goal_image(home), picture) and np.array_equal(env.simulate(start, actions_NTA), states)


def pushing(env: GoalEnv) -> tuple[float, ...]:
    """A state from which actions have all their effects: for PushT, the disc beside the block it may push."""
    if "block_angle" in env.state_names and "agent_x" in env.state_names:
        return (0.44, 0.48, 0.5, 0.6, 0.0)
    return env.home_state


def test_simulate_equals_stepping_in_a_shifted_world(default: GoalEnv) -> None:
    env = default
    env.vary({k: v for name in env.factors for k, v in shifted(env, name, seed=3).items()})
    start, actions_NTA = pushing(env), actions_of(env, 2, 15)
    states_NTS = env.simulate(start, actions_NTA)
    for action_TA, state_TS in zip(actions_NTA, states_NTS):
        env.set_state(start)
        for action_A, state_S in zip(action_TA, state_TS):
            env.advance(action_A)
            np.testing.assert_allclose(env.state, state_S, rtol=0, atol=1e-9 if env.angle_names else 0)


def test_states_that_the_fastest_world_reaches_can_be_set(default: GoalEnv) -> None:
    """Every physics factor at either end of what is allowed, driven by constant full actions."""
    env = default
    physics = {name: factor for name, factor in env.factors.items() if factor.acts == "physics"}
    width = len(env.action_names)
    signs_NA = np.stack([np.where(np.arange(width) % 2 == n % 2, 1.0, n // 2 * 2 - 1.0) for n in range(4)])
    for end in ((0, 1), (1, 0), (1, 1)):
        env.vary({name: factor.allowed[end[i % 2]] for i, (name, factor) in enumerate(physics.items())})
        if physics:
            states_NTS = env.simulate(env.home_state, np.repeat(signs_NA[:, None], 40, axis=1))
            for state_S in states_NTS[:, ::3].reshape(-1, len(env.state_names)):
                env.check_state(state_S)


def test_two_environments_of_one_world_show_the_same(default: GoalEnv) -> None:
    env = default
    _, info = env.reset(seed=2, options={"variation": "shifted"})
    other = envs.make(task_of(env))
    kept = json.loads(json.dumps(info["variation"]))
    other.vary(kept)
    other.set_state(env.state)
    assert other.variation == env.variation and len(env.variation) > len(env.factors) - 2
    assert np.array_equal(other.render(), env.render())
    assert np.array_equal(other.goal_image(info["goal_state"]), env.goal_image(info["goal_state"]))
    assert np.array_equal(env.render(), env.goal_image(env.state))
    other.close()


def test_reset_chooses_the_world_and_keeps_it(default: GoalEnv) -> None:
    env = default
    plain, before = env.reset(seed=5)
    assert before["variation"] == {} and env.variation == {}
    _, usual = env.reset(seed=5, options={"variation": "usual"})
    _, again = env.reset(seed=5, options={"variation": "usual"})
    assert usual["variation"] == again["variation"] != {}
    assert env.reset(seed=6, options={"variation": "usual"})[1]["variation"] != usual["variation"]
    for key in ("state", "goal_state"):  # the same episode in another world
        assert np.array_equal(before[key], usual[key])
    kept = env.variation
    assert env.reset(seed=9)[1]["variation"] == kept
    assert env.step(np.zeros(env.action_space.shape))[-1]["variation"] == kept
    assert list(env.reset(seed=5, options={"variation": {"zoom": "shifted", "brightness": 1.2}})[1]["variation"]) == [
        "brightness",
        "zoom",
    ]
    assert np.array_equal(env.reset(seed=5, options={"variation": "default"})[0], plain)


def test_a_task_made_to_vary_does_so_in_every_reset_from_its_seed(default: GoalEnv) -> None:
    env = envs.make(task_of(default), variation="usual")
    assert env.renderer_fingerprint() == default.renderer_fingerprint()  # nothing varies before the first reset
    first, second = (env.reset(seed=seed)[1]["variation"] for seed in (1, 2))
    assert first != second and first and second
    again = envs.make(task_of(default), **json.loads(json.dumps(env.settings)))
    assert again.reset(seed=2)[1]["variation"] == second
    assert "variation" not in default.settings
    env.close()
    again.close()


def test_draws_stay_in_their_ranges(default: GoalEnv) -> None:
    """Sixty draws of every factor: usual in the usual box, shifted in a shifted box, all shifted boxes met."""
    rng = np.random.default_rng(0)
    for name, factor in default.factors.items():
        usual = np.array([factor.draw(rng, "usual") for _ in range(60)])
        assert (usual >= factor.usual[0]).all() and (usual <= factor.usual[1]).all(), name
        moved = np.array([factor.draw(rng, "shifted") for _ in range(60)])
        boxes = np.array([((moved >= low) & (moved <= high)).reshape(60, -1).all(-1) for low, high in factor.shifted])
        assert boxes.any(0).all() and boxes.any(1).all(), name


def task_of(env: GoalEnv) -> str:
    return next(name for name, task in envs.TASKS.items() if task.entry_point.endswith(f":{type(env).__name__}"))


# The picture factors by hand -----------------------------------------------------------------------------------------


def finished(image: np.ndarray, **values: Any) -> np.ndarray:
    return Finish({n: f.default for n, f in PICTURE_FACTORS.items()} | values, image.shape[0], (200, 200, 200))(image)


def spot(y: int, x: int, size: int = 33) -> np.ndarray:
    image = np.zeros((size, size, 3), np.uint8)
    image[y, x] = 255
    return image


def brightest(image: np.ndarray) -> tuple[int, int]:
    y, x = np.unravel_index(image.sum(-1).argmax(), image.shape[:2])
    return int(y), int(x)


def test_light_multiplies_and_clips() -> None:
    grey = np.full((33, 33, 3), 100, np.uint8)
    assert (finished(grey, brightness=1.5) == 150).all() and (finished(grey, brightness=3.0) == 255).all()
    assert finished(grey, warmth=0.2)[0, 0].tolist() == [120, 100, 80]


def test_camera_pose_moves_a_spot_where_it_should() -> None:
    """The middle of a 33-pixel picture is (16, 16); x counts to the right, rows downwards."""
    assert brightest(finished(spot(16, 16), shift=(4 / 33, 2 / 33))) == (14, 20)
    assert brightest(finished(spot(16, 20), zoom=2.0)) == (16, 24)
    assert brightest(finished(spot(16, 20), turn=np.pi / 2)) == (12, 16)  # from the right to the top


def test_blur_keeps_the_light_and_spreads_it() -> None:
    """A Gaussian of 1 pixel leaves 1 / (2 pi) = 0.159 of a spot in its pixel; a picture of 64 has the stated pixels."""
    image = finished(spot(32, 32, size=64), blur=1.0)
    assert 36 <= image[32, 32, 0] <= 45 and image[32, 33, 0] == image[33, 32, 0] > 15


def test_noise_has_its_size_and_follows_the_frame_alone() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    noisy = finished(grey, noise=20.0)
    assert np.array_equal(noisy, finished(grey, noise=20.0))
    assert abs((noisy.astype(float) - 128).std() - 20.0) < 0.6 and abs(noisy.mean() - 128) < 0.6
    other = grey.copy()
    other[0, 0, 0] += 1
    assert (finished(other, noise=20.0) != noisy).mean() > 0.9


def test_distractors_add_up_and_texture_only_darkens_the_floor() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    changed = [finished(black, distractors=(count, 7)).any(-1) for count in (1, 2, 4)]
    assert 0 < changed[0].sum() < changed[1].sum() < changed[2].sum() < 64 * 64 / 2
    assert (changed[1] >= changed[0]).all()
    half = np.full((64, 64, 3), 200, np.uint8)
    half[:, 32:] = 90
    textured = finished(half, texture=(60, 3))
    assert np.array_equal(textured[:, 32:], half[:, 32:])
    assert 140 <= textured[:, :32].min() < 160 and textured[:, :32].max() <= 200


def test_several_cameras_are_finished_alike() -> None:
    two = np.concatenate([spot(16, 20), spot(16, 20)], -1)
    image = finished(two, zoom=2.0, noise=5.0, distractors=(3, 1))
    assert image.shape == (33, 33, 6) and image.flags.c_contiguous
    assert np.array_equal(image[..., :3], image[..., 3:])


# What is refused -----------------------------------------------------------------------------------------------------


def test_wrong_factors_and_values_are_refused_and_change_nothing() -> None:
    env = envs.make("two_room")
    env.vary({"floor": [150, 150, 150], "speed": 1.5})
    assert env.variation == {"floor": (150, 150, 150), "speed": 1.5}
    before = env.render()
    for values, message in (
        ({"flor": 1}, r"there is no factor 'flor', did you mean 'floor'\?; the factors are brightness, "),
        ({"speed": 9}, r"factor 'speed' is 9, but must be numbers from 0.2 to 2.0: move per action"),
        ({"speed": [1.0]}, r"factor 'speed' is \[1.0\], but"),
        ({"speed": float("nan")}, r"factor 'speed' is nan, but"),
        ({"speed": "fast"}, r"factor 'speed' is 'fast', but"),
        ({"floor": (1, 2)}, r"factor 'floor' is \(1, 2\), but must be whole numbers from \(0, 0, 0\) to \(255,"),
        ({"floor": (1, 2, 2.5)}, r"factor 'floor' is \(1, 2, 2.5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            env.vary(values)
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0, options={"variation": values})
    with pytest.raises(ValueError, match=r"variation is 'wild', but must be one of default, usual, shifted, or"):
        envs.make("two_room", variation="wild")  # type: ignore[arg-type]
    assert np.array_equal(env.render(), before) and env.variation["speed"] == 1.5


def test_a_value_that_does_not_fit_the_settings_leaves_the_world_as_it_was() -> None:
    env = envs.make("push_t", max_move=0.09)
    env.vary({"speed": 1.1})
    with pytest.raises(ValueError, match=r"max_move is 0.135, but must be in \(0, 0.1\]"):
        env.vary({"speed": 1.5})
    assert env.variation == {"speed": 1.1} and env.settings["max_move"] == 0.09


def test_rows_that_contradict_themselves_are_refused() -> None:
    assert colour((250, 100, 5), (0, 0, 0), (9, 9, 9), "wall").usual == ((234, 84, 0), (255, 116, 21))
    with pytest.raises(ValueError, match=r"shifted \(\(90, 90, 90\), .* must not meet usual"):
        colour((100, 100, 100), (90, 90, 90), (95, 95, 95), "wall")
    with pytest.raises(ValueError, match=r"shifted is 2.0 to 3.0, but must be a range inside \(0.5, 2.0\)"):
        ratio("physics", (0.5, 2.0), (2.0, 3.0), what="mass")
    with pytest.raises(ValueError, match=r"default is 3.0, but must be in usual"):
        Factor(3.0, (0.0, 1.0), ((2.0, 3.0),), (0.0, 5.0), "picture", "haze")


@pytest.mark.gl
@pytest.mark.parametrize("task", ["reacher", "push_t", "point_maze"])
def test_the_camera_shows_what_the_painter_paints(task: str) -> None:
    """Colours and sizes reach MuJoCo's renderer too: its picture moves as the painter's does, and comes back."""
    painter, camera = envs.make(task), envs.make(task, renderer="camera")
    own = [name for name in painter.factors if name not in PICTURE_FACTORS and name != "texture"]
    before = [env.render().astype(float) for env in (painter, camera)]
    for name in own:
        if painter.factors[name].acts == "picture":
            values = shifted(painter, name)
            moves = []
            for env, plain in zip((painter, camera), before):
                env.vary(values)
                moves.append(env.render() - plain)
            # An edge may lie half a pixel off, never the change as a whole.
            assert np.abs(moves[0]).sum() > 0 and np.abs(moves[0] - moves[1]).sum() < 0.35 * np.abs(moves[0]).sum(), (
                name
            )
    camera.vary({})
    assert np.array_equal(camera.render(), before[1])
    painter.close()
    camera.close()

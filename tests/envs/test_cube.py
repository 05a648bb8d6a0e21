"""Cube: OGBench's physics step for step, its success, its oracle with our randomness, and pictures that show it all."""

import sys
from typing import Any

import numpy as np
import pytest

import envs
from envs.cube import Cube

pytest.importorskip("ogbench", reason="needs ogbench: pip install 'lewm[tasks]'")

from envs.cube_physics import _cube_env, physics
from envs.cube_policies import Expert, global_draws_from
from envs.cube_scene import AWAY, ELEVATION, HALF_WIDTH, LOOK_AT, scene


@pytest.fixture(scope="module")
def cube() -> Cube:
    return Cube()


@pytest.fixture(scope="module")
def original() -> Any:
    """OGBench's own environment, run by its own loop."""
    from ogbench.manipspace.envs.cube_env import CubeEnv

    return CubeEnv("single", mode="data_collection", terminate_at_goal=False, visualize_info=False)


def placed(block_3: Any, **entries: float) -> np.ndarray:
    """The home state with the block elsewhere, and other entries changed by name."""
    state = np.array(Cube.home_state)
    state[:3] = block_3
    for name, value in entries.items():
        state[Cube.state_names.index(name)] = value
    return state


def in_our_order(data: Any) -> np.ndarray:
    """OGBench's qpos and qvel (hinges first) as a state (block first)."""
    return np.concatenate([data.qpos[14:], data.qpos[:14], data.qvel[14:], data.qvel[:14]])


def play(cube: Cube, seed: int, steps: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, Expert]:
    """States (steps + 1, 41) and actions (steps, 5) of an expert episode."""
    cube.set_state(cube._draw_state(np.random.default_rng(seed)))
    policy: Any = cube.make_policy("expert", noise)
    policy.reset(np.random.default_rng(seed + 1000), cube.state)
    states, actions = [cube.state], []
    for _ in range(steps):
        actions.append(policy.act(cube.state))
        cube.advance(actions[-1])
        states.append(cube.state)
    return np.array(states), np.array(actions), getattr(policy, "policy", policy)


@pytest.mark.parametrize("seed", range(3))
def test_stepping_is_ogbenchs_own(cube: Cube, original: Any, seed: int) -> None:
    states, actions, expert = play(cube, seed, 60)
    assert np.linalg.norm(states[-1, :3] - states[0, :3]) > 0.05  # the block has been carried
    original.np_random = np.random.default_rng(seed)
    original.reset()
    original.data.mocap_pos[0] = expert.target_3
    assert np.array_equal(in_our_order(original.data), states[0])
    for action, state in zip(actions, states[1:]):
        *_, info = original.step(action.astype(np.float64))
        # Bit for bit until something touches; the solver's cold start then differs from its warm one by its tolerance.
        np.testing.assert_allclose(in_our_order(original.data)[:21], state[:21], rtol=0, atol=1e-4)
        assert info["success"] == bool(cube.is_success(state, placed(expert.target_3)))


def test_distance_by_rule(cube: Cube) -> None:
    goal, state = placed([0.4, 0.0, 0.02]), placed([0.43, -0.04, 0.14])
    np.testing.assert_allclose(cube.distance(state, goal), 0.13)  # 3, 4, 12, 13
    away = placed([0.4, 0.0, 0.02], shoulder_pan=-np.pi / 2 + 0.2)
    assert cube.distance(away, goal) == 0.0 and cube.is_success(away, goal)
    strict = Cube(rule="pose")
    # The finger tips turn with the shoulder about the base's vertical axis: a chord of their distance from it.
    radius = np.hypot(*physics().pinch(goal)[:2])
    np.testing.assert_allclose(strict.distance(away, goal), 2 * radius * np.sin(0.1), rtol=1e-6)
    np.testing.assert_allclose(strict.distance(state, goal), 0.13)
    assert strict.settings["rule"] == "pose" and not strict.is_success(away, goal)
    assert strict.distance(np.stack([away, goal, state])[:, None], np.stack([goal, away])[None]).shape == (3, 2)


def test_success_is_strict(cube: Cube) -> None:
    goal = placed([0.4, 0.0, 0.02])
    assert cube.is_success(placed([0.4, 0.0, 0.0599]), goal) and not cube.is_success(placed([0.4, 0.0, 0.0601]), goal)


def test_actions_move_what_they_name(cube: Cube) -> None:
    down = np.tile([0.0, 0.0, -1.0, 0.0, 0.0], (1, 6, 1))
    start = cube.simulate(cube.home_state, down)[0, -1]  # clear of the ceiling of the workspace
    still = cube.simulate(start, np.zeros((1, 10, 5)))[0, -1]
    for entry in range(3):
        push_NTA = np.zeros((2, 10, 5))
        push_NTA[:, :, entry] = [[0.5], [-0.5]]
        ends = cube.simulate(start, push_NTA)[:, -1]
        moved = physics().pinch(ends)[:, entry] - physics().pinch(still)[entry]
        assert moved[0] > 0.04 and moved[1] < -0.04
    turn_NTA = np.zeros((2, 10, 5))
    turn_NTA[:, :, 3] = [[1.0], [-1.0]]
    wrist = cube.simulate(cube.home_state, turn_NTA)[:, -1, Cube.state_names.index("wrist_3")]
    assert wrist[0] < -0.3 and wrist[1] > 0.3  # the gripper points down: its last joint turns the other way
    close_NTA = np.zeros((1, 20, 5))
    close_NTA[:, :10, 4], close_NTA[:, 10:, 4] = 1.0, -1.0
    grip = cube.simulate(cube.home_state, close_NTA)[0, :, Cube.state_names.index("gripper_right_driver")]
    assert grip[9] > 0.6 and grip[19] < 0.1


def test_tasks_side_by_side_share_the_physics_and_nothing_else(cube: Cube) -> None:
    other, actions = Cube(), np.random.default_rng(0).uniform(-1, 1, (30, 5))
    assert other._physics is cube._physics
    first, second = (cube._draw_state(np.random.default_rng(seed)) for seed in (1, 2))
    alone = cube.simulate(first, actions[None])[0, -1], cube.simulate(second, actions[None])[0, -1]
    cube.set_state(first)
    other.set_state(second)
    for action in actions:
        cube.advance(action)
        other.advance(action)
    assert np.array_equal(cube.state, alone[0]) and np.array_equal(other.state, alone[1])


def test_what_was_simulated_before_leaves_no_trace_in_a_grip(cube: Cube) -> None:
    states, actions, _ = play(cube, 0, 40)
    elsewhere = cube._draw_state(np.random.default_rng(9))
    for state, action, following in zip(states, actions, states[1:]):
        cube.simulate(elsewhere, np.ones((1, 1, 5)))
        assert np.array_equal(physics().step(state, action.astype(np.float64)), following)


def test_draws_lie_where_ogbench_draws_and_only_follow_their_generator(cube: Cube) -> None:
    states = np.stack([cube._draw_state(np.random.default_rng(seed)) for seed in range(200)])
    assert np.array_equal(states[7], cube._draw_state(np.random.default_rng(7)))
    fingers, block = physics().pinch(states), states[:, :3]
    for points, low, high in ((fingers, [0.25, -0.35, 0.2], [0.6, 0.35, 0.35]), (block, [0.3, -0.3], [0.55, 0.3])):
        points = points[:, : len(low)]
        assert (points >= np.array(low) - 1e-3).all() and (points <= np.array(high) + 1e-3).all()
        assert (np.ptp(points, axis=0) > 0.9 * np.subtract(high, low)).all()
    assert (block[:, 2] == 0.02).all() and not states[:, 21:].any()


def test_what_physics_makes_may_be_set(cube: Cube) -> None:
    rng = np.random.default_rng(0)
    for seed in range(6):
        start = cube._draw_state(np.random.default_rng(seed))
        bangs = np.sign(rng.normal(size=(1, 12, 5))).repeat(8, axis=1)
        bangs[..., 2] = -1.0  # into the table
        for state in cube.simulate(start, bangs)[0]:
            cube.set_state(state)
            cube.set_state(state.astype(np.float32))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_expert_picks_and_places(cube: Cube, noise: float) -> None:
    placed_well = 0
    for seed in range(6):
        states, _, expert = play(cube, 20 + seed, 0, noise)
        policy, target = (expert if noise == 0 else cube.make_policy("expert", noise)), None
        policy.reset(np.random.default_rng(seed), states[0])
        target = getattr(policy, "policy", policy).target_3.copy()  # type: ignore[attr-defined]
        highest = 0.0
        for _ in range(110):
            cube.advance(policy.act(cube.state))
            highest = max(highest, cube.state[2])
            if cube.is_success(cube.state, placed(target)) and cube.state[2] < 0.03:
                placed_well += highest > 0.08
                break
    assert placed_well >= 5


def test_expert_takes_a_new_target_when_done(cube: Cube) -> None:
    cube.set_state(cube._draw_state(np.random.default_rng(0)))
    policy: Any = cube.make_policy("expert", 0.0)
    policy.reset(np.random.default_rng(1), cube.state)
    targets = {tuple(policy.target_3)}
    for _ in range(250):
        cube.advance(policy.act(cube.state))
        targets.add(tuple(policy.target_3))
    assert len(targets) >= 3
    assert all(0.3 <= x <= 0.55 and -0.3 <= y <= 0.3 and z == 0.02 for x, y, z in targets)


def test_episodes_ignore_numpys_global_generator_and_leave_it_alone(cube: Cube) -> None:
    runs = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
        runs.append(play(cube, 5, 150, noise=0.2)[0])
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index] # noqa: NPY002
    assert np.array_equal(*runs)


def test_borrowed_global_draws_follow_the_given_generator() -> None:
    def drawn(seed: int) -> float:
        with global_draws_from(np.random.default_rng(seed)):
            return float(np.random.uniform())  # noqa: NPY002

    assert drawn(3) == drawn(3) != drawn(4)
    before = np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    with pytest.raises(KeyError), global_draws_from(np.random.default_rng(0)):
        raise KeyError
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index] # noqa: NPY002


def redness(image: np.ndarray) -> np.ndarray:
    """Above 0 where red is more than twice green: in the block, and not in the orange finger pads."""
    image = image.astype(float)
    return np.maximum(image[..., 0] - 2.0 * image[..., 1], 0.0)


@pytest.mark.gl
@pytest.mark.parametrize("place", [(0.3, -0.3), (0.3, 0.3), (0.55, -0.3), (0.55, 0.3), (0.45, -0.05)])
def test_the_block_is_seen_where_a_pinhole_camera_sees_it(place: tuple[float, float]) -> None:
    env = Cube(size=128)
    red = redness(env.goal_image(placed([*place, 0.02])))
    assert red.sum() > 0
    row, column = ((red * axis).sum() / red.sum() + 0.5 for axis in np.mgrid[:128, :128])
    way = np.array([*place, 0.02]) - LOOK_AT
    up = way @ [-np.sin(ELEVATION), 0.0, np.cos(ELEVATION)]
    depth = AWAY - way @ [np.cos(ELEVATION), 0.0, np.sin(ELEVATION)]
    focal = 64 * AWAY / HALF_WIDTH  # px
    np.testing.assert_allclose([column, row], [64 + focal * way[1] / depth, 64 - focal * up / depth], atol=0.7)


def test_boxes_enclose_the_meshes_they_stand_for() -> None:
    model, drawing, boxes = physics().model, scene(64), 0
    for shape, geom in enumerate(drawing.drawn):
        if model.geom_type[geom] != 7:  # mjGEOM_MESH
            continue
        boxes += 1
        first, count = (of[model.geom_dataid[geom]] for of in (model.mesh_vertadr, model.mesh_vertnum))
        low, high = (end(model.mesh_vert[first : first + count], axis=0) for end in (np.min, np.max))
        box = drawing.model.body(str(geom)).geomadr[0]
        assert drawing.model.body(str(geom)).mocapid[0] == shape
        np.testing.assert_allclose(drawing.model.geom_pos[box], (low + high) / 2, atol=1e-5)
        np.testing.assert_allclose(drawing.model.geom_size[box], (high - low) / 2, atol=1e-5)
    assert boxes == 10  # base mount, base, and four links of each finger


@pytest.mark.gl
def test_a_carried_block_stays_in_sight(cube: Cube) -> None:
    carried = [state for seed in range(3) for state in play(cube, seed, 60)[0] if state[2] > 0.05]
    seen = [redness(cube.goal_image(state)).max() for state in carried]
    assert len(seen) > 30 and np.mean(np.array(seen) > 10) > 0.95


@pytest.mark.gl
def test_fingers_and_turn_are_seen(cube: Cube) -> None:
    home = np.array(cube.home_state)
    grip = {f"gripper_{side}_{link}": 0.7 for side in ("right", "left") for link in ("driver", "spring_link")}
    grip |= {f"gripper_{side}_follower": -0.7 for side in ("right", "left")}
    for changed in (placed(home[:3], **grip), placed(home[:3], wrist_3=0.6), placed(home[:3], wrist_3=-0.6)):
        difference = np.abs(cube.goal_image(changed).astype(int) - cube.goal_image(home).astype(int))
        assert (difference.max(-1) > 20).sum() >= 5


@pytest.mark.gl
def test_a_closed_task_draws_again_and_sizes_do_not_disturb_each_other(cube: Cube) -> None:
    before = cube.render()
    large = Cube(size=96)
    large.render()
    large.close()
    assert np.array_equal(cube.render(), before)
    cube.close()
    assert np.array_equal(cube.render(), before)


@pytest.mark.parametrize(
    ("block", "entries", "message"),
    [
        ([0.4, 0.0, -0.01], {}, r"the block's centre is at \[0.4, 0.0, -0.01\] m, but must be above the floor"),
        ([0.4, 1.2, 0.02], {}, r"within 1 m of the table's middle"),
        ([0.4, 0.0, 0.02], {"block_qw": 0.5}, r"the block's quaternion is \[0.5, 0.0, 0.0, 0.0\], but its length"),
        ([0.4, 0.0, 0.02], {"elbow": 3.5}, r"elbow is 3.5 rad, but its hinge turns from -3.1415 to 3.1415"),
        ([0.4, 0.0, 0.02], {"gripper_left_driver": -0.2}, r"gripper_left_driver is -0.2 rad, but its hinge"),
        ([0.4, 0.0, 0.02], {"block_spin_z": 201.0}, r"the speeds are .*, but must be within 200"),
    ],
)
def test_impossible_states_are_refused(cube: Cube, block: list[float], entries: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cube.set_state(placed(block, **entries))


def test_unstable_physics_is_an_error_and_not_a_new_start() -> None:
    state = placed([0.4, 0.0, 0.02])
    state[21:] = 3000.0
    with pytest.raises(RuntimeError, match=r"the physics became unstable after the state \[0.4, .*less speed"):
        for _ in range(10):
            state = physics().step(state, np.zeros(5))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"renderer is 'painter', but this task has no painter: it must be 'camera'"):
        envs.make("cube", renderer="painter")
    with pytest.raises(ValueError, match=r"rule is 'stack', but must be one of block, pose"):
        envs.make("cube", rule="stack")


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ogbench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(ImportError, match=r"^lewm/Cube-v0 needs ogbench: pip install 'lewm\[tasks\]'$"):
        _cube_env()


def quaternion(angle: float, *axis: float) -> np.ndarray:
    return np.array([np.cos(angle / 2), *(np.sin(angle / 2) * np.array(axis) / np.sqrt(np.sum(np.square(axis))))])


def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    w, v = one[0], one[1:]
    return np.array([w * other[0] - v @ other[1:], *(w * other[1:] + other[0] * v + np.cross(v, other[1:]))])


def test_turn_is_the_smallest_angle_to_a_block_that_looks_alike(cube: Cube) -> None:
    """Against the 24 rotations of a cube, made here of quarter turns."""
    group = [quaternion(0, 0, 0, 1)]
    for _ in range(8):
        for turn in (quaternion(np.pi / 2, 0, 0, 1), quaternion(np.pi / 2, 1, 0, 0)):
            group += [
                new for old in group if not any(abs(abs((new := product(old, turn)) @ g) - 1) < 1e-9 for g in group)
            ]
    assert len(group) == 24
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(40, 2, 4))
    drawn /= np.sqrt((drawn**2).sum(-1, keepdims=True))
    states = np.tile(np.array(cube.home_state), (40, 2, 1))
    states[..., 3:7] = drawn
    naive = [min(2 * np.arccos(min(1.0, abs(product(a, g) @ b))) for g in group) for a, b in drawn]
    np.testing.assert_allclose(cube.turn(states[:, 0], states[:, 1]), naive, atol=1e-6)
    assert max(naive) < 1.1
    placed_at = {degrees: np.array(cube.home_state) for degrees in (0, 15, 45, 90)}
    for degrees, state in placed_at.items():
        state[3:7] = quaternion(np.deg2rad(degrees), 0, 0, 1)
    seen = {degrees: float(np.rad2deg(cube.turn(state, placed_at[0]))) for degrees, state in placed_at.items()}
    assert seen == pytest.approx({0: 0, 15: 15, 45: 45, 90: 0}, abs=1e-4)
    assert cube.success_turn == pytest.approx(np.deg2rad(20))

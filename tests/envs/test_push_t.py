"""PushT: contact physics, walls, the T's geometry, both rules of success, pictures and scripted pushers."""

from collections.abc import Iterator

import numpy as np
import pytest

import envs
from envs.push_t import ANGLE_WEIGHT, PIXEL, RADIUS, PushT
from envs.push_t_policies import NORMALS_P2, POINTS_P2, Pusher, contour, reachable, standoff
from envs.push_t_shape import AREA, CENTRES_R2, GYRATION2, HALVES_R2, REACH, corners, coverage, gap
from envs.reacher import wrap_angle


@pytest.fixture(scope="module")
def env() -> PushT:
    return PushT()


@pytest.fixture
def covering() -> Iterator[PushT]:
    env = PushT(rule="coverage")
    yield env
    env.close()


def push(env: PushT, state: list[float], action: list[float], steps: int) -> np.ndarray:
    """The states (steps + 1, 5) from a start under one action held."""
    path = env.simulate(state, np.tile(action, (1, steps, 1)))[0]
    return np.concatenate([[state], path])


def test_the_t_by_hand() -> None:
    """Bar 120 x 30, stem 30 x 90, centre of mass 40.714 below the bar's top, in a 512 arena."""
    np.testing.assert_allclose(AREA * 512**2, 120 * 30 + 30 * 90)
    areas = 4 * HALVES_R2.prod(-1)
    np.testing.assert_allclose(areas @ CENTRES_R2, 0, atol=1e-15)
    tops, bottoms = CENTRES_R2[:, 1] + HALVES_R2[:, 1], CENTRES_R2[:, 1] - HALVES_R2[:, 1]
    assert bottoms[0] == pytest.approx(tops[1]) and (tops[0] - bottoms[1]) * 512 == pytest.approx(120)
    own = (4 * HALVES_R2**2).sum(-1) / 12 + (CENTRES_R2**2).sum(-1)  # parallel axes
    assert areas @ own / AREA == pytest.approx(GYRATION2)


def test_the_model_is_the_same_t(env: PushT) -> None:
    model = env.model
    for name, centre, half in zip(("bar", "stem"), CENTRES_R2, HALVES_R2):
        np.testing.assert_allclose(model.geom(name).pos[:2], centre, atol=1e-6)
        np.testing.assert_allclose(model.geom(name).size[:2], half, atol=1e-6)
    assert model.geom("agent").size[0] == RADIUS
    block = model.body("block")
    assert block.inertia[2] / block.mass[0] == pytest.approx(GYRATION2, rel=1e-3)
    damping = [model.joint(name).damping[0] for name in ("block_x", "block_angle")]
    assert damping[1] / damping[0] == pytest.approx(GYRATION2, rel=1e-3)
    assert model.opt.timestep * 10 == pytest.approx(env.control_dt)


def test_gap_by_hand() -> None:
    block = np.array([0.5, 0.5, np.pi / 2])  # turned left: the bar is on the left, the stem points right
    above_bar = np.array([0.5 - CENTRES_R2[0, 1], 0.5 + HALVES_R2[0, 0] + 0.1])
    beyond_stem = np.array([0.5 - CENTRES_R2[1, 1] + HALVES_R2[1, 1] + 0.03, 0.5 + HALVES_R2[1, 0] + 0.04])
    np.testing.assert_allclose(gap(np.stack([above_bar, beyond_stem]), block), [0.1, 0.05])
    assert gap(np.array([0.5, 0.5]), block) < 0
    assert gap(np.array([0.5 + REACH, 0.5]), block) > 0


def test_the_disc_moves_by_its_action_where_nothing_is_in_the_way(env: PushT) -> None:
    path = push(env, [0.2, 0.2, 0.7, 0.7, 0.3], [0.5, 1.0], 3)
    np.testing.assert_allclose(path[:, 0], 0.2 + 0.02 * np.arange(4), atol=1e-9)
    np.testing.assert_allclose(path[:, 1], 0.2 + 0.04 * np.arange(4), atol=1e-9)
    assert (path[:, 2:] == path[0, 2:]).all()


def test_a_central_push_slides_the_block_without_turning_it(env: PushT) -> None:
    start = [0.5, 0.2, 0.5, 0.4, 0.0]  # below the stem's end, pushing up
    path = push(env, start, [0.0, 1.0], 10)
    assert path[-1, 3] - path[0, 3] > 0.2
    np.testing.assert_allclose(path[:, [0, 2, 4]], path[0, [0, 2, 4]] + np.zeros((11, 3)), atol=1e-6)
    touching = np.diff(path[:, 3]) > 0.03
    assert touching[-5:].all()
    np.testing.assert_allclose(np.diff(path[:, 1])[-5:], np.diff(path[:, 3])[-5:], atol=2e-3)


@pytest.mark.parametrize(("x", "sign"), [(0.58, 1), (0.42, -1)])
def test_a_push_off_centre_turns_the_block_the_right_way(env: PushT, x: float, sign: int) -> None:
    """Up against the bar's underside: on the right it turns counter-clockwise."""
    path = push(env, [x, 0.44, 0.5, 0.5, 0.0], [0.0, 1.0], 5)
    assert sign * path[-1, 4] > 0.3
    assert path[-1, 3] > path[0, 3]


def test_a_push_moves_the_block_as_a_quasi_static_slider(env: PushT) -> None:
    """The first instants of a push along f at arm c: turn / slide = (c x f) / gyration^2, less a little friction."""
    arm, depth = 0.08, 0.0005
    underside = CENTRES_R2[0, 1] - HALVES_R2[0, 1]
    start = [0.5 + arm, 0.5 + underside - RADIUS + depth, 0.5, 0.5, 0.0]
    path = push(env, start, [0.0, 0.05], 1)
    slide, turned = path[-1, 3] - path[0, 3], path[-1, 4] - path[0, 4]
    assert slide > 0.001
    assert turned / slide == pytest.approx(arm / GYRATION2, rel=0.08)


def test_the_block_stays_where_it_is_left(env: PushT) -> None:
    pushed = push(env, [0.55, 0.3, 0.5, 0.5, 0.0], [0.0, 1.0], 4)
    away = push(env, list(pushed[-1]), [0.0, -1.0], 20)
    assert np.abs(away[1:, 2:] - away[1, 2:]).max() < 1e-4
    np.testing.assert_allclose(away[1, 2:], pushed[-1, 2:], atol=0.01)  # only the contact lets go
    still = push(env, [0.2, 0.2, 0.6, 0.6, 0.4], [0.0, 0.0], 20)
    assert (still == still[0]).all()


def test_walls_hold_disc_and_block(env: PushT) -> None:
    rng = np.random.default_rng(0)
    deepest_disc = deepest_block = overlap = 0.0
    for seed in range(12):
        state = env._draw_state(np.random.default_rng(seed))
        # long straight runs through the block and into the walls
        to_block = np.sign(state[2:4] - state[:2]) * rng.uniform(0.3, 1.0, (8, 1, 2))
        runs = np.concatenate([to_block, rng.uniform(-1, 1, (8, 4, 2)) * 2], axis=1).repeat(12, axis=1)
        states = env.simulate(state, runs)
        disc, ends = states[..., :2], corners(states[..., 2:])
        deepest_disc = max(deepest_disc, float((np.abs(disc - 0.5) - 0.5 + RADIUS).max()))
        deepest_block = max(deepest_block, float((np.abs(ends - 0.5) - 0.5).max()))
        overlap = max(overlap, float((RADIUS - gap(disc, states[..., 2:])).max()))
        for last in states[:, ::10].reshape(-1, 5):
            env.check_state(last)  # every state that physics makes may be set again
    assert 0.0 < deepest_disc < 0.01 and 0.0 < deepest_block < 0.015 and 0.0 < overlap < 0.015


def test_a_state_determines_the_future(env: PushT) -> None:
    """In the middle of a push, setting the state that was read goes on bit for bit as the episode does."""
    policy = env.make_policy("push", 0.0)
    env.set_state(env.home_state)
    policy.reset(np.random.default_rng(3), env.state)
    states, actions = [env.state], []
    for _ in range(60):
        actions.append(policy.act(env.state))
        env.advance(actions[-1])
        states.append(env.state)
    moved = np.abs(np.diff(np.array(states)[:, 4])) > 0
    assert moved.sum() > 10
    for middle in np.flatnonzero(moved)[::7]:
        future = env.simulate(states[middle], np.array(actions)[None, middle:])[0]
        assert np.array_equal(future, states[middle + 1 :])


def test_the_angle_is_wrapped_through_a_full_turn(env: PushT) -> None:
    env.set_state([0.2, 0.2, 0.5, 0.5, 2 * np.pi + 0.25])
    np.testing.assert_allclose(env.state[4], 0.25, atol=1e-12)
    # the bar lies below here: pushed down on its left end, the block turns counter-clockwise, past pi
    path = push(env, [0.42, 0.52, 0.5, 0.5, np.pi - 0.1], [0.0, -1.0], 6)
    assert path[-1, 4] < -2 and (np.abs(path[:, 4]) <= np.pi).all()


def test_impossible_states_are_refused(env: PushT) -> None:
    with pytest.raises(ValueError, match=r"the disc's centre is at \(1.1, 0.5\), but x and y must be in \[0.029"):
        env.set_state([1.1, 0.5, 0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"the block at .* reaches from .* but must lie inside the unit square"):
        env.set_state([0.5, 0.5, 0.95, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"must be at least its radius 0.0292969 away"):
        env.set_state([0.5, 0.5, 0.5, 0.52, 0.0])


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"rule is 'area', but must be one of pose, coverage"):
        PushT(rule="area")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"max_move is 0.2, but must be in \(0, 0.1\]"):
        PushT(max_move=0.2)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ([19.9, 0, 0, 0, 0], True),
        ([0, 0, 0, 20.1, 0], False),
        ([14, 0, 14, 0, 19.9], True),  # 19.8 px over disc and block together
        ([14.2, 0, 14.2, 0, 0], False),  # 20.1 px
        ([0, 0, 0, 0, 20.1], False),
        ([0, 0, 0, 0, 359], True),
    ],
)
def test_rule_pose_by_hand(env: PushT, error: list[float], expected: bool) -> None:
    goal = np.array([0.3, 0.3, 0.6, 0.6, 3.0])
    state = goal + np.array(error) * [PIXEL, PIXEL, PIXEL, PIXEL, np.deg2rad(1)]
    assert bool(env.is_success(state, goal)) is expected


def test_distance_is_the_larger_of_place_and_angle(env: PushT) -> None:
    assert np.rad2deg(env.success_distance / ANGLE_WEIGHT) == pytest.approx(20)
    np.testing.assert_allclose(env.distance([0.1, 0.2, 0.5, 0.5, 0.0], [0.4, 0.6, 0.5, 0.5, 0.1]), 0.5)
    np.testing.assert_allclose(env.distance([0.1, 0.2, 0.5, 0.5, 3.0], [0.1, 0.2, 0.5, 0.5, 1.0]), 2 * ANGLE_WEIGHT)


def test_coverage_golden() -> None:
    """By hand: a shift by s uncovers s x 120 px^2 of 6300; upside down, two T's about the same centre share 2442.9."""
    goal = np.array([0.4, 0.5, 0.0])
    for shift in ([3 * PIXEL, 0, 0], [0, 3 * PIXEL, 0], [0, -3 * PIXEL, 0]):
        assert coverage(goal + shift, goal) == pytest.approx(1 - 360 / 6300)
    # upside down: each bar meets the other's stem in 30 x 30, the stems meet in 30 x 2 x (11 - 2/7) around the centre
    assert coverage(goal + np.array([0, 0, np.pi]), goal) == pytest.approx((2 * 900 + 30 * 2 * 75 / 7) / 6300)
    assert coverage(goal, goal) == 1.0 and coverage(goal + np.array([0.5, 0, 0]), goal) == 0.0


def test_coverage_agrees_with_counting_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.25, 0.25, (200_000, 2))
    block, goal = (np.column_stack([rng.uniform(-0.06, 0.06, (6, 2)), rng.uniform(-4, 4, 6)]) for _ in range(2))
    counted = [((gap(points, b) < 0) & (gap(points, g) < 0)).mean() * 0.25 / AREA for b, g in zip(block, goal)]
    np.testing.assert_allclose(coverage(block, goal), counted, atol=0.01)
    np.testing.assert_allclose(coverage(block, goal), coverage(goal, block), atol=1e-12)


def test_rule_coverage_is_success_exactly_above_95_percent(covering: PushT) -> None:
    rng = np.random.default_rng(0)
    goal = np.array([0.3, 0.3, 0.6, 0.6, 3.1])
    states = goal + rng.uniform(-1, 1, (3000, 5)) * [0.3, 0.3, 0.006, 0.006, 0.06]
    covered = coverage(states[:, 2:], goal[2:])
    assert 0.05 < (covered > 0.95).mean() < 0.5
    assert np.array_equal(covering.is_success(states, goal), covered > 0.95)
    aside = np.array([0, 0, 1.0, 0, 0])
    far = covering.distance(goal + 0.3 * aside, goal)  # no plateau where nothing is covered
    assert covering.distance(goal + 0.35 * aside, goal) > far > covering.success_distance
    assert covering.settings["rule"] == "coverage"


def test_coverage_distance_is_a_distance(covering: PushT) -> None:
    rng = np.random.default_rng(1)
    states = np.column_stack([rng.uniform(0.2, 0.21, (40, 4)), rng.uniform(-0.1, 0.1, 40)])
    table = covering.distance(states[:, None], states[None])
    np.testing.assert_allclose(table, table.T, atol=1e-12)
    assert (table[:, None, :] <= table[:, :, None] + table[None, :, :] + 1e-9).all()
    assert (table < covering.success_distance).mean() > 0.05


def test_picture_shows_the_t_where_geometry_puts_it() -> None:
    size = 256
    env = PushT(size=size)
    state = np.array([0.2, 0.8, 0.55, 0.45, 2.2])
    image = env.goal_image(state).astype(int)
    x, y = np.meshgrid((np.arange(size) + 0.5) / size, 1 - (np.arange(size) + 0.5) / size)
    points = np.stack([x, y], -1)
    block, disc = gap(points, state[2:]), np.hypot(*(np.moveaxis(points - state[:2], -1, 0))) - RADIUS
    assert (image[block < -1 / size] == (106, 128, 163)).all()  # no seam between bar and stem
    assert (image[disc < -1 / size] == (214, 62, 48)).all()
    assert (image[(block > 1 / size) & (disc > 1 / size)] == (242, 240, 235)).all()


@pytest.mark.gl
@pytest.mark.parametrize("size", [64, 224])
def test_camera_sees_what_the_painter_paints(size: int) -> None:
    painter, camera = PushT(size=size), PushT(size=size, renderer="camera")
    for seed in range(4):
        state = painter._draw_state(np.random.default_rng(seed))
        painted, seen = painter.goal_image(state).astype(int), camera.goal_image(state).astype(int)
        assert np.abs(painted - seen).mean() < 0.3
        assert np.abs(np.roll(painted, 1, axis=1) - seen).mean() > 1.5 * np.abs(painted - seen).mean()
    camera.close()


def record(env: PushT, name: str, noise: float, episodes: int, steps: int) -> np.ndarray:
    states = []
    for seed in range(episodes):
        env.set_state(env._draw_state(np.random.default_rng(seed)))
        policy = env.make_policy(name, noise)
        policy.reset(np.random.default_rng(1000 + seed), env.state)
        for _ in range(steps):
            env.advance(policy.act(env.state))
            states.append(env.state)
    return np.array(states).reshape(episodes, steps, 5)


@pytest.mark.parametrize(("name", "least"), [("push", 0.45), ("expert", 0.3), ("weak", 0.45)])
def test_policies_keep_in_touch_with_the_block(env: PushT, name: str, least: float) -> None:
    """Shares over 40 episodes: push 0.59, expert 0.45, weak 0.64; uniform random actions 0.03."""
    states = record(env, name, 0.3, episodes=12, steps=80)
    contact = gap(states[..., :2], states[..., 2:]) < RADIUS + 0.003
    assert contact.mean() > least
    turned = np.abs(wrap_angle(np.diff(states[..., 4], axis=1))).sum(1)
    assert np.median(turned) > 0.7


def test_random_pushes_reach_every_angle(env: PushT) -> None:
    states = record(env, "push", 0.3, episodes=25, steps=80)
    shares = np.histogram(states[..., 4], bins=8, range=(-np.pi, np.pi))[0] / states[..., 4].size
    assert shares.min() > 0.03 and shares.max() < 0.3


def test_expert_reaches_its_poses_and_random_does_not(env: PushT, covering: PushT) -> None:
    """Over 100 goals in 200 steps without noise the expert reaches 95 % by either rule."""
    reached = {"pose": 0, "coverage": 0}
    for seed in range(12):
        env.set_state(env._draw_state(np.random.default_rng(seed)))
        expert = env.make_policy("expert", 0.0)
        expert.reset(np.random.default_rng(1000 + seed), env.state)
        goal = expert.goal_S.copy()  # type: ignore[attr-defined]
        path = []
        for _ in range(150):
            env.advance(expert.act(env.state))
            path.append(env.state)
        reached["pose"] += bool(env.is_success(path, goal).any())
        reached["coverage"] += bool(covering.is_success(path, goal).any())
        idle = env.simulate(path[0], np.random.default_rng(seed).uniform(-1, 1, (1, 150, 2)))[0]
        assert not env.is_success(idle, goal).any()
    assert reached["pose"] >= 8 and reached["coverage"] >= 8


def test_the_contour_keeps_clear_of_the_block() -> None:
    places = contour(RADIUS)
    block = np.zeros(3)
    between = (places + np.roll(places, -1, axis=0)) / 2
    assert gap(places, block).min() > RADIUS + 0.01 and gap(between, block).min() > RADIUS + 0.003
    angle = np.unwrap(np.arctan2(places[:, 1], places[:, 0]))
    assert angle[-1] - angle[0] > 1.5 * np.pi  # once round, counter-clockwise


def test_the_disc_goes_round_the_side_that_is_open(env: PushT) -> None:
    """The stem's end is at the left wall: the way from below it to above it leads round the bar."""
    env.set_state([0.06, 0.4, 0.16, 0.5, -np.pi / 2])
    pusher, target = Pusher(RADIUS, env.max_move), np.array([0.06, 0.6])
    for _ in range(40):
        env.advance(pusher.towards(env.state, target))
    np.testing.assert_allclose(env.state, [0.06, 0.6, 0.16, 0.5, -np.pi / 2], atol=1e-6)


def test_pushes_begin_only_where_the_disc_fits(env: PushT) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        block = env._draw_state(rng)[2:]
        starts = standoff(POINTS_P2, NORMALS_P2, block, RADIUS)
        free = reachable(block, RADIUS)
        assert 5 < free.sum() < len(free)  # never all: the disc does not fit into the T's inner corners
        for start in starts[free]:
            assert start.min() >= RADIUS and start.max() <= 1 - RADIUS and gap(start, block) > RADIUS


def test_registered() -> None:
    assert isinstance(envs.make("push_t"), PushT) and envs.TASKS["push_t"].id == "lewm/PushT-v0"

"""TwoRoom: collisions along the whole move, and the shortest way through the door."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from envs.two_room import TwoRoom

ROOM = TwoRoom()  # the disc's centre: rooms x <= 0.43 and x >= 0.57, passage y in [0.24, 0.36], arena [0.04, 0.96]
ANYWHERE = st.floats(0.04, 0.96)
MOVES = st.one_of(st.floats(-3, 3), st.floats(-0.05, 0.05), st.sampled_from([0.0, 1e-13, -1e-9, 0.14]))


def inside_solid(states: np.ndarray, by: float) -> np.ndarray:
    x, y = states[..., 0], states[..., 1]
    in_wall = (x > 0.43 + by) & (x < 0.57 - by) & ((y < 0.24 - by) | (y > 0.36 + by))
    return in_wall | (x < 0.04 - by) | (x > 0.96 + by) | (y < 0.04 - by) | (y > 0.96 + by)


def free(x: float, y: float) -> bool:
    return not inside_solid(np.array([x, y]), by=0.0)


def go(start: tuple[float, float], move: tuple[float, float]) -> np.ndarray:
    env = TwoRoom(max_move=1.0)
    env.set_state(start)
    env.advance(move)
    return env.state


@pytest.mark.parametrize(
    ("start", "move", "end"),
    [
        ((0.2, 0.7), (0.03, -0.02), (0.23, 0.68)),  # free
        ((0.3, 0.7), (1.0, 0.0), (0.43, 0.7)),  # stops at the wall however long the move
        ((0.9, 0.7), (-1.0, 0.0), (0.57, 0.7)),
        ((0.42, 0.7), (0.04, 0.04), (0.43, 0.74)),  # slides along the wall with the other axis
        ((0.43, 0.7), (0.5, -0.1), (0.43, 0.6)),  # in contact from the start
        ((0.2, 0.3), (0.7, 0.0), (0.9, 0.3)),  # through the door
        ((0.5, 0.3), (0.0, 1.0), (0.5, 0.36)),  # the door's lintel
        ((0.5, 0.3), (0.2, -1.0), (0.7, 0.24)),  # along the passage floor and out
        ((0.1, 0.1), (-1.0, -1.0), (0.04, 0.04)),  # into a corner of the arena
        ((0.43, 0.36), (0.1, 0.0), (0.53, 0.36)),  # along the face of the door post, touching
        ((0.43, 0.9), (0.0, -0.8), (0.43, 0.1)),  # along the wall past the door
    ],
)
def test_golden_moves(start: tuple[float, float], move: tuple[float, float], end: tuple[float, float]) -> None:
    np.testing.assert_allclose(go(start, move), end, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=400)
@given(ANYWHERE, ANYWHERE, MOVES, MOVES)
def test_never_in_a_wall_and_only_through_the_door(x: float, y: float, dx: float, dy: float) -> None:
    if not free(x, y):
        return
    state_NS, move_N2 = np.array([[x, y]]), np.array([[dx, dy]])
    end = envs.two_room.slide(state_NS, move_N2, ROOM.solids_M22)[0]
    assert not inside_solid(end, by=1e-8)
    assert (np.abs(end - state_NS[0]) <= np.abs(move_N2[0]) + 1e-8).all()  # never pushed farther than the move
    if (x <= 0.43 and end[0] >= 0.57) or (x >= 0.57 and end[0] <= 0.43):
        line_y = y + dy * (np.array([0.43, 0.57]) - x) / dx
        straight = ((line_y > 0.24 - 1e-8) & (line_y < 0.36 + 1e-8)).all()
        assert straight or 0.24 - 1e-8 <= end[1] <= 0.36 + 1e-8


@settings(deadline=None, max_examples=60)
@given(ANYWHERE, ANYWHERE, st.integers(0, 2**32 - 1), st.floats(0.001, 1.0))
def test_long_episodes_stay_free(x: float, y: float, seed: int, max_move: float) -> None:
    if not free(x, y):
        return
    rng = np.random.default_rng(seed)
    actions_NTA = np.sign(rng.normal(size=(20, 60, 2))) * rng.choice([1.0, 1.0, 1e-3, 0.0], (20, 60, 2))
    env = TwoRoom(max_move=max_move)
    states_NTS = env.simulate([x, y], actions_NTA)
    assert not inside_solid(states_NTS, by=1e-8).any()
    env.set_state(states_NTS[0, -1])  # every state that physics makes may be set again


def test_distance_golden() -> None:
    np.testing.assert_allclose(ROOM.distance([0.2, 0.8], [0.4, 0.6]), np.hypot(0.2, 0.2))
    np.testing.assert_allclose(ROOM.distance([0.25, 0.3], [0.75, 0.3]), 0.5)
    np.testing.assert_allclose(ROOM.distance([0.43, 0.9], [0.57, 0.9]), 0.54 + 0.14 + 0.54)  # along the wall and back
    np.testing.assert_allclose(ROOM.distance([0.43, 0.9], [0.57, 0.1]), 0.54 + np.hypot(0.14, 0.12) + 0.14)
    np.testing.assert_allclose(ROOM.distance([0.5, 0.3], [0.43, 0.9]), np.hypot(0.07, 0.06) + 0.54)


def test_distance_is_the_best_of_all_ways_through_the_passage() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.uniform(0.04, 0.43, (30, 2)), rng.uniform(0.57, 0.96, (30, 2))
    left[:, 1], right[:, 1] = rng.uniform(0.04, 0.96, (2, 30))
    gate = np.linspace(0.24, 0.36, 241)
    entry, leave = np.meshgrid(gate, gate, indexing="ij")
    for a, b, ours in zip(left, right, ROOM.distance(left, right)):
        ways = np.hypot(0.43 - a[0], entry - a[1]) + np.hypot(0.14, leave - entry) + np.hypot(b[0] - 0.57, b[1] - leave)
        assert ours <= ways.min() + 1e-12
        assert ours >= ways.min() - 1e-4


def test_success_does_not_reach_through_the_wall() -> None:
    thin = TwoRoom(agent_radius=0.005, wall_thickness=0.01)  # centres on both sides are 0.02 apart
    goal, across = [thin.wall_left, 0.8], [thin.wall_right, 0.8]
    assert np.hypot(*np.subtract(goal, across)) < thin.success_distance
    assert not thin.is_success(across, goal)


def test_states_in_solids_are_refused() -> None:
    for state in ([0.5, 0.8], [0.44, 0.37], [0.02, 0.5], [0.5, 1.2]):
        with pytest.raises(ValueError, match=r"is inside a wall, but the disc's centre must have"):
            ROOM.set_state(state)
    TwoRoom().set_state([0.5, 0.3])


def test_camera_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"no renderer 'camera' because it has no MuJoCo model"):
        envs.make("two_room", renderer="camera")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("agent_radius", 0.0, r"agent_radius is 0.0, but must be in \(0, 0.2\]"),
        ("wall_thickness", 0.9, r"wall_thickness is 0.9"),
        ("door_opening", 0.08, r"door_opening is 0.08, but must be in \(0.08, 1\] for the disc to pass"),
        ("door_y", 0.05, r"door_y is 0.05, but must be in \[0.1, 0.9\]"),
        ("max_move", float("nan"), r"max_move is nan"),
    ],
)
def test_bad_geometry(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        envs.make("two_room", **{name: value})


def test_the_door_setting_moves_the_door() -> None:
    env = TwoRoom(door_y=0.7)
    env.set_state([0.5, 0.7])
    assert env.settings["door_y"] == 0.7
    assert env.renderer_fingerprint() != ROOM.renderer_fingerprint()


def test_expert_crosses_the_door_and_covers_both_rooms() -> None:
    env = TwoRoom()
    policy = env.make_policy("expert", noise=0.3)
    tracks = []
    for seed in range(60):
        _, info = env.reset(seed=seed)
        policy.reset(np.random.default_rng(1000 + seed), info["state"])
        track = [info["state"]]
        for _ in range(80):
            env.advance(policy.act(env.state))
            track.append(env.state)
        tracks.append(track)
    states_ETS = np.array(tracks)
    on_left = states_ETS[..., 0] < 0.5
    assert (on_left.any(1) & (~on_left).any(1)).mean() > 0.6  # most episodes see both rooms
    assert 0.4 < on_left.mean() < 0.6
    visits, _, _ = np.histogram2d(*states_ETS.reshape(-1, 2).T, bins=8, range=[[0, 1], [0, 1]])
    assert (visits > 0).mean() > 0.95


def test_noiseless_expert_reaches_its_target() -> None:
    env = TwoRoom()
    policy = env.make_policy("expert", noise=0.0)
    reached = 0
    for seed in range(30):
        _, info = env.reset(seed=seed)
        policy.reset(np.random.default_rng(1000 + seed), info["state"])
        target = policy._target_S.copy()  # type: ignore[attr-defined]
        for _ in range(90):
            env.advance(policy.act(env.state))
            if env.distance(env.state, target) < 0.03:
                reached += 1
                break
    assert reached == 30


def test_a_state_rounded_to_float32_does_not_sink_into_the_wall() -> None:
    """A recorded state on the door's edge, read back as float32, once slid through the wall."""
    env = TwoRoom()
    edge = np.array([0.5, env.door_high])
    for state in (edge.astype(np.float32) + np.float32(5e-8), edge + np.array([0.0, 9e-7])):
        env.set_state(state)
        assert env.state[1] <= env.door_high
        path = env.simulate(state, np.ones((1, 5, 2)) * [[[0.0, 1.0]]])
        assert (path[0, :, 1] <= env.door_high).all()
    with pytest.raises(ValueError, match="inside a wall"):
        env.set_state(edge + np.array([0.0, 2e-6]))


def test_distance_to_a_goal_on_the_wall_survives_float32() -> None:
    """A goal touching the wall, read back as float32, once counted as a point inside the door's passage."""
    start, goal = np.array([0.34, 0.654]), np.array([ROOM.wall_left, 0.68])
    rounded = goal.astype(np.float32).astype(np.float64) + 3e-8
    assert ROOM.distance(start, rounded) == pytest.approx(float(np.linalg.norm(goal - start)), abs=1e-6)

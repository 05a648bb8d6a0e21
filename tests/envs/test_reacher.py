"""Reacher: wrapped angles, the elbow's limit, the arm's dynamics and its expert."""

import numpy as np
import pytest

import envs
from envs.reacher import LINK, Reacher, wrap_angle


@pytest.fixture(scope="module")
def arm() -> Reacher:
    return Reacher()


def test_wrap_angle() -> None:
    np.testing.assert_allclose(
        wrap_angle([np.pi, -np.pi, 3 * np.pi, 7.0, -7.0]), [-np.pi] * 3 + [7 - 2 * np.pi, 2 * np.pi - 7]
    )
    inside = np.random.default_rng(0).uniform(-np.pi, np.pi, 1000) * 10.0 ** np.arange(-19, 1).repeat(50)
    assert np.array_equal(wrap_angle(inside), inside)


def test_pi_and_minus_pi_are_the_same_pose(arm: Reacher) -> None:
    above, below = [np.pi - 0.01, 0.3, 0, 0], [-np.pi + 0.01, 0.3, 0, 0]
    np.testing.assert_allclose(arm.distance(above, below), 0.02)
    assert arm.is_success(above, below)
    assert np.array_equal(arm.goal_image([np.pi, 0.3, 0, 0]), arm.goal_image([-np.pi, 0.3, 0, 0]))


def test_set_state_wraps(arm: Reacher) -> None:
    arm.set_state([2 * np.pi + 0.25, -0.5, 1.0, -1.0])
    np.testing.assert_allclose(arm.state, [0.25, -0.5, 1.0, -1.0], atol=1e-12)


def test_distance_is_the_larger_error_and_ignores_speed(arm: Reacher) -> None:
    np.testing.assert_allclose(arm.distance([0.1, 0.5, 3, 3], [0.2, 0.1, 0, 0]), 0.4)
    assert arm.is_success([0.04, -0.04, 5, 5], [0.0, 0.0, 0, 0])
    assert not arm.is_success([0.04, -0.06, 0, 0], [0.0, 0.0, 0, 0])


def test_states_stay_wrapped_while_the_shoulder_spins(arm: Reacher) -> None:
    states_NTS = arm.simulate(arm.home_state, np.tile([1.0, 0.0], (1, 300, 1)))
    shoulder = states_NTS[0, :, 0]
    assert shoulder.min() < -2.5 and shoulder.max() > 2.5
    assert (shoulder >= -np.pi).all() and (shoulder < np.pi).all()
    arm.set_state(arm.home_state)
    for state in states_NTS[0]:
        arm.advance([1.0, 0.0])
        np.testing.assert_allclose(wrap_angle(arm.state - state), 0, atol=1e-9)


def test_damping_stops_the_arm(arm: Reacher) -> None:
    states_NTS = arm.simulate([0.0, 0.5, 4.0, 0.0], np.zeros((1, 200, 2)))
    assert np.abs(states_NTS[0, -1, 2:]).max() < 0.01
    assert np.array_equal(arm.simulate([0.7, 0.5, 0, 0], np.zeros((1, 50, 2)))[0, -1], [0.7, 0.5, 0, 0])  # no gravity


def test_full_torque_never_breaks_the_elbow_limit(arm: Reacher) -> None:
    rng = np.random.default_rng(0)
    bangs_NTA = np.sign(rng.normal(size=(100, 40, 2))).repeat(8, axis=1)
    states_NTS = arm.simulate(arm.home_state, bangs_NTA)
    assert np.abs(states_NTS[..., 1]).max() < 3.1
    assert np.abs(states_NTS[..., 1]).max() > 2.7
    for state in states_NTS[:, ::40].reshape(-1, 4):
        arm.set_state(state)  # every state that physics makes may be set again


def test_impossible_states_are_refused(arm: Reacher) -> None:
    with pytest.raises(ValueError, match=r"the elbow angle is -3.14159 rad, but its joint stops at about 2.8 rad"):
        arm.set_state([0.0, np.pi, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"must be within 10 rad/s of 0"):
        arm.set_state([0.0, 0.0, 0.0, 1e3])


def test_picture_shows_the_arm_where_kinematics_puts_it() -> None:
    arm = Reacher(size=108)  # 200 px per metre
    image = arm.goal_image([np.pi / 2, -np.pi / 2, 0, 0]).astype(int)  # up, then right

    def pixel(x: float, y: float) -> np.ndarray:
        return image[round((0.27 - y) * 200 - 0.5), round((x + 0.27) * 200 - 0.5)]

    np.testing.assert_array_equal(pixel(0, LINK / 2), (47, 99, 172))
    np.testing.assert_array_equal(pixel(LINK / 2, LINK), (230, 126, 34))
    np.testing.assert_array_equal(pixel(LINK, LINK), (189, 40, 50))
    np.testing.assert_array_equal(pixel(0, 0), (58, 64, 84))
    np.testing.assert_array_equal(pixel(-LINK, -LINK), (242, 240, 235))


def test_noiseless_expert_reaches_its_poses() -> None:
    arm = envs.make("reacher")
    policy = arm.make_policy("expert", noise=0.0)
    reached = 0
    for seed in range(40):
        _, info = arm.reset(seed=seed)
        policy.reset(np.random.default_rng(1000 + seed), info["state"])
        pose = policy._pose_S.copy()  # type: ignore[attr-defined]
        for _ in range(60):
            arm.advance(policy.act(arm.state))
            if arm.is_success(arm.state, pose):
                reached += 1
                break
    assert reached >= 38


@pytest.mark.parametrize("name", ["expert", "correlated"])
def test_policies_cover_the_poses(name: str) -> None:
    arm = envs.make("reacher")
    policy = arm.make_policy(name, noise=0.3)
    states = []
    for seed in range(40):
        _, info = arm.reset(seed=seed)
        policy.reset(np.random.default_rng(1000 + seed), info["state"])
        for _ in range(100):
            arm.advance(policy.act(arm.state))
            states.append(arm.state)
    shoulder, elbow = np.array(states)[:, :2].T
    visits, _, _ = np.histogram2d(shoulder, elbow, bins=8, range=[[-np.pi, np.pi], [-2.8, 2.8]])
    assert (visits > 0).mean() > 0.95

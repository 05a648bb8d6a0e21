"""Foreign MuJoCo environments: entries by joint, exact states, and pictures from where the environment looks."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.adapter import AdaptedEnv, make_goal_env
from envs.adapter.mujoco_state import entry_names, idle_joints, turning_joints
from envs.camera import load_mujoco

mujoco: Any = load_mujoco()

TOP = {"lookat": [0, 0, 0], "distance": 0.6, "elevation": -90}


def adapt(id: str = "Reacher-v5", **settings: Any) -> AdaptedEnv:
    env = make_goal_env(id, **{"size": 32, "scatter": 5} | settings)
    assert isinstance(env, AdaptedEnv)
    return env


# State ----------------------------------------------------------------------------------------------------------------


def test_what_no_action_can_move_is_no_part_of_the_state() -> None:
    reacher, pusher = adapt(), adapt("Pusher-v5")
    assert reacher.state_names == ("qpos:joint0", "qpos:joint1", "qvel:joint0", "qvel:joint1")
    assert reacher.angle_names == ("qpos:joint0",)  # the other one has a limit
    assert (reacher.control_dt, pusher.control_dt) == (0.02, 0.05)
    assert len(pusher.state_names) == 18 and not any("goal" in name for name in pusher.state_names)
    assert pusher.settings["success"] == [
        {"entries": ["qpos:obj_slidex", "qpos:obj_slidey"], "tolerance": 0.05, "norm": "euclidean"}
    ]


def test_its_own_target_stays_where_it_is() -> None:
    env = adapt()
    data = env._live.source.data  # type: ignore[attr-defined]
    target = np.array(data.qpos[2:])
    for seed in range(3):
        env.reset(seed=seed)
        env.advance([0.5, 0.5])
        assert np.array_equal(data.qpos[2:], target)
    free = adapt(state=["qpos:target_x", "qpos:joint0", "qpos:joint1"])
    assert free.state_names == ("qpos:joint0", "qpos:joint1", "qpos:target_x")
    assert len({free.reset(seed=seed)[1]["state"][2] for seed in range(3)}) == 3


def test_entries_outside_the_state_go_back_to_the_reset() -> None:
    env = adapt(state=["qpos:joint0", "qpos:joint1"])
    home_qvel = np.array(env._live.source.data.qvel)  # type: ignore[attr-defined]
    env.advance([1.0, 1.0])
    env.set_state(env.state)
    assert np.array_equal(env._live.source.data.qvel, home_qvel)  # type: ignore[attr-defined]


def test_an_episode_of_gymnasium_is_followed_step_by_step() -> None:
    env = adapt()
    reference = gymnasium.make("Reacher-v5")
    reference.reset(seed=0)
    inner: Any = reference.unwrapped
    action_TA = np.random.default_rng(0).uniform(-1.0, 1.0, (40, 2))
    found = env.simulate(env.home_state, action_TA[None])[0]
    for action, state in zip(action_TA, found):
        reference.step(action.astype(np.float32))
        np.testing.assert_allclose(np.sin(state[:2]), np.sin(inner.data.qpos[:2]), rtol=0, atol=1e-9)
        np.testing.assert_allclose(state[1:], [inner.data.qpos[1], *inner.data.qvel[:2]], rtol=0, atol=1e-9)
    assert np.abs(inner.data.qpos[0]) > np.pi > np.abs(found[:, 0]).max()
    reference.close()


def test_a_state_forgets_everything_before_it() -> None:
    """Warm starts of the solver, controls and the clock: none survives."""
    env, fresh = adapt("Pusher-v5"), adapt("Pusher-v5")
    start = env.reset(seed=4)[1]["state"]
    action_TA = np.random.default_rng(1).uniform(-1.0, 1.0, (60, 7))
    for action in action_TA:
        env.advance(action)
    for used in (env, fresh):
        used.set_state(start)
        for action in action_TA:
            used.advance(action)
    assert np.array_equal(env.state, fresh.state)
    assert env._live.source.data.time == fresh._live.source.data.time  # type: ignore[attr-defined]


COUPLED = """
<mujoco><worldbody>
  <body name="wheels"><joint name="free"/><joint name="sprung" axis="0 1 0" stiffness="1"/>
    <joint name="limited" axis="1 0 0" range="-1 1" limited="true"/><joint name="servo" axis="1 1 0"/>
    <geom size="0.1"/></body>
  <body name="more" pos="3 0 0"><joint name="geared" axis="1 0 1"/>
    <joint name="roped" axis="0 1 1"/><joint type="slide"/>
    <geom size="0.1"/></body>
  <body name="ghost" pos="1 0 0"><freejoint name="float"/><geom size="0.1" contype="0" conaffinity="0"/></body>
  <body name="ball" pos="2 0 0"><joint name="ball" type="ball"/><geom size="0.1"/></body>
  <body name="hand" mocap="true"><geom size="0.1"/></body>
</worldbody>{rest}</mujoco>
"""
REST = """
<tendon><fixed name="rope"><joint joint="roped" coef="1"/></fixed></tendon>
<equality><joint joint1="geared" joint2="limited"/></equality>
<actuator><position joint="servo"/><motor joint="free"/><intvelocity joint="limited" actrange="-1 1"/></actuator>
"""


def test_entries_of_every_kind_of_joint() -> None:
    model = mujoco.MjModel.from_xml_string(COUPLED.format(rest=REST))
    names = list(entry_names(model))
    hinges = ["free", "sprung", "limited", "servo", "geared", "roped", "joint6"]
    floating = [f"qpos:float:{axis}" for axis in ("x", "y", "z", "qw", "qx", "qy", "qz")]
    assert names[:14] == [f"qpos:{name}" for name in hinges] + floating
    assert names[14:18] == ["qpos:ball:qw", "qpos:ball:qx", "qpos:ball:qy", "qpos:ball:qz"]
    assert names[18:25] == [f"qvel:{name}" for name in hinges]
    assert names[25:34] == [*(f"qvel:float:{axis}" for axis in ("x", "y", "z", "rx", "ry", "rz")), *names[31:34]]
    assert names[31:35] == ["qvel:ball:rx", "qvel:ball:ry", "qvel:ball:rz", "act:0"]
    assert names[35:] == [f"mocap:0:{axis}" for axis in ("x", "y", "z", "qw", "qx", "qy", "qz")]
    parts = mujoco.mjtState.mjSTATE_QPOS | mujoco.mjtState.mjSTATE_QVEL | mujoco.mjtState.mjSTATE_ACT
    parts |= mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
    assert len(names) == mujoco.mj_stateSize(model, int(parts))


def test_only_hinges_that_nothing_holds_are_angles() -> None:
    model = mujoco.MjModel.from_xml_string(COUPLED.format(rest=REST))
    assert turning_joints(model) == [0]
    alone = mujoco.MjModel.from_xml_string(COUPLED.format(rest=""))
    assert [alone.joint(j).name for j in turning_joints(alone)] == ["free", "servo", "geared", "roped"]


def test_only_bodies_that_nothing_can_move_are_idle() -> None:
    alone = mujoco.MjModel.from_xml_string(COUPLED.format(rest=""))
    assert [alone.joint(j).name for j in idle_joints(alone)] == ["float"]
    assert idle_joints(mujoco.MjModel.from_xml_string(COUPLED.format(rest=REST))) == []  # coupled: nothing is known
    driven = COUPLED.format(rest='<actuator><motor joint="float" gear="1 0 0 0 0 0"/></actuator>')
    assert idle_joints(mujoco.MjModel.from_xml_string(driven)) == []


def test_quaternions_are_rotations() -> None:
    env = adapt("Ant-v5", success={"entries": ["qpos:root:x"], "tolerance": 0.1})
    at = env.state_names.index("qpos:root:qw")
    state = np.array(env.home_state)
    state[at : at + 4] = [0.6, 0.0, 0.0, 0.81]
    env.set_state(state)
    np.testing.assert_allclose(env.state[at : at + 4], np.array([0.6, 0.0, 0.0, 0.81]) / np.hypot(0.6, 0.81))
    rounded = env.state.astype(np.float32).astype(np.float64)
    env.set_state(rounded)
    assert np.array_equal(env.state, rounded)
    state[at : at + 4] = 0.1
    with pytest.raises(ValueError, match=r"the quaternion qpos:root has length 0.2, but must have length 1"):
        env.set_state(state)
    with pytest.raises(ValueError, match=r"names 'qpos:root:qx', one number of a quaternion"):
        adapt("Ant-v5", success={"entries": ["qpos:root:qx"], "tolerance": 0.1})


def test_divergence_is_an_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs its warning to a file where it runs
    env = adapt()
    env.set_state([0.0, 0.0, 1e9, 0.0])
    with pytest.raises(RuntimeError, match=r"the simulation diverged .* or after a state that it cannot integrate"):
        for _ in range(50):
            env.advance([0.0, 0.0])
            assert np.isfinite(env.state).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"camera": "top"}, r"camera is 'top', but the model's cameras are none; a free one is"),
        ({"camera": 2}, r"camera is 2, but the model has 0 cameras"),
        ({"camera": {"distanc": 1}}, r"camera has no 'distanc', did you mean 'distance'\?"),
        ({"camera": {"lookat": [0, 0]}}, r"camera.lookat is \[0, 0\], but must be three numbers"),
        ({"camera": {"distance": "far"}}, r"camera.distance is 'far', but must be a number"),
        ({"flags": {"shadows": True}}, r"flags names 'shadows', did you mean 'shadow'\?; the flags are shadow"),
        ({"flags": {"shadow": 1}}, r"flags.shadow is 1, but must be true or false"),
        ({"hide": ["traget"]}, r"hide names 'traget', did you mean 'target'\?, but the model has no such body"),
        ({"state": ["qpos:joint"]}, r"state names 'qpos:joint', did you mean 'qpos:joint[01]'\?; the entries are"),
        ({"state": []}, r"state is empty: name entries of"),
        ({"state": ["qvel:joint0"]}, r"success.entries names 'qpos:joint0', did you mean 'qvel:joint0'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        adapt(**settings)


# Pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.gl
@pytest.mark.parametrize("id", ["Reacher-v5", "Pusher-v5"])
def test_the_view_is_the_environments_own(id: str) -> None:
    env = adapt(id, size=120, hide=[], flags={"shadow": True, "reflection": True})
    ours = env.render().astype(float)
    env._live.env.unwrapped.mujoco_renderer._get_viewer("rgb_array").make_context_current()  # type: ignore[attr-defined]
    frame: Any = env._live.env.render()
    own = np.ascontiguousarray(frame).reshape(120, 4, 120, 4, 3).mean((1, 3))
    error = np.abs(ours - own).mean()
    shifted = [np.abs(np.roll(ours, shift, axis) - own).mean() for shift in (-4, 4) for axis in (0, 1)]
    assert error < 4.0 and error < 0.6 * min(shifted)
    env.close()


@pytest.mark.gl
def test_cameras_of_the_model_and_free_ones() -> None:
    success = {"entries": ["qpos:root:x"], "tolerance": 0.1}
    shots = [adapt("Ant-v5", success=success, camera=camera).render() for camera in ("track", 0, None, {"azimuth": 0})]
    assert np.array_equal(shots[0], shots[1])
    assert not np.array_equal(shots[0], shots[2]) and not np.array_equal(shots[2], shots[3])


@pytest.mark.gl
def test_targets_are_hidden_and_shadows_are_off_unless_asked_for() -> None:
    hidden, shown = adapt(size=64, camera=TOP), adapt(size=64, camera=TOP, hide=[])
    differs = (hidden.render() != shown.render()).any(-1)
    assert 4 <= differs.sum() <= 60
    y, x = np.argwhere(differs).mean(0)
    data = hidden._live.source.data  # type: ignore[attr-defined]
    half = 0.6 * np.tan(np.deg2rad(45 / 2))  # MuJoCo's free camera sees 45 degrees
    expected = np.array([(1 - data.qpos[3] / half) * 32, (1 + data.qpos[2] / half) * 32])
    np.testing.assert_allclose([y, x], expected, atol=1.5)
    success = {"entries": ["qpos:root:x"], "tolerance": 0.1}
    plain, *others = (
        adapt("Ant-v5", success=success, size=64, flags=flags).render()
        for flags in ({"shadow": False, "reflection": False}, {}, {"shadow": True}, {"reflection": True})
    )
    assert np.array_equal(plain, others[0])
    assert all((plain != other).any(-1).sum() > 50 for other in others[1:])


@pytest.mark.gl
def test_the_present_shows_what_is_not_in_the_state() -> None:
    env = adapt(size=64, camera=TOP, state=["qpos:joint1"], success={"entries": ["qpos:joint1"], "tolerance": 0.1})
    before = env.render()
    for _ in range(20):
        env.advance([1.0, 0.0])
    present = env.render()
    pinned = env.goal_image(env.state)
    assert not np.array_equal(present, pinned) and not np.array_equal(before, present)
    env.set_state(env.state)
    assert np.array_equal(env.render(), pinned)
    env.close()

"""OGBench's single-cube environment as a pure function of state and action, one per process."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.camera import load_mujoco

mujoco: Any = load_mujoco()

Array = NDArray[np.float64]

ARM = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
LINKS = ("driver", "coupler", "spring_link", "follower")
GRIPPER = tuple(f"{side}_{link}" for side in ("right", "left") for link in LINKS)
JOINTS = (*(f"ur5e/{name}_joint" for name in ARM), *(f"ur5e/robotiq/{name}_joint" for name in GRIPPER))
HINGES = len(JOINTS)
PARTS = np.cumsum([7, HINGES, 6])  # where a state's block pose, hinges, block velocity (and hinge speeds) end
WIDTH = int(PARTS[-1]) + HINGES


class Physics:
    """The UR5e arm, its gripper and the block of `ogbench`'s cube-single, with its controller and its time steps.

    Nothing is remembered from one call to the next: the constraint solver starts cold in every env step. What OGBench's
    loop does remember, the poses of one physics step before, which its controller reads, follows from the state.
    """

    def __init__(self) -> None:
        self.env = _cube_env()("single", mode="data_collection", terminate_at_goal=False, visualize_info=False)
        self.env.reset(seed=0)  # compiles the model
        self.model, self._data = self.env.model, self.env.data
        names = tuple(self.model.joint(joint).name for joint in range(self.model.njnt))
        if names != (*JOINTS, "object_joint_0"):
            raise RuntimeError(f"this ogbench's cube-single has the joints {names}: install ogbench 1.2.")
        self._substeps = round(self.env.control_timestep() / self.env.physics_timestep())
        self._target = int(self.model.body("object_target_0").mocapid[0])
        self._pinch = int(self.model.site("ur5e/robotiq/pinch").id)

    def draw(self, rng: np.random.Generator) -> Array:
        """A random state at rest, as OGBench draws: fingers open and anywhere above the table, block anywhere on it."""
        self.env.np_random = rng
        self.env.reset()
        return self._state()

    def step(self, state_S: Array, action_A: Array) -> Array:
        """The state one env step (0.05 s) later. Raises RuntimeError when the physics becomes unstable."""
        data, timestep = self._data, self.model.opt.timestep
        self._pose(state_S, ago=timestep)
        self.env.set_control(action_A)
        data.time = 0.0
        mujoco.mj_step(self.model, data, self._substeps)
        if abs(data.time - self._substeps * timestep) > timestep / 2:  # MuJoCo starts over where it meets a NaN
            raise RuntimeError(
                f"the physics became unstable after the state {state_S.tolist()}: set one with less speed."
            )
        return self._state()

    def observe(self, state_S: Array, action_A: Array, target_3: Array, yaw: float) -> dict[str, Any]:
        """What OGBench's oracles are told while `action_A` acts on a state and the block is wanted at a target."""
        self._pose(state_S)
        self.env.set_control(action_A)
        self._data.mocap_pos[self._target] = target_3
        self._data.mocap_quat[self._target] = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        mujoco.mj_forward(self.model, self._data)
        mujoco.mj_rnePostConstraint(self.model, self._data)  # the force between the fingers
        info: dict[str, Any] = self.env.compute_ob_info()
        return info

    def pinch(self, state_NS: Array) -> Array:
        """The point between the finger tips (..., 3), m."""
        flat_NS = state_NS.reshape(-1, WIDTH)
        point_N3 = np.empty((len(flat_NS), 3))
        for row, state_S in enumerate(flat_NS):
            self._pose(state_S)
            point_N3[row] = self._data.site_xpos[self._pinch]
        return point_N3.reshape(*state_NS.shape[:-1], 3)

    def geoms(self, state_S: Array) -> tuple[Array, Array]:
        """Places (G, 3) and rotation matrices (G, 9) of all geoms of the model; views, valid until the next call."""
        self._pose(state_S)
        return self._data.geom_xpos, self._data.geom_xmat

    def _pose(self, state_S: Array, ago: float = 0.0) -> None:
        """Load a state, with the poses of bodies and sites as they were `ago` seconds before."""
        data = self._data
        block_7, hinge_14, block_speed_6, hinge_speed_14 = np.split(state_S, PARTS)
        data.qvel[:] = np.concatenate([hinge_speed_14, block_speed_6])
        qpos = np.concatenate([hinge_14, block_7])
        data.qpos[:] = qpos
        mujoco.mj_integratePos(self.model, data.qpos, data.qvel, -ago)
        mujoco.mj_kinematics(self.model, data)
        data.qpos[:] = qpos
        data.qacc_warmstart[:] = 0.0

    def _state(self) -> Array:
        qpos, qvel = self._data.qpos, self._data.qvel
        return np.concatenate([qpos[HINGES:], qpos[:HINGES], qvel[HINGES:], qvel[:HINGES]])


@functools.cache
def physics() -> Physics:
    """The one of this process: building it takes a second and 0.5 GB, and it holds no episode's state."""
    return Physics()


def _cube_env() -> Any:
    try:
        from ogbench.manipspace.envs.cube_env import CubeEnv
    except ModuleNotFoundError as error:
        raise ImportError("lewm/Cube-v0 needs ogbench: pip install 'lewm[tasks]'") from error
    return CubeEnv

"""The state of a MuJoCo environment as named entries, wherever its suite keeps the model."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.camera import load_mujoco

Array = NDArray[np.float64]

PLACES: dict[tuple[str, str], dict[str, Any]] = {
    ("model", "data"): {},
    # dm_control counts steps and resets by itself after the last one.
    ("_env.physics.model.ptr", "_env.physics.data.ptr"): {"_env._step_count": 0, "_env._reset_next_step": False},
}
"""Dotted names of model and data below `env.unwrapped` -> attributes put back to these values before every step."""

FREE, BALL, SLIDE, HINGE = range(4)  # mjtJoint, as ints: its members are not equal to numpy's in every version
QUATERNION = ("qw", "qx", "qy", "qz")
POSITION = {FREE: ("x", "y", "z", *QUATERNION), BALL: QUATERNION, SLIDE: ("",), HINGE: ("",)}
VELOCITY = {FREE: ("x", "y", "z", "rx", "ry", "rz"), BALL: ("rx", "ry", "rz"), SLIDE: ("",), HINGE: ("",)}
JOINT_DRIVES = 1  # the largest mjtTrn that acts on a joint
DIVERGED = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC")


def find_model(unwrapped: Any) -> tuple[str, str] | None:
    """The row of `PLACES` where an environment keeps its model, or None."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None:
        return None
    return next((place for place in PLACES if isinstance(follow(unwrapped, place[0]), mujoco.MjModel)), None)


class MujocoState:
    """Positions, velocities, activations and mocap poses: all that MuJoCo integrates, by joint.

    Writing it starts from a copy of the data as it was when this was made, so that controls, solver warm starts, time
    and the like never leak from one state to the next.
    """

    def __init__(self, env: Any, place: tuple[str, str]) -> None:
        self._mujoco: Any = load_mujoco()
        self._env, (self._model_name, self._data_name) = env, place
        self._constants = PLACES[place]
        parts = ("QPOS", "QVEL", "ACT", "MOCAP_POS", "MOCAP_QUAT")  # in the order of mj_getState
        self._parts = sum(int(getattr(self._mujoco.mjtState, f"mjSTATE_{part}")) for part in parts)
        self._home = self.new_data()
        self._mujoco.mj_copyData(self._home, self.model, self.data)
        model = self.model
        self.names = tuple(entry_names(model))
        turning, idle = turning_joints(model), idle_joints(model)
        self.angles = frozenset(f"qpos:{joint_name(model, j)}" for j in turning)
        self.idle = frozenset(name for j in idle for name in joint_entries(model, j))
        self.rotations = frozenset(name for name in self.names if name.endswith(tuple(f":{q}" for q in QUATERNION)))

    @property
    def model(self) -> Any:
        """The environment's own MjModel."""
        return follow(self._env, self._model_name)

    @property
    def data(self) -> Any:
        """The environment's own MjData."""
        return follow(self._env, self._data_name)

    def new_data(self) -> Any:
        """Fresh MjData for the environment's model."""
        return self._mujoco.MjData(self.model)

    def read(self) -> Array:
        """The state (F,). Raises RuntimeError where MuJoCo gave up on it and reset itself."""
        data = self.data
        if any(data.warning[int(getattr(self._mujoco.mjtWarning, name))].number for name in DIVERGED):
            raise RuntimeError(
                f"the simulation diverged {data.time:g} s after its reset, or after a state that it cannot integrate: "
                "use a smaller time step, smaller actions or another state."
            )
        state_F = np.empty(len(self.names))
        self._mujoco.mj_getState(self.model, data, state_F, self._parts)
        return state_F

    def write(self, state_F: Array) -> None:
        """Put the environment into a state, everything derived from it included."""
        model, data = self.model, self.data
        self._mujoco.mj_copyData(data, model, self._home)
        self._mujoco.mj_setState(model, data, state_F, self._parts)
        self._mujoco.mj_forward(model, data)

    def pose(self, data: Any, state_F: Array) -> None:
        """Put any MjData of this model where a camera can see the state: poses only, no dynamics."""
        model = self.model
        self._mujoco.mj_setState(model, data, state_F, self._parts)
        for compute in ("mj_kinematics", "mj_comPos", "mj_camlight", "mj_flex", "mj_tendon"):
            getattr(self._mujoco, compute)(model, data)

    def canonical(self, state_F: Array) -> Array:
        """Quaternions at length 1, unchanged where they are to a float32's rounding. Raises ValueError for others."""
        state_F = state_F.copy()
        for i, name in enumerate(self.names):
            if name in self.rotations and name.endswith(":qw"):
                length = float(np.linalg.norm(state_F[i : i + 4]))
                if not 0.5 < length < 2.0:
                    raise ValueError(
                        f"the quaternion {name[:-3]} has length {length:g}, but must have length 1: give a rotation."
                    )
                if abs(length - 1.0) > 1e-6:
                    state_F[i : i + 4] /= length
        return state_F

    def hold(self) -> None:
        """Put the step counters back."""
        for dotted, value in self._constants.items():
            *path, last = dotted.split(".")
            setattr(follow(self._env, ".".join(path)), last, value)


def follow(owner: Any, dotted: str) -> Any:
    """The attribute at the end of a dotted name, or None."""
    for name in dotted.split("."):
        owner = getattr(owner, name, None)
    return owner


def joint_name(model: Any, joint: int) -> str:
    """A joint's name, or `joint3` for the fourth one where it has none."""
    return str(model.joint(joint).name) or f"joint{joint}"


def joint_entries(model: Any, joint: int) -> Iterator[str]:
    """Names of the entries of one joint: `qpos:elbow`, `qvel:elbow`; `qpos:ball:x`, ..."""
    for kind, endings in (("qpos", POSITION), ("qvel", VELOCITY)):
        for ending in endings[int(model.jnt_type[joint])]:
            yield f"{kind}:{joint_name(model, joint)}" + (f":{ending}" if ending else "")


def entry_names(model: Any) -> Iterator[str]:
    """Names of all entries, in the order of MuJoCo's state."""
    for kind in ("qpos", "qvel"):
        for joint in range(model.njnt):
            yield from (name for name in joint_entries(model, joint) if name.startswith(kind))
    yield from (f"act:{i}" for i in range(model.na))
    yield from (f"mocap:{body}:{axis}" for body in range(model.nmocap) for axis in "xyz")
    yield from (f"mocap:{body}:{axis}" for body in range(model.nmocap) for axis in QUATERNION)


def turning_joints(model: Any) -> list[int]:
    """Hinges that mean the same a full turn further: no limit, no spring, no servo to an angle, no coupling."""
    held = {int(model.wrap_objid[w]) for w in np.flatnonzero(model.wrap_type == 1)}  # mjWRAP_JOINT
    held |= {int(j) for e in np.flatnonzero(model.eq_type == 2) for j in (model.eq_obj1id[e], model.eq_obj2id[e])}
    servo = (model.actuator_biasprm[:, 1] != 0) & (model.actuator_trntype <= JOINT_DRIVES)
    held |= {int(j) for j in model.actuator_trnid[servo, 0]}
    free = (model.jnt_type == HINGE) & (model.jnt_limited == 0) & (model.jnt_stiffness == 0)
    return [int(j) for j in np.flatnonzero(free) if j not in held]


def idle_joints(model: Any) -> list[int]:
    """Joints that no action can move: of bodies without a drive whose geoms touch nothing, such as a drawn target.

    Where tendons, equalities or other couplings exist, none is taken for idle.
    """
    if model.ntendon or model.neq or model.npair or (model.actuator_trntype > JOINT_DRIVES).any():
        return []
    solid = (model.geom_contype | model.geom_conaffinity) != 0
    moved = set(model.body_rootid[model.geom_bodyid[solid]].tolist())
    moved |= set(model.body_rootid[model.jnt_bodyid[model.actuator_trnid[:, 0]]].tolist())
    return [j for j in range(model.njnt) if int(model.body_rootid[model.jnt_bodyid[j]]) not in moved]

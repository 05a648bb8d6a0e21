"""Cube: OGBench's robot arm must bring a block to where a picture shows it, by picking it up or by pushing it."""

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.cube_physics import ARM, GRIPPER, WIDTH, physics
from envs.cube_policies import Expert
from envs.cube_scene import scene
from envs.goal_env import GoalEnv
from envs.policies import CorrelatedRandom, Noisy, Policy, UniformRandom, check_policy

Array = NDArray[np.float64]

TABLE = np.array([0.425, 0.0, 0.0])  # m, its middle; the floor is at z = 0
FARTHEST = 1.0  # m from there; walls keep the block within half of it
OVERSHOOT = 0.1  # rad beyond a hinge's soft limit
MAX_SPEED = 200.0  # m/s and rad/s; a block that slips out of the grip spins at up to 50
HINGE_NAMES = (*ARM, *(f"gripper_{name}" for name in GRIPPER))
HOME_ARM = (-np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0)
BLOCK_NAMES = ("block_x", "block_y", "block_z", "block_qw", "block_qx", "block_qy", "block_qz")
BLOCK_SPEEDS = tuple(f"block_{kind}_{axis}" for kind in ("velocity", "spin") for axis in "xyz")


class Cube(GoalEnv):
    """Bring a 4 cm block to where the goal picture shows it, with a UR5e arm and a two-finger gripper.

    Description:
        `cube-single` of OGBench (Park et al. 2025), from the package `ogbench` (extra `[tasks]`): its MuJoCo model,
        its controller by differential inverse kinematics, 25 physics steps of 2 ms per env step. The pictures are our
        own: see Observation Space.

    Action Space: Box(-1, 1, (5,), float32); values outside are clipped. All are relative to the present pose, within a
        workspace of x 0.25 to 0.6 m, y -0.35 to 0.35 m, z 0.02 to 0.35 m.
        | entry | meaning | unit |
        |---|---|---|
        | 0 `move_x` | wanted move of the finger tips away from the base | 0.05 m |
        | 1 `move_y` | wanted move to the right of the picture | 0.05 m |
        | 2 `move_z` | wanted move up | 0.05 m |
        | 3 `turn` | wanted turn of the gripper about the vertical | 0.3 rad |
        | 4 `close` | wanted change of the grip, from 0 (open) to 1 (closed) | 1 |

    Observation Space: Box(0, 255, (size, size, 3), uint8), a camera 50 degrees above the table that looks at the arm.
        Links are capsules, gripper parts are boxes, the place where blocks lie is a darker rectangle; no shadows.

    State: float64 (41,), all that the physics depends on.
        | entries | meaning | unit |
        |---|---|---|
        | `block_x` `block_y` `block_z` | centre of the block | m |
        | `block_qw` `block_qx` `block_qy` `block_qz` | its orientation, a unit quaternion | - |
        | `shoulder_pan` `shoulder_lift` `elbow` `wrist_1` `wrist_2` `wrist_3` | the arm's joints, not wrapped | rad |
        | `gripper_right_driver` `gripper_right_coupler` `gripper_right_spring_link` `gripper_right_follower` | the
          right finger's hinges; the driver runs from 0 (open) to 0.8 (closed) | rad |
        | `gripper_left_driver` `gripper_left_coupler` `gripper_left_spring_link` `gripper_left_follower` | the left
          finger's | rad |
        | `block_velocity_x` `block_velocity_y` `block_velocity_z` | velocity of the block | m/s |
        | `block_spin_x` `block_spin_y` `block_spin_z` | its angular velocity, in its own frame | rad/s |
        | `shoulder_pan_speed` `shoulder_lift_speed` `elbow_speed` `wrist_1_speed` `wrist_2_speed` `wrist_3_speed`
          `gripper_right_driver_speed` `gripper_right_coupler_speed` `gripper_right_spring_link_speed`
          `gripper_right_follower_speed` `gripper_left_driver_speed` `gripper_left_coupler_speed`
          `gripper_left_spring_link_speed` `gripper_left_follower_speed` | speeds of the hinges | rad/s |

    Rewards: 1 when the state after the step satisfies the goal, else 0.

    Starting State: as OGBench draws for data collection, at rest: block uniform on the table, any yaw; finger tips
        uniform in the upper half of the workspace, any yaw, open. The goal likewise, redrawn while the start satisfies
        it.

    Success: the block's centre is less than 0.04 m from the goal's, in 3-D (OGBench's rule). Under rule "pose", the
        point between the finger tips is too. Orientation does not count; whoever counts it (`turn`) allows 20 degrees.

    Episode end: none by itself; truncated after 200 steps when made by `gymnasium.make`.

    Settings:
        size: picture width and height in pixels, 32 to 512.
        renderer: "camera" (MuJoCo's renderer, needs OpenGL); there is no painter of this task.
        rule: "block" or "pose", see Success.

    Version history: v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's contract)
    state_names = (*BLOCK_NAMES, *HINGE_NAMES, *BLOCK_SPEEDS, *(f"{name}_speed" for name in HINGE_NAMES))
    action_names = ("move_x", "move_y", "move_z", "turn", "close")
    policies = ("expert", "correlated", "random")
    control_dt = 0.05
    success_distance = 0.04
    success_turn = np.deg2rad(20.0)
    home_state: ClassVar[tuple[float, ...]] = (0.425, 0.0, 0.02, 1.0, 0.0, 0.0, 0.0, *HOME_ARM, *(0.0,) * 28)

    def __init__(
        self,
        size: int = 64,
        renderer: Literal["camera"] = "camera",
        rule: Literal["block", "pose"] = "block",
        render_mode: Literal["rgb_array"] | None = "rgb_array",
    ) -> None:
        super().__init__(size, renderer, render_mode)
        if renderer != "camera":
            raise ValueError(f"renderer is {renderer!r}, but this task has no painter: it must be 'camera'.")
        if rule not in ("block", "pose"):
            raise ValueError(f"rule is {rule!r}, but must be one of block, pose.")
        self.rule = rule
        self._physics = physics()
        self.set_state(self.home_state)

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make("cube", ...)` needs to build this environment again."""
        return super().settings | {"rule": self.rule}

    @property
    def state(self) -> Array:
        """A copy of the 41 entries."""
        return self._state_S.copy()

    def set_state(self, state_S: ArrayLike) -> None:
        """Place everything. Raises ValueError for a block or a hinge where it cannot be, and for absurd speeds."""
        self._state_S = self.check_state(state_S)

    def advance(self, action_A: ArrayLike) -> None:
        """One 0.05 s step of physics under an action (5,)."""
        self._state_S = self._physics.step(self._state_S, self.check_actions(action_A, ()))

    def simulate(self, state_S: ArrayLike, action_NTA: ArrayLike) -> Array:
        """The states (N, T, 41) after each step of N action sequences from one state, at about a millisecond each."""
        start_S = self.check_state(state_S)
        actions_NTA = self.check_actions(action_NTA, "NT")
        state_NTS = np.empty((*actions_NTA.shape[:2], WIDTH))
        for action_TA, state_TS in zip(actions_NTA, state_NTS):
            state = start_S
            for t, action_A in enumerate(action_TA):
                state_TS[t] = state = self._physics.step(state, action_A)
        return state_NTS

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """How far the block is from where it is wanted, in m; leading axes broadcast.

        Rule "pose" takes the larger of this and the distance of the point between the finger tips.
        """
        state, goal = self.as_states(state_S), self.as_states(goal_S)
        block = np.sqrt(((state[..., :3] - goal[..., :3]) ** 2).sum(-1))
        if self.rule == "block":
            return np.asarray(block)
        fingers = self._physics.pinch(state) - self._physics.pinch(goal)
        return np.asarray(np.maximum(block, np.sqrt((fingers**2).sum(-1))))

    def turn(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """The smallest angle, in rad, that turns the block into one that looks like the goal's; at most 1.1.

        Its faces are alike, so each of the 24 rotations of a cube looks the same.
        """
        w, v = np.split(self.as_states(state_S)[..., 3:7], [1], axis=-1)
        goal_w, goal_v = np.split(self.as_states(goal_S)[..., 3:7], [1], axis=-1)
        real = w * goal_w + (v * goal_v).sum(-1, keepdims=True)
        between = np.concatenate([real, w * goal_v - goal_w * v - np.cross(v, goal_v)], -1)
        large = -np.sort(-np.abs(between), axis=-1)
        # The real part of the product with the nearest of the 24: no turn, or one about a face, an edge or a corner.
        nearest = np.max([large[..., 0], (large[..., 0] + large[..., 1]) / np.sqrt(2.0), large.sum(-1) / 2.0], axis=0)
        return np.asarray(2.0 * np.arccos(np.minimum(nearest, 1.0)))

    def make_policy(self, name: str, noise: float) -> Policy:
        """`expert` (OGBench's pick and place), `correlated` (smooth random moves) or `random` (uniform)."""
        check_policy(name, noise, self.policies)
        policy: Policy
        if name == "expert":
            policy = Expert(self._physics)
        else:
            policy = CorrelatedRandom(5, std=0.6, memory=8.0) if name == "correlated" else UniformRandom(5)
        return Noisy(policy, 5, noise, memory=5.0) if noise > 0 else policy

    def close(self) -> None:
        """Free the OpenGL context of this picture size; whoever draws next makes a new one."""
        scene(self.size).camera.close()

    def _check_inside(self, state_S: Array) -> Array:
        place_3, quaternion_4, hinge_14, speed_20 = np.split(state_S, [3, 7, 7 + len(HINGE_NAMES)])
        if place_3[2] < 0 or np.abs(place_3 - TABLE).max() > FARTHEST:
            raise ValueError(
                f"the block's centre is at {place_3.tolist()} m, but must be above the floor (z >= 0) and within "
                f"{FARTHEST:g} m of the table's middle {TABLE.tolist()} along every axis."
            )
        if abs(np.sqrt((quaternion_4**2).sum()) - 1.0) > 1e-3:
            raise ValueError(f"the block's quaternion is {quaternion_4.tolist()}, but its length must be 1.")
        low_14, high_14 = self._physics.model.jnt_range[: len(HINGE_NAMES)].T
        for name, angle, low, high in zip(HINGE_NAMES, hinge_14, low_14, high_14):
            if not low - OVERSHOOT <= angle <= high + OVERSHOOT:
                raise ValueError(f"{name} is {angle:g} rad, but its hinge turns from {low:g} to {high:g}.")
        if np.abs(speed_20).max() > MAX_SPEED:
            raise ValueError(f"the speeds are {speed_20.tolist()}, but must be within {MAX_SPEED:g} (m/s, rad/s) of 0.")
        return state_S

    def _draw_state(self, rng: np.random.Generator) -> Array:
        return self._physics.draw(rng)

    def _picture(self, state_S: Array) -> NDArray[np.uint8]:
        return scene(self.size).picture(*self._physics.geoms(state_S))

    def _renderer_name(self) -> str:
        return f"{self.renderer} on {scene(self.size).camera.driver()}"

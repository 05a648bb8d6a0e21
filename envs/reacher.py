"""Reacher: a damped two-link arm in the plane, moved by joint torques, that must take a pose seen in a picture."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.camera import Camera, load_mujoco
from envs.goal_env import GoalEnv, wrap_angle
from envs.painter import Canvas
from envs.picture_factors import PICTURE_FACTORS, TEXTURE
from envs.policies import CorrelatedRandom, Noisy, Policy, UniformRandom, check_policy, clip_action
from envs.variation import Factor, colour, ratio

mujoco: Any = load_mujoco()

Array = NDArray[np.float64]

MODEL_FILE = Path(__file__).parent / "assets" / "reacher.xml"
LINK, LINK_RADIUS, HUB_RADIUS, TIP_RADIUS = 0.12, 0.015, 0.022, 0.018
ELBOW_LIMIT = 2.8  # rad, the joint's range in the model; it is soft, so physics may overshoot it a little
ELBOW_OVERSHOOT = 0.3
MAX_SPEED = 10.0  # rad/s; full torque from rest reaches 7, and much more would break through the elbow's soft limit
VIEWS = ("top", "side")
VIEW = 0.27  # half of the picture's width, m
FLOOR, UPPER_ARM, FOREARM, HUB, TIP = (242, 240, 235), (47, 99, 172), (230, 126, 34), (58, 64, 84), (189, 40, 50)


class Reacher(GoalEnv):
    """Bring both joints of a two-link arm to the angles seen in the goal picture.

    Description:
        Two 0.12 m links in a horizontal plane: no gravity, no contacts. Torque motors turn damped joints. MuJoCo
        integrates `assets/reacher.xml` with one 0.02 s Euler step per env step.

    Action Space: Box(-1, 1, (2,), float32); values outside are clipped.
        | entry | meaning | unit |
        |---|---|---|
        | 0 `shoulder_torque` | torque on the shoulder, counter-clockwise | 0.05 N m |
        | 1 `elbow_torque` | torque on the elbow, counter-clockwise | 0.05 N m |

    Observation Space: Box(0, 255, (size, size, 3), uint8), the arm seen from above, y up, 0.54 m wide.

    State: float64 (shoulder, elbow, shoulder_velocity, elbow_velocity) in rad and rad/s. Angles are wrapped to
        [-pi, pi). The shoulder turns without limit; a soft limit keeps the elbow within 2.8 rad of straight.

    Rewards: 1 when the state after the step satisfies the goal, else 0.

    Starting State: shoulder uniform over the circle, elbow uniform within 2.7 rad, at rest; the goal likewise, redrawn
        while the start satisfies it.

    Success: both joint errors, the shoulder's wrapped, smaller than 0.05 rad; velocities do not count.

    Episode end: none by itself; truncated after 200 steps when made by `gymnasium.make`.

    Settings:
        size: picture width and height in pixels, 32 to 512.
        renderer: "painter" (numpy, fast, the same on every machine) or "camera" (MuJoCo's renderer, needs OpenGL).
        cameras: what the renderer "camera" shows, one or more of "top" (as the painter) and "side" (obliquely).

    Version history: v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 (Gymnasium's contract)
    state_names = ("shoulder", "elbow", "shoulder_velocity", "elbow_velocity")
    angle_names = ("shoulder", "elbow")
    action_names = ("shoulder_torque", "elbow_torque")
    policies = ("expert", "correlated", "random")
    control_dt = 0.02
    success_distance = 0.05
    home_state: ClassVar[tuple[float, ...]] = (0.5, 1.0, 0.0, 0.0)
    factors: ClassVar[Mapping[str, Factor]] = {
        **PICTURE_FACTORS,
        "texture": TEXTURE,
        "floor": colour(FLOOR, (130, 160, 130), (180, 210, 180), "floor"),
        "upper_arm": colour(UPPER_ARM, (120, 20, 90), (180, 70, 150), "upper arm"),
        "forearm": colour(FOREARM, (20, 110, 80), (90, 180, 140), "forearm"),
        "tip": colour(TIP, (20, 20, 20), (70, 90, 90), "disc at the tip"),
        "thickness": ratio("picture", (0.3, 3.0), (0.6, 0.75), (1.3, 1.6), what="drawn radius of links and discs"),
        "torque": ratio("physics", (0.3, 1.25), (0.6, 0.75), (1.15, 1.25), what="torque of an action"),
        "damping": ratio("physics", (0.9, 4.0), (1.5, 2.5), what="damping of the joints"),
    }

    def __init__(
        self,
        size: int = 64,
        renderer: Literal["painter", "camera"] = "painter",
        cameras: Sequence[str] = ("top",),
        render_mode: Literal["rgb_array"] | None = "rgb_array",
    ) -> None:
        views = tuple(cameras)
        if not views or len(set(views)) < len(views) or not set(views) <= set(VIEWS):
            raise ValueError(f"cameras is {cameras!r}, but must name some of {', '.join(VIEWS)}, each once.")
        if renderer == "painter" and views != ("top",):
            raise ValueError(f"cameras is {cameras!r}, but the painter only draws top: set renderer='camera'.")
        self._views, self.cameras = views, views if len(views) > 1 else ("main",)
        super().__init__(size, renderer, render_mode)
        self.model = mujoco.MjModel.from_xml_path(str(MODEL_FILE))
        self._data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)  # poses pictures and simulated branches
        self._built = self.model.actuator_gear.copy(), self.model.dof_damping.copy()
        self._camera = Camera(copy.copy(self.model), self.size, *views) if renderer == "camera" else None
        self._canvas = Canvas(self.size, centre=(0.0, 0.0), half_extent=VIEW, colour=FLOOR)
        self.set_state(self.home_state)

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make("reacher", ...)` needs to build this environment again."""
        return super().settings | ({} if self._views == ("top",) else {"cameras": list(self._views)})

    @property
    def state(self) -> Array:
        """A copy of (shoulder, elbow, shoulder_velocity, elbow_velocity), angles wrapped."""
        return np.concatenate([wrap_angle(self._data.qpos), self._data.qvel])

    def set_state(self, state_S: ArrayLike) -> None:
        """Pose the arm. Angles are wrapped; raises ValueError for an elbow or a speed that the arm cannot have."""
        state = self.check_state(state_S)
        mujoco.mj_resetData(self.model, self._data)
        self._data.qpos[:], self._data.qvel[:] = state[:2], state[2:]

    def advance(self, action_A: ArrayLike) -> None:
        """One 0.02 s step of physics under a torque action (2,)."""
        self._data.ctrl[:] = self.check_actions(action_A, ())
        mujoco.mj_step(self.model, self._data)

    def simulate(self, state_S: ArrayLike, action_NTA: ArrayLike) -> Array:
        """The states (N, T, 4) after each step of N action sequences from one state."""
        from mujoco import rollout

        start_S = self.check_state(state_S)
        control_NTA = self.check_actions(action_NTA, "NT")
        if control_NTA.shape[0] * control_NTA.shape[1] == 0:
            return np.empty((*control_NTA.shape[:2], len(self.state_names)))
        mujoco.mj_resetData(self.model, self._scratch)
        full_S = np.concatenate([[0.0], start_S])  # MuJoCo's full physics state: time, qpos, qvel
        full_NS = np.tile(full_S, (control_NTA.shape[0], 1))
        full_NTS, _ = rollout.rollout(self.model, self._scratch, full_NS, control_NTA)
        state_NTS: Array = full_NTS[..., 1:].copy()
        state_NTS[..., :2] = wrap_angle(state_NTS[..., :2])
        return state_NTS

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """The larger of the two joint errors, in rad; leading axes broadcast.

        The shoulder's is wrapped. The elbow's is not: its joint stops short of a half turn, so the way round is closed.
        """
        error = self.as_states(state_S)[..., :2] - self.as_states(goal_S)[..., :2]
        return np.asarray(np.maximum(np.abs(wrap_angle(error[..., 0])), np.abs(error[..., 1])))

    def make_policy(self, name: str, noise: float) -> Policy:
        """`expert` (PD control to random poses), `correlated` (smooth random torques) or `random` (uniform torques)."""
        check_policy(name, noise, self.policies)
        known: dict[str, Policy] = {
            "expert": Expert(),
            "correlated": CorrelatedRandom(2, std=0.6, memory=8.0),
            "random": UniformRandom(2),
        }
        return Noisy(known[name], 2, noise, memory=5.0) if noise > 0 else known[name]

    def close(self) -> None:
        """Free the camera's OpenGL context, if there is one."""
        if self._camera is not None:
            self._camera.close()

    def _check_inside(self, state_S: Array) -> Array:
        state = state_S.copy()
        state[:2] = wrap_angle(state[:2])
        if abs(state[1]) > ELBOW_LIMIT + ELBOW_OVERSHOOT:
            raise ValueError(
                f"the elbow angle is {state[1]:g} rad, but its joint stops at about {ELBOW_LIMIT:g} rad: "
                f"it must be in [{-ELBOW_LIMIT:g}, {ELBOW_LIMIT:g}]."
            )
        if np.abs(state[2:]).max() > MAX_SPEED:
            raise ValueError(
                f"the joint velocities are {state[2:].tolist()}, but must be within {MAX_SPEED:g} rad/s of 0."
            )
        return state

    def _draw_state(self, rng: np.random.Generator) -> Array:
        return draw_pose(rng)

    def _apply_variation(self) -> None:
        gear, damping = self._built
        self.model.actuator_gear[:] = gear * self._number("torque")
        self.model.dof_damping[:] = damping * self._number("damping")
        self._canvas = Canvas(self.size, centre=(0.0, 0.0), half_extent=VIEW, colour=self._colour("floor"))
        if self._camera is not None:
            coloured = self.variation.keys() & {"floor", "upper_arm", "forearm", "tip"}
            radii = dict.fromkeys(("upper_arm", "forearm", "hub", "tip"), self._number("thickness"))
            self._camera.restyle({name: self._colour(name) for name in coloured}, radii)

    def _picture(self, state_S: Array) -> NDArray[np.uint8]:
        if self._camera is not None:
            self._scratch.qpos[:] = state_S[:2]
            mujoco.mj_kinematics(self.model, self._scratch)
            mujoco.mj_camlight(self.model, self._scratch)
            return self._camera.picture(self._scratch)
        shoulder, elbow = float(state_S[0]), float(state_S[1])
        thick = self._number("thickness")
        x1, y1 = LINK * math.cos(shoulder), LINK * math.sin(shoulder)
        x2, y2 = x1 + LINK * math.cos(shoulder + elbow), y1 + LINK * math.sin(shoulder + elbow)
        image_YXC = self._canvas.fresh()
        self._canvas.capsule(image_YXC, (0.0, 0.0), (x1, y1), thick * LINK_RADIUS, self._colour("upper_arm"))
        self._canvas.disc(image_YXC, (0.0, 0.0), thick * HUB_RADIUS, HUB)
        self._canvas.capsule(image_YXC, (x1, y1), (x2, y2), thick * LINK_RADIUS, self._colour("forearm"))
        self._canvas.disc(image_YXC, (x2, y2), thick * TIP_RADIUS, self._colour("tip"))
        return image_YXC

    def _renderer_name(self) -> str:
        return self.renderer if self._camera is None else f"{self.renderer} on {self._camera.driver()}"


class Expert:
    """PD control to random poses with gains drawn anew for each; a pose lasts until it is reached or 60 steps pass."""

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._choose_pose()

    def act(self, state_S: Array) -> NDArray[np.float32]:
        error_2 = self._error(state_S)
        self._steps_left -= 1
        if self._steps_left < 0 or (np.abs(error_2).max() < 0.05 and np.abs(state_S[2:]).max() < 0.5):
            self._choose_pose()
            error_2 = self._error(state_S)
        return clip_action(self._stiffness * error_2 - self._damping * state_S[2:])

    def _error(self, state_S: Array) -> Array:
        shoulder, elbow = self._pose_S[:2] - state_S[:2]
        return np.array([wrap_angle(shoulder), elbow])  # the elbow cannot go the short way through its limit

    def _choose_pose(self) -> None:
        self._pose_S = draw_pose(self._rng)
        self._stiffness = self._rng.uniform(1.5, 5.0)
        self._damping = self._rng.uniform(0.05, 0.2)
        self._steps_left = 60


def draw_pose(rng: np.random.Generator) -> Array:
    """A random pose (4,) at rest."""
    return np.array([rng.uniform(-np.pi, np.pi), rng.uniform(-2.7, 2.7), 0.0, 0.0])

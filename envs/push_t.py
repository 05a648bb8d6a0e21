"""PushT: a disc pushes a T-shaped block until both lie as in a picture. The block moves only by contact."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.camera import Camera, load_mujoco
from envs.goal_env import GoalEnv, wrap_angle
from envs.painter import Canvas
from envs.picture_factors import PICTURE_FACTORS, TEXTURE
from envs.policies import Noisy, Policy, UniformRandom, check_policy
from envs.push_t_policies import Expert, NearBlock, RandomPushes
from envs.push_t_shape import CENTRES_R2, HALVES_R2, REACH, corners, coverage, gap, turn
from envs.variation import Factor, colour, ratio

mujoco: Any = load_mujoco()

Array = NDArray[np.float64]

MODEL_FILE = Path(__file__).parent / "assets" / "push_t.xml"
RADIUS = 15 / 512  # of the disc, arena sides
SUBSTEPS = 10
TOLERANCE = 0.02  # how far solids may overlap in a given state, arena sides; physics stays within half of it
PIXEL = 1 / 512  # the literature's unit of length, arena sides
ANGLE_WEIGHT = 20 * PIXEL / np.deg2rad(20)  # arena sides per rad: 20 px and 20 degrees count the same
COVERED = 0.95
BLOCK_WEIGHT = 7.0  # a T that covers 95 % is off by at most 2.7 px and 2.6 degrees: times 7, still below 20 of each
FLOOR, BLOCK, AGENT = (242, 240, 235), (106, 128, 163), (214, 62, 48)


class PushT(GoalEnv):
    """Push a T-shaped block, and park the disc that pushes it, as seen in the goal picture.

    Description:
        The arena is the unit square with solid walls, seen from above: no gravity, viscous friction on the table. A
        block of the literature's T (a bar of 120 x 30 over a stem of 30 x 90, where the arena is 512 wide) is pushed by
        a disc of radius 15. Motion is quasi-static: a step begins with the block at rest and the disc at its commanded
        velocity, which it keeps up against resistance as far as its drive can. MuJoCo integrates `assets/push_t.xml`
        with ten steps of 0.01 s per env step.

    Action Space: Box(-1, 1, (2,), float32); values outside are clipped.
        | entry | meaning | unit |
        |---|---|---|
        | 0 `move_x` | move of the disc to the right | `max_move` arena sides per step |
        | 1 `move_y` | move of the disc up | `max_move` arena sides per step |

    Observation Space: Box(0, 255, (size, size, 3), uint8), the whole arena seen from above, y up.

    State: float64 (agent_x, agent_y, block_x, block_y, block_angle): centre of the disc and centre of mass of the T in
        arena sides, y up; the T's angle in rad, counter-clockwise, wrapped to [-pi, pi), 0 with the bar on top.

    Rewards: 1 when the state after the step satisfies the goal, else 0.

    Starting State: block uniform in place (its farthest corner inside) and angle, disc uniform over what is left free;
        the goal likewise, redrawn while the start satisfies it.

    Success: under rule "pose", the positions of disc and block together are off by less than 20 / 512 arena sides
        (Euclidean norm of all four entries) and the angle by less than 20 degrees. Under rule "coverage", the block
        covers more than 95 % of the goal's T, wherever the disc is.

    Episode end: none by itself; truncated after 200 steps when made by `gymnasium.make`.

    Settings:
        size: picture width and height in pixels, 32 to 512.
        renderer: "painter" (numpy, fast, the same on every machine) or "camera" (MuJoCo's renderer, needs OpenGL).
        rule: "pose" or "coverage", see Success.
        max_move: largest move of the disc per step and axis, arena sides.

    Version history: v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's contract)
    state_names = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
    angle_names = ("block_angle",)
    action_names = ("move_x", "move_y")
    policies = ("expert", "push", "weak", "random")
    control_dt = 0.1
    success_distance = 20 * PIXEL
    home_state: ClassVar[tuple[float, ...]] = (0.3, 0.25, 0.55, 0.6, 0.6)
    factors: ClassVar[Mapping[str, Factor]] = {
        **PICTURE_FACTORS,
        "texture": TEXTURE,
        "floor": colour(FLOOR, (130, 160, 130), (180, 210, 180), "floor"),
        "block": colour(BLOCK, (150, 60, 120), (210, 110, 180), "block"),
        "agent": colour(AGENT, (10, 60, 30), (80, 120, 90), "disc"),
        "agent_size": ratio("picture", (0.3, 3.0), (0.6, 0.75), (1.3, 1.6), what="drawn radius of the disc"),
        "speed": ratio("physics", (0.2, 1.5), (0.5, 0.75), (1.2, 1.5), what="move per action"),
        "friction": ratio("physics", (0.0, 3.0), (0.0, 0.5), (1.5, 3.0), what="friction between disc and block"),
        "drag": ratio("physics", (0.2, 5.0), (0.3, 0.6), (2.0, 4.0), what="resistance of the table to the block"),
    }

    def __init__(
        self,
        size: int = 64,
        renderer: Literal["painter", "camera"] = "painter",
        rule: Literal["pose", "coverage"] = "pose",
        max_move: float = 0.04,
        render_mode: Literal["rgb_array"] | None = "rgb_array",
    ) -> None:
        super().__init__(size, renderer, render_mode)
        if rule not in ("pose", "coverage"):
            raise ValueError(f"rule is {rule!r}, but must be one of pose, coverage.")
        check_move(max_move)
        self.rule = rule
        self.max_move = self._given_move = max_move
        self.model = mujoco.MjModel.from_xml_path(str(MODEL_FILE))
        self._data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)  # poses pictures and simulated branches
        self._canvas = Canvas(self.size, centre=(0.5, 0.5), half_extent=0.5, colour=FLOOR)
        self._built = self.model.geom_friction.copy(), self.model.dof_damping.copy()
        self._camera = Camera(copy.copy(self.model), self.size, "top") if renderer == "camera" else None
        self.set_state(self.home_state)

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make("push_t", ...)` needs to build this environment again."""
        return super().settings | {"rule": self.rule, "max_move": self._given_move}

    @property
    def state(self) -> Array:
        """A copy of (agent_x, agent_y, block_x, block_y, block_angle)."""
        return np.array(self._data.qpos)

    def set_state(self, state_S: ArrayLike) -> None:
        """Place disc and block. The angle is wrapped; raises ValueError for solids that overlap or leave the arena."""
        state = self.check_state(state_S)
        mujoco.mj_resetData(self.model, self._data)
        self._data.qpos[:] = state

    def advance(self, action_A: ArrayLike) -> None:
        """Move the disc by one action (2,), and with it what it touches."""
        velocity_A = self._velocity(self.check_actions(action_A, ()))
        data = self._data
        data.ctrl[:] = velocity_A
        data.qvel[:2], data.qvel[2:] = velocity_A, 0.0
        mujoco.mj_step(self.model, data, SUBSTEPS)
        data.qpos[4] = wrap_angle(data.qpos[4])

    def simulate(self, state_S: ArrayLike, action_NTA: ArrayLike) -> Array:
        """The states (N, T, 5) after each step of N action sequences from one state."""
        from mujoco import rollout

        start_S = self.check_state(state_S)
        velocity_NTA = self._velocity(self.check_actions(action_NTA, "NT"))
        state_NTS = np.empty((*velocity_NTA.shape[:2], len(start_S)))
        if state_NTS.size == 0:
            return state_NTS
        mujoco.mj_resetData(self.model, self._scratch)
        full_NS = np.zeros((len(velocity_NTA), 11))  # MuJoCo's full physics state: time, 5 positions, 5 velocities
        full_NS[:, 1:6] = start_S
        for t in range(velocity_NTA.shape[1]):
            full_NS[:, 6:8] = velocity_NTA[:, t]
            control_NUA = np.repeat(velocity_NTA[:, t, None], SUBSTEPS, axis=1)
            full_NUS, _ = rollout.rollout(self.model, self._scratch, full_NS, control_NUA)
            full_NS[:, 1:6] = full_NUS[:, -1, 1:6]
            full_NS[:, 5] = wrap_angle(full_NS[:, 5])
            state_NTS[:, t] = full_NS[:, 1:6]
        return state_NTS

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """How far a state is from satisfying a goal, in arena sides; leading axes broadcast.

        The larger of the error in position and the error in angle, 20 degrees of which count like 20 / 512 sides. Rule
        "coverage" leaves out the disc; its uncovered area takes over where the T's pose error has become small.
        """
        state, goal = self.as_states(state_S), self.as_states(goal_S)
        error = state - goal
        angle = ANGLE_WEIGHT * np.abs(wrap_angle(error[..., 4]))
        if self.rule == "pose":
            return np.asarray(np.maximum(np.sqrt((error[..., :4] ** 2).sum(-1)), angle))
        pose = BLOCK_WEIGHT * np.maximum(np.hypot(error[..., 2], error[..., 3]), angle)
        uncovered = (1.0 - coverage(state[..., 2:], goal[..., 2:])) / (1.0 - COVERED)
        return np.asarray(np.maximum(self.success_distance * np.minimum(uncovered, 1.0), pose))

    def make_policy(self, name: str, noise: float) -> Policy:
        """`expert` (to random poses), `push` (random pushes), `weak` (random near the block) or `random` (uniform)."""
        check_policy(name, noise, self.policies)
        known: dict[str, Policy] = {
            "expert": Expert(self._draw_state, RADIUS, self.max_move),
            "push": RandomPushes(RADIUS, self.max_move),
            "weak": NearBlock(RADIUS, self.max_move),
            "random": UniformRandom(2),
        }
        return Noisy(known[name], 2, noise, memory=5.0) if noise > 0 else known[name]

    def close(self) -> None:
        """Free the camera's OpenGL context, if there is one."""
        if self._camera is not None:
            self._camera.close()

    def _apply_variation(self) -> None:
        self.max_move = self._given_move * self._number("speed")
        check_move(self.max_move)
        friction, damping = self._built
        self.model.geom_friction[:] = friction * self._number("friction")
        self.model.dof_damping[:] = damping * self._number("drag")
        self._canvas = Canvas(self.size, centre=(0.5, 0.5), half_extent=0.5, colour=self._colour("floor"))
        if self._camera is not None:
            geoms = {"floor": ("floor",), "block": ("bar", "stem"), "agent": ("agent",)}
            colours = {g: self._colour(name) for name in geoms.keys() & self.variation for g in geoms[name]}
            self._camera.restyle(colours, {"agent": self._number("agent_size")})

    def _velocity(self, action: Array) -> Array:
        return action * (self.max_move / self.control_dt)

    def _check_inside(self, state_S: Array) -> Array:
        state = state_S.copy()
        state[4] = wrap_angle(state[4])
        agent_2, block_3 = state[:2], state[2:]
        low, high = RADIUS, 1.0 - RADIUS
        if np.abs(agent_2 - np.clip(agent_2, low, high)).max() > TOLERANCE:
            raise ValueError(
                f"the disc's centre is at ({agent_2[0]:g}, {agent_2[1]:g}), but x and y must be in "
                f"[{low:g}, {high:g}] for it to be inside the arena."
            )
        ends = corners(block_3)
        if np.abs(ends - np.clip(ends, 0.0, 1.0)).max() > TOLERANCE:
            raise ValueError(
                f"the block at (x, y, angle) = ({block_3[0]:g}, {block_3[1]:g}, {block_3[2]:g}) reaches from "
                f"({ends[..., 0].min():g}, {ends[..., 1].min():g}) to ({ends[..., 0].max():g}, {ends[..., 1].max():g}),"
                " but must lie inside the unit square."
            )
        if gap(agent_2, block_3) < RADIUS - TOLERANCE:
            raise ValueError(
                f"the disc's centre is {gap(agent_2, block_3):g} arena sides from the block, but must be at least "
                f"its radius {RADIUS:g} away: move one of them."
            )
        return state

    def _draw_state(self, rng: np.random.Generator) -> Array:
        block_3 = np.append(rng.uniform(REACH, 1.0 - REACH, 2), rng.uniform(-np.pi, np.pi))
        while True:
            agent_2 = rng.uniform(RADIUS, 1.0 - RADIUS, 2)
            if gap(agent_2, block_3) >= RADIUS:
                return np.concatenate([agent_2, block_3])

    def _picture(self, state_S: Array) -> NDArray[np.uint8]:
        if self._camera is not None:
            self._scratch.qpos[:] = state_S
            mujoco.mj_kinematics(self.model, self._scratch)
            mujoco.mj_camlight(self.model, self._scratch)
            return self._camera.picture(self._scratch)
        image_YXC = self._canvas.fresh()
        angle = float(state_S[4])
        bar_2, stem_2 = state_S[2:4] + turn(CENTRES_R2, angle)
        (_, half_bar), (half_stem_x, half_stem_y) = HALVES_R2
        # The stem is drawn up to the middle of the bar: edges that only met would leave a seam.
        stem_2 = stem_2 + turn([0.0, half_bar / 2], angle)
        self._rectangle(image_YXC, stem_2, (half_stem_x, half_stem_y + half_bar / 2), angle)
        self._rectangle(image_YXC, bar_2, tuple(HALVES_R2[0]), angle)
        centre, radius = (float(state_S[0]), float(state_S[1])), RADIUS * self._number("agent_size")
        self._canvas.disc(image_YXC, centre, radius, self._colour("agent"))
        return image_YXC

    def _rectangle(
        self, image_YXC: NDArray[np.uint8], centre_2: Array, half_size: tuple[float, float], angle: float
    ) -> None:
        centre = float(centre_2[0]), float(centre_2[1])
        self._canvas.rectangle(image_YXC, centre, half_size, self._colour("block"), angle)

    def _renderer_name(self) -> str:
        return self.renderer if self._camera is None else f"{self.renderer} on {self._camera.driver()}"


def check_move(max_move: float) -> None:
    """Raise ValueError for a disc so fast that it would sink into solids."""
    if not 0 < max_move <= 0.1:
        raise ValueError(f"max_move is {max_move}, but must be in (0, 0.1] arena sides: faster discs sink in.")

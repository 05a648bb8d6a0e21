"""TwoRoom: a disc in a square cut in two by a wall with a door. Straight lines to the goal end at the wall."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.goal_env import GoalEnv
from envs.painter import Canvas
from envs.picture_factors import PICTURE_FACTORS, TEXTURE
from envs.policies import CorrelatedRandom, Noisy, Policy, UniformRandom, check_policy, clip_action
from envs.variation import Factor, colour, ratio

Array = NDArray[np.float64]

SKIN = 1e-9  # how deep rounding may push the disc into a solid without being noticed, arena sides
TOLERANCE = 1e-6  # how far inside a solid a given state may lie and still be taken for one on its surface
FLOOR, WALL, AGENT = (242, 240, 235), (58, 64, 84), (214, 62, 48)


class TwoRoom(GoalEnv):
    """Drive a disc to a goal position that may lie behind a wall with one door.

    Description:
        The arena is the unit square. A vertical wall at x = 0.5 has a door. The disc moves by the action and stops
        at solids along the whole way (no tunnelling), sliding along them with what is left of the move. Solids are
        inflated by the disc's radius in each axis, so the disc's bounding square is what collides.

    Action Space: Box(-1, 1, (2,), float32); values outside are clipped.
        | entry | meaning | unit |
        |---|---|---|
        | 0 `move_x` | move to the right | `max_move` arena sides per step |
        | 1 `move_y` | move up | `max_move` arena sides per step |

    Observation Space: Box(0, 255, (size, size, 3), uint8), the whole arena seen from above, y up.

    State: float64 (x, y), the disc's centre in arena sides, y up.

    Rewards: 1 when the state after the step satisfies the goal, else 0.

    Starting State: uniform over the free space; the goal likewise, redrawn while the start satisfies it.

    Success: the shortest path to the goal, through the door where need be, is shorter than 0.05.

    Episode end: none by itself; truncated after 200 steps when made by `gymnasium.make`.

    Settings:
        size: picture width and height in pixels, 32 to 512.
        renderer: "painter" (there is no MuJoCo model, so there is no "camera").
        agent_radius, wall_thickness, door_opening: arena sides; door_y: height of the door's centre;
        max_move: largest move per step and axis.

    Version history: v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's contract)
    state_names = ("x", "y")
    action_names = ("move_x", "move_y")
    policies = ("expert", "random_walk", "random")
    control_dt = 0.1
    success_distance = 0.05
    home_state: ClassVar[tuple[float, ...]] = (0.25, 0.5)
    factors: ClassVar[Mapping[str, Factor]] = {
        **PICTURE_FACTORS,
        "texture": TEXTURE,
        "floor": colour(FLOOR, (130, 160, 130), (180, 210, 180), "floor"),
        "wall": colour(WALL, (110, 60, 10), (170, 110, 60), "walls"),
        "agent": colour(AGENT, (20, 60, 140), (80, 140, 230), "disc"),
        "agent_size": ratio("picture", (0.3, 3.0), (0.6, 0.75), (1.3, 1.6), what="drawn radius of the disc"),
        "speed": ratio("physics", (0.2, 2.0), (0.5, 0.75), (1.25, 1.6), what="move per action"),
    }

    def __init__(
        self,
        size: int = 64,
        renderer: Literal["painter", "camera"] = "painter",
        agent_radius: float = 0.04,
        wall_thickness: float = 0.06,
        door_y: float = 0.3,
        door_opening: float = 0.2,
        max_move: float = 0.03,
        render_mode: Literal["rgb_array"] | None = "rgb_array",
    ) -> None:
        super().__init__(size, renderer, render_mode)
        if renderer == "camera":
            raise ValueError(
                "TwoRoom has no renderer 'camera' because it has no MuJoCo model for one to look at: use 'painter'."
            )
        check_geometry(agent_radius, wall_thickness, door_y, door_opening, max_move)
        self.agent_radius, self.wall_thickness = agent_radius, wall_thickness
        self.door_y, self.door_opening = door_y, door_opening
        self.max_move = self._given_move = max_move
        # The centre of the disc is free in two rooms and in the door's passage between them.
        self.low, self.high = agent_radius, 1.0 - agent_radius
        self.wall_left = 0.5 - wall_thickness / 2 - agent_radius
        self.wall_right = 0.5 + wall_thickness / 2 + agent_radius
        self.door_low = door_y - door_opening / 2 + agent_radius
        self.door_high = door_y + door_opening / 2 - agent_radius
        inf = np.inf
        self.solids_M22 = np.array(
            [  # ((x_low, y_low), (x_high, y_high)) of each solid, for the disc's centre
                [[-inf, -inf], [self.low, inf]],
                [[self.high, -inf], [inf, inf]],
                [[-inf, -inf], [inf, self.low]],
                [[-inf, self.high], [inf, inf]],
                [[self.wall_left, -inf], [self.wall_right, self.door_low]],
                [[self.wall_left, self.door_high], [self.wall_right, inf]],
            ]
        )
        self._canvas = self.draw_arena()
        self._state_S = np.array(self.home_state)

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make("two_room", ...)` needs to build this environment again."""
        names = ("agent_radius", "wall_thickness", "door_y", "door_opening")
        return super().settings | {name: getattr(self, name) for name in names} | {"max_move": self._given_move}

    @property
    def state(self) -> Array:
        """A copy of (x, y)."""
        return self._state_S.copy()

    def set_state(self, state_S: ArrayLike) -> None:
        """Put the disc somewhere free. Raises ValueError when it would overlap a wall or leave the arena."""
        self._state_S = self.check_state(state_S)

    def advance(self, action_A: ArrayLike) -> None:
        """Move the disc by one action (2,)."""
        move_12 = self.max_move * self.check_actions(action_A, ())[None]
        self._state_S = slide(self._state_S[None], move_12, self.solids_M22)[0]

    def simulate(self, state_S: ArrayLike, action_NTA: ArrayLike) -> Array:
        """The positions (N, T, 2) after each step of N action sequences from one state."""
        start_S = self.check_state(state_S)
        move_NTA = self.max_move * self.check_actions(action_NTA, "NT")
        state_NTS = np.empty(move_NTA.shape)
        state_NS = np.broadcast_to(start_S, (move_NTA.shape[0], 2))
        for t in range(move_NTA.shape[1]):
            state_NS = state_NTS[:, t] = slide(state_NS, move_NTA[:, t], self.solids_M22)
        return state_NTS

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """Length of the shortest collision-free path, in arena sides; leading axes broadcast.

        A path through the passage is straight or bends at one or two of its four corners.
        """
        free = (self._to_surface(self.as_states(states)) for states in (state_S, goal_S))
        state, goal = np.broadcast_arrays(*free)
        swap = state[..., :1] > goal[..., :1]
        left, right = np.where(swap, goal, state), np.where(swap, state, goal)
        best = np.where(self.in_sight(left, right), length(right - left), np.inf)
        if np.isfinite(best).all():
            return best
        x_in = np.maximum(left[..., 0], self.wall_left)  # an end inside the passage is its own entrance
        x_out = np.minimum(right[..., 0], self.wall_right)
        for y_in in (self.door_low, self.door_high):
            entry = np.stack([x_in, np.full_like(x_in, y_in)], -1)
            to_entry = length(entry - left)
            best = np.minimum(best, np.where(self.in_sight(entry, right), to_entry + length(right - entry), np.inf))
            for y_out in (self.door_low, self.door_high):
                exit_ = np.stack([x_out, np.full_like(x_out, y_out)], -1)
                from_exit = length(right - exit_)
                best = np.minimum(best, np.where(self.in_sight(left, exit_), length(exit_ - left) + from_exit, np.inf))
                best = np.minimum(best, to_entry + length(exit_ - entry) + from_exit)
        return best

    def in_sight(self, left_S: Array, right_S: Array) -> NDArray[np.bool_]:
        """Whether the straight way between two free points, the first not right of the second, is free."""
        x0, x1 = left_S[..., 0], right_S[..., 0]
        slope = (right_S[..., 1] - left_S[..., 1]) / np.where(x1 > x0, x1 - x0, 1.0)
        y_in = left_S[..., 1] + slope * (np.maximum(x0, self.wall_left) - x0)
        y_out = left_S[..., 1] + slope * (np.minimum(x1, self.wall_right) - x0)
        lowest, highest = np.minimum(y_in, y_out), np.maximum(y_in, y_out)
        through_door = (lowest >= self.door_low - SKIN) & (highest <= self.door_high + SKIN)
        return np.asarray((x1 <= self.wall_left) | (x0 >= self.wall_right) | through_door)

    def region(self, state_S: ArrayLike) -> NDArray[np.int64]:
        """0 for the left room, 1 for the right one."""
        return (self.as_states(state_S)[..., 0] > 0.5).astype(np.int64)

    def make_policy(self, name: str, noise: float) -> Policy:
        """`expert` (to random targets through the door), `random_walk` (keeps a direction) or `random` (uniform)."""
        check_policy(name, noise, self.policies)
        known: dict[str, Policy] = {
            "expert": Expert(self),
            "random_walk": CorrelatedRandom(2, std=0.7, memory=10.0),
            "random": UniformRandom(2),
        }
        return Noisy(known[name], 2, noise, memory=5.0) if noise > 0 else known[name]

    def _check_inside(self, state_S: Array) -> Array:
        free_S = self._to_surface(state_S)
        if np.abs(free_S - state_S).max() > TOLERANCE:
            raise ValueError(
                f"the state ({state_S[0]:g}, {state_S[1]:g}) is inside a wall, but the disc's centre must have x and y "
                f"in [{self.low:g}, {self.high:g}] and x <= {self.wall_left:g} or x >= {self.wall_right:g}, "
                f"or else y in [{self.door_low:g}, {self.door_high:g}]."
            )
        return free_S

    def _to_surface(self, state_S: Array) -> Array:
        """Points inside a solid put onto its nearest side; free points as they are.

        Rounding to float32 leaves recorded states a hair inside the solids they touched, and both `slide` and
        `distance` take a point on the surface for a free one.
        """
        x, y = np.moveaxis(np.clip(state_S, self.low, self.high), -1, 0)
        near_x = np.where(x < 0.5, self.wall_left, self.wall_right)
        near_y = np.clip(y, self.door_low, self.door_high)
        inside = (self.wall_left < x) & (x < self.wall_right) & (near_y != y)
        sideways = inside & (np.abs(near_x - x) < np.abs(near_y - y))
        return np.stack([np.where(sideways, near_x, x), np.where(inside & ~sideways, near_y, y)], -1)

    def _draw_state(self, rng: np.random.Generator) -> Array:
        while True:
            state_S = rng.uniform(self.low, self.high, 2)
            x, y = state_S
            if x <= self.wall_left or x >= self.wall_right or self.door_low <= y <= self.door_high:
                return state_S

    def draw_arena(self) -> Canvas:
        """A canvas that shows the arena without the disc."""
        canvas = Canvas(self.size, centre=(0.5, 0.5), half_extent=0.5, colour=self._colour("floor"))
        for low, high in (
            (0.0, self.door_y - self.door_opening / 2),
            (self.door_y + self.door_opening / 2, 1.0),
        ):
            centre, half_size = (0.5, (low + high) / 2), (self.wall_thickness / 2, (high - low) / 2)
            canvas.rectangle(canvas.background_YXC, centre, half_size, self._colour("wall"))
        return canvas

    def _apply_variation(self) -> None:
        self.max_move = self._given_move * self._number("speed")
        self._canvas = self.draw_arena()

    def _picture(self, state_S: Array) -> NDArray[np.uint8]:
        image_YXC = self._canvas.fresh()
        centre, radius = (float(state_S[0]), float(state_S[1])), self.agent_radius * self._number("agent_size")
        self._canvas.disc(image_YXC, centre, radius, self._colour("agent"))
        return image_YXC


class Expert:
    """Goes to random targets, half of them in the other room; speed and place in the door are drawn for each."""

    def __init__(self, env: TwoRoom) -> None:
        self._env = env

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._choose_target(state_S)

    def act(self, state_S: Array) -> NDArray[np.float32]:
        self._steps_left -= 1
        if self._steps_left < 0 or length(self._target_S - state_S) < 0.02:
            self._choose_target(state_S)
        action_A = (self._waypoint(state_S) - state_S) / self._env.max_move
        return clip_action(action_A * min(1.0, self._speed / max(np.abs(action_A).max(), 1e-9)))

    def _choose_target(self, state_S: Array) -> None:
        env, rng = self._env, self._rng
        to_the_right = (state_S[0] > 0.5) != (rng.random() < 0.5)
        x_range = (env.wall_right, env.high) if to_the_right else (env.low, env.wall_left)
        self._target_S = np.array([rng.uniform(*x_range), rng.uniform(env.low, env.high)])
        self._speed = rng.uniform(0.5, 1.0)
        self._crossing_y = rng.uniform(env.door_low, env.door_high)
        self._steps_left = 90

    def _waypoint(self, state_S: Array) -> Array:
        env, target_S = self._env, self._target_S
        to_the_right = bool(target_S[0] > state_S[0])
        ends = (state_S, target_S) if to_the_right else (target_S, state_S)
        if env.in_sight(*ends):
            return target_S
        near_x, far_x = (env.wall_left, env.wall_right) if to_the_right else (env.wall_right, env.wall_left)
        before_door = not env.door_low <= state_S[1] <= env.door_high
        return np.array([near_x if before_door else far_x, self._crossing_y])


def slide(position_N2: Array, move_N2: Array, solids_M22: Array) -> Array:
    """Move points until their first contact with axis-aligned solids, then along the solid with what is left.

    Exact along the whole way for moves of any length (slab test of each segment against each solid). Two rounds are
    enough: each contact takes away one of the move's two axes.
    """
    move_N2 = np.where(np.abs(move_N2) < 1e-12, 0.0, move_N2)
    low_M2, high_M2 = solids_M22[:, 0] + SKIN, solids_M22[:, 1] - SKIN
    for _ in range(2):
        position_N12, speed_N12 = position_N2[:, None], np.abs(move_N2)[:, None] + 1e-300
        forward_N12 = move_N2[:, None] >= 0
        to_near_NM2 = np.where(forward_N12, low_M2 - position_N12, position_N12 - high_M2)
        to_far_NM2 = np.where(forward_N12, high_M2 - position_N12, position_N12 - low_M2)
        to_near_NM2[np.abs(to_near_NM2) < SKIN / 2] = 0.0
        enter_NM2 = to_near_NM2 / speed_N12
        enter_NM = enter_NM2.max(-1)
        hit_NM = (enter_NM >= 0) & (enter_NM < 1) & (enter_NM < (to_far_NM2 / speed_N12).min(-1))
        if not hit_NM.any():
            return position_N2 + move_N2
        time_NM = np.where(hit_NM, enter_NM, 1.0)
        first_N = time_NM.argmin(-1)
        rows_N = np.arange(len(first_N))
        time_N1 = time_NM[rows_N, first_N, None]
        stopped_N2 = hit_NM.any(-1)[:, None] & (np.arange(2) == enter_NM2[rows_N, first_N].argmax(-1)[:, None])
        face_N2 = np.where(move_N2 >= 0, solids_M22[first_N, 0], solids_M22[first_N, 1])
        position_N2 = np.where(stopped_N2, face_N2, position_N2 + time_N1 * move_N2)
        move_N2 = np.where(stopped_N2, 0.0, (1.0 - time_N1) * move_N2)
    return position_N2


def length(vector: Array) -> Array:
    """Euclidean length over the last axis."""
    return np.hypot(vector[..., 0], vector[..., 1])


def check_geometry(
    agent_radius: float, wall_thickness: float, door_y: float, door_opening: float, max_move: float
) -> None:
    """Raise ValueError unless the disc fits through the door and into both rooms."""
    if not 0 < agent_radius <= 0.2:
        raise ValueError(f"agent_radius is {agent_radius}, but must be in (0, 0.2].")
    if not 0 < wall_thickness <= 1 - 6 * agent_radius:
        raise ValueError(
            f"wall_thickness is {wall_thickness}, but must be in (0, {1 - 6 * agent_radius:g}] to leave two rooms."
        )
    if not 2 * agent_radius < door_opening <= 1:
        raise ValueError(
            f"door_opening is {door_opening}, but must be in ({2 * agent_radius:g}, 1] for the disc to pass."
        )
    if not door_opening / 2 <= door_y <= 1 - door_opening / 2:
        raise ValueError(
            f"door_y is {door_y}, but must be in [{door_opening / 2:g}, {1 - door_opening / 2:g}] to stay inside."
        )
    if not 0 < max_move <= 1:
        raise ValueError(f"max_move is {max_move}, but must be in (0, 1].")

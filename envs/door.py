"""Door: two rooms and a door that opens or closes at random whenever the disc crosses a line. A stochastic world."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.goal_env import GoalEnv
from envs.painter import Canvas
from envs.policies import CorrelatedRandom, Noisy, Policy, UniformRandom, check_policy, clip_action
from envs.two_room import TOLERANCE, TwoRoom, length, slide
from envs.variation import Factor, colour

Array = NDArray[np.float64]

COINS = 2**20  # few enough that a coin survives being stored as float32
MULTIPLIER, INCREMENT = 678_789, 373_475  # full period, because COINS is a power of 2 (Hull and Dobell 1962)
DOOR, LINE = (222, 158, 54), (96, 156, 172)
LINE_THICKNESS = 0.02


class Door(GoalEnv):
    """Drive a disc to a goal position that may lie behind a door which opens by chance only.

    Description:
        The arena is TwoRoom's: the unit square with a wall at x = 0.5 and a door in it. A horizontal line runs through
        both rooms, above the door. Each step that takes the disc's centre from one side of the line to the other
        redraws the door: open or closed with probability 1/2 each, whatever it was. Otherwise the door stays as it is.
        A closed door is a solid like the wall.

        Chance is part of the state, so that states can be set and simulated exactly, and not of the picture: the hidden
        `coin` decides the next redraw, and a fixed permutation advances it then. Whoever reads `coin` or calls
        `simulate` (the oracle baseline) knows the future.

    Action Space: Box(-1, 1, (2,), float32); values outside are clipped.
        | entry | meaning | unit |
        |---|---|---|
        | 0 `move_x` | move to the right | `max_move` arena sides per step |
        | 1 `move_y` | move up | `max_move` arena sides per step |

    Observation Space: Box(0, 255, (size, size, 3), uint8), the whole arena seen from above, y up: disc, walls, line,
        and the door where it is closed.

    State: float64 (x, y, door, coin): the disc's centre in arena sides, y up; 1 for an open door, 0 for a closed one;
        the hidden coin, in [0, 1), a multiple of 2^-20.

    Rewards: 1 when the state after the step satisfies the goal, else 0.

    Starting State: position uniform over the free space, door and coin at random; the goal likewise, redrawn while the
        start satisfies it.

    Success: the shortest path to the goal position, through the door as if it were open, is shorter than 0.05. The
        goal's door and coin do not matter.

    Episode end: none by itself; truncated after 100 steps when made by `gymnasium.make`.

    Settings:
        size: picture width and height in pixels, 32 to 512.
        renderer: "painter" (there is no MuJoCo model, so there is no "camera").
        agent_radius, wall_thickness, door_opening: arena sides; door_y: height of the door's centre; line_y: height of
        the line; max_move: largest move per step and axis.

    Version history: v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's contract)
    state_names = ("x", "y", "door", "coin")
    action_names = ("move_x", "move_y")
    policies = ("expert", "random_walk", "random")
    control_dt = 0.1
    success_distance = 0.05
    home_state: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.0, 0.0)
    factors: ClassVar[Mapping[str, Factor]] = {
        **TwoRoom.factors,
        "door": colour(DOOR, (120, 40, 120), (180, 100, 180), "closed door"),
        "line": colour(LINE, (180, 90, 60), (240, 150, 110), "line"),
    }

    def __init__(
        self,
        size: int = 64,
        renderer: Literal["painter", "camera"] = "painter",
        agent_radius: float = 0.05,
        wall_thickness: float = 0.08,
        door_y: float = 0.3,
        door_opening: float = 0.3,
        line_y: float = 0.65,
        max_move: float = 0.05,
        render_mode: Literal["rgb_array"] | None = "rgb_array",
    ) -> None:
        super().__init__(size, renderer, render_mode)
        self._room = room = TwoRoom(
            size, renderer, agent_radius, wall_thickness, door_y, door_opening, max_move, render_mode
        )
        check_line(line_y, room)
        self.line_y = line_y
        wall = [[[room.wall_left, -np.inf], [room.wall_right, np.inf]]]
        self._closed_M22 = np.concatenate([room.solids_M22, wall])
        self._canvases = self._draw_arena(closed=True), self._draw_arena(closed=False)
        self._state_S = np.array(self.home_state)

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make("door", ...)` needs to build this environment again."""
        return self._room.settings | {"line_y": self.line_y} | self._variation_setting()

    @property
    def state(self) -> Array:
        """A copy of (x, y, door, coin)."""
        return self._state_S.copy()

    def set_state(self, state_S: ArrayLike) -> None:
        """Put disc, door and coin into a state. Raises ValueError for a disc in a solid or a coin that is none."""
        self._state_S = self.check_state(state_S)

    def advance(self, action_A: ArrayLike) -> None:
        """Move the disc by one action (2,) and redraw the door if that crosses the line."""
        self._state_S = self._next(self._state_S[None], self.check_actions(action_A, ())[None])[0]

    def simulate(self, state_S: ArrayLike, action_NTA: ArrayLike) -> Array:
        """The states (N, T, 4) after each step of N action sequences from one state, the door's chances included."""
        start_S = self.check_state(state_S)
        action_NTA = self.check_actions(action_NTA, "NT")
        state_NTS = np.empty((*action_NTA.shape[:2], len(start_S)))
        state_NS = np.broadcast_to(start_S, (len(action_NTA), len(start_S)))
        for t in range(action_NTA.shape[1]):
            state_NS = state_NTS[:, t] = self._next(state_NS, action_NTA[:, t])
        return state_NTS

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """Length of the shortest path between the positions with the door open; leading axes broadcast."""
        return self._room.distance(self.as_states(state_S)[..., :2], self.as_states(goal_S)[..., :2])

    def region(self, state_S: ArrayLike) -> NDArray[np.int64]:
        """0 for the left room, 1 for the right one."""
        return self._room.region(self.as_states(state_S)[..., :2])

    def make_policy(self, name: str, noise: float) -> Policy:
        """`expert` (to random targets, tries the line until the door opens), `random_walk` or `random` (uniform)."""
        check_policy(name, noise, self.policies)
        known: dict[str, Policy] = {
            "expert": Expert(self, self._room),
            "random_walk": CorrelatedRandom(2, std=0.7, memory=10.0),
            "random": UniformRandom(2),
        }
        return Noisy(known[name], 2, noise, memory=5.0) if noise > 0 else known[name]

    def _next(self, state_NS: Array, action_NA: Array) -> Array:
        """One step of every state."""
        position_N2, move_N2 = state_NS[:, :2], self._room.max_move * action_NA
        open_N, coin_N = state_NS[:, 2] > 0.5, state_NS[:, 3]
        through_N2 = slide(position_N2, move_N2, self._room.solids_M22)
        moved_N2 = np.where(open_N[:, None], through_N2, slide(position_N2, move_N2, self._closed_M22))
        crossed_N = (position_N2[:, 1] > self.line_y) != (moved_N2[:, 1] > self.line_y)
        tossed_N = toss(coin_N)
        open_N = np.where(crossed_N, tossed_N >= 0.5, open_N)
        return np.column_stack([moved_N2, open_N, np.where(crossed_N, tossed_N, coin_N)])

    def _check_inside(self, state_S: Array) -> Array:
        x, y, door, coin = state_S
        if door not in (0.0, 1.0):
            raise ValueError(f"the door is {door:g}, but must be 0 (closed) or 1 (open).")
        if not 0 <= coin < 1 or coin * COINS % 1:
            raise ValueError(f"the coin is {coin:g}, but must be a multiple of 2^-20 in [0, 1).")
        position_2 = self._room.check_state([x, y])
        side_x = self._room.wall_left if x < 0.5 else self._room.wall_right
        if not door and self._room.wall_left < position_2[0] < self._room.wall_right:
            if abs(side_x - x) > TOLERANCE:
                raise ValueError(
                    f"the state ({x:g}, {y:g}) is inside the closed door, but the disc's centre must have x <= "
                    f"{self._room.wall_left:g} or x >= {self._room.wall_right:g}; open the door, or move the disc."
                )
            position_2[0] = side_x
        return np.array([*position_2, door, coin])

    def _draw_state(self, rng: np.random.Generator) -> Array:
        room = self._room
        while True:
            position_2 = rng.uniform(room.low, room.high, 2)
            door, coin = rng.integers(2), rng.integers(COINS) / COINS
            in_room = position_2[0] <= room.wall_left or position_2[0] >= room.wall_right
            if in_room or (door and room.door_low <= position_2[1] <= room.door_high):
                return np.array([*position_2, door, coin])

    def _draw_arena(self, closed: bool) -> Canvas:
        room, canvas = self._room, self._room.draw_arena()
        width = 0.5 - room.wall_thickness / 2
        for x in (width / 2, 1 - width / 2):
            half_size = (width / 2, LINE_THICKNESS / 2)
            canvas.rectangle(canvas.background_YXC, (x, self.line_y), half_size, self._colour("line"))
        if closed:
            half_size = (room.wall_thickness / 2, room.door_opening / 2)
            canvas.rectangle(canvas.background_YXC, (0.5, room.door_y), half_size, self._colour("door"))
        return canvas

    def _apply_variation(self) -> None:
        room = self._room
        room.vary({name: value for name, value in self.variation.items() if name in room.factors})
        check_line(self.line_y, room)
        self._canvases = self._draw_arena(closed=True), self._draw_arena(closed=False)

    def _picture(self, state_S: Array) -> NDArray[np.uint8]:
        canvas = self._canvases[int(state_S[2])]
        image_YXC = canvas.fresh()
        centre, radius = (float(state_S[0]), float(state_S[1])), self._room.agent_radius * self._number("agent_size")
        canvas.disc(image_YXC, centre, radius, self._colour("agent"))
        return image_YXC


class Expert:
    """Goes to random targets, half of them in the other room; crosses the line again and again while the door between
    is closed. It sees the door and does not look at the coin."""

    def __init__(self, env: Door, room: TwoRoom) -> None:
        self._env, self._room = env, room

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._choose_target(state_S)

    def act(self, state_S: Array) -> NDArray[np.float32]:
        self._steps_left -= 1
        if self._steps_left < 0 or length(self._target_2 - state_S[:2]) < 0.02:
            self._choose_target(state_S)
        action_A = (self._waypoint(state_S) - state_S[:2]) / self._room.max_move
        return clip_action(action_A * min(1.0, self._speed / max(np.abs(action_A).max(), 1e-9)))

    def _choose_target(self, state_S: Array) -> None:
        room, rng = self._room, self._rng
        to_the_right = (state_S[0] > 0.5) != (rng.random() < 0.5)
        x_range = (room.wall_right, room.high) if to_the_right else (room.low, room.wall_left)
        self._target_2 = np.array([rng.uniform(*x_range), rng.uniform(room.low, room.high)])
        self._speed = rng.uniform(0.5, 1.0)
        self._crossing_y = rng.uniform(room.door_low, room.door_high)
        self._overshoot = rng.uniform(0.02, 0.1)
        self._steps_left = 90

    def _waypoint(self, state_S: Array) -> Array:
        room, here_2, target_2 = self._room, state_S[:2], self._target_2
        to_the_right = bool(target_2[0] > here_2[0])
        if room.region(here_2) == room.region(target_2):
            return target_2
        if not state_S[2]:
            above = here_2[1] > self._env.line_y
            return np.array([here_2[0], self._env.line_y + (-self._overshoot if above else self._overshoot)])
        near_x, far_x = (room.wall_left, room.wall_right) if to_the_right else (room.wall_right, room.wall_left)
        before_door = not room.door_low <= here_2[1] <= room.door_high
        return np.array([near_x if before_door else far_x, self._crossing_y])


def check_line(line_y: float, room: TwoRoom) -> None:
    """Raise ValueError unless the line is inside the arena and so high that the door cannot close on the disc."""
    lowest = room.door_high + room.max_move
    if not lowest < line_y < room.high:
        raise ValueError(
            f"line_y is {line_y}, but must be in ({lowest:g}, {room.high:g}): inside the arena "
            "and more than one move above the door, which must not close on the disc."
        )


def toss(coin_N: Array) -> Array:
    """The coins after these, in [0, 1): one fixed permutation of the multiples of 2^-20; 1/2 and above opens."""
    state_N = (coin_N * COINS).astype(np.int64)
    tossed_N: Array = (state_N * MULTIPLIER + INCREMENT) % COINS / COINS
    return tossed_N

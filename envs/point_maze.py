"""PointMaze: a damped point mass is pushed through a maze. Near in the picture is often far along the corridors."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.camera import Camera, load_mujoco
from envs.goal_env import GoalEnv
from envs.painter import Canvas
from envs.picture_factors import PICTURE_FACTORS, TEXTURE
from envs.point_maze_layouts import LAYOUTS, Maze
from envs.point_maze_policies import Expert, Explorer
from envs.policies import CorrelatedRandom, Noisy, Policy, UniformRandom, check_policy, closest
from envs.variation import Colour, Factor, colour, ratio

mujoco: Any = load_mujoco()

Array = NDArray[np.float64]

MODEL_FILE = Path(__file__).parent / "assets" / "point_maze.xml"
SUBSTEPS = 10
RADIUS = 0.3  # of the disc, cells
TOLERANCE = 0.05  # how far the disc may be inside a wall in a given state, cells; physics stays within half of it
MAX_SPEED = 3.0  # cells/s per axis; full force reaches 2
BORDER = 0.3  # how much of the outer wall the picture shows, cells
CAMERA_HEIGHT = 20.0  # in widths of the view: as good as orthographic
FLOOR, WALL, AGENT = (242, 240, 235), (58, 64, 84), (214, 62, 48)


class PointMaze(GoalEnv):
    """Push a damped point mass through a maze to the position seen in the goal picture.

    Description:
        Unit cells are free or wall, as drawn in `envs.point_maze_layouts.LAYOUTS`. A disc of radius 0.3 cells slides
        along walls without friction. It is nearly first order: a constant force brings it to 63 % of its final speed
        within one env step, and one env step later a push is as good as forgotten. MuJoCo integrates
        `assets/point_maze.xml`, to which the walls are added, with ten steps of 0.01 s per env step.

    Action Space: Box(-1, 1, (2,), float32); values outside are clipped.
        | entry | meaning | unit |
        |---|---|---|
        | 0 `force_x` | force to the right | what keeps up 2 cells/s = 0.2 cells per env step |
        | 1 `force_y` | force up | the same |

    Observation Space: Box(0, 255, (size, size, 3), uint8), the whole maze seen from above, y up.

    State: float64 (x, y, velocity_x, velocity_y) of the disc's centre in cells and cells/s, x to the right and y up
        from the lower left corner of the drawing.

    Rewards: 1 when the state after the step satisfies the goal, else 0.

    Starting State: position uniform over the free space, at rest; the goal likewise, redrawn while the start satisfies
        it.

    Success: the shortest path of the disc's centre to the goal, round the walls, is shorter than 0.5 cells; velocities
        do not count.

    Episode end: none by itself; truncated after 400 steps when made by `gymnasium.make`.

    Settings:
        size: picture width and height in pixels, 32 to 512.
        renderer: "painter" (numpy, fast, the same on every machine) or "camera" (MuJoCo's renderer, needs OpenGL).
        layout: "u" (3 x 3 cells, the longest way is 6 cells), "medium" (6 x 6, 17) or "large" (10 x 7, 34).

    Version history: v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's contract)
    state_names = ("x", "y", "velocity_x", "velocity_y")
    action_names = ("force_x", "force_y")
    policies = ("expert", "explore", "correlated", "random")
    control_dt = 0.1
    success_distance = 0.5
    home_state: ClassVar[tuple[float, ...]] = (1.5, 1.5, 0.0, 0.0)
    factors: ClassVar[Mapping[str, Factor]] = {
        **PICTURE_FACTORS,
        "texture": TEXTURE,
        "floor": colour(FLOOR, (130, 160, 130), (180, 210, 180), "floor"),
        "wall": colour(WALL, (110, 60, 10), (170, 110, 60), "walls"),
        "agent": colour(AGENT, (20, 60, 140), (80, 140, 230), "disc"),
        "agent_size": ratio("picture", (0.3, 1.6), (0.6, 0.75), (1.2, 1.5), what="drawn radius of the disc"),
        "force": ratio("physics", (0.3, 1.3), (0.5, 0.75), (1.15, 1.3), what="force of an action"),
        "damping": ratio("physics", (0.9, 4.0), (1.5, 2.5), what="damping of the disc"),
    }

    def __init__(
        self,
        size: int = 64,
        renderer: Literal["painter", "camera"] = "painter",
        layout: Literal["u", "medium", "large"] = "medium",
        render_mode: Literal["rgb_array"] | None = "rgb_array",
    ) -> None:
        super().__init__(size, renderer, render_mode)
        if layout not in LAYOUTS:
            raise ValueError(
                f"layout is {layout!r}{closest(layout, LAYOUTS)}, but must be one of {', '.join(LAYOUTS)}."
            )
        self.layout = layout
        self.maze = Maze(LAYOUTS[layout])
        self._halves_C = self.maze.halves()
        centre = (self.maze.width / 2, self.maze.height / 2)
        half_extent = max(centre) - 1.0 + BORDER
        self.model = build_model(self.maze, centre, half_extent)
        self._data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)  # poses pictures and simulated branches
        self._built = self.model.actuator_gear.copy(), self.model.dof_damping.copy()
        self._canvas = Canvas(self.size, centre, half_extent, WALL)
        self._paint = lambda wall, floor: paint_maze(self.maze, self.size, centre, half_extent, wall, floor)
        self._canvas.background_YXC[:] = self._paint(WALL, FLOOR)
        self._camera = Camera(copy.copy(self.model), self.size, "top") if renderer == "camera" else None
        self.set_state(self.home_state)

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make("point_maze", ...)` needs to build this environment again."""
        return super().settings | {"layout": self.layout}

    @property
    def state(self) -> Array:
        """A copy of (x, y, velocity_x, velocity_y)."""
        return np.concatenate([self._data.qpos, self._data.qvel])

    def set_state(self, state_S: ArrayLike) -> None:
        """Place the disc. Raises ValueError for a place inside a wall and for a speed that it cannot have."""
        state = self.check_state(state_S)
        mujoco.mj_resetData(self.model, self._data)
        self._data.qpos[:], self._data.qvel[:] = state[:2], state[2:]

    def advance(self, action_A: ArrayLike) -> None:
        """One env step of 0.1 s under a force action (2,)."""
        self._data.ctrl[:] = self.check_actions(action_A, ())
        mujoco.mj_step(self.model, self._data, SUBSTEPS)

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
        control_NUA = np.repeat(control_NTA, SUBSTEPS, axis=1)
        full_NUS, _ = rollout.rollout(self.model, self._scratch, full_NS, control_NUA)
        return np.array(full_NUS[:, SUBSTEPS - 1 :: SUBSTEPS, 1:])

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """Length of the shortest path of the disc's centre round the walls, in cells; leading axes broadcast."""
        return self.maze.distance(self.as_states(state_S)[..., :2], self.as_states(goal_S)[..., :2])

    def region(self, state_S: ArrayLike) -> NDArray[np.int64]:
        """Which end of the maze, 0 or 1, is nearer along the corridors; the ends are the two cells farthest apart."""
        return self._halves_C[self.maze.cell(self.as_states(state_S)[..., :2])]

    def make_policy(self, name: str, noise: float) -> Policy:
        """`expert` (shortest ways to random places), `explore` (from cell to cell, without a goal), `correlated`
        (smooth random forces) or `random` (uniform forces)."""
        check_policy(name, noise, self.policies)
        known: dict[str, Policy] = {
            "expert": Expert(self.maze, self._draw_place),
            "explore": Explorer(self.maze),
            "correlated": CorrelatedRandom(2, std=0.7, memory=10.0),
            "random": UniformRandom(2),
        }
        return Noisy(known[name], 2, noise, memory=5.0) if noise > 0 else known[name]

    def close(self) -> None:
        """Free the camera's OpenGL context, if there is one."""
        if self._camera is not None:
            self._camera.close()

    def _check_inside(self, state_S: Array) -> Array:
        to_wall = float(self.maze.clearance(state_S[:2]))
        if to_wall < RADIUS - TOLERANCE:
            raise ValueError(
                f"the disc's centre is at ({state_S[0]:g}, {state_S[1]:g}), {to_wall:g} cells from a wall of layout "
                f"{self.layout!r}, but must be at least its radius {RADIUS:g} away: move it into a free "
                "cell, towards its middle."
            )
        if np.abs(state_S[2:]).max() > MAX_SPEED:
            raise ValueError(
                f"the velocity is {state_S[2:].tolist()}, but both entries must be within {MAX_SPEED:g} cells/s of 0."
            )
        return state_S

    def _draw_place(self, rng: np.random.Generator) -> Array:
        """A random free position (2,)."""
        while True:
            place_2 = rng.uniform((1.0, 1.0), (self.maze.width - 1.0, self.maze.height - 1.0))
            if self.maze.clearance(place_2) >= RADIUS:
                return place_2

    def _draw_state(self, rng: np.random.Generator) -> Array:
        return np.append(self._draw_place(rng), (0.0, 0.0))

    def _apply_variation(self) -> None:
        gear, damping = self._built
        self.model.actuator_gear[:] = gear * self._number("force")
        self.model.dof_damping[:] = damping * self._number("damping")
        self._canvas.background_YXC[:] = self._paint(self._colour("wall"), self._colour("floor"))
        if self._camera is not None:
            walls = tuple(f"wall_{i}" for i in range(len(self.maze.walls_M22)))
            geoms = {"floor": ("floor",), "wall": ("ground", *walls), "agent": ("agent",)}
            colours = {g: self._colour(name) for name in geoms.keys() & self.variation for g in geoms[name]}
            self._camera.restyle(colours, {"agent": self._number("agent_size")})

    def _picture(self, state_S: Array) -> NDArray[np.uint8]:
        if self._camera is not None:
            self._scratch.qpos[:] = state_S[:2]
            mujoco.mj_kinematics(self.model, self._scratch)
            mujoco.mj_camlight(self.model, self._scratch)
            return self._camera.picture(self._scratch)
        image_YXC = self._canvas.fresh()
        centre, radius = (float(state_S[0]), float(state_S[1])), RADIUS * self._number("agent_size")
        self._canvas.disc(image_YXC, centre, radius, self._colour("agent"))
        return image_YXC

    def _renderer_name(self) -> str:
        return self.renderer if self._camera is None else f"{self.renderer} on {self._camera.driver()}"


def build_model(maze: Maze, centre: tuple[float, float], half_extent: float) -> Any:
    """The point mass among the walls of a maze, under a camera that sees the square window."""
    spec = mujoco.MjSpec.from_file(str(MODEL_FILE))
    world, box, plane = spec.worldbody, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE
    for i, (low_2, high_2) in enumerate(maze.walls_M22):
        (x, y), (half_x, half_y) = (low_2 + high_2) / 2, (high_2 - low_2) / 2
        size = [half_x, half_y, RADIUS]
        world.add_geom(name=f"wall_{i}", type=box, pos=[x, y, 0.0], size=size, rgba=rgba(WALL))
    # The window of a maze that is not square shows more than its walls: the ground around it looks like them.
    for name, shade, size, z in (
        ("floor", FLOOR, [maze.width / 2, maze.height / 2, 0.1], -RADIUS),
        ("ground", WALL, [2 * half_extent, 2 * half_extent, 0.1], -2 * RADIUS),
    ):
        world.add_geom(name=name, type=plane, pos=[*centre, z], size=size, rgba=rgba(shade), contype=0, conaffinity=0)
    height = CAMERA_HEIGHT * half_extent
    world.add_camera(name="top", pos=[*centre, height], fovy=np.rad2deg(2 * np.arctan(half_extent / height)))
    return spec.compile()


def rgba(colour: tuple[int, int, int]) -> list[float]:
    """A painter's colour as MuJoCo takes it."""
    return [*(value / 255 for value in colour), 1.0]


def paint_maze(
    maze: Maze, size: int, centre: tuple[float, float], half_extent: float, wall: Colour = WALL, floor: Colour = FLOOR
) -> NDArray[np.uint8]:
    """Pixels (Y, X, 3) of the empty maze: each mixes wall and floor by how much of its area is free."""
    edges = np.linspace(-half_extent, half_extent, size + 1)
    along_x_XC, along_y_YC = (
        overlaps(middle + edges, cells) for middle, cells in zip(centre, (maze.width, maze.height))
    )
    free_YX = along_y_YC[::-1] @ maze.free_YX @ along_x_XC.T
    # Rounded, so that no machine's order of adding decides a tie between two grey values.
    free_YX1 = np.round(free_YX, 9)[..., None]
    return np.round(np.array(wall) * (1.0 - free_YX1) + np.array(floor) * free_YX1).astype(np.uint8)


def overlaps(edges: Array, cells: int) -> Array:
    """Which share of each interval between edges (P + 1,) lies in each unit cell: (P, cells)."""
    low_P1, high_P1, cell_C = edges[:-1, None], edges[1:, None], np.arange(cells)
    inside_PC = np.minimum(high_P1, cell_C + 1) - np.maximum(low_P1, cell_C)
    return np.maximum(inside_PC, 0.0) / (high_P1 - low_P1)

"""Scripted drivers of PointMaze: one goes to random places by the shortest way, one wanders from cell to cell."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from envs.point_maze_layouts import Maze
from envs.policies import clip_action

Array = NDArray[np.float64]

STIFFNESS, DAMPING = 3.0, 0.1  # action per cell of error, and per cell/s
SPREAD = 0.2  # how far beside the middle of a cell its waypoint may lie, cells
ARRIVED = 0.15  # distance at which a place is reached, cells


class Expert:
    """Goes to random places by the shortest way over cells, straight on to the next; each leg has its own speed."""

    def __init__(self, maze: Maze, draw_place: Callable[[np.random.Generator], Array]) -> None:
        self._maze, self._draw_place = maze, draw_place

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._choose_place()

    def act(self, state_S: Array) -> NDArray[np.float32]:
        self._steps_left -= 1
        if self._steps_left < 0 or np.hypot(*(self.place_2 - state_S[:2])) < ARRIVED:
            self._choose_place()
        cell = int(self._maze.cell(state_S[:2]))
        following = self._maze.towards(cell, self._target)
        aim_2 = self.place_2 if cell == self._target else self._maze.centres_C2[following] + self._beside_2
        return steer(state_S, aim_2, self._speed)

    def _choose_place(self) -> None:
        self.place_2 = self._draw_place(self._rng)
        self._target = int(self._maze.cell(self.place_2))
        self._beside_2 = self._rng.uniform(-SPREAD, SPREAD, 2)
        self._speed = self._rng.uniform(0.6, 1.0)
        self._steps_left = 300


class Explorer:
    """Wanders: at every cell it turns to a random one beside it, back only from a dead end."""

    def __init__(self, maze: Maze) -> None:
        self._maze = maze

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._cell = int(self._maze.cell(state_S[:2]))
        self._choose_cell(state_S)

    def act(self, state_S: Array) -> NDArray[np.float32]:
        self._steps_left -= 1
        if self._steps_left < 0 or np.hypot(*(self._aim_2 - state_S[:2])) < ARRIVED:
            self._choose_cell(state_S)
        return steer(state_S, self._aim_2, self._speed)

    def _choose_cell(self, state_S: Array) -> None:
        before, self._cell = self._cell, int(self._maze.cell(state_S[:2]))
        beside = self._maze.beside(self._cell)
        onward = beside[beside != before]
        following = int(self._rng.choice(onward if len(onward) else beside))
        self._aim_2 = self._maze.centres_C2[following] + self._rng.uniform(-SPREAD, SPREAD, 2)
        self._speed = self._rng.uniform(0.4, 1.0)
        self._steps_left = 40


def steer(state_S: Array, aim_2: Array, speed: float) -> NDArray[np.float32]:
    """PD control towards a point, at most at a share `speed` of the top speed per axis."""
    action_A = STIFFNESS * (aim_2 - state_S[:2]) - DAMPING * state_S[2:]
    return clip_action(action_A * min(1.0, speed / max(float(np.abs(action_A).max()), 1e-9)))

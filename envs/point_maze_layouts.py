"""Mazes drawn as characters: free cells, wall boxes, ways over cells, and exact shortest paths among the walls."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Cells = NDArray[np.int64]

LAYOUTS: dict[str, tuple[str, ...]] = {
    "u": (
        "#####",
        "#.#.#",
        "#.#.#",
        "#...#",
        "#####",
    ),
    "medium": (
        "########",
        "#....#.#",
        "#.##...#",
        "#..#.#.#",
        "##.#.#.#",
        "#..#.#.#",
        "#.##...#",
        "########",
    ),
    "large": (
        "############",
        "#....#.....#",
        "#.##.#.###.#",
        "#.#..#...#.#",
        "#.#.####.#.#",
        "#.#......#.#",
        "#.######.#.#",
        "#......#...#",
        "############",
    ),
}
"""Drawings by name, top row first: # is wall, . is free. The border is closed, all free cells are connected, and no two
wall cells touch at a corner alone."""

FREE = "."
SIDES = ((1, 0), (0, 1), (-1, 0), (0, -1))
SKIN = 1e-9  # how deep a line may enter a wall and still count as one that touches it, cells
UNSEEN = -1


class Maze:
    """A maze of unit cells; x to the right and y up from the lower left corner of the drawing, lengths in cells.

    Shapes: Y X cells of the drawing, C free cells (numbered row by row from below), M wall boxes, K corners.
    """

    def __init__(self, drawing: tuple[str, ...]) -> None:
        self.free_YX = np.array([[cell == FREE for cell in line] for line in reversed(drawing)])
        self.height, self.width = self.free_YX.shape
        self.centres_C2 = np.argwhere(self.free_YX)[:, ::-1] + 0.5
        self.walls_M22 = wall_runs(~self.free_YX)
        self._number_YX = np.where(self.free_YX, np.cumsum(self.free_YX).reshape(self.free_YX.shape) - 1, -1)
        self.steps_CC = steps_between(self._number_YX)
        self._corners_K2 = convex_corners(self.free_YX)
        self._between_KK = self._between_corners()

    def cell(self, point_2: ArrayLike) -> Cells:
        """The number of the free cell that a point lies in, -1 in a wall; leading axes are kept."""
        x, y = np.moveaxis(np.floor(point_2).astype(np.int64), -1, 0)
        return np.asarray(self._number_YX[np.clip(y, 0, self.height - 1), np.clip(x, 0, self.width - 1)])

    def beside(self, cell: int) -> Cells:
        """The free cells that share a side with a cell."""
        return np.flatnonzero(self.steps_CC[cell] == 1)

    def towards(self, cell: int, target: int) -> int:
        """The cell beside `cell` that is nearest to `target`; `target` once there."""
        if cell == target:
            return target
        beside = self.beside(cell)
        return int(beside[self.steps_CC[beside, target].argmin()])

    def halves(self) -> Cells:
        """For every free cell (C,), which end of the maze it is nearer to: 0 or 1.

        The ends are the two cells that are farthest apart.
        """
        first, last = np.unravel_index(self.steps_CC.argmax(), self.steps_CC.shape)
        return (self.steps_CC[first] > self.steps_CC[last]).astype(np.int64)

    def clearance(self, point_2: ArrayLike) -> Array:
        """Distance of a point to the nearest wall, 0 inside one; leading axes are kept."""
        point_2 = np.asarray(point_2, np.float64)[..., None, :]
        outside_M2 = np.maximum(np.maximum(self.walls_M22[:, 0] - point_2, point_2 - self.walls_M22[:, 1]), 0.0)
        return np.asarray(np.hypot(outside_M2[..., 0], outside_M2[..., 1]).min(-1))

    def distance(self, start_2: ArrayLike, end_2: ArrayLike) -> Array:
        """Length of the shortest path between two points; leading axes broadcast; inf where a point is in a wall.

        A shortest path among boxes bends at their convex corners only (visibility graph, Lozano-Perez and Wesley 1979).
        """
        start, end = np.asarray(start_2, np.float64), np.asarray(end_2, np.float64)
        straight = self._straight(start, end)
        if np.isfinite(straight).all():
            return straight
        onward = (self._between_KK + self._to_corners(end)[..., None, :]).min(-1)  # from each corner to the end
        return np.asarray(np.minimum(straight, (self._to_corners(start) + onward).min(-1)))

    def in_sight(self, start_2: Array, end_2: Array) -> NDArray[np.bool_]:
        """Whether the straight line between two points is free; leading axes broadcast.

        A line is in a box while it is between both pairs of its sides (slab test).
        """
        way_2 = end_2 - start_2
        enter, leave = np.zeros(()), np.ones(())
        for axis in range(2):
            start, way = start_2[..., axis, None], way_2[..., axis, None]
            rate = 1.0 / np.where(np.abs(way) < 1e-12, 1e-12, way)
            to_low = (self.walls_M22[:, 0, axis] + SKIN - start) * rate
            to_high = (self.walls_M22[:, 1, axis] - SKIN - start) * rate
            enter = np.maximum(enter, np.minimum(to_low, to_high))
            leave = np.minimum(leave, np.maximum(to_low, to_high))
        return np.asarray((enter >= leave).all(-1))

    def _straight(self, start_2: Array, end_2: Array) -> Array:
        way = end_2 - start_2
        return np.where(self.in_sight(start_2, end_2), np.hypot(way[..., 0], way[..., 1]), np.inf)

    def _to_corners(self, point_2: Array) -> Array:
        return self._straight(point_2[..., None, :], self._corners_K2)

    def _between_corners(self) -> Array:
        """Lengths of the shortest paths between the corners (Floyd and Warshall)."""
        between_KK = self._to_corners(self._corners_K2)
        for k in range(len(between_KK)):
            between_KK = np.minimum(between_KK, between_KK[:, k, None] + between_KK[k])
        return between_KK


def steps_between(number_YX: Cells) -> Cells:
    """Cells to walk (C, C) between all pairs of free cells, by breadth first search from each."""
    place_C2 = np.argwhere(number_YX >= 0)
    beside = [[n for j, i in SIDES if (n := int(number_YX[y + j, x + i])) >= 0] for y, x in place_C2]
    steps_CC = np.full((len(beside), len(beside)), UNSEEN)
    for start in range(len(beside)):
        front, steps = {start}, 0
        while front:
            steps_CC[start, list(front)] = steps
            front = {n for cell in front for n in beside[cell] if steps_CC[start, n] == UNSEEN}
            steps += 1
    return steps_CC


def wall_runs(wall_YX: NDArray[np.bool_]) -> Array:
    """The longest runs of wall cells to the right and upwards as boxes (M, 2, 2): (x, y) low, then (x, y) high.

    Runs overlap where they cross, so that nothing fits between two boxes, not even a line.
    """
    runs = set()
    for y, x in np.argwhere(wall_YX):
        if x == 0 or not wall_YX[y, x - 1]:
            runs.add((x, y, x + run_length(wall_YX[y, x:]), y + 1))
        if y == 0 or not wall_YX[y - 1, x]:
            runs.add((x, y, x + 1, y + run_length(wall_YX[y:, x])))
    low_M2, high_M2 = np.moveaxis(np.array(sorted(runs), np.float64).reshape(-1, 2, 2), 1, 0)
    inside_MM = ((low_M2[:, None] >= low_M2) & (high_M2[:, None] <= high_M2)).all(-1)
    return np.stack([low_M2, high_M2], 1)[inside_MM.sum(1) == 1]


def run_length(flags: NDArray[np.bool_]) -> int:
    """How many flags are set before the first that is not."""
    return len(flags) if flags.all() else int(flags.argmin())


def convex_corners(free_YX: NDArray[np.bool_]) -> Array:
    """Points (K, 2) where one wall cell meets three free ones."""
    free_YX = free_YX.astype(int)
    around_YX = free_YX[:-1, :-1] + free_YX[:-1, 1:] + free_YX[1:, :-1] + free_YX[1:, 1:]
    return np.argwhere(around_YX == 3)[:, ::-1].astype(np.float64) + 1.0

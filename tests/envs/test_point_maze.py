"""PointMaze: its drawings, shortest paths, the damped disc among walls, both renderers and the scripted drivers."""

import heapq

import numpy as np
import pytest

from envs.point_maze import AGENT, FLOOR, RADIUS, WALL, PointMaze
from envs.point_maze_layouts import LAYOUTS, Maze, convex_corners, wall_runs

NAMES = list(LAYOUTS)
MAZES = {name: Maze(drawing) for name, drawing in LAYOUTS.items()}
U, MEDIUM = MAZES["u"], MAZES["medium"]


@pytest.fixture(scope="module", params=NAMES)
def env(request: pytest.FixtureRequest) -> PointMaze:
    return PointMaze(layout=request.param)


@pytest.fixture(scope="module")
def medium() -> PointMaze:
    return PointMaze()


def bangs(env: PointMaze, seed: int = 0) -> np.ndarray:
    """States of the hardest drive: full forces that change every 8 steps."""
    rng = np.random.default_rng(seed)
    action_NTA = np.sign(rng.normal(size=(60, 25, 2))).repeat(8, axis=1)
    return env.simulate(env.reset(seed=seed)[1]["state"], action_NTA)


# The drawings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inside", "cells", "longest"),
    [("u", (3, 3), 7, 6), ("medium", (6, 6), 24, 17), ("large", (7, 10), 44, 34)],
)
def test_sizes(name: str, inside: tuple[int, int], cells: int, longest: int) -> None:
    maze = MAZES[name]
    assert (maze.height - 2, maze.width - 2) == inside
    assert maze.free_YX.sum() == len(maze.centres_C2) == cells
    assert maze.steps_CC.max() == longest


@pytest.mark.parametrize("name", NAMES)
def test_drawings_are_closed_connected_and_leave_no_crack(name: str) -> None:
    free_YX = MAZES[name].free_YX
    assert not (free_YX[0].any() or free_YX[-1].any() or free_YX[:, 0].any() or free_YX[:, -1].any())
    assert (MAZES[name].steps_CC >= 0).all()
    falling_YX = free_YX[:-1, :-1] & free_YX[1:, 1:] & ~free_YX[1:, :-1] & ~free_YX[:-1, 1:]
    rising_YX = ~free_YX[:-1, :-1] & ~free_YX[1:, 1:] & free_YX[1:, :-1] & free_YX[:-1, 1:]
    assert not (falling_YX | rising_YX).any()


@pytest.mark.parametrize("name", NAMES)
def test_wall_runs_cover_the_walls_and_their_seams(name: str) -> None:
    maze, inner = MAZES[name], 1e-6
    points = [(x, y) for x in np.arange(0.5, maze.width, 0.5) for y in np.arange(0.5, maze.height, 0.5)]
    for x, y in (point for point in points if sum(point) % 1 or point[0] % 1):  # middles of cells and of their sides
        around = maze.cell([[x + i * inner, y + j * inner] for i in (-1, 1) for j in (-1, 1)])
        low_M2, high_M2 = maze.walls_M22[:, 0], maze.walls_M22[:, 1]
        covered = ((low_M2 < (x, y)) & ((x, y) < high_M2)).all(-1).any()
        assert covered == (around < 0).all()


def test_runs_and_corners_of_a_small_drawing() -> None:
    wall_YX = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
    runs = {tuple(box.astype(int).ravel().tolist()) for box in wall_runs(wall_YX)}
    assert runs == {(0, 0, 4, 1), (0, 4, 4, 5), (0, 0, 1, 5), (3, 0, 4, 5), (2, 2, 4, 3)}
    assert {tuple(corner) for corner in convex_corners(~wall_YX).tolist()} == {(2.0, 2.0), (2.0, 3.0)}
    assert wall_runs(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], bool)).tolist() == [[[1.0, 1.0], [2.0, 2.0]]]


def test_y_points_up_and_cells_are_numbered_from_below() -> None:
    assert U.free_YX.tolist()[1] == [False, True, True, True, False]  # the bottom of the U
    assert U.centres_C2[:4].tolist() == [[1.5, 1.5], [2.5, 1.5], [3.5, 1.5], [1.5, 2.5]]
    assert U.cell([[1.01, 1.99], [3.5, 1.5], [2.5, 2.5], [-7.0, 90.0]]).tolist() == [0, 2, -1, -1]


def test_ways_over_cells() -> None:
    left, right = int(U.cell([1.5, 3.5])), int(U.cell([3.5, 3.5]))
    way = [left]
    while way[-1] != right:
        way.append(U.towards(way[-1], right))
    assert way == [
        int(U.cell(place))
        for place in ([1.5, 3.5], [1.5, 2.5], [1.5, 1.5], [2.5, 1.5], [3.5, 1.5], [3.5, 2.5], [3.5, 3.5])
    ]
    assert U.towards(right, right) == right
    assert sorted(U.beside(int(U.cell([1.5, 1.5])))) == sorted(U.cell([[2.5, 1.5], [1.5, 2.5]]).tolist())


# Shortest paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "length"),
    [
        ((1.5, 1.5), (3.5, 1.5), 2.0),  # in sight
        ((1.5, 3.5), (3.5, 3.5), 1.0 + 2 * np.hypot(0.5, 1.5)),  # round both corners of the U's wall, (2, 2) and (3, 2)
        ((1.5, 3.5), (3.5, 1.5), np.hypot(0.5, 1.5) + np.hypot(1.5, 0.5)),  # round one
        ((2.0, 3.0), (2.0, 2.0), 1.0),  # along a wall
        ((1.5, 1.5), (1.5, 1.5), 0.0),
        ((2.5, 2.5), (1.5, 1.5), np.inf),  # from inside a wall
        ((1.5, 1.5), (0.99, 1.5), np.inf),
    ],
)
def test_golden_distances(start: tuple[float, float], end: tuple[float, float], length: float) -> None:
    np.testing.assert_allclose(U.distance(start, end), length, rtol=0, atol=1e-8)
    np.testing.assert_allclose(U.distance(end, start), length, rtol=0, atol=1e-8)


def lattice_distances(maze: Maze, start: tuple[int, int], per_cell: int) -> dict[tuple[int, int], float]:
    """Dijkstra over lattice points and their eight neighbours; at most 1 / cos(22.5 degrees) too long."""
    found, front = {start: 0.0}, [(0.0, start)]
    moves = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    while front:
        so_far, (x, y) = heapq.heappop(front)
        if so_far > found[x, y]:
            continue
        for i, j in moves:
            place, total = (x + i, y + j), so_far + float(np.hypot(i, j)) / per_cell
            if total < found.get(place, np.inf) and maze.cell((np.array(place) + 0.5) / per_cell) >= 0:
                found[place] = total
                heapq.heappush(front, (total, place))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_shortest_paths_agree_with_a_lattice(name: str) -> None:
    maze, per_cell = MAZES[name], 5
    lattice = lattice_distances(maze, (per_cell + 2, per_cell + 2), per_cell)  # from the home state
    points = (np.array(list(lattice)) + 0.5) / per_cell
    exact, longer = maze.distance(points, (1.5, 1.5)), np.array(list(lattice.values()))
    assert len(points) == per_cell**2 * len(maze.centres_C2)
    # A lattice path of cell middles keeps half a spacing from the walls, which costs up to 0.2 cells per corner.
    assert (exact <= longer + 1e-9).all()
    assert (longer <= 1.083 * exact + 0.2 * maze.steps_CC.max() / 3).all()
    assert exact.max() > 0.6 * maze.steps_CC.max()


def test_near_in_the_picture_is_far_in_the_maze() -> None:
    beside_the_wall = [2.5, 3.5], [4.5, 3.5]
    assert MEDIUM.distance(*beside_the_wall) > 6.0


def test_clearance() -> None:
    np.testing.assert_allclose(U.clearance([[1.5, 1.4], [2.5, 2.5], [1.7, 1.6], [3.25, 3.9]]), [0.4, 0.0, 0.5, 0.1])
    np.testing.assert_allclose(U.clearance([1.7, 1.7]), np.hypot(0.3, 0.3))  # to the corner at (2, 2)


@pytest.mark.parametrize("name", NAMES)
def test_regions_are_the_two_ends(name: str) -> None:
    env = PointMaze(layout=name)
    steps_CC = env.maze.steps_CC
    states_C4 = np.pad(env.maze.centres_C2, ((0, 0), (0, 2)))
    region_C = env.region(states_C4)
    first, last = np.unravel_index(steps_CC.argmax(), steps_CC.shape)
    assert region_C[first] == 0 and region_C[last] == 1
    assert env.region(states_C4[:, None]).shape == (len(region_C), 1)
    crossing = (steps_CC == 1) & (region_C[:, None] != region_C)
    assert 2 <= crossing.sum() <= 6  # one passage lies between the halves, or few; each counted from both sides
    assert 0.3 < region_C.mean() < 0.7


# Physics -------------------------------------------------------------------------------------------------------------


def test_speed_under_a_constant_force(medium: PointMaze) -> None:
    # Implicit Euler of v' = 20 u - 10 v in steps of 0.01 s: v = 2 u (1 - 1.1^-10) after one env step.
    medium.set_state([4.5, 1.5, 0, 0])
    medium.advance([0.0, 0.5])
    np.testing.assert_allclose(medium.state[2:], [0.0, 1.0 - 1.1**-10], rtol=0, atol=1e-9)
    states_NTS = medium.simulate([4.5, 1.5, 0, 0], np.tile([0.0, 1.0], (1, 15, 1)))
    np.testing.assert_allclose(states_NTS[0, -1, 3], 2.0, rtol=1e-5)
    np.testing.assert_allclose(np.diff(states_NTS[0, -4:, 1]), 0.2, rtol=1e-3)


def test_a_push_is_soon_forgotten(medium: PointMaze) -> None:
    states_NTS = medium.simulate([4.5, 1.5, 0.0, 2.0], np.zeros((1, 10, 2)))
    assert states_NTS[0, 0, 3] == pytest.approx(2.0 * 1.1**-10) and states_NTS[0, -1, 3] < 1e-3
    assert 0.15 < states_NTS[0, -1, 1] - 1.5 < 0.25


def test_walls_hold(env: PointMaze) -> None:
    states_NTS = bangs(env)
    clearance_NT = env.maze.clearance(states_NTS[..., :2])
    assert clearance_NT.min() > RADIUS - 0.025
    assert (clearance_NT < RADIUS + 0.01).mean() > 0.1  # the drive does meet the walls
    steps = env.distance(states_NTS[:, 1:], states_NTS[:, :-1])
    assert steps.max() < 0.35  # 0.2 per axis, and a little from the rebound: nothing passes through a wall


def test_every_state_that_physics_makes_may_be_set_again(env: PointMaze) -> None:
    for state in bangs(env, seed=1)[:, ::20].reshape(-1, 4).astype(np.float32):
        env.set_state(state)


def test_sliding_along_a_wall_made_of_boxes_costs_no_speed(medium: PointMaze) -> None:
    # The wall at x = 4 is made of three boxes that meet at y = 2 and y = 5.
    start = [4.0 + RADIUS, 1.4, 0.0, 0.0]
    along, free = medium.simulate(start, np.array([[[-1.0, 1.0]] * 22, [[0.0, 1.0]] * 22]))
    assert along[-1, 1] == pytest.approx(free[-1, 1], rel=0.01) and along[-1, 1] > 5.4


def test_the_disc_slips_off_a_corner(medium: PointMaze) -> None:
    start = [3.9, 6.3, 0.0, 0.0]  # straight above the corner at (4, 6), 0.1 cells inside it
    states_NTS = medium.simulate(start, np.tile([0.3, -1.0], (1, 30, 1)))
    assert medium.maze.cell(states_NTS[0, -1, :2]) == medium.maze.cell([4.5, 1.5])


# Pictures ------------------------------------------------------------------------------------------------------------


def test_the_picture_shows_maze_and_disc() -> None:
    env = PointMaze(size=132)  # 20 pixels per cell, the left and lower wall 6 pixels wide
    image = env.goal_image([4.5, 1.5, 0, 0])

    def pixel(x: float, y: float) -> tuple[int, ...]:
        return tuple(image[round((6.0 - y + 1.3) * 20 - 0.5), round((x - 0.7) * 20 - 0.5)].tolist())

    assert pixel(4.5, 1.5) == AGENT
    assert pixel(4.5, 1.95) == pixel(1.1, 1.1) == pixel(6.9, 6.9) == FLOOR
    assert pixel(0.8, 4.0) == pixel(3.5, 1.5) == pixel(1.5, 3.5) == WALL
    for (x, y), free in np.ndenumerate(env.maze.free_YX.T):
        if 0 < x < 7 and 0 < y < 7 and (x, y) != (4, 1):
            assert pixel(x + 0.5, y + 0.5) == (FLOOR if free else WALL)


def test_half_covered_pixels_are_half_mixed() -> None:
    image = PointMaze(size=33).goal_image([4.5, 1.5, 0, 0])  # 5 pixels per cell, the outer wall 1.5 wide
    assert image[13, :3].tolist() == [list(WALL), [150, 152, 160], list(FLOOR)]
    assert image[1, 4].tolist() == [150, 152, 160] and image[1, 1].tolist() == [
        104,
        108,
        122,
    ]  # a quarter in the corner


@pytest.mark.gl
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [64, 128])
def test_camera_sees_what_the_painter_paints(name: str, size: int) -> None:
    painter, camera = PointMaze(size, layout=name), PointMaze(size, "camera", layout=name)
    for seed in range(3):
        state = painter.reset(seed=seed)[1]["state"]
        painted, seen = painter.goal_image(state).astype(int), camera.goal_image(state).astype(int)
        assert np.abs(painted - seen).mean() < 3.0
        shifted = np.roll(painted, max(1, size // 64), axis=1)
        assert np.abs(shifted - seen).mean() > 2.0 * np.abs(painted - seen).mean()
    assert camera.renderer_fingerprint() != painter.renderer_fingerprint()
    camera.close()


# Settings, states, policies ------------------------------------------------------------------------------------------


def test_layout_is_a_setting(env: PointMaze) -> None:
    assert env.settings == {"size": 64, "renderer": "painter", "layout": env.layout}
    prints = {PointMaze(layout=name).renderer_fingerprint() for name in LAYOUTS}  # type: ignore[arg-type]
    assert len(prints) == len(LAYOUTS)
    with pytest.raises(
        ValueError, match=r"layout is 'medum', did you mean 'medium'\?, but must be one of u, medium, large"
    ):
        PointMaze(layout="medum")  # type: ignore[arg-type]


def test_impossible_states_are_refused(medium: PointMaze) -> None:
    with pytest.raises(ValueError, match=r"is at \(3.5, 3.5\), 0 cells from a wall of layout 'medium', but must be"):
        medium.set_state([3.5, 3.5, 0, 0])
    with pytest.raises(ValueError, match=r"centre is at \(1.2, 1.5\), 0.2 cells from a wall"):
        medium.set_state([1.2, 1.5, 0, 0])
    with pytest.raises(ValueError, match=r"the velocity is \[0.0, -4.0\], but both entries must be within 3 cells"):
        medium.set_state([1.5, 1.5, 0, -4.0])


def test_drawn_states_fill_the_free_space(env: PointMaze) -> None:
    states = np.array([env.reset(seed=seed)[1]["state"] for seed in range(400)])
    assert (env.maze.clearance(states[:, :2]) >= RADIUS).all() and not states[:, 2:].any()
    assert set(env.maze.cell(states[:, :2])) == set(range(len(env.maze.centres_C2)))


def test_success_ignores_speed_and_goes_round_walls(medium: PointMaze) -> None:
    assert medium.is_success([4.5, 3.5, 2.0, -2.0], [4.5, 3.1, 0.0, 0.0])
    assert not medium.is_success([2.69, 3.5, 0, 0], [4.31, 3.5, 0, 0])


def test_noiseless_expert_reaches_its_places(env: PointMaze) -> None:
    policy = env.make_policy("expert", noise=0.0)
    for seed in range(25):
        state = env.reset(seed=seed)[1]["state"]
        policy.reset(np.random.default_rng(1000 + seed), state)
        goal = np.append(policy.place_2, (0.0, 0.0))  # type: ignore[attr-defined]
        budget = round(env.distance(state, goal) / (0.6 * 0.2) * 1.5) + 10  # at its slowest, and half as much again
        steps = 0
        while not env.is_success(env.state, goal):
            env.advance(policy.act(env.state))
            steps += 1
            assert steps <= budget


@pytest.mark.parametrize("name", ["expert", "explore"])
def test_recordings_cover_the_maze(env: PointMaze, name: str) -> None:
    policy = env.make_policy(name, noise=0.5)
    visits_C, seen = np.zeros(len(env.maze.centres_C2)), []
    for seed in range(15):
        policy.reset(np.random.default_rng(1000 + seed), env.reset(seed=seed)[1]["state"])
        cells = []
        for _ in range(200):
            env.advance(policy.act(env.state))
            cells.append(int(env.maze.cell(env.state[:2])))
        np.add.at(visits_C, cells, 1)
        seen.append(len(set(cells)) / len(visits_C))
    assert np.mean(seen) > 0.3  # a single episode goes far
    assert (visits_C > 0).mean() > 0.85  # the expert goes to a dead end only where its place lies there
    if name == "explore":
        assert visits_C.min() > 0.2 * visits_C.mean()

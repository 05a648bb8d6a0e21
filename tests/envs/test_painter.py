"""The painter: exact areas, colours, sub-pixel sensitivity, clipping at the border."""

import numpy as np
import pytest
from task_rows import PACKAGES

import envs
from envs.painter import Canvas

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.fixture
def canvas() -> Canvas:
    return Canvas(64, centre=(0.0, 0.0), half_extent=32.0, colour=BLACK)  # one unit is one pixel


def area(image: np.ndarray) -> float:
    return float(image[..., 0].sum() / 255)


def centroid(image: np.ndarray) -> tuple[float, float]:
    weight = image[..., 0] / image[..., 0].sum()
    centres = np.arange(64) + 0.5
    return float(weight.sum(0) @ centres - 32), float(32 - weight.sum(1) @ centres)


def test_disc_area_and_place(canvas: Canvas) -> None:
    image = canvas.fresh()
    canvas.disc(image, (5.3, -7.8), 9.0, WHITE)
    assert area(image) == pytest.approx(np.pi * 81, rel=0.005)
    assert centroid(image) == pytest.approx((5.3, -7.8), abs=0.02)


def test_capsule_area_and_place(canvas: Canvas) -> None:
    image = canvas.fresh()
    canvas.capsule(image, (-10.2, 3.0), (8.0, 15.5), 3.0, WHITE)
    assert area(image) == pytest.approx(np.pi * 9 + 6 * np.hypot(18.2, 12.5), rel=0.01)
    assert centroid(image) == pytest.approx((-1.1, 9.25), abs=0.05)


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.9])
def test_rectangle_area_and_turn(canvas: Canvas, angle: float) -> None:
    image = canvas.fresh()
    canvas.rectangle(image, (2.5, -1.5), (14.0, 3.0), WHITE, angle)
    assert area(image) == pytest.approx(4 * 14 * 3, rel=0.02)
    assert centroid(image) == pytest.approx((2.5, -1.5), abs=0.05)
    end = np.array([2.5, -1.5]) + 12 * np.array([np.cos(angle), np.sin(angle)])
    assert image[int(32 - end[1]), int(32 + end[0]), 0] == 255  # counter-clockwise, y up


def test_colours_are_exact_inside_and_mixed_at_the_edge(canvas: Canvas) -> None:
    image = canvas.fresh()
    canvas.disc(image, (0.0, 0.0), 10.0, (200, 100, 50))
    canvas.disc(image, (0.0, 0.0), 5.0, (255, 255, 255))
    assert image[32, 32].tolist() == [255, 255, 255]
    assert image[32, 39].tolist() == [200, 100, 50]
    assert image[0, 0].tolist() == [0, 0, 0]
    edge = image[32, :, 0]
    assert ((edge > 0) & (edge < 200)).any()


def test_a_half_covered_pixel_is_half_mixed_and_rounded(canvas: Canvas) -> None:
    image = canvas.fresh()
    canvas.rectangle(image, (0.5, 0.0), (4.0, 4.0), (255, 101, 3))  # its sides run through pixel centres
    assert image[32, 36].tolist() == [128, 51, 2]
    assert image[32, 35].tolist() == [255, 101, 3]
    assert image[32, 37].tolist() == [0, 0, 0]


@pytest.mark.parametrize("centre", [(-31.0, 31.0), (32.0, 0.0), (80.0, 0.0), (-80.0, -80.0)])
def test_shapes_are_clipped_at_the_border(canvas: Canvas, centre: tuple[float, float]) -> None:
    image = canvas.fresh()
    canvas.disc(image, centre, 6.0, WHITE)
    canvas.capsule(image, centre, (centre[0] + 4, centre[1]), 6.0, WHITE)
    canvas.rectangle(image, centre, (6.0, 2.0), WHITE, 0.3)
    assert bool(image.any()) == (abs(centre[0]) < 40)


def test_the_background_is_never_painted_on(canvas: Canvas) -> None:
    canvas.disc(canvas.fresh(), (0.0, 0.0), 10.0, WHITE)
    assert not canvas.fresh().any()


@pytest.mark.parametrize("task", [task for task in envs.TASKS if task not in PACKAGES])
def test_a_tenth_of_a_pixel_is_visible(task: str) -> None:
    env = envs.make(task, size=64)
    # the tip of Reacher's straight arm is 0.24 m = 28.4 px from the shoulder
    step = 0.1 / 64 if task == "two_room" else 0.1 / 28.4
    rng = np.random.default_rng(0)
    for _ in range(50):
        state = np.array(env.home_state)
        state[:2] += rng.uniform(-0.1, 0.1, 2)
        for entry in range(2):
            moved = state.copy()
            moved[entry] += step
            change = np.abs(env.goal_image(state).astype(int) - env.goal_image(moved).astype(int))
            assert change.max() >= 5

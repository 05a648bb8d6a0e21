"""The T of PushT: two rectangles about its centre of mass, how far points are from it, how much two of them overlap."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# The literature's T in a 512 px arena: a bar of 120 x 30 over a stem of 30 x 90, 40.7 px from the bar's top to the
# centre of mass. Lengths are in arena sides; at angle 0 the bar lies on top.
CENTRES_R2 = np.array([[0.0, 180 / 7], [0.0, -240 / 7]]) / 512
HALVES_R2 = np.array([[60.0, 15.0], [15.0, 45.0]]) / 512
AREA = float(4 * HALVES_R2.prod(-1).sum())
GYRATION2 = float(1931.6326530612246 / 512**2)
"""Squared radius of gyration about the centre of mass: what relates turning to sliding."""
_SIGNS_42 = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
CORNERS_R42 = CENTRES_R2[:, None] + HALVES_R2[:, None] * _SIGNS_42
"""The corners of both rectangles, counter-clockwise."""
REACH = float(np.hypot(CORNERS_R42[..., 0], CORNERS_R42[..., 1]).max())
"""The farthest point of the T from its centre of mass."""
_BAR, _STEM = CORNERS_R42
OUTLINE_82 = np.array([_BAR[0], _BAR[1], _BAR[2], _STEM[1], _STEM[2], _STEM[3], _STEM[0], _BAR[3]])
"""The corners of the T's outline, counter-clockwise."""


def turn(vector: ArrayLike, angle: ArrayLike) -> Array:
    """Vectors (..., 2) turned counter-clockwise by angles (...)."""
    vector, angle = np.asarray(vector, np.float64), np.asarray(angle, np.float64)
    c, s, x, y = np.cos(angle), np.sin(angle), vector[..., 0], vector[..., 1]
    return np.stack([c * x - s * y, s * x + c * y], -1)


def corners(block_3: Array) -> Array:
    """The corners (..., 2 rectangles, 4, 2) of blocks (..., 3) given as (x, y, angle)."""
    return block_3[..., None, None, :2] + turn(CORNERS_R42, block_3[..., None, None, 2])


def gap(point_2: Array, block_3: Array) -> Array:
    """Signed distance from points (..., 2) to blocks (..., 3), negative inside; leading axes broadcast."""
    local_2 = turn(point_2 - block_3[..., :2], -block_3[..., 2])
    over_R2 = np.abs(local_2[..., None, :] - CENTRES_R2) - HALVES_R2
    outside_R = np.hypot(*np.moveaxis(np.maximum(over_R2, 0.0), -1, 0))
    return np.asarray((outside_R + np.minimum(over_R2.max(-1), 0.0)).min(-1))


def outline(per_edge: int) -> tuple[Array, Array]:
    """Evenly spread points on each edge of the T and their outward normals, both (8 * per_edge, 2), in its frame."""
    edge_82 = np.roll(OUTLINE_82, -1, axis=0) - OUTLINE_82
    share = (np.arange(per_edge) + 0.5) / per_edge
    points = OUTLINE_82[:, None] + share[:, None] * edge_82[:, None]
    normal_82 = turn(edge_82, -np.pi / 2) / np.hypot(*edge_82.T)[:, None]
    return points.reshape(-1, 2), normal_82.repeat(per_edge, axis=0)


def coverage(block_3: Array, goal_3: Array) -> Array:
    """The share of the goal's T that the block's T covers, exact; leading axes broadcast."""
    relative_2 = turn(block_3[..., :2] - goal_3[..., :2], -goal_3[..., 2])
    relative_3 = np.concatenate([relative_2, (block_3[..., 2] - goal_3[..., 2])[..., None]], -1)
    polygon_R42 = corners(relative_3)
    parts_R = [area_inside(polygon_R42 - centre_2, half_2) for centre_2, half_2 in zip(CENTRES_R2, HALVES_R2)]
    return np.clip(np.sum(parts_R, axis=(0, -1)) / AREA, 0.0, 1.0)


def area_inside(polygon_P2: Array, half_2: Array) -> Array:
    """Area of counter-clockwise polygons (..., P, 2) inside the rectangle |x| <= half_x, |y| <= half_y.

    Points are added where edges cross a side's line, then whatever lies beyond is pressed flat onto that line, where it
    encloses nothing.
    """
    for axis, half in enumerate(half_2):
        edge_P2 = np.roll(polygon_P2, -1, axis=-2) - polygon_P2
        rise_P1 = np.where(edge_P2[..., axis] == 0.0, 1.0, edge_P2[..., axis])[..., None]
        lines_P2 = np.sign(rise_P1) * [-half, half]  # in the order in which the edge meets them
        share_P2 = np.clip((lines_P2 - polygon_P2[..., axis, None]) / rise_P1, 0.0, 1.0)
        added_P22 = polygon_P2[..., None, :] + share_P2[..., None] * edge_P2[..., None, :]
        polygon_P32 = np.concatenate([polygon_P2[..., None, :], added_P22], -2)
        polygon_P2 = polygon_P32.reshape(*polygon_P32.shape[:-3], -1, 2)
        polygon_P2[..., axis] = np.clip(polygon_P2[..., axis], -half, half)
    following_P2 = np.roll(polygon_P2, -1, axis=-2)
    cross_P = polygon_P2[..., 0] * following_P2[..., 1] - polygon_P2[..., 1] * following_P2[..., 0]
    return np.asarray(cross_P.sum(-1) / 2)

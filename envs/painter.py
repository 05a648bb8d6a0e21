"""Anti-aliased shapes in plain numpy: each is painted from its signed distance, inside its bounding box only."""

import math

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """A square window onto the plane (x right, y up) with a background that is painted once and copied per frame.

    A pixel's coverage is `clip(1/2 - distance, 0, 1)` with the distance of its centre to the shape in pixels, so moves
    far below a pixel still change the picture. Lengths are in world units.
    """

    def __init__(self, size: int, centre: Point, half_extent: float, colour: Colour) -> None:
        self.size = size
        self.scale = size / (2 * half_extent)
        self._left, self._top = centre[0] - half_extent, centre[1] + half_extent
        self._centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
        self.background_YXC = np.empty((size, size, 3), np.uint8)
        self.background_YXC[:] = colour

    def fresh(self) -> NDArray[np.uint8]:
        """A new image (Y, X, 3) showing the background."""
        return self.background_YXC.copy()

    def disc(self, image_YXC: NDArray[np.uint8], centre: Point, radius: float, colour: Colour) -> None:
        """Paint a disc."""
        x, y = self._pixel(centre)
        r = radius * self.scale
        box = self._box(x - r, x + r, y - r, y + r)
        dx_X, dy_Y1 = self._offsets(box, x, y)
        blend(image_YXC[box], np.sqrt(dx_X * dx_X + dy_Y1 * dy_Y1), r, colour)

    def capsule(self, image_YXC: NDArray[np.uint8], a: Point, b: Point, radius: float, colour: Colour) -> None:
        """Paint the points closer than `radius` to the segment from a to b (a != b)."""
        ax, ay = self._pixel(a)
        bx, by = self._pixel(b)
        r = radius * self.scale
        box = self._box(min(ax, bx) - r, max(ax, bx) + r, min(ay, by) - r, max(ay, by) + r)
        dx_X, dy_Y1 = self._offsets(box, ax, ay)
        ex, ey = bx - ax, by - ay
        length2 = ex * ex + ey * ey
        along_YX = dx_X * (ex / length2) + dy_Y1 * (ey / length2)
        np.maximum(along_YX, 0.0, out=along_YX)
        np.minimum(along_YX, 1.0, out=along_YX)
        u_YX = dx_X - along_YX * ex
        v_YX = dy_Y1 - along_YX * ey
        u_YX *= u_YX
        v_YX *= v_YX
        u_YX += v_YX
        blend(image_YXC[box], np.sqrt(u_YX, out=u_YX), r, colour)

    def rectangle(
        self, image_YXC: NDArray[np.uint8], centre: Point, half_size: Point, colour: Colour, angle: float = 0.0
    ) -> None:
        """Paint a rectangle turned by `angle` radians (counter-clockwise) about its centre."""
        x, y = self._pixel(centre)
        hx, hy = half_size[0] * self.scale, half_size[1] * self.scale
        c, s = math.cos(angle), math.sin(angle)
        reach_x, reach_y = abs(c) * hx + abs(s) * hy, abs(s) * hx + abs(c) * hy
        box = self._box(x - reach_x, x + reach_x, y - reach_y, y + reach_y)
        dx_X, dy_Y1 = self._offsets(box, x, y)
        over_x_YX = np.abs(dx_X * c - dy_Y1 * s) - hx  # rows count downwards, so the picture's rotation is mirrored
        over_y_YX = np.abs(dx_X * s + dy_Y1 * c) - hy
        outside_YX = np.hypot(np.maximum(over_x_YX, 0.0), np.maximum(over_y_YX, 0.0))
        distance_YX = outside_YX + np.minimum(np.maximum(over_x_YX, over_y_YX), 0.0)
        blend(image_YXC[box], distance_YX, 0.0, colour)

    def _pixel(self, point: Point) -> Point:
        return (point[0] - self._left) * self.scale, (self._top - point[1]) * self.scale

    def _box(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        def span(low: float, high: float) -> slice:
            start = min(max(math.floor(low - 0.5), 0), self.size)
            return slice(start, max(min(math.ceil(high + 0.5), self.size), start))

        return span(y0, y1), span(x0, x1)

    def _offsets(self, box: tuple[slice, slice], x: float, y: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._centres[box[1]] - x, self._centres[box[0], None] - y


def blend(patch_YXC: NDArray[np.uint8], distance_YX: NDArray[np.float32], radius: float, colour: Colour) -> None:
    """Mix a colour into a patch, in place, where pixel centres are closer than `radius` (pixels) to the shape."""
    cover_YX = (radius + 0.5) - distance_YX
    np.maximum(cover_YX, 0.0, out=cover_YX)
    np.minimum(cover_YX, 1.0, out=cover_YX)
    mixed_YXC = np.array(colour, np.float32) - patch_YXC
    mixed_YXC *= cover_YX[..., None]
    mixed_YXC += patch_YXC
    mixed_YXC += 0.5  # the cast below truncates
    patch_YXC[...] = mixed_YXC

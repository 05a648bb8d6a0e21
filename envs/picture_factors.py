"""Factors of the picture that every task has: what happens to a frame between the renderer and whoever looks at it."""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from envs.painter import Canvas
from envs.variation import LAYOUTS, Colour, Factor, Value, ratio

Image = NDArray[np.uint8]

PICTURE_FACTORS: dict[str, Factor] = {
    "brightness": ratio("picture", (0.1, 3.0), (0.5, 0.7), (1.25, 1.5), what="light"),
    "warmth": Factor(
        0.0,
        (-0.05, 0.05),
        ((-0.3, -0.15), (0.15, 0.3)),
        (-0.9, 0.9),
        "picture",
        "colour of the light: this share more red and less blue",
    ),
    "blur": Factor(
        0.0, (0.0, 0.3), ((0.8, 1.5),), (0.0, 4.0), "picture", "standard deviation in pixels of a picture 64 wide"
    ),
    "noise": Factor(
        0.0,
        (0.0, 3.0),
        ((10.0, 25.0),),
        (0.0, 64.0),
        "picture",
        "standard deviation of the sensor's noise, grey levels of 256",
    ),
    "zoom": Factor(
        1.0, (0.97, 1.03), ((0.8, 0.9), (1.1, 1.25)), (0.5, 2.0), "picture", "size of things in the picture"
    ),
    "shift": Factor(
        (0.0, 0.0),
        ((-0.02, -0.02), (0.02, 0.02)),
        (((-0.12, -0.12), (-0.05, 0.12)), ((0.05, -0.12), (0.12, 0.12))),
        ((-0.5, -0.5), (0.5, 0.5)),
        "picture",
        "things lie this far to the right and up, picture widths",
    ),
    "turn": Factor(
        0.0,
        (-0.03, 0.03),
        ((-0.2, -0.1), (0.1, 0.2)),
        (-np.pi, np.pi),
        "picture",
        "the picture turned counter-clockwise, rad",
    ),
    "distractors": Factor(
        (0, 0),
        ((0, 0), (1, LAYOUTS)),
        (((2, 0), (5, LAYOUTS)),),
        ((0, 0), (50, 2**31)),
        "picture",
        "how many shapes lie in front of the world, and the number of their layout",
        whole=True,
    ),
}
"""The rows that every task has; they act on the finished frame, in the order of `Finish`."""

TEXTURE = Factor(
    (0, 0),
    ((0, 0), (6, LAYOUTS)),
    (((30, 0), (70, LAYOUTS)),),
    ((0, 0), (200, 2**31)),
    "picture",
    "how much darker the floor's pattern is, grey levels of 256, and the number of the pattern",
    whole=True,
)
"""A row for tasks that also have a factor `floor`: the pattern replaces that colour."""
PATCHES = 8  # of the floor's pattern, per side
KEY = 24.0  # grey levels from the floor's colour at which a pixel no longer counts as floor


class Finish:
    """Floor pattern, distractors, camera pose, light, blur and noise, in this order, of a frame (Y, X, 3 V).

    A pure function of the frame: the noise is drawn from the frame's own pixels, so equal frames stay equal and
    different ones have different noise.
    """

    def __init__(self, values: Mapping[str, Value], size: int, floor: Colour | None) -> None:
        self._size = size
        self._warp_23 = _warp(values, size)
        self._gain_3 = _number(values, "brightness") * (
            1.0 + _number(values, "warmth") * np.array([1.0, 0.0, -1.0], np.float32)
        )
        self._blur = _number(values, "blur") * size / 64
        self._noise = _number(values, "noise")
        self._canvas = Canvas(size, (0.5, 0.5), 0.5, (0, 0, 0))
        count, layout = _pair(values, "distractors")
        self._shapes = _scatter(count, layout)
        self._floor, (depth, pattern) = floor, _pair(values, "texture")
        self._darker_YX1 = _pattern(depth, pattern, size) if depth else None

    def __call__(self, image_YXC: Image) -> Image:
        """The finished frame, a new array; each camera's view alike."""
        views = [self._view(image_YXC[..., c : c + 3]) for c in range(0, image_YXC.shape[-1], 3)]
        return np.ascontiguousarray(views[0] if len(views) == 1 else np.concatenate(views, -1))

    def _view(self, view_YXC: Image) -> Image:
        import cv2

        view = np.ascontiguousarray(view_YXC)
        if self._darker_YX1 is not None:
            key_YX1 = np.abs(view - np.asarray(self._floor, np.float32)).max(-1, keepdims=True) / KEY
            view = _pixels(view - np.maximum(1.0 - key_YX1, 0.0) * self._darker_YX1)
        if self._shapes:
            view = view.copy()
        for centre, half_size, colour, angle in self._shapes:
            self._canvas.rectangle(view, centre, half_size, colour, angle)
        if self._warp_23 is not None:
            size = (self._size, self._size)
            view = np.asarray(cv2.warpAffine(view, self._warp_23, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)
        if (self._gain_3 != 1.0).any():
            view = _pixels(view * self._gain_3)
        if self._blur > 0:
            view = np.asarray(cv2.GaussianBlur(view, (0, 0), self._blur), np.uint8)
        if self._noise > 0:
            rng = np.random.default_rng(zlib.crc32(view.tobytes()))
            view = _pixels(view + self._noise * rng.standard_normal(view.shape, np.float32))
        return view


Shape = tuple[tuple[float, float], tuple[float, float], Colour, float]  # centre, half size, colour, angle


def _scatter(count: int, layout: int) -> list[Shape]:
    """That many rectangles in the unit square; the first ones of a layout are the same for every count."""
    rng = np.random.default_rng(layout)
    shapes: list[Shape] = []
    for _ in range(count):
        x, y, half_width, half_height, angle = rng.uniform([0, 0, 0.02, 0.02, 0], [1, 1, 0.07, 0.07, np.pi]).tolist()
        red, green, blue = rng.integers(0, 256, 3).tolist()
        shapes.append(((x, y), (half_width, half_height), (red, green, blue), angle))
    return shapes


def _pattern(depth: int, pattern: int, size: int) -> NDArray[np.float32]:
    """Soft random patches (Y, X, 1) from 0 to `depth`."""
    import cv2

    coarse = np.random.default_rng(pattern).random((PATCHES, PATCHES), np.float32)
    smooth_YX = np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
    return np.float32(depth) * np.clip(smooth_YX, 0.0, 1.0)[..., None]


def _warp(values: Mapping[str, Value], size: int) -> NDArray[np.float64] | None:
    """The matrix (2, 3) from pixels of the world to pixels of the picture, None where nothing moves."""
    zoom, turn = _number(values, "zoom"), _number(values, "turn")
    right, up = values["shift"] if isinstance(values["shift"], tuple) else (0.0, 0.0)
    if (zoom, turn, right, up) == (1.0, 0.0, 0.0, 0.0):
        return None
    c, s, middle = zoom * np.cos(turn), zoom * np.sin(turn), (size - 1) / 2
    linear_22 = np.array([[c, s], [-s, c]])  # rows count downwards
    offset_2 = middle + size * np.array([right, -up]) - linear_22 @ [middle, middle]
    return np.column_stack([linear_22, offset_2])


def _number(values: Mapping[str, Value], name: str) -> float:
    value = values[name]
    assert not isinstance(value, tuple)
    return float(value)


def _pair(values: Mapping[str, Value], name: str) -> tuple[int, int]:
    first, second = value if isinstance(value := values.get(name, (0, 0)), tuple) else (0, 0)
    return int(first), int(second)


def _pixels(image: NDArray[np.floating]) -> Image:
    return np.clip(image + 0.5, 0.0, 255.0).astype(np.uint8)

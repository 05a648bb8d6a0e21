"""What every family of frozen encoders comes down to: a network, how its patches are read, what pixels it expects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lewm.nets.pixels import Resample
from lewm.schema import read_json

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
RESAMPLES: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which is how preprocessing files name them."""


@dataclass(frozen=True)
class Preprocess:
    """The pixels an encoder was trained on; a whole frame is resized to them, nothing is cropped away."""

    size: int
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Per channel of one picture, in [0, 1]."""
    std: tuple[float, ...]
    """Per channel of one picture."""
    resample: Resample
    """How pictures of another size are resized."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained network, opened."""

    family: str
    """Row of `FROZEN_FAMILIES`."""
    net: nn.Module
    """In eval mode, float32, without gradients."""
    tokens: Callable[[nn.Module, Tensor], Tensor]
    """(net, normalised pixels_BCYX of `preprocess.size`) -> token_BKD of the K = side x side patches, row by row."""
    side: int
    """Patches per side."""
    width: int
    """Width of a token."""
    preprocess: Preprocess
    weights_sha256: str

    @property
    def channels(self) -> int:
        """Channels of one picture."""
        return len(self.preprocess.mean)


def forward(net: nn.Module, pixels_BCYX: Tensor) -> Tensor:
    """`Backbone.tokens` of a network that gives them itself."""
    token_BKD: Tensor = net(pixels_BCYX)
    return token_BKD


Opener = Callable[[str, Path, Mapping[str, Any], int | None], Backbone]
"""(family, folder, its config.json, wanted size) -> backbone: a row of `FROZEN_FAMILIES`."""


def read_preprocess(folder: Path, default: Preprocess) -> Preprocess:
    """What the preprocessing file of an encoder says; `default` where it says nothing. ValueError for what it may not.

    Of a resize followed by a centre crop only the crop's size counts: a world model has to see the border too.
    """
    path, raw = _processor(folder)
    factor = raw.get("rescale_factor") or 1 / 255
    if raw.get("do_rescale") is False or abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"{path}: pixels are not divided by 255 but scaled by {factor}, which is not supported")
    number = raw.get("resample")
    if number is not None and number not in RESAMPLES:
        raise ValueError(f"{path}: resample is {number}; only 2 (bilinear) and 3 (bicubic) are supported")
    mean, std = raw.get("image_mean") or default.mean, raw.get("image_std") or default.std
    if raw.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Preprocess(
        size=_size(raw, path) or default.size,
        mean=_three(mean, path),
        std=_three(std, path),
        resample=default.resample if number is None else RESAMPLES[number],
    )


def square(value: Any, what: str) -> int:
    """A side length given as a number or as two equal ones."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ValueError(f"{what} is {value}: only square ones are supported")
    return int(sides.pop())


def _processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    for name in PROCESSORS:
        if (folder / name).is_file():
            raw = read_json(folder / name)
            return folder / name, raw.get("image_processor") or raw.get("video_processor") or raw
    return folder / PROCESSORS[0], {}


def _size(raw: dict[str, Any], path: Path) -> int | None:
    crops = raw.get("do_center_crop") is not False
    value = (raw.get("crop_size") if crops else None) or raw.get("size")
    if isinstance(value, dict):
        sides = [value[key] for key in ("height", "width", "shortest_edge") if value.get(key)]
        return square(sides, f"{path}: the picture size") if sides else None
    return value


def _three(value: float | Sequence[float], path: Path) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, Sequence) else (value,) * 3
    if len(numbers) != 3:
        raise ValueError(f"{path}: image_mean and image_std must have 3 numbers, not {len(numbers)}")
    return numbers

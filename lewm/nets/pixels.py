"""Pixels as networks read them: uint8 to about unit scale, and from one square size to another."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Resample = Literal["bilinear", "bicubic"]


def pixel_scaling(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (C, 1, 1): `uint8 * scale + shift` is `(uint8 / 255 - mean) / std`."""
    std_C11 = torch.tensor(std).clamp(min=1e-3).view(-1, 1, 1)
    mean_C11 = torch.tensor(mean).view(-1, 1, 1)
    return 1 / (255 * std_C11), -mean_C11 / std_C11


def resize(pixels_BCYX: Tensor, size: int, resample: Resample) -> Tensor:
    """Whole pictures at size x size, antialiased where they shrink; nothing is cropped away."""
    if pixels_BCYX.shape[-1] == size:
        return pixels_BCYX
    return F.interpolate(pixels_BCYX, (size, size), mode=resample, align_corners=False, antialias=True)

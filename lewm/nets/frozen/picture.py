"""The picture itself as a frozen encoder: what planning in pixels is, measured like any other encoder."""

from hashlib import sha256

import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.frozen.backbone import HALF, Backbone, Preprocess, forward

PIXELS = "pixels"
"""`path` of the encoder that is none."""
SIZE = 32
"""Height and width the picture is shrunk to where `size` does not say."""


def open_picture(grid: int, size: int | None) -> Backbone:
    """A backbone without weights: the picture, shrunk and cut into grid x grid patches of 3 x (size / grid)^2 numbers.

    Raises ValueError for a size that is no multiple of the grid.
    """
    size = SIZE if size is None else size
    if size % grid:
        raise ValueError(
            f"encoder.size is {size} and encoder.grid {grid}; the patches of {PIXELS} need a multiple of it"
        )
    preprocess = Preprocess(size, *HALF, "bilinear")
    width = len(preprocess.mean) * (size // grid) ** 2
    net = _Patches(size // grid).eval()
    return Backbone(PIXELS, net, forward, grid, width, preprocess, sha256(b"").hexdigest())


class _Patches(nn.Module):
    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        return F.unfold(pixels_BCYX, self.patch, stride=self.patch).mT

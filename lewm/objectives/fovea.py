"""Fovea: latents must hold what the thing that stands out looks like, drawn small and centred on it.

A pixel decoder is graded on where things are before it is graded on how they lie: a shape drawn in the right place but
turned wrongly is mostly right. Objectives on latents alone do likewise, because functions of where things are fill any
number of dimensions. Centred on the thing, the picture no longer tells where it is, and what varies is how it lies.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.distributed import sum_over_ranks, world_size
from lewm.objectives.base import ModelView
from lewm.objectives.losses import full_precision

if TYPE_CHECKING:
    from lewm.data.windows import Batch

GAZE_SIZE = 32
"""Largest height and width at which the gaze is found: centres of mass are as exact there, at a quarter of the time."""
SHIFTS = 4
"""Steps of mean shift from the first guess to the middle of the thing."""
GREY_LEVEL = 1 / 255
"""Thumbnails that vary less than this count as constant."""


@dataclass(frozen=True)
class FoveaConfig:
    """What is looked at, and what draws it."""

    window: float = 0.375
    """Width of the window over that of the picture: about one and a half times the thing."""
    pixels: int = 12
    """Height and width of the thumbnail that is drawn."""
    hidden: int = 256
    """Hidden width of the network that draws it."""

    def __post_init__(self) -> None:
        if not 0 < self.window <= 1:
            raise ValueError(f"fovea window is {self.window}; it must lie in (0, 1], a share of the picture")
        for name in ("pixels", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"fovea {name} is {getattr(self, name)}; it must be 1 or more")


class Fovea(nn.Module):
    """Draws the thumbnail of every frame from its latent: Linear, SiLU, Linear over all tokens."""

    def __init__(self, config: FoveaConfig, model: ModelView) -> None:
        super().__init__()
        self.config, self.channels = config, model.facts.channels
        self.up = nn.Linear(model.latent_dim * model.tokens, config.hidden)
        self.down = nn.Linear(config.hidden, self.channels * config.pixels**2)

    def forward(self, latent_BTKD: Tensor) -> Tensor:
        """Thumbnails (B, T, C, P, P) as deviations from the mean picture, in units of the full range."""
        features = self.up(latent_BTKD.to(self.up.weight.dtype).flatten(2))
        shape = (self.channels, self.config.pixels, self.config.pixels)
        drawn_BTCPP: Tensor = self.down(F.silu(features)).unflatten(-1, shape)
        return drawn_BTCPP

    def loss(self, latent_BTKD: Tensor, batch: "Batch | None") -> Tensor:
        """Share of the thumbnails' variance that is not drawn: 0 for perfect ones, 1 for the mean thumbnail.

        A scalar in at least float32 with gradients into the latents; exact over ranks. Raises ValueError without a
        batch.
        """
        if batch is None:
            raise ValueError("the fovea looks at pixels, but no batch was given; pass the clips, or weigh it 0")
        seen_BTCPP = thumbnails(batch.pixels_BTCYX[:, :, -self.channels :], self.config)
        drawn_BTCPP = full_precision(self(latent_BTKD))
        seen_NE = seen_BTCPP.to(drawn_BTCPP.dtype).flatten(0, 1).flatten(1)
        squared = (drawn_BTCPP.flatten(0, 1).flatten(1) - seen_NE).square().sum()
        count = len(seen_NE) * world_size()
        mean_E = sum_over_ranks(seen_NE.sum(0)) / count
        squared, spread = sum_over_ranks(torch.stack([squared, (seen_NE - mean_E).square().sum()])).unbind()
        return squared / spread.detach().clamp(min=count * len(mean_E) * GREY_LEVEL**2)


@torch.no_grad()
def thumbnails(pixels_BTCYX: Tensor, config: FoveaConfig) -> Tensor:
    """uint8 frames of one picture each to (B, T, C, P, P): the window around the place that stands out.

    What stands out is what differs from the mean picture of all clips of all ranks, which a fixed camera gives as the
    background. Values are differences from it in units of the full range; outside the picture they are 0.
    """
    frames = pixels_BTCYX.flatten(0, 1).float() / 255
    mean_CYX = sum_over_ranks(frames.sum(0)) / (len(frames) * world_size())
    deviation = frames - mean_CYX
    size = deviation.shape[-1]
    small = F.adaptive_avg_pool2d(deviation.abs().sum(1), min(size, GAZE_SIZE))
    centre_N2 = gaze(small, config.window * small.shape[-1]) * (size / small.shape[-1])
    return window(deviation, centre_N2, config.window * size, config.pixels).unflatten(0, pixels_BTCYX.shape[:2])


def gaze(salience_NYX: Tensor, width: float) -> Tensor:
    """Centres (N, 2) as (y, x) in pixels, 0 the outer edge of the first: the middle of what stands out most.

    Begins where a box of `width` holds most, then moves to the centre of mass within a disc of that diameter.
    """
    Y, X = salience_NYX.shape[1:]
    box = max(1, 2 * int(width / 2) + 1)
    # A box is a column of rows: 2 x box sums a pixel instead of box^2.
    rows = F.avg_pool2d(salience_NYX[:, None], (1, box), stride=1, padding=(0, box // 2))
    heat = F.avg_pool2d(rows, (box, 1), stride=1, padding=(box // 2, 0))
    best_N = heat.flatten(1).argmax(1)
    centre_N2 = torch.stack([best_N // X, best_N % X], 1).to(salience_NYX.dtype) + 0.5
    y_Y, x_X = (torch.arange(n, device=salience_NYX.device, dtype=salience_NYX.dtype) + 0.5 for n in (Y, X))
    for _ in range(SHIFTS):
        apart_NYX = (y_Y[:, None] - centre_N2[:, 0, None, None]) ** 2 + (x_X - centre_N2[:, 1, None, None]) ** 2
        weight_NYX = torch.where(apart_NYX < (width / 2) ** 2, salience_NYX, 0)
        total_N = weight_NYX.sum((1, 2))
        mass_N2 = torch.stack([(weight_NYX.sum(2) * y_Y).sum(1), (weight_NYX.sum(1) * x_X).sum(1)], 1)
        centre_N2 = torch.where(total_N[:, None] > 0, mass_N2 / total_N[:, None].clamp(min=1e-12), centre_N2)
    return centre_N2


def window(picture_NCYX: Tensor, centre_N2: Tensor, width: float, pixels: int) -> Tensor:
    """Square windows of `width` around (y, x) centres, averaged down to (N, C, pixels, pixels); 0 outside."""
    Y, X = picture_NCYX.shape[-2:]
    finer = max(1, round(width / pixels))
    points = pixels * finer
    offset_P = ((torch.arange(points, device=picture_NCYX.device) + 0.5) / points - 0.5) * width
    y_NP, x_NP = (centre_N2[:, i, None] + offset_P for i in range(2))
    grid_NPP2 = torch.stack(torch.broadcast_tensors(2 * x_NP[:, None] / X - 1, 2 * y_NP[:, :, None] / Y - 1), -1)
    sampled = F.grid_sample(picture_NCYX, grid_NPP2, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(sampled, finer)

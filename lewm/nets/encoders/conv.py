"""A small convolutional encoder: one latent vector per frame, quick enough to train on a laptop."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import BatchNorm
from lewm.nets.heads import LINKS, LinkName, check_link, fixed_scale


@dataclass(frozen=True)
class ConvConfig:
    """Strided convolutions, then one linear layer."""

    name: Literal["conv"] = "conv"
    latent_dim: int = 64
    """Width of the latent vector."""
    channels: tuple[int, ...] = (16, 32, 64, 64)
    """Channels after each layer; every layer halves the picture."""
    link: LinkName = "identity"
    """Last step: `relu` and `rep_relu` set negative entries to zero, for objective rdmreg with rectified targets; give
    the predictor the same."""
    batch_norm: bool = False
    """Whether latents are standardised, each entry over the batch, before they leave: for objectives that do not set a
    scale themselves (ema, simsiam, data2vec, reconstruction)."""

    def __post_init__(self) -> None:
        check_link(self.link)
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim is {self.latent_dim}; it must be at least 1")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(
                f"channels is {self.channels}; it must name at least one layer, each of 1 or more channels"
            )


class ConvEncoder(nn.Module):
    """pixels_BCYX to token_BKD with K = 1: stride-2 convolutions with BatchNorm and SiLU, flattened, Linear."""

    tokens: int = 1

    def __init__(self, config: ConvConfig, channels: int, size: int) -> None:
        super().__init__()
        stride = 2 ** len(config.channels)
        if size < stride or size % stride:
            raise ValueError(
                f"conv encoder: picture size {size} is not divisible by {stride}, the stride of {len(config.channels)} "
                "layers; resize the pictures or change the number of entries in encoder.channels"
            )
        self.latent_dim: int = config.latent_dim
        self.link = LINKS[config.link]
        layers: list[nn.Module] = []
        for before, after in zip((channels, *config.channels), config.channels, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                BatchNorm(after, axis=1),
                nn.SiLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.grid = size // stride
        self.out = nn.Linear(config.channels[-1] * self.grid**2, config.latent_dim)
        self.scale = fixed_scale(config.latent_dim, config.batch_norm)
        self.level_dims: tuple[int, ...] = tuple(channels * self.grid**2 for channels in config.channels)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """Normalised float pixels to token_BKD."""
        features = self.layers(pixels_BCYX.contiguous(memory_format=torch.channels_last))
        token_BKD: Tensor = self.link(self.scale(self.out(features.flatten(1))))[:, None]
        return token_BKD

    def levels(self, pixels_BCYX: Tensor) -> list[Tensor]:
        """Normalised float pixels to the features after each layer, lowest first: (B, 1, channels x grid x grid) each.

        Every layer is averaged down to the grid of the last one, whose level is exactly what `out` reads. Averaging
        over the whole picture would forget where things are. `level_dims` are the widths.
        """
        features, found = pixels_BCYX.contiguous(memory_format=torch.channels_last), []
        for module in self.layers:
            features = module(features)
            if isinstance(module, nn.SiLU):
                found.append(F.adaptive_avg_pool2d(features, self.grid).flatten(1)[:, None])
        return found

"""Masked autoencoder: paint the hidden patches of a picture from the visible ones (He et al. 2022). No teacher."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lewm.nets.token_vit import TokenViT, TokenViTFacts
from lewm.objectives.losses import Losses, full_precision
from lewm.pretrain.base import Pretraining, Setup
from lewm.pretrain.masks import Masks, draw_for_rank, random_patches
from lewm.pretrain.predictor import MaskPredictor, MaskPredictorConfig
from lewm.pretrain.teacher import spreads, take_groups


@dataclass(frozen=True)
class MaeConfig:
    """Share hidden, decoder and target."""

    name: Literal["mae"] = "mae"
    """Selects this method."""
    masked: float = 0.75
    """Share of the patches that is hidden."""
    normalise_patches: bool = True
    """Whether each patch is to be painted with mean 0 and variance 1, which makes texture count as much as contrast."""
    decoder: MaskPredictorConfig = field(default_factory=MaskPredictorConfig)
    """The decoder (published: 8 blocks of width 512)."""

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise ValueError(f"masked is {self.masked}; it must lie between 0 and 1")


class Mae(Pretraining):
    """Encoder and decoder learn; what is kept is the encoder, which ends in its own layer norm alone."""

    normalise = False

    def __init__(self, config: MaeConfig, setup: Setup) -> None:
        super().__init__()
        self.config = config
        self.encoder = TokenViT(setup.encoder, TokenViTFacts(setup.channels))
        cells = (setup.size // setup.encoder.patch) ** 2
        if int(cells * (1 - config.masked) + 1e-9) < 1:
            raise ValueError(
                f"masked is {config.masked}, which leaves none of {cells} patches visible; lower method.masked"
            )
        self.decoder = MaskPredictor(config.decoder, self.encoder, setup.channels * setup.encoder.patch**2)

    def forward(self, clip_BTCYX: Tensor, progress: float, generator: torch.Generator) -> Losses:
        """Mean squared error per pixel of the hidden patches; visible pixels do not count."""
        grid = self.encoder.grid(clip_BTCYX)
        masks: Masks = draw_for_rank(partial(random_patches, grid, self.config.masked, generator=generator), clip_BTCYX)
        painted_B1PX, _ = self.decoder(self.encoder(clip_BTCYX, masks.context_BN), masks, grid)
        wanted_B1PX = take_groups(self.encoder.patches(clip_BTCYX), masks.target_BMP)
        if self.config.normalise_patches:
            wanted_B1PX = normalised_patches(wanted_B1PX)
        loss = (full_precision(painted_B1PX) - wanted_B1PX).square().mean()
        return Losses({"reconstruction": loss}, {"reconstruction": 1.0}, spreads(wanted_B1PX, painted_B1PX))

    def kept(self) -> TokenViT:
        """The encoder."""
        return self.encoder


def normalised_patches(pixels: Tensor) -> Tensor:
    """Every patch (last axis) minus its mean, over the root of its unbiased variance + 1e-6, as published; one without
    contrast becomes 0."""
    variance, mean = torch.var_mean(full_precision(pixels), -1, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()

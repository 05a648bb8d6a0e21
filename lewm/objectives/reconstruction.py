"""Reconstruction: latents must hold what the pixels show. The generative baseline, and a window into any latent.

A decoder can draw from small latents as well as from large ones, and the prediction term prefers small ones: end the
encoder in a BatchNorm (`encoder.batch_norm`).
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.objectives.base import ModelView, Objective
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.prediction import PredictionConfig, prediction_loss

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of the pixel decoder."""

    channels: tuple[int, ...] = (64, 64, 32, 16)
    """Channels before each transposed convolution; every one doubles the picture."""

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(
                f"decoder channels is {self.channels}; it must name at least one layer, each of 1 or more channels"
            )


@dataclass(frozen=True)
class ReconstructionConfig:
    """Prediction plus the pixels, decoded from encoded and from predicted latents."""

    name: Literal["reconstruction"] = "reconstruction"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """The prediction term."""
    weight: float = 1.0
    """Weight of the pixels decoded from encoded frames."""
    predicted_weight: float = 1.0
    """Weight of the pixels decoded from predicted frames; 0 leaves the term out."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Architecture of the decoder."""

    def __post_init__(self) -> None:
        for name in ("weight", "predicted_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


class Decoder(nn.Module):
    """latent_BTKD to normalised pixels_BTCYX: a coarse map, then stride-2 transposed convolutions with SiLU.

    One token is spread over the coarse map by a linear layer; a square number of tokens is taken for a grid of patches
    in reading order and resized to it. Pixels are normalised as the encoder reads them, per channel.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, config: DecoderConfig, model: ModelView) -> None:
        super().__init__()
        size, stride = model.facts.size, 2 ** len(config.channels)
        if size % stride:
            raise ValueError(
                f"decoder: picture size {size} is not divisible by {stride}, the stride of {len(config.channels)} "
                "layers; change the number of entries in the decoder's channels"
            )
        self.grid = math.isqrt(model.tokens)
        if self.grid**2 != model.tokens:
            raise ValueError(
                f"decoder: {model.tokens} tokens per frame are no square grid; use an encoder with one token or a "
                "square number of patches"
            )
        self.register_buffer("pixel_scale", model.pixel_scale.clone(), persistent=False)
        self.register_buffer("pixel_shift", model.pixel_shift.clone(), persistent=False)
        self.coarse, first = size // stride, config.channels[0]
        self.first = nn.Linear(model.latent_dim, first * (self.coarse**2 if self.grid == 1 else 1))
        layers: list[nn.Module] = []
        for before, after in zip(config.channels, (*config.channels[1:], len(model.pixel_scale)), strict=True):
            layers += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent_BTKD: Tensor) -> Tensor:
        """Normalised pixels_BTCYX."""
        features = self.first(latent_BTKD.to(self.first.weight.dtype).flatten(0, 1))
        if self.grid == 1:
            coarse = features.unflatten(-1, (-1, self.coarse, self.coarse)).squeeze(1)
        else:
            patches = features.transpose(1, 2).unflatten(-1, (self.grid, self.grid))
            coarse = F.interpolate(patches, size=(self.coarse, self.coarse), mode="bilinear")
        pixels_BTCYX: Tensor = self.layers(coarse).unflatten(0, latent_BTKD.shape[:2])
        return pixels_BTCYX

    def target(self, batch: "Batch | None") -> Tensor:
        """The clips' pixels_BTCYX as the decoder should draw them. Raises ValueError without a batch."""
        if batch is None:
            raise ValueError("the decoder is trained on pixels, but no batch was given; pass the clips")
        return torch.addcmul(self.pixel_shift, batch.pixels_BTCYX.to(self.pixel_scale.dtype), self.pixel_scale)

    @torch.no_grad()
    def picture(self, latent_BTKD: Tensor) -> Tensor:
        """uint8 pixels_BTCYX: what a latent looks like."""
        pixels = (full_precision(self(latent_BTKD)) - self.pixel_shift) / self.pixel_scale
        return pixels.round().clamp(0, 255).to(torch.uint8)


def pixel_loss(decoded_BTCYX: Tensor, pixels_BTCYX: Tensor) -> Tensor:
    """Mean squared error over all pixels, a scalar in at least float32: about 1 for a grey picture of mean colour."""
    return F.mse_loss(full_precision(decoded_BTCYX), full_precision(pixels_BTCYX))


def explained(loss: Tensor, pixels_BTCYX: Tensor) -> Tensor:
    """Share of the pixels' variance around the batch's mean picture that `loss` leaves explained; detached.

    1 for perfect pictures, 0 for the mean picture: unlike the loss it gives no credit for a background that never
    changes. Of this process's clips only.
    """
    pixels = full_precision(pixels_BTCYX.detach())
    return 1 - loss.detach() / pixels.var((0, 1), correction=0).mean().clamp(min=1e-12)


class Reconstruction(Objective):
    """Prediction, and the pixels of encoded and of predicted frames through one decoder."""

    def __init__(self, config: ReconstructionConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config.decoder, model)

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """Terms `prediction`, `reconstruction` and `predicted_reconstruction` (mean over the ways of predicting).

        `generator` is not read. Raises ValueError without a batch.
        """
        config = self.config
        pixels = self.decoder.target(batch)
        terms = {
            "prediction": prediction_loss(latent_BTKD, predicted, config.prediction),
            "reconstruction": pixel_loss(self.decoder(latent_BTKD), pixels),
        }
        weights = {"prediction": config.prediction.weight, "reconstruction": config.weight}
        if config.predicted_weight:
            ways = [pixel_loss(self.decoder(guess), pixels[:, 1:]) for guess in predicted]
            terms["predicted_reconstruction"] = torch.stack(ways).mean()
            weights["predicted_reconstruction"] = config.predicted_weight
        return Losses(terms, weights, {"explained_pixels": explained(terms["reconstruction"], pixels)})

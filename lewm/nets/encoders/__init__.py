"""Encoders: pixels to latent tokens, one row each in `ENCODERS`."""

from torch import nn

from lewm.nets.encoders.conv import ConvConfig, ConvEncoder
from lewm.nets.encoders.vit import ViTConfig, ViTEncoder
from lewm.nets.frozen import FrozenConfig, FrozenEncoder

EncoderConfig = ConvConfig | ViTConfig | FrozenConfig
Encoder = ConvEncoder | ViTEncoder | FrozenEncoder

ENCODERS: dict[str, tuple[type, type[nn.Module]]] = {
    "conv": (ConvConfig, ConvEncoder),
    "vit": (ViTConfig, ViTEncoder),
    "frozen": (FrozenConfig, FrozenEncoder),
}


def build_encoder(config: EncoderConfig, channels: int, size: int) -> Encoder:
    """A fresh encoder of size x size pictures with `channels` channels (3 per stacked frame).

    It maps normalised pixels_BCYX to token_BKD; its attributes `tokens` (K) and `latent_dim` (D) say how many and how
    wide. Weights come from torch's generator: seed it first. Raises ValueError for a size the encoder cannot cut up. A
    frozen one reads pixels normalised by its own `pixel_mean` and `pixel_std`, and raises what `open_backbone` raises.
    """
    encoder: Encoder = ENCODERS[config.name][1](config, channels, size)  # type: ignore[assignment]
    return encoder

"""The vision transformer of LeWM: ViT-Tiny from scratch, its CLS token through a BatchNorm projector."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import MLP, NORM_EPS, Attention, Block, init_linear
from lewm.nets.heads import LINKS, LinkName, Projector, check_link, fixed_scale


@dataclass(frozen=True)
class ViTConfig:
    """ViT-Tiny/14 and projector; the defaults are LeWM's (section 3.1)."""

    name: Literal["vit"] = "vit"
    latent_dim: int = 192
    """Width of the latent vector, after the projector."""
    patch: int = 14
    """Patch height and width in pixels."""
    layers: int = 12
    """Transformer blocks."""
    heads: int = 3
    """Attention heads; they share the width."""
    width: int = 192
    """Width of a token."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP over its width."""
    projector_hidden: int = 2048
    """Hidden width of the projector."""
    link: LinkName = "identity"
    """Last step: `relu` and `rep_relu` set negative entries to zero, for objective rdmreg with rectified targets; give
    the predictor the same."""
    batch_norm: bool = False
    """Whether latents are standardised, each entry over the batch, before they leave: for objectives that do not set a
    scale themselves (ema, simsiam, data2vec, reconstruction)."""
    norm_eps: float = NORM_EPS
    """Added to the variance in every layer norm."""

    def __post_init__(self) -> None:
        check_link(self.link)
        for name in ("latent_dim", "patch", "layers", "heads", "width", "mlp_ratio", "projector_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; it must be divisible by heads ({self.heads})")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive")


class ViTEncoder(nn.Module):
    """pixels_BCYX to token_BKD with K = 1: the projected CLS token of a pre-norm ViT with learned positions."""

    tokens: int = 1

    def __init__(self, config: ViTConfig, channels: int, size: int) -> None:
        super().__init__()
        if size < config.patch or size % config.patch:
            raise ValueError(
                f"vit encoder: picture size {size} is not divisible by encoder.patch ({config.patch}); "
                "resize the pictures or change the patch"
            )
        self.patch, self.latent_dim = config.patch, config.latent_dim
        self.link = LINKS[config.link]
        width, head_dim = config.width, config.width // config.heads
        self.embed = nn.Linear(channels * config.patch**2, width)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + (size // config.patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(
                Block(Attention(width, config.heads, head_dim), MLP(width, config.mlp_ratio * width), width)
                for _ in range(config.layers)
            )
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.apply(init_linear)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.projector = Projector(width, config.projector_hidden, config.latent_dim)
        self.scale = fixed_scale(config.latent_dim, config.batch_norm)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps
        self.level_dims: tuple[int, ...] = (width,) * config.layers

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """Normalised float pixels to token_BKD."""
        token_BKD: Tensor = self.projector(self.norm(self.blocks(self._embedded(pixels_BCYX))[:, :1]))
        return self.link(self.scale(token_BKD))

    def levels(self, pixels_BCYX: Tensor) -> list[Tensor]:
        """Normalised float pixels to the CLS token after each block, lowest first: (B, 1, width) each.

        As the blocks leave it: the last one is before the final layer norm and the projector. `level_dims` are the
        widths.
        """
        tokens, found = self._embedded(pixels_BCYX), []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens[:, :1])
        return found

    def _embedded(self, pixels_BCYX: Tensor) -> Tensor:
        # A patch embedding is a matrix product; pixel_unshuffle orders a patch as a convolution's weight would.
        patches = self.embed(F.pixel_unshuffle(pixels_BCYX, self.patch).flatten(2).transpose(1, 2))
        return torch.cat([self.cls.expand(len(patches), -1, -1), patches], 1) + self.position

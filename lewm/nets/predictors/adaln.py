"""LeWM's predictor: a causal transformer with learned absolute positions, modulated by the action (AdaLN-zero)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lewm.nets.blocks import MLP, NORM_EPS, Attention, Block, CausalTransformer, check_window
from lewm.nets.heads import LINKS, LinkName, Projector, check_link


@dataclass(frozen=True)
class AdaLNConfig:
    """Transformer at the width of the latent; the defaults are LeWM's (section 3.1)."""

    name: Literal["adaln"] = "adaln"
    history: int = 3
    """Most frames it sees; its positions are learned for these."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    head_dim: int = 64
    """Width of a head."""
    mlp_hidden: int = 2048
    """Hidden width of a block's MLP."""
    dropout: float = 0.1
    """Dropout in attention, MLP and after the positions, drawn from torch's global generator."""
    action_smoothed: int | None = None
    """Width of the action encoder's first, linear layer; null: as wide as the action block. LeWM's is 10."""
    action_hidden: int = 768
    """Hidden width of the action encoder."""
    projector_hidden: int = 2048
    """Hidden width of the output projector."""
    link: LinkName = "identity"
    """Last step: `relu` and `rep_relu` set negative entries to zero, for objective rdmreg with rectified targets; give
    the encoder the same."""
    norm_eps: float = NORM_EPS
    """Added to the variance in the layer norms that have weights."""

    def __post_init__(self) -> None:
        check_link(self.link)
        for name in ("history", "layers", "heads", "head_dim", "mlp_hidden", "action_hidden", "projector_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.action_smoothed is not None and self.action_smoothed < 1:
            raise ValueError(f"action_smoothed is {self.action_smoothed}; it must be at least 1, or null")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive")


class AdaLNPredictor(nn.Module):
    """latent_BTKD and action_BTA to predicted_BTKD, through a BatchNorm projector; at most `context` frames."""

    def __init__(self, config: AdaLNConfig, latent_dim: int, action_dim: int, tokens: int) -> None:
        super().__init__()
        self.context: int = config.history
        self.tokens = tokens
        smoothed = config.action_smoothed or action_dim
        # The first layer is the paper's convolution of kernel 1: the same weights on every block.
        self.action = nn.Sequential(
            nn.Linear(action_dim, smoothed),
            nn.Linear(smoothed, config.action_hidden),
            nn.SiLU(),
            nn.Linear(config.action_hidden, latent_dim),
        )
        self.position_TKD = nn.Parameter(torch.empty(config.history, tokens, latent_dim))
        nn.init.trunc_normal_(self.position_TKD, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        blocks = [
            Block(
                Attention(latent_dim, config.heads, config.head_dim, qkv_bias=False, dropout=config.dropout),
                MLP(latent_dim, config.mlp_hidden, config.dropout),
                latent_dim,
            )
            for _ in range(config.layers)
        ]
        self.transformer = CausalTransformer(blocks, latent_dim, config.history, tokens)
        self.link = LINKS[config.link]
        self.projector = Projector(latent_dim, config.projector_hidden, latent_dim)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps

    def forward(self, latent_BTKD: Tensor, action_BTA: Tensor) -> Tensor:
        """Entry t is the latent that follows frame t when action block t leaves it. ValueError if T > context."""
        check_window(latent_BTKD, action_BTA, self.tokens, self.context)
        x_BTKD = self.dropout(latent_BTKD + self.position_TKD[: latent_BTKD.shape[1]])
        predicted_BTKD: Tensor = self.projector(self.transformer(x_BTKD, self.action(action_BTA)))
        return self.link(predicted_BTKD)

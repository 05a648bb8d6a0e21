"""A small causal transformer with rotary positions.

Its trained context covers history and horizon, so a rollout can keep the keys and values of the frames behind it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lewm.nets.blocks import MLP, Attention, Block, CausalTransformer, check_window, init_linear, rotary_table
from lewm.nets.heads import LINKS, LinkName, check_link


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary causal transformer for any number of tokens per frame."""

    name: Literal["rotary"] = "rotary"
    context: int = 8
    """Most frames it sees; choose at least history + planning horizon."""
    width: int = 128
    """Width of a token inside."""
    layers: int = 3
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; they share the width."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP over its width."""
    link: LinkName = "identity"
    """Last step: `relu` and `rep_relu` set negative entries to zero, for objective rdmreg with rectified targets; give
    the encoder the same."""

    def __post_init__(self) -> None:
        check_link(self.link)
        for name in ("context", "width", "layers", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width is {self.width}; it must be divisible by twice the heads ({self.heads}): "
                "rotary positions turn pairs of features"
            )


class RotaryPredictor(nn.Module):
    """z + f(frames and actions so far): frames attend to those before them, positions enter as rotations."""

    def __init__(self, config: RotaryConfig, latent_dim: int, action_dim: int, tokens: int) -> None:
        super().__init__()
        self.context: int = config.context
        self.tokens = tokens
        width = config.width
        self.head_dim = width // config.heads
        self.embed = nn.Linear(latent_dim, width, bias=False)
        self.token_KD = nn.Parameter(torch.empty(tokens, width))
        nn.init.trunc_normal_(self.token_KD, std=0.02)
        self.action = nn.Sequential(nn.Linear(action_dim, width), nn.SiLU(), nn.Linear(width, width))
        blocks = [
            Block(
                Attention(width, config.heads, self.head_dim), MLP(width, config.mlp_ratio * width), width, norm=False
            )
            for _ in range(config.layers)
        ]
        self.transformer = CausalTransformer(blocks, width, config.context, tokens)
        self.out = nn.Linear(width, latent_dim)
        init_linear(self.out)
        self.link = LINKS[config.link]

    def forward(self, latent_BTKD: Tensor, action_BTA: Tensor, start: int = 0) -> Tensor:
        """Entry t is the latent that follows frame t when action block t leaves it. Raises ValueError for T > context.

        start: position of the first frame; only distances matter, so it changes nothing but rounding.
        """
        check_window(latent_BTKD, action_BTA, self.tokens, self.context)
        frames = latent_BTKD.shape[1]
        positions = torch.arange(start, start + frames, device=latent_BTKD.device).repeat_interleave(self.tokens)
        x_BTKD = self.embed(latent_BTKD) + self.token_KD
        x_BTKD = self.transformer(x_BTKD, self.action(action_BTA), rotary_table(positions, self.head_dim))
        predicted_BTKD: Tensor = latent_BTKD + self.out(x_BTKD)
        return self.link(predicted_BTKD)

"""A causal transformer with rotary positions, modulated by the action (AdaLN-zero).

Its trained context covers history and horizon, so a rollout can keep the keys and values of the frames behind it. With
`positions: axial` it reads the token grids of frozen encoders as JEPA-WMs does (arXiv 2512.24497, section 4: AdaLN and
rotary positions, depth 6, width 384, 16 heads, context 3, a two-step rollout).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lewm.nets.axial import axial_table, check_head_dim, grid_positions, grid_side
from lewm.nets.blocks import (
    MLP,
    ROTARY_BASE,
    Attention,
    Block,
    CausalTransformer,
    check_window,
    init_linear,
    rotary_table,
)
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
    positions: Literal["time", "axial"] = "time"
    """What rotations say: when a token was seen, beside a learned embedding of its place in the frame; or, for square
    grids of tokens, when and where in height and width (axial)."""
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
        if self.positions == "axial":
            check_head_dim(self.width, self.heads)


class RotaryPredictor(nn.Module):
    """z + f(frames and actions so far): frames attend to those before them, positions enter as rotations."""

    def __init__(self, config: RotaryConfig, latent_dim: int, action_dim: int, tokens: int) -> None:
        super().__init__()
        self.context: int = config.context
        self.tokens = tokens
        width = config.width
        self.head_dim = width // config.heads
        self.embed = nn.Linear(latent_dim, width, bias=False)
        self.side = grid_side(tokens, "rotary") if config.positions == "axial" else None
        if self.side is None:
            self.token_KD: Tensor | None = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, width), std=0.02))
        else:
            self.token_KD = None
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
        x_BTKD = self.embed(latent_BTKD) if self.token_KD is None else self.embed(latent_BTKD) + self.token_KD
        x_BTKD = self.transformer(x_BTKD, self.action(action_BTA), self.table(latent_BTKD.shape[1], start))
        predicted_BTKD: Tensor = latent_BTKD + self.out(x_BTKD)
        return self.link(predicted_BTKD)

    def table(self, frames: int, start: int = 0) -> Tensor:
        """The rotations of all tokens of `frames` frames, (2, frames x K, head_dim / 2)."""
        device = self.embed.weight.device
        if self.side is None:
            times = torch.arange(start, start + frames, device=device).repeat_interleave(self.tokens)
            return rotary_table(times, self.head_dim)
        return axial_table(grid_positions(frames, self.side, 0, start, 1.0, device), self.head_dim, ROTARY_BASE)

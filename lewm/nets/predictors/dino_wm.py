"""DINO-WM's predictor: the action's embedding is appended to every patch, positions are learned (arXiv 2411.04983).

What was measured needs nothing more: its embedding already is appended to every token (`model.proprio`). Trained by
teacher forcing (`train.prediction: teacher_forcing`).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lewm.nets.blocks import MLP, Attention, Block, check_window, frame_causal, init_linear
from lewm.nets.heads import LINKS, LinkName, check_link


@dataclass(frozen=True)
class DinoWMConfig:
    """Frame-causal ViT as wide as a patch with its action; the defaults are those of DINO-WM's code."""

    name: Literal["dino_wm"] = "dino_wm"
    history: int = 3
    """Most frames it sees; its positions are learned for these."""
    action_width: int = 10
    """Entries that the action block becomes, appended to every patch."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    head_dim: int = 64
    """Width of a head."""
    mlp_hidden: int = 2048
    """Hidden width of a block's MLP."""
    dropout: float = 0.1
    """Dropout in attention and MLP, drawn from torch's global generator."""
    norm_eps: float = 1e-5
    """Added to the variance in every layer norm."""
    link: LinkName = "identity"
    """Last step: `relu` and `rep_relu` set negative entries to zero, for objective rdmreg with rectified targets; give
    the encoder the same."""

    def __post_init__(self) -> None:
        check_link(self.link)
        for name in ("history", "action_width", "layers", "heads", "head_dim", "mlp_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive")


class DinoWMPredictor(nn.Module):
    """latent_BTKD and action_BTA to predicted_BTKD; the entries of the action are dropped from what comes out.

    In a rollout the next action takes their place, as in DINO-WM. Attention over many tokens runs frame by frame,
    without a mask (`lewm.nets.blocks.frame_causal`).
    """

    def __init__(self, config: DinoWMConfig, latent_dim: int, action_dim: int, tokens: int) -> None:
        super().__init__()
        self.context: int = config.history
        self.tokens, self.latent_dim = tokens, latent_dim
        width = latent_dim + config.action_width
        self.action = nn.Linear(action_dim, config.action_width)  # DINO-WM's convolution of kernel 1
        self.position_TKD = nn.Parameter(torch.empty(config.history, tokens, width))
        nn.init.trunc_normal_(self.position_TKD, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                Attention(width, config.heads, config.head_dim, qkv_bias=False, dropout=config.dropout),
                MLP(width, config.mlp_hidden, config.dropout),
                width,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.link = LINKS[config.link]
        self.blocks.apply(init_linear)
        for module in self.blocks.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps

    def forward(self, latent_BTKD: Tensor, action_BTA: Tensor) -> Tensor:
        """Entry t is the latent that follows frame t when action block t leaves it. ValueError if T > context."""
        check_window(latent_BTKD, action_BTA, self.tokens, self.context)
        frames = latent_BTKD.shape[1]
        action_BTKE = self.action(action_BTA)[:, :, None].expand(-1, -1, self.tokens, -1)
        x_BTKW = torch.cat([latent_BTKD, action_BTKE], -1) + self.position_TKD[:frames]
        mask = frame_causal(frames, self.tokens, x_BTKW.device)
        for block in self.blocks:
            x_BTKW = block(x_BTKW, mask)
        predicted_BTKD: Tensor = self.norm(x_BTKW)[..., : self.latent_dim]
        return self.link(predicted_BTKD)

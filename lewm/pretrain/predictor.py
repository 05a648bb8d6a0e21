"""The narrow transformer that guesses hidden tokens from visible ones; I-JEPA's, V-JEPA's and, as a decoder, MAE's."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lewm.nets.blocks import MLP, NORM_EPS, Attention, Block, init_linear
from lewm.nets.token_vit import Grid, TokenViT, grid_positions, grid_rotary
from lewm.pretrain.masks import Masks


@dataclass(frozen=True)
class MaskPredictorConfig:
    """Size of the predictor. Narrower than the encoder, so that the encoder has to do the work."""

    width: int = 96
    """Width of its tokens (published: 384 for encoders of 768 to 1408)."""
    depth: int = 3
    """Transformer blocks (published: 6 to 24)."""
    heads: int = 3
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP over its width."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width is {self.width}; width / heads ({self.heads}) must be an even whole number")


class MaskPredictor(nn.Module):
    """Visible tokens and the positions of hidden ones to what the hidden ones hold."""

    def __init__(
        self,
        config: MaskPredictorConfig,
        encoder: TokenViT,
        out: int,
        kinds: int = 1,
        levels: int = 1,
        visible: bool = False,
    ) -> None:
        """out: width of what is predicted. kinds: mask tokens, one per kind of mask. levels: encoder levels that come
        joined along the width; several are fused by an MLP. visible: whether it also answers for the visible tokens.

        Raises ValueError for heads too narrow for the encoder's positions.
        """
        super().__init__()
        self.axes, self.base = encoder.facts.axes, encoder.config.rotary_base
        self.head_dim = config.width // config.heads
        grid_rotary(torch.zeros(1, self.axes), self.head_dim, self.base)
        wide = encoder.config.width
        self.embed: nn.Module = nn.Linear(wide, config.width)
        if levels > 1:
            self.embed = nn.Sequential(nn.Linear(levels * wide, wide), nn.GELU(), nn.Linear(wide, config.width))
        self.blocks = nn.ModuleList(
            Block(
                Attention(config.width, config.heads, self.head_dim),
                MLP(config.width, config.mlp_ratio * config.width),
                config.width,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.out = nn.Linear(config.width, out)
        self.apply(init_linear)
        self.mask_token_KD = nn.Parameter(torch.zeros(kinds, config.width))
        self.visible = None
        if visible:
            self.visible = nn.Linear(config.width, out)
            init_linear(self.visible)

    def forward(self, context_BND: Tensor, masks: Masks, grid: Grid, kind: int = 0) -> tuple[Tensor, Tensor | None]:
        """predicted_BMPD for every group of targets, each guessed on its own, and answers_BND for the visible tokens.

        The answers are None unless asked for at construction; they need a single group of targets.
        """
        groups, visible = masks.target_BMP.shape[1], context_BND.shape[1]
        context_RNW = self.embed(context_BND).repeat_interleave(groups, 0)
        target_RP = masks.target_BMP.flatten(0, 1)
        hidden_RPW = self.mask_token_KD[kind].to(context_RNW.dtype).expand(*target_RP.shape, -1)
        position_SA = grid_positions(grid, self.axes).to(context_BND.device)
        position_RSA = position_SA[torch.cat([masks.context_BN.repeat_interleave(groups, 0), target_RP], 1)]
        rotary = grid_rotary(position_RSA, self.head_dim, self.base)[:, :, None]
        x = torch.cat([context_RNW, hidden_RPW], 1)
        for block in self.blocks:
            x = block(x, rotary=rotary)
        x = self.norm(x)
        predicted_BMPD: Tensor = self.out(x[:, visible:]).unflatten(0, (-1, groups))
        return predicted_BMPD, None if self.visible is None else self.visible(x[:, :visible])

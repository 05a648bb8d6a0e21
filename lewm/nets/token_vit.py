"""A vision transformer that keeps its patch tokens: pictures or clips in, one token per patch (and tubelet) out.

Positions are rotary along each axis (row and column; frame, row and column for clips), so the same weights read another
picture size or clip length. It can be shown only some of the tokens, which is what masked pretraining is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import MLP, NORM_EPS, Attention, Block, init_linear


@dataclass(frozen=True)
class TokenViTConfig:
    """Size of the transformer."""

    patch: int = 8
    """Patch height and width in pixels."""
    width: int = 192
    """Width of a token."""
    depth: int = 6
    """Transformer blocks."""
    heads: int = 3
    """Attention heads; they share the width."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP over its width."""
    rotary_base: float = 100.0
    """Slowest rotary wavelength over the fastest, along each axis. The papers' 10000 is for longer clips and finer
    grids; here it would leave most frequencies standing still."""

    def __post_init__(self) -> None:
        for name in ("patch", "width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; it must be divisible by heads ({self.heads})")
        if self.width // self.heads % 2:
            raise ValueError(f"width / heads is {self.width // self.heads}; rotary positions turn pairs: make it even")
        if not self.rotary_base > 1:
            raise ValueError(f"rotary_base is {self.rotary_base}; it must exceed 1")


@dataclass(frozen=True)
class TokenViTFacts:
    """What the recordings and the method decide. Saved with the weights, never in a config."""

    channels: int = 3
    """Channels of one frame, three per camera."""
    video: bool = False
    """Whether positions have a frame axis; without it the transformer reads single pictures."""
    tubelet: int = 1
    """Frames that become one token. A single picture is repeated so often."""
    image_path: bool = False
    """Whether single pictures have a patch embedding of their own, one frame deep, and modality embeddings tell them
    from clips (V-JEPA 2.1)."""
    levels: tuple[int, ...] = ()
    """Blocks, counted from 0 and ending with the last one, whose output has a layer norm of its own; none means the
    last."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.tubelet < 1:
            raise ValueError(f"channels is {self.channels} and tubelet {self.tubelet}; both must be at least 1")
        if not self.video and (self.tubelet > 1 or self.image_path):
            raise ValueError("a transformer for pictures has no tubelets and no image path; set video")

    @property
    def axes(self) -> int:
        """Axes of a position: 2 or 3."""
        return 3 if self.video else 2


Grid = tuple[int, int, int]
"""Cells of tokens: frames (or tubelets), rows, columns."""


def grid_positions(grid: Grid, axes: int) -> Tensor:
    """position_SA of every token, in the order of tokens: frames, rows, columns. axes 2 leaves the frame out."""
    cells = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    return torch.stack([axis.flatten() for axis in cells[-axes:]], -1)


def grid_rotary(position_SA: Tensor, head_dim: int, base: float) -> Tensor:
    """Cosine and sine (2, ..., S, head_dim / 2) for `blocks.rotate`, from positions (..., S, A) along A axes.

    Every axis turns the same number of feature pairs, at base^(-i / pairs); pairs left over are not turned. So a
    product of two rotated vectors depends on their positions only through the distance along each axis (V-JEPA 2,
    section 2.1; its code pairs sines and cosines otherwise, which is no rotation).
    Raises ValueError for heads too narrow to turn a pair per axis.
    """
    pairs = head_dim // 2 // position_SA.shape[-1]
    if pairs < 1:
        raise ValueError(
            f"width / heads is {head_dim}; rotary positions along {position_SA.shape[-1]} axes need at least "
            f"{2 * position_SA.shape[-1]}: use fewer heads or a larger width"
        )
    frequency = base ** (-torch.arange(pairs, device=position_SA.device, dtype=torch.float32) / pairs)
    angles = (position_SA.float()[..., None] * frequency).flatten(-2)
    angles = F.pad(angles, (0, head_dim // 2 - angles.shape[-1]))
    return torch.stack([angles.cos(), angles.sin()])


def take_tokens(x_BSD: Tensor, index_BN: Tensor) -> Tensor:
    """x_BND: of every sample the tokens its row of index_BN names."""
    return x_BSD.gather(1, index_BN[..., None].expand(-1, -1, x_BSD.shape[-1]))


class TokenViT(nn.Module):
    """clip_BTCYX to token_BSD: pre-norm transformer over patches, with a layer norm per supervised level."""

    def __init__(self, config: TokenViTConfig, facts: TokenViTFacts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        self.head_dim = config.width // config.heads
        self.level_index = facts.levels or (config.depth - 1,)
        _check_levels(self.level_index, config.depth)
        grid_rotary(torch.zeros(1, facts.axes), self.head_dim, config.rotary_base)  # refuse narrow heads now
        pixels, width = facts.channels * config.patch**2, config.width
        self.embed = nn.Linear(facts.tubelet * pixels, width)
        self.blocks = nn.ModuleList(
            Block(Attention(width, config.heads, self.head_dim), MLP(width, config.mlp_ratio * width), width)
            for _ in range(config.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for _ in self.level_index)
        self.apply(init_linear)
        if facts.image_path:
            self.embed_image = nn.Linear(pixels, width)
            init_linear(self.embed_image)
            self.modality_2D = nn.Parameter(torch.empty(2, width))
            nn.init.trunc_normal_(self.modality_2D, std=0.02)

    def grid(self, clip_BTCYX: Tensor) -> Grid:
        """Cells of the tokens of a clip. Raises ValueError for a clip that patches or tubelets do not divide."""
        frames, channels, height, width = clip_BTCYX.shape[1:]
        patch, tubelet = self.config.patch, self.facts.tubelet
        if channels != self.facts.channels or height % patch or width % patch or min(height, width) < patch:
            raise ValueError(
                f"token vit: frames are {channels} x {height} x {width}; they must have {self.facts.channels} channels "
                f"and sides divisible by the patch ({patch}): resize the pictures or change encoder.patch"
            )
        if frames > 1 and (not self.facts.video or frames % tubelet):
            raise ValueError(
                f"token vit: a clip of {frames} frames; "
                + (f"it must be a multiple of tubelet ({tubelet})" if self.facts.video else "it reads single pictures")
            )
        return max(1, frames // tubelet), height // patch, width // patch

    def patches(self, clip_BTCYX: Tensor) -> Tensor:
        """Pixels of every token, (B, S, tubelet x C x patch x patch); of a single picture with an image path one frame
        of them, without one the picture repeated."""
        tubelet = self.facts.tubelet
        if clip_BTCYX.shape[1] == 1:
            tubelet = 1 if self.facts.image_path else tubelet
            clip_BTCYX = clip_BTCYX.expand(-1, tubelet, -1, -1, -1)
        cells = F.pixel_unshuffle(clip_BTCYX.unflatten(1, (-1, tubelet)).flatten(2, 3), self.config.patch)
        return cells.permute(0, 1, 3, 4, 2).flatten(1, 3)

    def forward(self, clip_BTCYX: Tensor, keep_BN: Tensor | None = None) -> Tensor:
        """token_BSD of the last level, layer-normed. keep_BN: the tokens that are shown, all by default."""
        return self.levels(clip_BTCYX, keep_BN)[-1]

    def levels(self, clip_BTCYX: Tensor, keep_BN: Tensor | None = None) -> list[Tensor]:
        """The supervised levels, each after its own layer norm, lowest first."""
        out = self.outputs(clip_BTCYX, keep_BN)
        return [norm(out[index]) for index, norm in zip(self.level_index, self.norms)]

    def outputs(
        self, clip_BTCYX: Tensor, keep_BN: Tensor | None = None, hidden: tuple[Tensor, Tensor] | None = None
    ) -> list[Tensor]:
        """token_BSD as every block leaves it, lowest first.

        hidden: bool mask_BS and a token_D that replaces the embedding where it is set (data2vec).
        """
        grid = self.grid(clip_BTCYX)
        position_SA = grid_positions(grid, self.facts.axes).to(clip_BTCYX.device)
        pixels_BSP = self.patches(clip_BTCYX)
        if keep_BN is None:
            rotary = grid_rotary(position_SA, self.head_dim, self.config.rotary_base)
        else:
            pixels_BSP = take_tokens(pixels_BSP, keep_BN)
            rotary = grid_rotary(position_SA[keep_BN], self.head_dim, self.config.rotary_base)[:, :, None]
        picture = clip_BTCYX.shape[1] == 1 and self.facts.image_path
        x_BSD: Tensor = (self.embed_image if picture else self.embed)(pixels_BSP)
        if self.facts.image_path:
            x_BSD = x_BSD + self.modality_2D[int(picture)]
        if hidden is not None:
            x_BSD = torch.where(hidden[0][..., None], hidden[1].to(x_BSD.dtype), x_BSD)
        found = []
        for block in self.blocks:
            x_BSD = block(x_BSD, rotary=rotary)
            found.append(x_BSD)
        return found


def _check_levels(levels: Sequence[int], depth: int) -> None:
    if list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] != depth - 1:
        raise ValueError(
            f"levels are {tuple(levels)}; they must be block numbers that rise from 0 or more to the last ({depth - 1})"
        )

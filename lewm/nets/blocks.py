"""What encoders and predictors are made of: BatchNorm, MLP, attention, the transformer block and its causal stack."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.distributed import sum_over_ranks, world_size

ROTARY_BASE = 100.0  # Windows are a few frames long: a larger base would leave most frequencies standing still.
NORM_EPS = 1e-6
GRID_TOKENS = 36  # Tokens per frame from which attention runs frame by frame: with fewer, on a CPU, a mask is quicker.
LARGEST_MASK = 1024  # Rows of a mask that is still built.


class BatchNorm(nn.Module):
    """Batch normalisation over every axis but `axis`, exact over the global batch when there are several processes.

    axis: 1 for images (B, C, Y, X), -1 for features last (..., D). With one process: the numbers of torch's BatchNorm;
    with several: those of one process on the concatenated batch, running statistics included, whatever share of it each
    process holds. State dict keys are torch's. Raises ValueError when there is a single value per feature to train on.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, axis: int = -1, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        if axis not in (1, -1):
            raise ValueError(f"BatchNorm: axis is {axis}; it must be 1 (channels of an image) or -1 (features last)")
        self.axis, self.momentum, self.eps = axis, momentum, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x; in training mode by the batch, which also moves the running statistics."""
        rows = x.flatten(0, -2) if self.axis == -1 else x
        if not self.training:
            return self._apply_torch(rows, training=False).view_as(x)
        if rows.numel() // len(self.weight) * world_size() < 2:
            raise ValueError(
                f"BatchNorm: an input of shape {tuple(x.shape)} has one value per feature, which has no variance; "
                "train on at least two, or call .eval() first"
            )
        self.num_batches_tracked.add_(1)
        normalised = self._apply_torch(rows, training=True) if world_size() == 1 else self._apply_global(rows)
        return normalised.view_as(x)

    def _apply_torch(self, x: Tensor, training: bool) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum, self.eps
        )

    def _apply_global(self, x: Tensor) -> Tensor:
        features = len(self.weight)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, features] + [1] * (x.ndim - 2)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = wide.new_full((1,), x.numel() // features)
        # Two passes: E[x^2] - E[x]^2 would lose digits where the mean is large beside the spread.
        totals = sum_over_ranks(torch.cat([wide.sum(axes), count]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = wide - mean.view(shape)
        var = sum_over_ranks(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class MLP(nn.Module):
    """Linear, GELU, Linear over the last axis, with dropout after each."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        hidden: Tensor = self.dropout(F.gelu(self.up(x)))
        out: Tensor = self.dropout(self.down(hidden))
        return out


def rotary_table(positions_T: Tensor, head_dim: int) -> Tensor:
    """Cosine and sine of the rotary angles of each position: (2, T, head_dim / 2), float32. head_dim must be even."""
    if head_dim % 2:
        raise ValueError(f"rotary positions turn pairs of features: head_dim is {head_dim}, it must be even")
    pairs = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32)
    angles = positions_T.float()[:, None] * ROTARY_BASE ** (-pairs / head_dim)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the feature pairs (i, i + half) of x (..., S, head_dim) by `rotary_table` (2, S, head_dim / 2).

    The product of two rotated vectors depends on their positions only through the distance (RoFormer, section 3.2).
    A table of four has a cosine and a sine of its own for the second half, see `axial_table`.
    """
    cos, sin, *other = table.to(x.dtype)
    second_cos, second_sin = other or (cos, sin)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * second_cos + first * second_sin], -1)


def attend_frames(query: Tensor, key: Tensor, value: Tensor, frames: int, dropout: float = 0.0) -> Tensor:
    """Attention of tokens (B, heads, S, head_dim) over those of their own frame and of the frames before.

    S is `frames` times the tokens of a frame. One call per frame sees exactly what it may: no mask is ever built, which
    for 16 frames of 258 tokens would hold 17 million entries, and half of the products are saved.
    """
    size = query.shape[2] // frames
    ends = range(size, size * frames + 1, size)
    attended = [
        F.scaled_dot_product_attention(
            query[:, :, end - size : end], key[:, :, :end], value[:, :, :end], dropout_p=dropout
        )
        for end in ends
    ]
    return torch.cat(attended, 2) if frames > 1 else attended[0]


class Attention(nn.Module):
    """Multi-head self-attention over all tokens between the batch axis and the width axis."""

    def __init__(self, width: int, heads: int, head_dim: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.head_dim, self.attention_dropout = heads, head_dim, dropout
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=qkv_bias)
        self.out = nn.Linear(heads * head_dim, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask_SS: Tensor | int | None = None, rotary: Tensor | None = None) -> Tensor:
        """(B, ..., width) to the same shape. mask_SS: True where query (row) may see key (column), or a number of
        frames with equally many tokens, each of which sees itself and those before it (`attend_frames`).

        rotary: a `rotary_table` with one entry per token, in the order the tokens have after flattening.
        """
        qkv = self.qkv(x.flatten(1, -2)).unflatten(-1, (3, self.heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        dropout = self.attention_dropout if self.training else 0.0
        if isinstance(mask_SS, int):
            mixed = attend_frames(query, key, value, mask_SS, dropout)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_SS, dropout_p=dropout)
        out: Tensor = self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return out.view_as(x)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without affine parameters, then a given scale (around 1) and shift (DiT, section 3.2)."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class Block(nn.Module):
    """Pre-norm transformer block; with a modulation, the AdaLN block of DiT.

    norm: affine layer norms before attention and MLP. A block that is only ever modulated can do without.
    """

    def __init__(self, attention: Attention, mlp: MLP, width: int, norm: bool = True) -> None:
        super().__init__()
        self.attention_norm: nn.Module = nn.LayerNorm(width, eps=NORM_EPS) if norm else nn.Identity()
        self.attention = attention
        self.mlp_norm: nn.Module = nn.LayerNorm(width, eps=NORM_EPS) if norm else nn.Identity()
        self.mlp = mlp

    def forward(
        self,
        x: Tensor,
        mask_SS: Tensor | int | None = None,
        rotary: Tensor | None = None,
        modulation: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """(B, ..., width) to the same shape; mask_SS and rotary as in `Attention`.

        modulation: shift, scale, gate of the attention, then of the MLP, each broadcastable to x; gates of zero make
        the block the identity.
        """
        if modulation is None:
            x = x + self.attention(self.attention_norm(x), mask_SS, rotary)
            return x + self.mlp(self.mlp_norm(x))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        x = x + gate * self.attention(self.attention_norm(modulate(x, shift, scale)), mask_SS, rotary)
        return x + mlp_gate * self.mlp(self.mlp_norm(modulate(x, mlp_shift, mlp_scale)))


def frame_causal_mask(frames: int, tokens: int, device: torch.device | None = None) -> Tensor:
    """Bool (frames x tokens) squared: a token sees every token of its own frame and of the frames before."""
    frame_S = torch.arange(frames, device=device).repeat_interleave(tokens)
    return frame_S[:, None] >= frame_S[None, :]


def frame_causal(frames: int, tokens: int, device: torch.device) -> Tensor | int:
    """`frame_causal_mask` as `Attention` takes it, without ever building a large one: a mask, or a number of frames."""
    if frames > 1 and tokens < GRID_TOKENS and frames * tokens <= LARGEST_MASK:
        return frame_causal_mask(frames, tokens, device)
    return frames


class CausalTransformer(nn.Module):
    """Causal stack over frames of tokens; each frame's block is modulated by that frame's condition (AdaLN-zero).

    The modulations of all layers come from one matrix product, so a rollout can compute them ahead of the states. It
    starts at zero: at initialisation every block is the identity.
    """

    mask: Tensor | None

    def __init__(self, blocks: list[Block], width: int, context: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.blocks = nn.ModuleList(blocks)
        self.modulation = nn.Linear(width, 6 * width * len(blocks))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        mask = frame_causal(context, tokens, torch.device("cpu"))
        self.register_buffer("mask", mask if isinstance(mask, Tensor) else None, persistent=False)
        self.blocks.apply(init_linear)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x_BTKD: Tensor, condition_BTD: Tensor, rotary: Tensor | None = None) -> Tensor:
        """Tokens and per-frame conditions to normalised tokens of the same shape; at most `context` frames.

        rotary: a `rotary_table` with one entry per token.
        """
        frames = x_BTKD.shape[1]
        mask: Tensor | int | None = frames
        if self.mask is not None:
            mask = self.mask[: frames * self.tokens, : frames * self.tokens] if frames > 1 else None
        modulations = self.modulation(F.silu(condition_BTD))[:, :, None].chunk(6 * len(self.blocks), -1)
        for i, block in enumerate(self.blocks):
            x_BTKD = block(x_BTKD, mask, rotary, modulations[6 * i : 6 * i + 6])
        normalised_BTKD: Tensor = self.norm(x_BTKD)
        return normalised_BTKD


def check_window(latent_BTKD: Tensor, action_BTA: Tensor, tokens: int, context: int | None) -> None:
    """Refuse a window that a predictor was not built for. context: most frames it may see, None for any number.

    Raises ValueError naming the axis that does not fit.
    """
    batch, frames, found, _ = latent_BTKD.shape
    if tuple(action_BTA.shape[:2]) != (batch, frames):
        raise ValueError(
            f"predictor: {frames} frames of {batch} windows come with actions of shape {tuple(action_BTA.shape)}; "
            "give one action block per frame (the one that leaves it)"
        )
    if found != tokens:
        raise ValueError(f"predictor: latents have {found} tokens per frame; this predictor was built for {tokens}")
    if context is not None and frames > context:
        raise ValueError(
            f"predictor: the window has {frames} frames, more than the {context} this predictor can see; "
            "pass the latest ones or build it with a longer context"
        )


def init_linear(module: nn.Module) -> None:
    """Initialise a Linear as the ViT papers do: truncated normal of deviation 0.02, zero bias. Skips others."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

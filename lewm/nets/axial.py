"""Rotary positions in time, height and width for frames that are grids of tokens (V-JEPA 2, section 2.1)."""

import math

import torch
from torch import Tensor


def grid_side(tokens: int, predictor: str) -> int:
    """Tokens along a side of a square grid of `tokens`. Raises ValueError for a number that is no square."""
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"{predictor} predictor: {tokens} tokens per frame are no square grid, which its positions in height and "
            "width need; use an encoder with a square number of tokens"
        )
    return side


def check_head_dim(width: int, heads: int) -> None:
    """Raise ValueError for heads that leave an axis no pair of features to turn."""
    if width % (2 * heads) or width // heads < 6:
        raise ValueError(
            f"width is {width} and heads {heads}; the width of a head must be whole, even and at least 6: positions "
            "in time, height and width each turn pairs of features"
        )


def grid_positions(frames: int, side: int, leading: int, start: int, scale: float, device: torch.device) -> Tensor:
    """Time, row and column of every token, (3, S), float32; S = frames x (leading + side x side).

    Each frame begins with `leading` tokens that stand nowhere in the picture: row and column 0, which turns nothing.
    start: time of the first frame. scale: what rows and columns are multiplied by.
    """
    time_S = torch.arange(start, start + frames, device=device, dtype=torch.float32)
    line = torch.arange(side, device=device, dtype=torch.float32) * scale
    nowhere = line.new_zeros(leading)
    row_L = torch.cat([nowhere, line.repeat_interleave(side)])
    column_L = torch.cat([nowhere, line.repeat(side)])
    return torch.stack([time_S.repeat_interleave(len(row_L)), row_L.repeat(frames), column_L.repeat(frames)])


def axial_table(position_3S: Tensor, head_dim: int, base: float, repeated: bool = False) -> Tensor:
    """Cosines and sines for `lewm.nets.blocks.rotate`: (2, S, head_dim / 2), float32.

    A third of the feature pairs turns with the time, a third with the row, a third with the column, by position x
    base^(-i / n) for pair i of n; pairs left over stand still.
    repeated: the form that the weights of V-JEPA 2 and V-JEPA 2-AC were trained with, (4, S, head_dim / 2). There the n
    angles fill the 2n features of an axis twice over, so that the two features of pair i take the angles 2i and 2i + 1
    modulo n: no rotation, and a product of two such vectors does not depend on distances alone.
    """
    pairs, half = head_dim // 6, head_dim // 2
    frequency = base ** (-torch.arange(pairs, device=position_3S.device, dtype=torch.float32) / pairs)
    angle_S3n = position_3S.T[:, :, None] * frequency
    if not repeated:
        return _padded(angle_S3n, half)
    feature = torch.arange(pairs, device=position_3S.device) * 2
    tables = [_padded(angle_S3n[..., (feature + second) % pairs], half) for second in (0, 1)]
    return torch.cat(tables)


def _padded(angle_S3n: Tensor, half: int) -> Tensor:
    """(2, S, half): cosine and sine of the angles of all axes, then of zeros."""
    angle_SP = torch.nn.functional.pad(angle_S3n.flatten(1), (0, half - angle_S3n[0].numel()))
    return torch.stack([angle_SP.cos(), angle_SP.sin()])

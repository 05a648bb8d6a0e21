"""Heads that end an encoder or a predictor."""

import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import BatchNorm


class Projector(nn.Module):
    """Linear, BatchNorm, GELU, Linear over the last axis (LeWM, section 3.1).

    The BatchNorm is what makes SIGReg work behind a transformer: its last layer norm fixes the length of every token.
    """

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.norm = BatchNorm(hidden)
        self.down = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        projected: Tensor = self.down(F.gelu(self.norm(self.up(x))))
        return projected

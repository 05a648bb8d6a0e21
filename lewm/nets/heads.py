"""What ends an encoder or a predictor: a projector, a fixed scale, and the link that may make its latents sparse."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import BatchNorm

LinkName = Literal["identity", "relu", "rep_relu"]
"""What an `encoder.link` or a `predictor.link` may be."""


def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


def rep_relu(x: Tensor) -> Tensor:
    """ReLU with the gradient of GELU (LpWM): an entry that is zero on every sample can come back from above -0.75."""
    smooth = F.gelu(x)
    return F.relu(x).detach() + (smooth - smooth.detach())


LINKS: dict[str, Callable[[Tensor], Tensor]] = {"identity": identity, "relu": F.relu, "rep_relu": rep_relu}
"""Name to function. ReLU passes no gradient to entries below zero."""


def check_link(name: str) -> None:
    """Raise ValueError for a link that is not in the table."""
    if name not in LINKS:
        raise ValueError(f"link is {name!r}; it must be one of {', '.join(LINKS)}")


def fixed_scale(width: int, wanted: bool) -> nn.Module:
    """A BatchNorm without affine parameters over the last axis, or nothing.

    It gives every latent entry mean 0 and variance 1 over the batch, as the last layer of SimSiam's projector does, so
    that no loss is made smaller by smaller latents. In evaluation mode it is a fixed affine map.
    """
    return BatchNorm(width).requires_grad_(False) if wanted else nn.Identity()


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

"""The seam of every pretraining method: a normalised clip in, named losses out, and an encoder to keep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lewm.nets.token_vit import TokenViT, TokenViTConfig
from lewm.objectives.losses import Losses


@dataclass(frozen=True)
class Setup:
    """What a method is built for."""

    encoder: TokenViTConfig
    """Size of the encoder."""
    channels: int
    """Channels of one frame, three per camera."""
    size: int
    """Height and width of the pictures."""
    pixel_mean: tuple[float, ...]
    """What clips are normalised by: mean of each channel, in [0, 1]."""
    pixel_std: tuple[float, ...]
    """Standard deviation of each channel, in [0, 1]."""


@dataclass(frozen=True)
class ClipShape:
    """What a method wants to be shown."""

    frames: int = 1
    """Frames per clip."""
    shrink: int = 1
    """How many times smaller than the recordings its pictures are."""


class Pretraining(nn.Module):
    """A method with all that it trains or remembers. Its parameters with a gradient are trained, its state is saved."""

    normalise: bool = True
    """Whether the tokens of the kept encoder end in a layer norm without parameters, as the method's targets do."""

    def forward(self, clip_BTCYX: Tensor, progress: float, generator: torch.Generator) -> Losses:
        """Score one step on normalised clips of `clip_shape(progress)`.

        progress: share of the training that is done, in [0, 1). generator: every draw comes from it; it is in the same
        state on every rank.
        """
        raise NotImplementedError

    def clip_shape(self, progress: float) -> ClipShape:
        """The clips of the step at `progress`; single pictures unless the method says otherwise."""
        return ClipShape()

    @property
    def longest(self) -> int:
        """Most frames any of its clips has."""
        return self.clip_shape(0.0).frames

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step; progress is the share of the training that is done, in (0, 1]."""

    def kept(self) -> TokenViT:
        """The encoder that is probed and saved: the student, or the average of it that the method ends with."""
        raise NotImplementedError


Builder = Callable[[Any, Setup], Pretraining]
"""(configuration, setup) -> method: a row of the table. Weights come from torch's generator."""

"""The seam of every objective: latents and predictions in, named losses out."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from lewm.objectives.losses import Losses

if TYPE_CHECKING:
    from lewm.data.windows import Batch


class FrameFacts(Protocol):
    """What an objective may know of the frames."""

    @property
    def size(self) -> int:
        """Height and width in pixels."""

    @property
    def channels(self) -> int:
        """Channels of one frame, three per camera."""


class ModelView(Protocol):
    """What an objective may use of the world model it is built for."""

    latent_dim: int
    tokens: int
    action_dim: int
    pixel_scale: Tensor
    pixel_shift: Tensor

    @property
    def facts(self) -> FrameFacts:
        """Sizes and statistics of the recordings."""

    @property
    def encoder(self) -> nn.Module:
        """Pixels to latent tokens."""

    def encode(self, pixels_BTCYX: Tensor, proprio_BTP: Tensor | None = None) -> Tensor:
        """uint8 frames, and what was measured beside them, to latent_BTKD."""

    def scale_action(self, action: Tensor) -> Tensor:
        """Raw action blocks to about unit variance."""

    def parameters(self, recurse: bool = True) -> Any:
        """Trained tensors, in a fixed order."""


class Objective(nn.Module):
    """What training minimises, with whatever the method learns or remembers beside the model (a teacher, a decoder).

    Its parameters are trained with the model's, and its state is saved with the trainer's. Methods without any are
    plain functions: see `pure`.
    """

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """Score one step.

        latent_BTKD: encoded frames of the clips. predicted: one entry per way of predicting (teacher forcing, rollout),
        each aligned with latent_BTKD[:, 1:]. batch: the clips themselves, for methods that read pixels or actions.
        generator: every random draw comes from it; it is in the same state on every rank.
        """
        raise NotImplementedError

    def after_step(self, model: ModelView, progress: float) -> None:
        """Called after every optimiser step; progress is the share of the training that is done, in (0, 1]."""


Builder = Callable[[Any, ModelView], Objective]
"""(configuration, model) -> objective: a row of the table."""
PureObjective = Callable[[Tensor, tuple[Tensor, ...], "Batch | None", torch.Generator, Any], Losses]


class _Pure(Objective):
    """A function with its configuration."""

    def __init__(self, function: PureObjective, config: Any) -> None:
        super().__init__()
        self.function, self.config = function, config

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        return self.function(latent_BTKD, predicted, batch, generator, self.config)


def pure(function: PureObjective) -> Builder:
    """The table row of a method that needs nothing but latents, predictions and its configuration."""
    return lambda config, model: _Pure(function, config)

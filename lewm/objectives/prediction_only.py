"""The prediction term alone: for a frozen encoder, whose latents cannot collapse (DINO-WM, V-JEPA 2-AC).

A trained encoder would make every latent the same, which is predicted perfectly; it is refused.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig, prediction_loss

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class PredictionOnlyConfig:
    """Prediction and nothing that prevents collapse: only for a frozen encoder."""

    name: Literal["prediction"] = "prediction"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """The prediction term."""

    def __post_init__(self) -> None:
        if not self.prediction.weight > 0:
            raise ValueError("prediction.weight is 0, and there is no other term; make it positive")


def objective(
    latent_BTKD: Tensor,
    predicted: tuple[Tensor, ...],
    batch: "Batch | None",
    generator: torch.Generator,
    config: PredictionOnlyConfig,
) -> Losses:
    """Distance of the predictions from the encoded frames, see `prediction_loss`; nothing is drawn."""
    term = prediction_loss(latent_BTKD, predicted, config.prediction)
    return Losses({"prediction": term}, {"prediction": config.prediction.weight})

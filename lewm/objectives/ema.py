"""EMA teacher and stop-gradient: predict what a slowly moving copy of the encoder says of the next frame.

Nothing in this loss forbids collapse: it is kept away by the dynamics of a slow target and a quick predictor (BYOL,
I-JEPA, V-JEPA), so watch target_std and prediction_std, or use `cjepa`, which adds terms that do. Nor does it set a
scale: behind an encoder that ends in a linear layer latents shrink, so end it in a BatchNorm (`encoder.batch_norm`).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lewm.objectives.base import ModelView, Objective
from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig
from lewm.objectives.teacher import Teacher, TeacherConfig, normalised, regression_loss

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class EmaConfig:
    """Prediction of an EMA teacher's latents; the defaults are I-JEPA's but for `normalise_target`.

    V-JEPA: beta 0, teacher linear 0.998 to 1. V-JEPA 2: beta 0, teacher constant 0.99925. BYOL: distance cosine,
    teacher cosine 0.996 to 1. The papers normalise the target.
    """

    name: Literal["ema"] = "ema"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig("l1", stop_gradient=True))
    """Distance between prediction and teacher; the teacher is a constant whatever stop_gradient says."""
    beta: float = 1.0
    """With distance l1: errors below beta are squared (smooth L1, the code of I-JEPA); 0 for plain L1 (V-JEPA)."""
    normalise_target: bool = False
    """Whether the teacher's latents are layer-normalised without affine parameters, as in I-JEPA and V-JEPA.
    Predictions then live in that normalised space, not in the encoder's, and a planner that compares them with an
    encoded goal has to normalise the goal. With `encoder.batch_norm` all of them live in one space without it."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """How the teacher follows the encoder."""

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta}; it must be 0 or more")


class Ema(Objective):
    """Distance between predictions and the teacher's latents of the same frames (I-JEPA, section 3; V-JEPA 2)."""

    def __init__(self, config: EmaConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(model, config.teacher)

    def targets(self, batch: "Batch | None") -> Tensor:
        """What is to be predicted, of all frames: the teacher's latent_BTKD, normalised if so configured."""
        latent_BTKD: Tensor = self.teacher(batch)
        return normalised(latent_BTKD) if self.config.normalise_target else latent_BTKD

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """The prediction term alone; latent_BTKD is learned from only through the predictions made of it.

        Raises ValueError without the batch, whose pixels the teacher reads. `generator` is not read.
        """
        target_BTKD = self.targets(batch)
        loss = regression_loss(target_BTKD, predicted, self.config.prediction, self.config.beta)
        metrics = self.teacher.watch((target_BTKD, predicted))
        return Losses({"prediction": loss}, {"prediction": self.config.prediction.weight}, metrics)

    def after_step(self, model: ModelView, progress: float) -> None:
        """Move the teacher; raises RuntimeError at a collapse if so configured."""
        self.teacher.follow(model.encoder, progress)

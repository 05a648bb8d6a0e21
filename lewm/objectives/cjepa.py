"""C-JEPA: an EMA teacher to predict, and VICReg's terms on the encoder's own latents so that they cannot collapse.

Mo and Tong 2024. Without official code the similarity between views is open; here the views of a frame are its latent
and every prediction of it, and the variance and covariance are those of the latents, without a projector.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lewm.objectives.base import ModelView, Objective
from lewm.objectives.ema import Ema, EmaConfig
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.prediction import PredictionConfig
from lewm.objectives.statistics import centre, covariance, samples
from lewm.objectives.teacher import TeacherConfig
from lewm.objectives.vicreg import covariance_energy, variance_hinge

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class CJepaConfig:
    """`ema` plus weight x (similarity, variance, covariance), with the paper's coefficients.

    The weight is small beside a smooth-L1 of 0.1 to 0.5; for small models 0.001 to 0.1 is worth a sweep.
    """

    name: Literal["cjepa"] = "cjepa"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig("l1", stop_gradient=True))
    """Distance between prediction and teacher, see `ema`."""
    beta: float = 1.0
    """With distance l1: errors below beta are squared (smooth L1); 0 for plain L1."""
    normalise_target: bool = False
    """Whether the teacher's latents are layer-normalised, see `ema`."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """How the teacher follows the encoder."""
    weight: float = 0.001
    """Weight of the three terms below together; 0 leaves `ema`."""
    similarity: float = 25.0
    """Weight of the squared difference between the views of a frame."""
    variance: float = 25.0
    """Weight of the hinge that asks every dimension for a standard deviation of 1."""
    covariance: float = 1.0
    """Weight of the squared covariances between dimensions."""

    def __post_init__(self) -> None:
        for name in ("beta", "weight", "similarity", "variance", "covariance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


class CJepa(Objective):
    """The prediction of an EMA teacher plus VICReg's terms on the latents (C-JEPA, section 3)."""

    def __init__(self, config: CJepaConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        taught = EmaConfig("ema", config.prediction, config.beta, config.normalise_target, config.teacher)
        self.ema = Ema(taught, model)

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """The term of `ema` and the three of VICReg.

        Statistics are per time step over clips, averaged over time; tokens are averaged first, as the paper pools its
        patches. The hinge counts whole: a collapsed latent costs weight x variance x 0.99.
        Raises ValueError without the batch and for fewer than two clips.
        """
        config, taught = self.config, self.ema(latent_BTKD, predicted, batch, generator)
        pooled_BT1D = pool_tokens(latent_BTKD)
        centred_TND, _, n = centre(samples(pooled_BT1D), "C-JEPA")
        covariance_TDD = covariance(centred_TND, n)
        terms = {
            "similarity": view_similarity((pooled_BT1D[:, 1:], *(pool_tokens(guess) for guess in predicted))),
            "variance": variance_hinge(covariance_TDD.diagonal(dim1=-2, dim2=-1)).mean(),
            "covariance": covariance_energy(covariance_TDD).mean(),
        }
        weights = {name: config.weight * getattr(config, name) for name in terms}
        return Losses(taught.terms | terms, taught.weights | weights, taught.metrics)

    def after_step(self, model: ModelView, progress: float) -> None:
        """Move the teacher; raises RuntimeError at a collapse if so configured."""
        self.ema.after_step(model, progress)


def pool_tokens(latent_BTKD: Tensor) -> Tensor:
    """Mean over the tokens of a frame, latent_BT1D, in at least float32."""
    return full_precision(latent_BTKD).mean(2, keepdim=True)


def view_similarity(views: tuple[Tensor, ...]) -> Tensor:
    """Mean squared difference over all ordered pairs of two or more views of the same shape; 0 for identical ones.

    Sum over i != j of mse(view_i, view_j), divided by M (M - 1) (C-JEPA, section 3, which leaves the distance open):
    computed from the spread of the views around their mean, which is the same.
    """
    stacked = torch.stack(views)
    return 2 * stacked.var(0, correction=1).mean()

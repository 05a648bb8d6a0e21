"""VICReg: every latent dimension keeps a spread, no two dimensions say the same, and frames predict their successors.

Variance and covariance are those of the encoded frames; the invariance between two views of the paper (Bardes et al.
2022) is the prediction of the next frame.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.statistics import centre, covariance, samples

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class VicRegConfig:
    """Prediction plus variance and covariance of the latents, with the coefficients of the paper and its code."""

    name: Literal["vicreg"] = "vicreg"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig(weight=25.0))
    """The prediction term, which is VICReg's invariance."""
    variance: float = 25.0
    """Weight of the hinge that asks every dimension for a standard deviation of 1."""
    covariance: float = 1.0
    """Weight of the squared covariances between dimensions."""
    halve_std: bool = True
    """Whether the hinge counts half, as in the published code; the paper, PLDM and EB-JEPA count it whole."""
    divide_by: Literal["width", "pairs"] = "width"
    """What the sum of squared covariances is divided by: D (paper and code) or D (D - 1) (PLDM, EB-JEPA)."""
    frames: Literal["each", "pooled", "first"] = "each"
    """Samples of one statistic: the clips at each time step (averaged over time), all frames of all clips, or the first
    frame of every clip (PLDM)."""

    def __post_init__(self) -> None:
        for name in ("variance", "covariance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


def objective(
    latent_BTKD: Tensor,
    predicted: tuple[Tensor, ...],
    batch: "Batch | None",
    generator: torch.Generator,
    config: VicRegConfig,
) -> Losses:
    """Prediction plus VICReg's variance and covariance of the encoded frames; predicted latents are not regularised.

    `predicted` is aligned with latent_BTKD[:, 1:] (see `prediction_loss`); `batch` and `generator` are not read.
    Raises ValueError for fewer than two samples per statistic.
    """
    prediction = prediction_loss(latent_BTKD, predicted, config.prediction)
    chosen_BTKD = latent_BTKD[:, :1] if config.frames == "first" else latent_BTKD
    centred_TND, _, n = centre(samples(chosen_BTKD, pool_time=config.frames == "pooled"), "VICReg")
    covariance_TDD = covariance(centred_TND, n)
    variance_TD = covariance_TDD.diagonal(dim1=-2, dim2=-1)
    hinge = variance_hinge(variance_TD).mean()
    terms = {
        "prediction": prediction,
        "variance": hinge / 2 if config.halve_std else hinge,
        "covariance": covariance_energy(covariance_TDD, config.divide_by).mean(),
    }
    weights = {"prediction": config.prediction.weight, "variance": config.variance, "covariance": config.covariance}
    std_D = variance_TD.detach().sqrt().mean(0)
    return Losses(terms, weights, {"latent_std": std_D.mean(), "latent_std_min": std_D.min()})


def variance_hinge(variance_D: Tensor, margin: float = 1.0, epsilon: float = 1e-4) -> Tensor:
    """Mean over dimensions of relu(margin - sqrt(variance + epsilon)); leading axes are kept.

    0.99 for a collapsed batch, where its gradient vanishes.
    """
    return F.relu(margin - (variance_D + epsilon).sqrt()).mean(-1)


def covariance_energy(covariance_DD: Tensor, divide_by: Literal["width", "pairs"] = "width") -> Tensor:
    """Sum of the squared covariances between different dimensions, divided by D or D (D - 1).

    On n Gaussian samples its mean is (D - 1) / (n - 1) or 1 / (n - 1). Leading axes are kept; 0 for D = 1.
    """
    D = covariance_DD.shape[-1]
    between_DD = covariance_DD - torch.diag_embed(covariance_DD.diagonal(dim1=-2, dim2=-1))
    return between_DD.square().sum((-2, -1)) / (D if divide_by == "width" else D * max(1, D - 1))

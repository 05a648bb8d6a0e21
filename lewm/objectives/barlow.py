"""Barlow Twins: every latent dimension agrees with its own prediction and with no other dimension.

The cross-correlation matrix between predicted and encoded frames is driven to the identity (Zbontar et al. 2021). It
does not see scale or offset of either, so a prediction term keeps the predictor in the encoder's units.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lewm.distributed import sum_over_ranks, world_size
from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.statistics import centre, cross_product, samples

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class BarlowConfig:
    """Cross-correlation between predicted and encoded frames to the identity, plus a little prediction."""

    name: Literal["barlow"] = "barlow"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig(stop_gradient=True, weight=1.0))
    """Keeps predictions in the units of the latents. A mean over D beside sums over D, so 1 is little. The target is a
    constant: a gradient into it would shrink the latents, which nothing else here prevents."""
    weight: float = 1.0
    """Weight of both correlation terms."""
    off_diagonal: float = 0.0051
    """Weight of the correlations between different dimensions, inside `weight` (lambda). Published for D = 8192; the
    same balance at another width has the same lambda x (D - 1)."""
    epsilon: float = 1e-5
    """Added to the variances that the correlations are divided by."""
    pool_time: bool = False
    """Whether all frames of a clip are samples of one correlation matrix, instead of one matrix per time step."""

    def __post_init__(self) -> None:
        for name in ("weight", "off_diagonal"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be above 0, or a constant dimension divides by zero")


def objective(
    latent_BTKD: Tensor,
    predicted: tuple[Tensor, ...],
    batch: "Batch | None",
    generator: torch.Generator,
    config: BarlowConfig,
) -> Losses:
    """Barlow Twins between every prediction and the encoded frames it predicts, plus prediction.

    One correlation matrix per time step over all clips and tokens (over all frames too with `pool_time`); the terms are
    averaged over time and over the ways of predicting. `predicted` is aligned with latent_BTKD[:, 1:] (see
    `prediction_loss`); `batch` and `generator` are not read. Raises ValueError for fewer than two samples per matrix.
    """
    prediction = prediction_loss(latent_BTKD, predicted, config.prediction)
    target_TND = samples(latent_BTKD[:, 1:], config.pool_time)
    pairs = [(samples(guess, config.pool_time), target_TND) for guess in predicted]
    correlation_WTDD = torch.stack([cross_correlation(*pair, config.epsilon) for pair in pairs])
    diagonal, off_diagonal = distance_from_identity(correlation_WTDD)
    terms = {"prediction": prediction, "diagonal": diagonal.mean(), "off_diagonal": off_diagonal.mean()}
    weights = {
        "prediction": config.prediction.weight,
        "diagonal": config.weight,
        "off_diagonal": config.weight * config.off_diagonal,
    }
    agreement_D = correlation_WTDD.detach().diagonal(dim1=-2, dim2=-1).flatten(0, -2).mean(0)
    metrics = {"correlation": agreement_D.mean(), "correlation_min": agreement_D.min(), "latent_std": _std(target_TND)}
    return Losses(terms, weights, metrics | {"predicted_std": _std(pairs[0][0])})


def standardise(sample_TND: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Samples with mean 0 and (biased) variance 1 in every dimension, over the samples of all ranks.

    A constant dimension becomes 0. Raises ValueError for fewer than two samples.
    """
    centred_TND, _, n = centre(sample_TND, "Barlow Twins")
    variance_T1D = sum_over_ranks(centred_TND.square().sum(-2, keepdim=True)) / n
    return centred_TND * (variance_T1D + epsilon).rsqrt()


def cross_correlation(first_TND: Tensor, second_TND: Tensor, epsilon: float = 1e-5) -> Tensor:
    """correlation_TDD between the dimensions of two samples, over the samples of all ranks.

    Differentiable on every rank, unlike a plain all-reduce, whose gradient is short by the number of ranks.
    """
    n = first_TND.shape[-2] * world_size()
    return cross_product(standardise(first_TND, epsilon), standardise(second_TND, epsilon)) / n


def distance_from_identity(correlation_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of (1 - c_ii)^2 and sum of c_ij^2 over i != j; leading axes are kept.

    A collapsed batch scores D and 0. On n independent Gaussian samples the means are D (1 + 1 / (n - 1)) and
    D (D - 1) / (n - 1).
    """
    diagonal_D = correlation_DD.diagonal(dim1=-2, dim2=-1)
    between_DD = correlation_DD - torch.diag_embed(diagonal_D)
    return (1 - diagonal_D).square().sum(-1), between_DD.square().sum((-2, -1))


def _std(sample_TND: Tensor) -> Tensor:
    centred_TND, _, n = centre(sample_TND.detach(), "Barlow Twins")
    return (sum_over_ranks(centred_TND.square().sum(-2)) / (n - 1)).sqrt().mean()

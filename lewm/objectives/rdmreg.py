"""RDMReg: on every random slice, the latents must be spread like samples of a (rectified) generalised Gaussian.

The sorted projections of the batch are matched with the sorted projections of target samples drawn anew every step: the
two-sample sliced Wasserstein distance (Rectified LpJEPA, arXiv 2602.01456; as a world model LpWM, arXiv 2608.22764).
Rectified targets make sparse codes, of which a share of the entries is exactly zero.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from lewm.distributed import gather_ranks, rank, sum_over_ranks, world_size
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.sigreg import random_slices

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class RdmRegConfig:
    """Prediction plus distribution matching by sorted slices.

    A rectified target wants a rectifying link at the end of encoder and predictor, as in the papers: set `encoder.link`
    and `predictor.link` to `rep_relu` (or `relu`). With the link `identity`, a linear last layer, latents follow it
    only approximately: nearly non-negative, but no entry is exactly zero (metric `l0` stays 1). For dense latents take
    `rectified=False, p=2`, the dense control of LpWM: the target is then the standard Gaussian, as for SIGReg.
    """

    name: Literal["rdmreg"] = "rdmreg"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """The prediction term."""
    weight: float = 5.0
    """Weight of the distance beside the prediction term: 125 / 25 in Rectified LpJEPA; LpWM is reported with 0.5 and
    25. It need not follow the batch size."""
    p: float = 1.0
    """Shape of the target: its density falls as exp(-|x|^p); 2 is the Gaussian, 1 Laplace, less has heavier tails."""
    mu: float = 0.0
    """Mean of the target before it is rectified: the knob of sparsity. At p = 1, 0 leaves half of the entries active,
    -1 12 %, -2 3 %."""
    sigma: Literal["gn", "rgn"] = "gn"
    """Scale of the target. gn: variance 1 before it is rectified; rgn: variance 1 after."""
    rectified: bool = True
    """Whether negative entries of the target are set to zero."""
    slices: int = 512
    """Random directions per step."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")
        if not 0 < self.p < math.inf:
            raise ValueError(f"p is {self.p}; it must be a positive number, 1 for Laplace and 2 for Gaussian targets")
        if not math.isfinite(self.mu):
            raise ValueError(f"mu is {self.mu}; it must be a number, 0 for half of the entries active")
        if self.sigma not in ("gn", "rgn"):
            raise ValueError(f"sigma is {self.sigma!r}; it must be 'gn' or 'rgn'")
        if self.sigma == "rgn" and not self.rectified:
            raise ValueError("sigma is 'rgn', the scale of rectified targets, but rectified is false; take sigma 'gn'")
        if self.slices < 1:
            raise ValueError(f"slices is {self.slices}; it must be 1 or more")


def objective(
    latent_BTKD: Tensor,
    predicted: tuple[Tensor, ...],
    batch: "Batch | None",
    generator: torch.Generator,
    config: RdmRegConfig,
) -> Losses:
    """Prediction plus RDMReg of the encoded frames: predicted latents are not regularised.

    `predicted` is aligned with latent_BTKD[:, 1:] (see `prediction_loss`); `batch` is not read; `generator` draws the
    slices and the target and must be in the same state on every rank. Metrics: `l0`, the share of entries that are not
    zero, and `l1`, see `sparsity`, each beside its value on the target.
    """
    latent_NTD = gather_ranks(full_precision(latent_BTKD).transpose(1, 2).flatten(0, 1))
    n, T, D = latent_NTD.shape
    if n < 2:
        raise ValueError(f"RDMReg needs 2 or more samples per time step, not {n}; raise the batch size")
    slices_DS = random_slices(generator, D, config.slices).to(latent_NTD)
    target_TND = target_samples(generator, (T, n, D), config).to(latent_NTD)
    # Every rank sorts its share of the slices, of the samples of all ranks.
    mine_DS = slices_DS[:, rank() :: world_size()]
    distance_TS = sliced_wasserstein(latent_NTD.transpose(0, 1), target_TND, mine_DS)
    terms = {
        "prediction": prediction_loss(latent_BTKD, predicted, config.prediction),
        "rdmreg": sum_over_ranks(distance_TS.sum()) / (T * config.slices),
    }
    with torch.no_grad():
        l0, l1 = sparsity(latent_NTD)
        target_l0, target_l1 = sparsity(target_TND)
    metrics = {"l0": l0, "l1": l1, "target_l0": target_l0, "target_l1": target_l1}
    return Losses(terms, {"prediction": config.prediction.weight, "rdmreg": config.weight}, metrics)


def sliced_wasserstein(sample_TND: Tensor, target_TND: Tensor, slices_DS: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of N samples and N target samples on every slice: distance_TS.

    The mean squared difference of the sorted projections, of this process's tensors alone. On samples of the target
    itself it is not zero but falls about as 1 / N: for Gaussians 0.0825 at N = 64, 0.0436 at 128, in every dimension.
    The gradient of a sample is linear in the distance to its partner.
    """
    # Autocast would round the projections to bf16, and ties would be sorted at random.
    with torch.autocast(sample_TND.device.type, enabled=False):
        projected_TSN, wanted_TSN = (slices_DS.T @ x.transpose(1, 2) for x in (sample_TND, target_TND))
    return (projected_TSN.sort(-1).values - wanted_TSN.sort(-1).values).square().mean(-1)


def target_samples(generator: torch.Generator, shape: tuple[int, ...], config: RdmRegConfig) -> Tensor:
    """Independent draws of the target distribution in the given shape, float64 on the CPU.

    mu + sigma sign (p g)^(1/p) with g ~ Gamma(1/p): density proportional to exp(-|x - mu|^p / (p sigma^p)); then its
    positive part, if rectified.
    """
    # torch's gamma sampler takes no generator, numpy's does.
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    rng = np.random.default_rng(int(seed))
    size = (config.p * rng.standard_gamma(1 / config.p, shape)) ** (1 / config.p)
    sign = 2 * rng.integers(0, 2, shape) - 1
    target = torch.from_numpy(config.mu + target_sigma(config) * sign * size)
    return target.clamp(min=0) if config.rectified else target


def target_sigma(config: RdmRegConfig) -> float:
    """Scale sigma of the target: that of `sigma_gn`, or of `sigma_rgn`."""
    return sigma_gn(config.p) if config.sigma == "gn" else sigma_rgn(config.p, config.mu)


def sigma_gn(p: float) -> float:
    """Scale at which the generalised Gaussian has variance 1: 0.7071 for p = 1, 1 for p = 2."""
    return math.exp((math.lgamma(1 / p) - math.lgamma(3 / p)) / 2) / p ** (1 / p)


@lru_cache
def sigma_rgn(p: float, mu: float) -> float:
    """Scale at which the positive part of the generalised Gaussian has variance 1, by bisection."""

    def variance(sigma: float) -> float:
        _, mean, square = rectified_moments(p, mu, sigma)
        return square - mean**2

    low, high = 0.0, sigma_gn(p)
    while variance(high) < 1:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if variance(middle) < 1 else (low, middle)
    return high


def rectified_moments(p: float, mu: float, sigma: float) -> tuple[float, float, float]:
    """P(x > 0), E[max(x, 0)] and E[max(x, 0)^2] of the generalised Gaussian, in closed form.

    P(x > 0) is the share of entries a target leaves active: Phi(mu / sigma) for p = 2, exp(-|mu| / sigma) / 2 for p = 1
    and mu < 0.
    """
    shape = torch.arange(1, 4, dtype=torch.float64) / p
    edge = torch.full_like(shape, abs(mu) ** p / (p * sigma**p))
    scale = torch.tensor([sigma**k * p ** (k / p) for k in range(3)], dtype=torch.float64)
    whole = scale * torch.exp(torch.lgamma(shape) - math.lgamma(1 / p))
    # Moments of r = |x - mu| beyond and within |mu|; x is mu + r or mu - r, each half of the time.
    far = (whole * torch.special.gammaincc(shape, edge)).tolist()
    near = (whole * torch.special.gammainc(shape, edge)).tolist()
    above = far if mu < 0 else [a + b for a, b in zip(far, near)]
    below = [0.0] * 3 if mu < 0 else near
    active = above[0] + below[0]
    mean = mu * active + above[1] - below[1]
    square = mu**2 * active + 2 * mu * (above[1] - below[1]) + above[2] + below[2]
    return active / 2, mean / 2, square / 2


def sparsity(x: Tensor) -> tuple[Tensor, Tensor]:
    """l0: share of entries that are not zero. l1: (sum |x|)^2 / (D sum x^2) over the last axis, averaged.

    Both are 1 for vectors of equal magnitudes and 1 / D for one-hot vectors; l1 is 0.64 for Gaussian, 0.5 for Laplace
    entries in many dimensions, 0 for the zero vector, and sees sparsity that falls short of exact zeros.
    """
    square = x.square().sum(-1)
    l1 = x.abs().sum(-1).square() / (x.shape[-1] * square).clamp(min=torch.finfo(x.dtype).tiny)
    return (x != 0).to(x.dtype).mean(), l1.mean()

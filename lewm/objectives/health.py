"""The four criteria for a healthy JEPA, measured: what the latents hold, whether they can be predicted, what z adds.

The names are those of LeCun, "A Path Towards Autonomous Machine Intelligence" (2022), section 4.5: maximise the
information in the context and in the target, make the target predictable, and leave little information in z. Every
statistic comes with the value it has on ideal data, an isotropic Gaussian of the same number of samples and dimensions.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lewm.objectives.losses import full_precision

CRITERIA = (
    "information in the context",
    "information in the target",
    "predictability",
    "little information in z",
)
"""What the four criteria are called in logs and reports."""
DRAWS = 32
"""Ideal data sets behind one ideal value."""


@dataclass(frozen=True)
class Statistic:
    """A number and what it is on ideal data."""

    value: float
    """Measured."""
    ideal: float
    """Expected on ideal data of the same size."""


@dataclass(frozen=True)
class Information:
    """How much room a latent uses. Rank and condition number ignore its scale, the standard deviations tell it."""

    effective_rank: Statistic
    """exp(entropy) of the normalised singular values, in [1, D]; 1 for a collapsed latent."""
    condition_number: Statistic
    """Largest over smallest eigenvalue of the covariance, among the min(n - 1, D) that n samples can have; infinite
    if one of them is 0."""
    std_mean: Statistic
    """Mean over dimensions of the standard deviation."""
    std_min: Statistic
    """Standard deviation of the dimension that varies least."""
    std_max: Statistic
    """Standard deviation of the dimension that varies most."""
    std_D: Tensor
    """Standard deviation of every dimension, float64 on the CPU; the ideal is that of `std_mean` in each."""


@dataclass(frozen=True)
class JEPAHealth:
    """The four criteria on one batch of clips."""

    information_in_the_context: Information
    """Of the frames that predictions start from: all but the last."""
    information_in_the_target: Information
    """Of the frames that are predicted: all but the first."""
    predictability: Statistic
    """1 - squared prediction error / variance of the target, at most 1. 0 is no better than predicting the mean; 1 with
    no information in the target is collapse. Ideal: 1."""
    little_information_in_z: Statistic
    """Nats per prediction that the latent variable adds, 0 without one. Ideal: 0."""

    def scalars(self) -> dict[str, float]:
        """All numbers for a log, by criterion: `predictability`, `information in the context/effective_rank`, ...; what
        is ideal has `/ideal` at the end."""
        context, target, predictability, little = CRITERIA
        found = {predictability: self.predictability, little: self.little_information_in_z}
        for criterion, information in (
            (context, self.information_in_the_context),
            (target, self.information_in_the_target),
        ):
            for name, statistic in vars(information).items():
                if isinstance(statistic, Statistic):
                    found[f"{criterion}/{name}"] = statistic
        return {name: s.value for name, s in found.items()} | {f"{name}/ideal": s.ideal for name, s in found.items()}


def jepa_health(latent_BTKD: Tensor, predicted: tuple[Tensor, ...], information_in_z: float = 0.0) -> JEPAHealth:
    """Measure the four criteria on the clips of this process.

    latent_BTKD: encoded frames. predicted: one entry per way of predicting, aligned with latent_BTKD[:, 1:]; their
    errors are averaged. information_in_z: nats per prediction of the latent variable, for example its divergence from
    the prior. Raises ValueError for fewer than two samples (clips times tokens) or frames, and for a latent that is not
    finite.
    """
    if latent_BTKD.shape[1] < 2 or not predicted:
        raise ValueError(
            f"health of {latent_BTKD.shape[1]} frames and {len(predicted)} predictions cannot be measured; give two or "
            "more frames and a prediction of all but the first"
        )
    if not information_in_z >= 0:
        raise ValueError(f"information_in_z is {information_in_z} nats; it must be 0 or more")
    return JEPAHealth(
        information(latent_BTKD[:, :-1]),
        information(latent_BTKD[:, 1:]),
        Statistic(predictability(latent_BTKD[:, 1:], predicted), 1.0),
        Statistic(information_in_z, 0.0),
    )


def information(latent_BTKD: Tensor) -> Information:
    """Rank, condition and spread of the latents over the n = B x K clips and tokens of a time step, averaged over time.

    Per time step because frames of a clip resemble each other, so that all frames together would be fewer samples than
    they seem. Raises ValueError for fewer than two samples and for numbers that are not finite.
    """
    sample_TND = full_precision(latent_BTKD.detach()).transpose(0, 1).flatten(1, 2).cpu().double()
    n, D = sample_TND.shape[1:]
    if n < 2:
        raise ValueError(f"health needs 2 or more clips or tokens, not {n}; measure a larger batch")
    if not sample_TND.isfinite().all():
        raise ValueError("health of a latent that is not finite cannot be measured; look for NaN or inf in the encoder")
    centred_TND = sample_TND - sample_TND.mean(1, keepdim=True)
    measured, ideal = _spread(centred_TND, n), ideal_spread(n, D)
    rank, condition, mean, low, high = (Statistic(value, expected) for value, expected in zip(measured, ideal))
    std_D = (centred_TND.square().sum(1) / (n - 1)).sqrt().mean(0)
    return Information(rank, condition, mean, low, high, std_D)


def predictability(target_BTKD: Tensor, predicted: tuple[Tensor, ...]) -> float:
    """1 - squared error / variance of the target around its mean at each time step, over all ways of predicting.

    1 for a perfect prediction, collapsed or not; 0 for the mean; -1 for an independent sample. -inf for a wrong
    prediction of a constant. Raises ValueError for a prediction of another shape.
    """
    for guess in predicted:
        if guess.shape != target_BTKD.shape:
            raise ValueError(
                f"prediction has shape {tuple(guess.shape)}, but its frames have {tuple(target_BTKD.shape)}; "
                "give one prediction per frame from the second on"
            )
    target = full_precision(target_BTKD.detach())
    errors = [(full_precision(guess.detach()) - target).square().mean() for guess in predicted]
    error = torch.stack(errors).mean().item()
    variance = target.var((0, 2), correction=0).mean().item()
    if variance == 0:
        return 1.0 if error == 0 else -math.inf
    return 1 - error / variance


def effective_rank(sample_ND: Tensor) -> Tensor:
    """exp(entropy) of the normalised singular values of centred samples, in [1, D] (Roy and Vetterli 2007).

    Leading axes are kept. 1 for samples that are all the same.
    """
    singular = torch.linalg.svdvals(sample_ND - sample_ND.mean(-2, keepdim=True))
    return _rank(singular)


@lru_cache
def ideal_spread(n: int, D: int) -> tuple[float, float, float, float, float]:
    """Effective rank, condition number, mean, smallest and largest std of n samples of an isotropic unit Gaussian in D
    dimensions: the expectation for the mean, medians over simulated data sets for the others; the same at every call.

    The scatter matrix is drawn through its triangular root (Bartlett 1933), so that the cost does not grow with n.
    """
    rng = np.random.default_rng(0)
    rows = min(n - 1, D)
    root = np.triu(rng.standard_normal((DRAWS, rows, D)), 1)
    diagonal = np.arange(rows)
    root[:, diagonal, diagonal] = np.sqrt(rng.chisquare(n - 1 - diagonal, (DRAWS, rows)))
    each = [_spread(torch.from_numpy(one)[None], n) for one in root]
    rank, condition, _, low, high = (float(np.median(values)) for values in zip(*each))
    mean = math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    return rank, condition, mean, low, high


def _spread(root_TRD: Tensor, n: int) -> tuple[float, float, float, float, float]:
    """The statistics of n centred samples, averaged over T, from any root of their scatter matrix."""
    std_TD = (root_TRD.square().sum(1) / (n - 1)).sqrt()
    singular_TR = torch.linalg.svdvals(root_TRD)
    # Centring n samples leaves n - 1 directions: the last singular value would be rounding noise.
    kept_TR = singular_TR[:, : min(n - 1, root_TRD.shape[-1])]
    least, most = kept_TR[:, -1], kept_TR[:, 0]
    noise = torch.finfo(root_TRD.dtype).eps * max(root_TRD.shape[1:]) * most
    condition_T = torch.where(least > noise, (most / least).square(), math.inf)
    values = (_rank(kept_TR), condition_T, std_TD.mean(1), std_TD.amin(1), std_TD.amax(1))
    rank, condition, mean, low, high = (value.mean().item() for value in values)
    return rank, condition, mean, low, high


def _rank(singular_R: Tensor) -> Tensor:
    share = singular_R / singular_R.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.exp(torch.special.entr(share).sum(-1))

"""Whitening (W-MSE): predicted and encoded frames are compared after both are whitened, so they cannot collapse.

A batch with mean 0 and covariance I has all its dimensions in use, whatever the latents before it look like (Ermolov et
al. 2021). The statistics are those of the global batch, in float64, which autocast leaves alone; their running mean is
kept for planning.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.distributed import world_size
from lewm.objectives.base import ModelView, Objective
from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.statistics import centre, covariance, samples

if TYPE_CHECKING:
    from lewm.data.windows import Batch

ROUNDING = 1e-12
"""Share of a dimension's mean square below which its variance is rounding, not signal: 1e-6 of its size."""


@dataclass(frozen=True)
class WhiteningConfig:
    """Distance between whitened predicted and whitened encoded frames, plus a little prediction."""

    name: Literal["whitening"] = "whitening"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig(stop_gradient=True, weight=0.1))
    """Keeps predictions in the coordinates of the latents, which whitening does not see. The target is a constant: a
    gradient into it would shrink the latents, which nothing else here prevents."""
    weight: float = 1.0
    """Weight of the distance between whitened frames."""
    method: Literal["cholesky", "zca", "newton_schulz"] = "cholesky"
    """cholesky: triangular, as published. zca: symmetric, stays closest to the latents and does not depend on their
    orientation. newton_schulz: zca by matrix products alone."""
    distance: Literal["norm_mse", "mse"] = "norm_mse"
    """norm_mse: 2 - 2 cosine; mse: mean squared difference."""
    epsilon: float = 0.0
    """The covariance is taken as (1 - epsilon) Cov + epsilon I. 0, as published, whitens exactly and refuses a batch
    that is rank-deficient; above 0, directions with less variance than that may collapse."""
    iterations: int = 20
    """Steps of newton_schulz; k of them whiten directions that hold more than about 0.44^k of all variance."""
    pool_time: bool | None = None
    """Whether all frames of a clip are samples of one covariance, instead of one per time step; left out: only when a
    time step has fewer than two samples per latent dimension."""
    momentum: float = 0.01
    """Share of the latest batch in the running statistics."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is {self.epsilon}; it must lie between 0 and 1")
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; it must be 1 or more")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum is {self.momentum}; it must be above 0 and at most 1")


class Whitening(Objective):
    """W-MSE with the running mean and covariance of the latents, from which a planner's fixed whitening is made."""

    running_mean: Tensor
    running_covariance: Tensor
    num_batches_tracked: Tensor

    def __init__(self, config: WhiteningConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        D = model.latent_dim
        self.register_buffer("running_mean", torch.zeros(D, dtype=torch.float64))
        self.register_buffer("running_covariance", torch.zeros(D, D, dtype=torch.float64))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """Distance between whitened predictions and whitened targets, each by its own statistics; plus prediction.

        One covariance per time step over all clips and tokens (over all frames too with `pool_time`); averaged over
        time and over the ways of predicting. `predicted` is aligned with latent_BTKD[:, 1:] (see `prediction_loss`);
        `batch` and `generator` are not read. In training mode the running statistics move. Raises ValueError for too
        few samples or a rank-deficient batch.
        """
        config = self.config
        prediction = prediction_loss(latent_BTKD, predicted, config.prediction)
        pool = config.pool_time
        if pool is None:
            pool = samples(latent_BTKD[:, :1]).shape[1] * world_size() < 2 * latent_BTKD.shape[-1]
        target_TND = whiten(samples(latent_BTKD[:, 1:], pool), config)
        guesses = [whiten(samples(guess, pool), config) for guess in predicted]
        distances = torch.stack([DISTANCES[config.distance](guess, target_TND) for guess in guesses])
        std_D = self._track(latent_BTKD.detach())
        terms = {"prediction": prediction, "whitening": distances.mean().to(prediction.dtype)}
        weights = {"prediction": config.prediction.weight, "whitening": config.weight}
        return Losses(terms, weights, {"latent_std": std_D.mean(), "latent_std_min": std_D.min()})

    @torch.no_grad()
    def _track(self, latent_BTKD: Tensor) -> Tensor:
        """Move the running statistics towards those of all frames of this batch, whose deviations are returned."""
        centred_TND, mean_T1D, n = centre(samples(latent_BTKD, pool_time=True).double(), "whitening")
        covariance_DD = covariance(centred_TND, n)[0]
        if self.training:
            self.num_batches_tracked += 1
            # The plain mean at first, or the initial zeros would count.
            rate = (1 / self.num_batches_tracked.double()).clamp(min=self.config.momentum)
            self.running_mean.lerp_(mean_T1D[0, 0], rate)
            self.running_covariance.lerp_(covariance_DD, rate)
        return covariance_DD.diagonal().sqrt()

    def frozen(self) -> nn.Linear:
        """The running statistics as one linear layer: latents (..., D) to whitened latents, float32, not trained.

        For planning: distances between its outputs are whitened ones, whatever the batch. Raises RuntimeError before
        the first training step and ValueError when the running covariance is rank-deficient.
        """
        if self.num_batches_tracked == 0:
            raise RuntimeError("whitening has seen no batch yet; train for at least one step, or load a trained state")
        mean_1D, covariance_DD = self.running_mean[None], self.running_covariance
        matrix_DD = whitening_matrix(covariance_DD, mean_1D[0], self.config)
        layer = nn.Linear(len(matrix_DD), len(matrix_DD), device=matrix_DD.device).requires_grad_(False)
        layer.weight.copy_(matrix_DD)
        layer.bias.copy_(-(mean_1D @ matrix_DD.mT)[0])
        return layer


def whiten(sample_TND: Tensor, config: WhiteningConfig) -> Tensor:
    """Samples in float64 with mean 0 and covariance I over all ranks, for each leading index.

    Raises ValueError, when epsilon is 0, for fewer than D + 1 samples or a rank-deficient batch; fewer than two samples
    are always refused.
    """
    D = sample_TND.shape[-1]
    centred_TND, mean_T1D, n = centre(sample_TND.double(), "whitening")
    if config.epsilon == 0 and n <= D:
        raise ValueError(
            f"whitening a latent of width {D} needs {D + 1} or more samples per statistic, not {n}; raise the batch "
            "size, set pool_time, or set epsilon above 0"
        )
    matrix_TDD = whitening_matrix(covariance(centred_TND, n), mean_T1D[..., 0, :], config)
    return centred_TND @ matrix_TDD.mT


def whitening_matrix(covariance_DD: Tensor, mean_D: Tensor, config: WhiteningConfig) -> Tensor:
    """W with W Cov' W^T = I, where Cov' is the covariance with `epsilon` mixed in; leading axes are kept.

    mean_D tells how large rounding errors are. Raises ValueError for a rank-deficient Cov'; NaN stays NaN.
    """
    D = covariance_DD.shape[-1]
    eye_DD = torch.eye(D, dtype=covariance_DD.dtype, device=covariance_DD.device)
    mixed_DD = (1 - config.epsilon) * covariance_DD + config.epsilon * eye_DD
    size_D = mixed_DD.detach().diagonal(dim1=-2, dim2=-1) + mean_D.detach().square()
    factor_DD, info = torch.linalg.cholesky_ex(mixed_DD.detach())
    # What is left of a dimension's variance once the dimensions before it are known.
    left_D = factor_DD.diagonal(dim1=-2, dim2=-1).square()
    full_rank = (left_D > ROUNDING * size_D).all() & (info == 0).all()
    if not full_rank:
        if not mixed_DD.isfinite().all():
            return mixed_DD * torch.nan
        raise ValueError(
            f"whitening: the covariance of the batch, of width {D}, is rank-deficient (a latent dimension is constant, "
            "or follows linearly from others); set epsilon above 0 (such as 1e-3), take a narrower latent, or a larger "
            "batch"
        )
    return METHODS[config.method](mixed_DD, config.iterations)


def cholesky(covariance_DD: Tensor, iterations: int = 0) -> Tensor:
    """Inverse of the lower Cholesky factor: lower triangular, so it depends on the order of the dimensions."""
    eye_DD = torch.eye(covariance_DD.shape[-1], dtype=covariance_DD.dtype, device=covariance_DD.device)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance_DD), eye_DD, upper=False)


def zca(covariance_DD: Tensor, iterations: int = 0) -> Tensor:
    """Inverse square root by eigenvalues: symmetric, so rotating the samples rotates the whitened samples."""
    root: Tensor = _InverseRoot.apply(covariance_DD)
    return root


def newton_schulz(covariance_DD: Tensor, iterations: int) -> Tensor:
    """Inverse square root by the coupled Newton-Schulz iteration: matrix products only.

    Divided by its trace the covariance has eigenvalues in (0, 1], where the iteration converges: each step multiplies
    the small ones by 2.25 until they are near 1, then doubles the digits. Too few steps leave weak directions weak.
    """
    eye_DD = torch.eye(covariance_DD.shape[-1], dtype=covariance_DD.dtype, device=covariance_DD.device)
    trace = covariance_DD.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    root_DD, inverse_DD = covariance_DD / trace, eye_DD
    for _ in range(iterations):
        step_DD = 1.5 * eye_DD - 0.5 * inverse_DD @ root_DD
        root_DD, inverse_DD = root_DD @ step_DD, step_DD @ inverse_DD
    return inverse_DD * trace.rsqrt()


def norm_mse(first_TND: Tensor, second_TND: Tensor) -> Tensor:
    """Squared distance between unit vectors, 2 - 2 cosine, averaged over samples: in [0, 4]; 2 if independent."""
    return 2 - 2 * F.cosine_similarity(first_TND, second_TND, dim=-1).mean()


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cholesky": cholesky,
    "zca": zca,
    "newton_schulz": newton_schulz,
}
"""(covariance_DD, iterations) -> W with W Cov W^T = I."""
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"norm_mse": norm_mse, "mse": F.mse_loss}
"""Between whitened samples, averaged."""


class _InverseRoot(torch.autograd.Function):
    """C^(-1/2) of a symmetric positive definite C, with a gradient that is finite where eigenvalues coincide.

    torch's gradient of eigenvectors divides by the differences of eigenvalues; that of a matrix function needs only its
    divided differences, here -1 / (r_i r_j (r_i + r_j)) with r the roots of the eigenvalues.
    """

    @staticmethod
    def forward(ctx: Any, covariance_DD: Tensor) -> Tensor:
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
        root_D = values_D.sqrt()
        ctx.save_for_backward(root_D, vectors_DD)
        inverse_DD: Tensor = (vectors_DD / root_D[..., None, :]) @ vectors_DD.mT
        return inverse_DD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        root_D, vectors_DD = ctx.saved_tensors
        row_D1, column_1D = root_D[..., :, None], root_D[..., None, :]
        slopes_DD = -1 / (row_D1 * column_1D * (row_D1 + column_1D))
        symmetric_DD = (grads[0] + grads[0].mT) / 2
        inner_DD = slopes_DD * (vectors_DD.mT @ symmetric_DD @ vectors_DD)
        grad_DD: Tensor = vectors_DD @ inner_DD @ vectors_DD.mT
        return grad_DD

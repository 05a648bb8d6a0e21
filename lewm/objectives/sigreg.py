"""SIGReg: latents must look like a standard Gaussian in every direction, so they cannot collapse.

Random unit directions slice the latent space; on each slice the Epps-Pulley statistic compares the characteristic
function of the batch with the Gaussian's, exp(-t^2 / 2), at a few knots t (LeJEPA, section 4; LeWM applies it to every
time step of a clip).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lewm.distributed import sum_over_ranks, world_size
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.statistics import samples

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class Quadrature:
    """How the difference of two characteristic functions is integrated: `count` equally spaced knots t."""

    low: float
    """First knot: 0 or more, or -high."""
    high: float
    """Last knot."""
    count: int
    """Number of knots."""
    rule: Literal["trapezoid", "sum"] = "trapezoid"
    """Trapezoid rule, or the plain sum over knots."""
    doubled: bool = False
    """Whether the half [0, high] stands for [-high, high] and so counts twice."""
    window: float = 1.0
    """Standard deviation of the Gaussian weight exp(-t^2 / (2 window^2)); infinite for none."""
    scale_by_n: bool = True
    """Whether the integral is multiplied by the number of samples n, which makes its expectation on n Gaussian
    samples the same for every n."""

    def __post_init__(self) -> None:
        if not (self.low >= 0 or self.low == -self.high) or not self.low < self.high or self.count < 2:
            raise ValueError(
                f"a quadrature of {self.count} knots on [{self.low}, {self.high}] is not possible; take two or more on "
                "[low, high] with 0 <= low < high, or on [-high, high]"
            )


PRESETS: dict[str, Quadrature] = {
    "lejepa": Quadrature(0.0, 3.0, 17, doubled=True),
    "lejepa_paper": Quadrature(-5.0, 5.0, 17),
    "lewm_paper": Quadrature(0.2, 4.0, 17, scale_by_n=False),
    "bcs": Quadrature(-3.0, 3.0, 10, scale_by_n=False),
    "survey": Quadrature(0.0, 3.0, 17, rule="sum", window=math.inf, scale_by_n=False),
}
"""Published variants: the code of LeJEPA and LeWM; LeJEPA, algorithm 1; LeWM, appendix A; EB-JEPA; and the formula of
surveys, which leaves the frequencies open (here those of `lejepa`). They are not interchangeable: their values on
Gaussian samples are 1.052, 1.059, 0.525 / n, 1.050 / n and 11.77 / n, and the weight has to follow."""


@dataclass(frozen=True)
class SigRegConfig:
    """Prediction plus SIGReg."""

    name: Literal["sigreg"] = "sigreg"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """The prediction term."""
    weight: float = 0.1
    """Weight of SIGReg beside the prediction term."""
    preset: Literal["lejepa", "lejepa_paper", "lewm_paper", "bcs", "survey"] = "lejepa"
    """Published variant of the statistic; the weight has to follow, since their scales differ."""
    slices: int = 256
    """Random directions per step."""
    pool_time: bool = False
    """Whether all frames of a clip are samples of one statistic, instead of one statistic per time step; for batches
    below about 32."""
    reference_batch: int | None = None
    """Clips per step that `weight` was tuned for. At another batch size the weight is rescaled so that the balance with
    the prediction term stays the same; nothing is rescaled if left out. Only for presets that scale with n."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; it must be one of {', '.join(PRESETS)}")
        if self.slices < 1:
            raise ValueError(f"slices is {self.slices}; it must be 1 or more")
        if self.reference_batch is not None and self.reference_batch < 1:
            raise ValueError(f"reference_batch is {self.reference_batch}; it must be 1 or more, or left out")
        if self.reference_batch is not None and not PRESETS[self.preset].scale_by_n:
            raise ValueError(
                f"reference_batch is {self.reference_batch}, but preset {self.preset} does not grow with the batch; "
                "leave reference_batch out"
            )


def objective(
    latent_BTKD: Tensor,
    predicted: tuple[Tensor, ...],
    batch: "Batch | None",
    generator: torch.Generator,
    config: SigRegConfig,
) -> Losses:
    """Prediction plus SIGReg of the encoded frames (LeWM, section 3): predicted latents are not regularised.

    `predicted` is aligned with latent_BTKD[:, 1:] (see `prediction_loss`); `batch` is not read; `generator` draws the
    slices and must be in the same state on every rank.
    """
    terms = {
        "prediction": prediction_loss(latent_BTKD, predicted, config.prediction),
        "sigreg": sigreg(latent_BTKD, generator, config),
    }
    clips = latent_BTKD.shape[0] * world_size()
    # The prediction is a mean, so its gradient per sample falls as 1 / n; that of n x integral does not.
    rescaled = config.weight if config.reference_batch is None else config.weight * config.reference_batch / clips
    return Losses(terms, {"prediction": config.prediction.weight, "sigreg": rescaled})


def sigreg(latent_BTKD: Tensor, generator: torch.Generator, config: SigRegConfig) -> Tensor:
    """Epps-Pulley statistic of the latents on random slices, a scalar in at least float32.

    One statistic per time step over all clips and tokens (over all frames too with `pool_time`), averaged over slices
    and time. Raises ValueError for fewer than two samples.
    """
    latent_TND = samples(latent_BTKD, config.pool_time)
    slices_DS = random_slices(generator, latent_BTKD.shape[3], config.slices).to(latent_TND)
    # Autocast would round the projections to bf16, an error of 0.03 rad in their phases.
    with torch.autocast(latent_TND.device.type, enabled=False):
        projected_TSN = slices_DS.T @ latent_TND.transpose(1, 2)
    return epps_pulley(projected_TSN.transpose(1, 2), PRESETS[config.preset]).mean()


def random_slices(generator: torch.Generator, D: int, S: int) -> Tensor:
    """S random unit columns in D dimensions, float32, on the generator's device.

    Take a CPU generator and move the result: CPU and CUDA generators with the same seed give different directions.
    """
    slices_DS = torch.randn(D, S, generator=generator, device=generator.device)
    return slices_DS / slices_DS.norm(dim=0)


def epps_pulley(projected_NS: Tensor, quadrature: Quadrature) -> Tensor:
    """Distance of N samples from the standard Gaussian, one statistic_S per column; leading axes are kept.

    The samples are those of all ranks, each holding N. Computed in at least float32. Zero for a perfect fit; for preset
    `lejepa` Gaussian samples score 1.0525 on average whatever N is, and a batch collapsed to zero 0.402 N (Epps and
    Pulley 1983; LeJEPA, section 4.2). Periodic in every sample: 2 pi / (spacing of the knots), 33.5 for `lejepa`.
    Raises ValueError for fewer than two samples.
    """
    n = projected_NS.shape[-2] * world_size()
    if n < 2:
        raise ValueError(f"SIGReg needs 2 or more samples per statistic, not {n}; raise the batch size")
    projected_SN = full_precision(projected_NS).transpose(-1, -2)
    start, step, weights, gaussian = _half_grid(quadrature)
    local: Tensor = _WaveSums.apply(projected_SN, start, step, len(weights))
    cos_QS, sin_QS = sum_over_ranks(local) / n
    column = (-1,) + (1,) * (projected_SN.ndim - 1)
    weight_Q1, gaussian_Q1 = (cos_QS.new_tensor(values).view(column) for values in (weights, gaussian))
    statistic_S = (weight_Q1 * ((cos_QS - gaussian_Q1).square() + sin_QS.square())).sum(0)
    return statistic_S * n if quadrature.scale_by_n else statistic_S


@lru_cache
def _half_grid(quadrature: Quadrature) -> tuple[float, float, tuple[float, ...], tuple[float, ...]]:
    """First positive knot, spacing, and at every positive knot its weight and exp(-t^2 / 2).

    Negative knots are folded onto positive ones, and t = 0 contributes nothing: both functions are 1 there.
    """
    low, count = quadrature.low, quadrature.count
    step = (quadrature.high - low) / (count - 1)
    copies = 2 if quadrature.doubled or low < 0 else 1
    knots, weights = [], []
    for k in range(count):
        t = low + k * step
        if t < 1e-6 * step:
            continue
        end = 0.5 if k in (0, count - 1) else 1.0
        length = 1.0 if quadrature.rule == "sum" else end * step
        knots.append(t)
        weights.append(copies * length * math.exp(-(t**2) / (2 * quadrature.window**2)))
    return knots[0], step, tuple(weights), tuple(math.exp(-(t**2) / 2) for t in knots)


class _WaveSums(torch.autograd.Function):
    """Sums over the last axis of cos(t x) and sin(t x) at the knots t = start + k step, stacked: (2, count, ...).

    One sine and cosine per sample, rotated from knot to knot; the backward pass recomputes them, so that nothing larger
    than x is ever kept. Against the formula written out: several times faster and a small part of its memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: float, step: float, count: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid = start, step, count
        rows = x.reshape(-1, x.shape[-1])
        sums = rows.new_empty(2, count, rows.shape[0])
        for some in _chunks(rows):
            cos, sin, turn_cos, turn_sin = _waves(rows[some], start, step)
            for k in range(count):
                if k:
                    cos, sin = _rotate(cos, sin, turn_cos, turn_sin)
                torch.sum(cos, -1, out=sums[0, k, some])
                torch.sum(sin, -1, out=sums[1, k, some])
        return sums.view(2, count, *x.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        start, step, count = ctx.grid
        rows = x.reshape(-1, x.shape[-1])
        knot_Q11 = (start + step * torch.arange(count, dtype=x.dtype, device=x.device)).view(-1, 1, 1)
        by_cos, by_sin = grads[0].reshape(2, count, -1, 1)
        real, imag = knot_Q11 * by_sin, knot_Q11 * by_cos
        grad = torch.empty_like(rows)
        for some in _chunks(rows):
            # sum_k t_k (by_sin cos(t_k x) - by_cos sin(t_k x)), the real part of a polynomial in the rotation: Horner.
            cos, sin, turn_cos, turn_sin = _waves(rows[some], start, step)
            re, im = real[-1, some], imag[-1, some]
            for k in range(count - 2, -1, -1):
                re, im = (
                    torch.addcmul(real[k, some], re, turn_cos).addcmul_(im, turn_sin, value=-1),
                    torch.addcmul(imag[k, some], re, turn_sin).addcmul_(im, turn_cos),
                )
            torch.mul(re, cos, out=grad[some]).addcmul_(im, sin, value=-1)
        return grad.view_as(x), None, None, None


def _waves(rows: Tensor, start: float, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """cos and sin at the first knot, and of the turn from one knot to the next."""
    turn = rows * step
    turn_cos, turn_sin = turn.cos(), turn.sin()
    if start == step:
        return turn_cos, turn_sin, turn_cos, turn_sin
    first = rows * start
    return first.cos(), first.sin(), turn_cos, turn_sin


def _rotate(cos: Tensor, sin: Tensor, turn_cos: Tensor, turn_sin: Tensor) -> tuple[Tensor, Tensor]:
    return (cos * turn_cos).addcmul_(sin, turn_sin, value=-1), (sin * turn_cos).addcmul_(cos, turn_sin)


def _chunks(rows: Tensor) -> list[slice]:
    """Row ranges small enough for a CPU's cache; a GPU takes what keeps it busy."""
    size = max(1, (2**16 if rows.device.type == "cpu" else 2**24) // max(1, rows.shape[1]))
    return [slice(i, i + size) for i in range(0, rows.shape[0], size)]

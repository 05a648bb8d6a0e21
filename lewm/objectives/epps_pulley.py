"""The Epps-Pulley statistic: how far samples are from a standard Gaussian, by their characteristic function.

The function of the samples is compared with the Gaussian's, exp(-t^2 / 2), at a few equally spaced knots t.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from lewm.distributed import sum_over_ranks, world_size
from lewm.objectives.losses import full_precision


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


def epps_pulley(projected_NS: Tensor, quadrature: Quadrature) -> tuple[Tensor, Tensor]:
    """Distance of N samples from the standard Gaussian per column, biased_S and unbiased_S; leading axes are kept.

    The samples are those of all ranks, each holding N. Computed in at least float32. biased: zero for a perfect fit;
    for preset `lejepa` of SIGReg Gaussian samples score 1.0525 on average whatever N is, and a batch collapsed to zero
    0.402 N (Epps and Pulley 1983; LeJEPA, section 4.2). unbiased: the U-statistic, which leaves out the pairs of a
    sample with itself: 0 on average for Gaussian samples, negative for samples spread more evenly. Both repeat in every
    sample after the `aliasing_period`. Raises ValueError for fewer than two samples.
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
    biased_S = (weight_Q1 * ((cos_QS - gaussian_Q1).square() + sin_QS.square())).sum(0)
    # Of the n^2 pairs in |phi_n|^2, n are of a sample with itself and always 1: their share is taken out.
    excess_S = (weight_Q1 * (1 - cos_QS.square() - sin_QS.square())).sum(0) / (n - 1)
    scale = n if quadrature.scale_by_n else 1
    return scale * biased_S, scale * (biased_S - excess_S)


def aliasing_period(quadrature: Quadrature) -> float:
    """The distance at which two samples have the same wave at every knot: 33.5 for preset `lejepa`.

    2 pi over the largest number of which every knot is a multiple: over their spacing, if 0 is one of them or would be
    the next one.
    """
    start, step, _, _ = _half_grid(quadrature)
    return 2 * math.pi * Fraction(start / step).limit_denominator(1000).denominator / step


def aliased_share(projected_NS: Tensor, quadrature: Quadrature) -> Tensor:
    """Share, over all ranks, of the projections beyond half the `aliasing_period` on either side, a detached scalar.

    The statistic takes such a sample for one nearer to zero, with a gradient that may drive it further out.
    """
    beyond = projected_NS.detach().abs() > aliasing_period(quadrature) / 2
    return sum_over_ranks(beyond.to(projected_NS.dtype).mean()) / world_size()


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
    """Row ranges near the size of a CPU's cache, and so large that waking its threads for every operation costs little;
    a GPU takes what keeps it busy."""
    size = max(1, (2**18 if rows.device.type == "cpu" else 2**24) // max(1, rows.shape[1]))
    return [slice(i, i + size) for i in range(0, rows.shape[0], size)]

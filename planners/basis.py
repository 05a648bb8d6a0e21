"""Noise that is smooth along raw time: coloured, or a cubic spline through a few free points, or both."""

from functools import cache
from math import isfinite, pi
from typing import Protocol

import torch
from torch import Tensor


class NoiseConfig(Protocol):
    """The settings of planners whose noise can be smooth."""

    @property
    def noise_beta(self) -> float: ...
    @property
    def knots(self) -> int | None: ...


def check_smoothness(config: NoiseConfig) -> None:
    """Raise ValueError, naming the field, for settings that make no noise."""
    name = type(config).__name__
    if not (isfinite(config.noise_beta) and config.noise_beta >= 0):
        raise ValueError(f"{name}: noise_beta is {config.noise_beta}; it must be finite and at least 0, white noise")
    if config.knots is not None and config.knots < 2:
        raise ValueError(f"{name}: knots is {config.knots}; it must be at least 2, or None for every step its own")


def correlate(config: NoiseConfig, noise_BINHA: Tensor, steps: int) -> Tensor:
    """White standard normal noise made smooth along raw time, H x steps points; each still has std 1.

    Raises ValueError where there are more knots than points in time.
    """
    if config.noise_beta == 0 and config.knots is None:
        return noise_BINHA
    B, H, A = len(noise_BINHA), *noise_BINHA.shape[3:]
    mix_XX = mixing(H * steps, A // steps, config.noise_beta, config.knots, noise_BINHA.dtype, noise_BINHA.device)
    # A product per problem, as the rounding of one for all may depend on how many problems share the batch.
    return torch.bmm(noise_BINHA.flatten(3).flatten(1, 2), mix_XX.expand(B, -1, -1)).view_as(noise_BINHA)


@cache
def mixing(
    points: int, action_dim: int, beta: float, knots: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """mix_XX, X = points x action_dim: multiplied from the right it makes a flat white sequence a smooth one.

    Kept once made, because a plan that is captured as a CUDA graph cannot copy it from the host.
    """
    basis_TK = basis(points, beta, knots)
    basis_TT = torch.nn.functional.pad(basis_TK, (0, points - basis_TK.shape[1]))
    return torch.kron(basis_TT, torch.eye(action_dim)).T.to(device, dtype)


def basis(points: int, beta: float, knots: int | None) -> Tensor:
    """basis_TK in float64: K independent standard normals to T points in time, each standard normal.

    Colour and spline combine: the values at the knots are coloured.
    """
    if knots is not None and knots > points:
        raise ValueError(f"knots is {knots}; a plan of {points} raw actions has room for 2..{points}, or None for all")
    basis_TK = coloured(points, beta) if knots is None else spline(points, knots) @ coloured(knots, beta)
    return basis_TK / basis_TK.norm(dim=1, keepdim=True)


def coloured(points: int, beta: float) -> Tensor:
    """filter_TT that leaves of each cosine (DCT-II) a power of frequency^-beta: 0 is white, 1 pink, 2 red noise.

    The constant gets the power of the slowest cosine, as in Pinneri et al. 2020. Unlike a Fourier basis it does not
    tie the end of the sequence to its beginning.
    """
    time_T1 = torch.arange(points, dtype=torch.float64)[:, None] + 0.5
    frequency_T = torch.arange(points, dtype=torch.float64)
    cosine_TT = torch.cos(pi / points * time_T1 * frequency_T)
    cosine_TT = cosine_TT / cosine_TT.norm(dim=0)
    return cosine_TT * frequency_T.clamp(min=1) ** (-beta / 2) @ cosine_TT.T


def spline(points: int, knots: int) -> Tensor:
    """weight_TK: the natural cubic spline through K values, the first and last at the ends of the time."""
    eye_KK = torch.eye(knots, dtype=torch.float64)
    neighbours_KK = eye_KK.roll(1, 1) + eye_KK.roll(-1, 1)
    inner_K1 = torch.ones(knots, 1, dtype=torch.float64)
    inner_K1[[0, -1]] = 0
    # Equal slopes left and right of a knot: c[k-1] + 4 c[k] + c[k+1] = 6 (y[k-1] - 2 y[k] + y[k+1]); c = 0 at the ends.
    system_KK = inner_K1 * (neighbours_KK + 4 * eye_KK) + (1 - inner_K1) * eye_KK
    curvature_KK = torch.linalg.solve(system_KK, 6 * inner_K1 * (neighbours_KK - 2 * eye_KK))

    place_T = torch.linspace(0, knots - 1, points, dtype=torch.float64)
    left_T = place_T.long().clamp(max=knots - 2)
    right_T1 = (place_T - left_T)[:, None]
    left_T1 = 1 - right_T1
    straight_TK = left_T1 * eye_KK[left_T] + right_T1 * eye_KK[left_T + 1]
    bend_TK = (left_T1**3 - left_T1) * curvature_KK[left_T] + (right_T1**3 - right_T1) * curvature_KK[left_T + 1]
    return straight_TK + bend_TK / 6

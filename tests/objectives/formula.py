"""The Epps-Pulley statistic as papers write it, to compare ours with."""

import torch

from lewm.objectives.sigreg import PRESETS

FULL_GRID = {
    "lejepa": (-3.0, 3.0, 33),  # the half grid counted twice is the trapezoid rule on the whole
    "lejepa_paper": (-5.0, 5.0, 17),
    "lewm_paper": (0.2, 4.0, 17),
    "bcs": (-3.0, 3.0, 10),
    "survey": (0.0, 3.0, 17),
}


def nodes(preset):
    """Knots, quadrature weights (window included) and the Gaussian's characteristic function, on the unfolded grid."""
    t = torch.linspace(*FULL_GRID[preset], dtype=torch.float64)
    w = torch.ones_like(t)
    if preset != "survey":
        w = w * (t[1] - t[0])
        w[[0, -1]] /= 2
        w = w * torch.exp(-(t**2) / 2)
    return t, w, torch.exp(-(t**2) / 2)


def plain(x_NS, preset="lejepa"):
    """The statistic as the papers write it, through autograd: one cosine and one sine per sample, slice and knot."""
    t, w, gaussian = (v.to(x_NS) for v in nodes(preset))
    waves = x_NS[..., None] * t
    error = (waves.cos().mean(-3) - gaussian).square() + waves.sin().mean(-3).square()
    return error @ w * (x_NS.shape[-2] if PRESETS[preset].scale_by_n else 1)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain_unbiased(x_NS, preset="lejepa"):
    """The U-statistic: pairs of a sample with itself are not summed, so that nothing has to be taken out."""
    t, w, gaussian = (v.to(x_NS) for v in nodes(preset))
    n = x_NS.shape[-2]
    pairs = ((x_NS[..., :, None, :] - x_NS[..., None, :, :])[..., None] * t).cos()
    others = ~torch.eye(n, dtype=torch.bool)[..., None, None]
    squared = (pairs * others).sum((-4, -3)) / (n * (n - 1))
    real = (x_NS[..., None] * t).cos().mean(-3)
    return (squared - 2 * gaussian * real + gaussian.square()) @ w * (n if PRESETS[preset].scale_by_n else 1)

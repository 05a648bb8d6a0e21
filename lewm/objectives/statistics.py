"""Means and covariances of latents over the clips of all ranks, exact and differentiable."""

import torch
from torch import Tensor

from lewm.distributed import sum_over_ranks, world_size
from lewm.objectives.losses import full_precision


def samples(latent_BTKD: Tensor, pool_time: bool = False) -> Tensor:
    """Latents as samples of statistics, sample_TND in at least float32.

    One statistic per time step over N = B x K clips and tokens, or a single one (T = 1) over all frames with
    `pool_time`.
    """
    sample_TND = full_precision(latent_BTKD).transpose(0, 1).flatten(1, 2)
    return sample_TND.flatten(0, 1)[None] if pool_time else sample_TND


def centre(sample_TND: Tensor, method: str) -> tuple[Tensor, Tensor, int]:
    """Samples minus their mean, the mean_T1D, and n: the number of samples per statistic, those of all ranks.

    Every rank holds N of them. Raises ValueError naming `method` for fewer than two samples.
    """
    n = sample_TND.shape[-2] * world_size()
    if n < 2:
        raise ValueError(f"{method} needs 2 or more samples per statistic, not {n}; raise the batch size")
    mean_T1D = sum_over_ranks(sample_TND.sum(-2, keepdim=True)) / n
    return sample_TND - mean_T1D, mean_T1D, n


def covariance(centred_TND: Tensor, n: int) -> Tensor:
    """Unbiased covariance_TDD of the n samples of all ranks, of which this one holds N (see `centre`)."""
    return cross_product(centred_TND, centred_TND) / (n - 1)


def cross_product(first_TND: Tensor, second_TND: Tensor) -> Tensor:
    """Sum over the samples of all ranks of the outer products: product_TDD. Never rounded by autocast."""
    with torch.autocast(first_TND.device.type, enabled=False):
        return sum_over_ranks(first_TND.mT @ second_TND)

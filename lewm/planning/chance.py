"""The noise behind the futures that a plan in a stochastic world is judged by: the same M for all its candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lewm.nets.variable import Variable
from planners.noise import key_seed

STREAM = 1
"""Appended to a plan's key, so that chance and search draw different numbers."""


def chance_table(keys: Sequence[tuple[int, ...]], variable: Variable, samples: int, horizon: int) -> Tensor:
    """noise_BMHV for `WorldModel.rollout` on the CPU; row b depends on keys[b] and the shape of a row only.

    Each block's M numbers are one from each of M equal parts of the distribution, in random order (Latin hypercube,
    McKay et al. 1979): with two samples both sides of a fair coin are seen in every block.
    """
    return torch.stack([_rows(key, variable, samples, horizon) for key in keys])


def _rows(key: tuple[int, ...], variable: Variable, samples: int, horizon: int) -> Tensor:
    generator = torch.Generator().manual_seed(key_seed((*key, STREAM)))
    shape = (samples, horizon, variable.noise_dim)
    part_MHV = torch.rand(shape, generator=generator).argsort(0)
    within_MHV = torch.rand(shape, generator=generator)
    return variable.from_uniform((part_MHV + within_MHV) / samples)

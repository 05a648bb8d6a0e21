"""Noise that belongs to a problem: a plan never depends on which other problems share its batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from planners.types import Planner

MASK_64 = 2**64 - 1


def key_seed(key: tuple[int, ...]) -> int:
    """Mix the integers of a key into a seed in [0, 2^63), each through the finaliser of splitmix64.

    The order and number of integers matter, and neighbouring keys get unrelated seeds (Steele et al. 2014).
    Integers count modulo 2^64. torch's CPU generator looks at 32 bits of a seed, so among n keys the chance that
    some two share their noise is about n^2 / 2^33.
    """
    state = len(key)
    for number in key:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
        state ^= state >> 31
    return state >> 1


def noise_table(
    keys: Sequence[tuple[int, ...]], planner_or_shape: Planner | tuple[int, int, int], action_dim: int
) -> Tensor:
    """noise_BINHA: standard normal float32 on the CPU; row b depends only on keys[b] and the shape of a row.

    keys: one per problem, by custom (seed, episode, replan). planner_or_shape: the planner that will use the noise, or
    (iterations, candidates, horizon). action_dim: elements of an action block, frame_skip x action dimensions.
    """
    if isinstance(planner_or_shape, tuple):
        shape_INH = planner_or_shape
    else:
        planner = planner_or_shape
        shape_INH = (planner.iterations, planner.candidates, planner.horizon)
    noise_BINHA = torch.empty(len(keys), *shape_INH, action_dim)
    generator = torch.Generator()
    for row_INHA, key in zip(noise_BINHA, keys, strict=True):
        row_INHA.normal_(generator=generator.manual_seed(key_seed(key)))
    return noise_BINHA

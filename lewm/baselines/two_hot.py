"""Discrete regression: a number as weights of the two bins around it, on a scale that is logarithmic away from 0.

What a head says is a softmax over the bins, trained by cross-entropy; near and far values count alike, whatever their
size (TD-MPC2, Hansen et al. 2024, arXiv 2310.16828, section 3.2; symlog from DreamerV3, Hafner et al. 2023).
"""

import torch
from torch import Tensor


def symlog(value: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return value.sign() * value.abs().log1p()


def symexp(value: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return value.sign() * value.abs().expm1()


def two_hot(value: Tensor, bin_K: Tensor) -> Tensor:
    """Weights (..., K) of the bins for values (...): the two around symlog(value) share 1, the nearer gets more.

    bin_K: evenly spaced, rising, in symlog. A value beyond them counts as the last one on its side.
    """
    last = len(bin_K) - 1
    place = (symlog(value).clamp(bin_K[0], bin_K[-1]) - bin_K[0]) / (bin_K[-1] - bin_K[0]) * last
    below = place.floor().clamp(max=last - 1)
    above_1 = (place - below)[..., None]
    index_1 = below.long()[..., None]
    weight_K = torch.zeros(*value.shape, last + 1, dtype=value.dtype, device=value.device)
    return weight_K.scatter(-1, index_1, 1 - above_1).scatter(-1, index_1 + 1, above_1)


def two_hot_loss(logit_K: Tensor, value: Tensor, bin_K: Tensor) -> Tensor:
    """Cross-entropy (...) of logits (..., K) against the two-hot weights of values (...)."""
    return -(two_hot(value, bin_K) * logit_K.log_softmax(-1)).sum(-1)


def expected(logit_K: Tensor, bin_K: Tensor) -> Tensor:
    """The value (...) that logits (..., K) stand for: symexp of the mean bin (TD-MPC2)."""
    return symexp((logit_K.softmax(-1) * bin_K).sum(-1))

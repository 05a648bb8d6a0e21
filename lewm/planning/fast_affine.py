"""Affine maps and what folds into them: scalings, normalisations and maps without anything between them.

Folding is done once per model, in double precision, so that the folded map rounds like the plain one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewm.nets.blocks import NORM_EPS, BatchNorm


@dataclass(frozen=True)
class Affine:
    """x @ weight_IO + bias_O. Input first in memory: a CPU multiplies few rows by it 1.3 to 1.8 times as fast."""

    weight_IO: Tensor
    bias_O: Tensor

    @staticmethod
    def of(linear: nn.Linear) -> "Affine":
        """The map of a layer, in double precision, detached from it."""
        weight_IO = linear.weight.detach().double().T
        bias = linear.bias
        return Affine(weight_IO, weight_IO.new_zeros(weight_IO.shape[1]) if bias is None else bias.detach().double())

    def __call__(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return torch.addmm(self.bias_O, x.flatten(0, -2), self.weight_IO).unflatten(0, x.shape[:-1])

    def then(self, after: "Affine") -> "Affine":
        """This map, then another."""
        return Affine(self.weight_IO @ after.weight_IO, after.bias_O + self.bias_O @ after.weight_IO)

    def reading(self, scale_I: Tensor, shift_I: Tensor) -> "Affine":
        """This map of x * scale + shift."""
        scale_I, shift_I = scale_I.detach().double(), shift_I.detach().double()
        return Affine(scale_I[:, None] * self.weight_IO, self.bias_O + shift_I @ self.weight_IO)

    def standardising(self, mean_I: Tensor, std_I: Tensor) -> "Affine":
        """This map of (x - mean) / std."""
        return self.reading(1 / std_I.double(), -mean_I.double() / std_I.double())

    def normed(self, norm: nn.Module) -> "Affine":
        """This map of a layer norm, of which only `normalise` is left to do; of x itself where there is no norm."""
        return self.reading(norm.weight, norm.bias) if isinstance(norm, nn.LayerNorm) else self

    def batch_normed(self, norm: BatchNorm) -> "Affine":
        """This map, then a BatchNorm by its running statistics."""
        scale_O = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        shift_O = norm.bias.detach().double() - scale_O * norm.running_mean.double()
        return Affine(self.weight_IO * scale_O, self.bias_O * scale_O + shift_O)

    def scaled(self, factor: float) -> "Affine":
        """This map, its outputs multiplied by a number."""
        return Affine(self.weight_IO * factor, self.bias_O * factor)

    def columns(self, first: int, last: int) -> "Affine":
        """Only the outputs first..last-1, sharing memory."""
        return Affine(self.weight_IO[:, first:last], self.bias_O[first:last])

    def like(self, reference: Tensor) -> "Affine":
        """A copy on the device and in the precision of `reference`, ready to use."""
        shape = torch.contiguous_format
        return Affine(*(x.to(reference).clone(memory_format=shape) for x in (self.weight_IO, self.bias_O)))


def normalise(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Layer norm over the last axis, without its scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)

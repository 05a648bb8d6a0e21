"""What an objective returns: named scalars, their weights, and numbers that are only logged."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """The terms of one training step. Raises ValueError for a term that has no weight or a weight that has no term."""

    terms: dict[str, Tensor]
    """Unweighted scalars, by name."""
    weights: dict[str, float]
    """What each term is multiplied with in `total`."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars that are logged and never trained on."""

    def __post_init__(self) -> None:
        if not self.terms or self.terms.keys() != self.weights.keys():
            raise ValueError(
                f"loss terms {sorted(self.terms)} and weights {sorted(self.weights)} must have the same names, "
                "at least one; give every term its weight"
            )

    def detach(self) -> "Losses":
        """The same numbers without the graph behind them, for logs."""
        return Losses({name: term.detach() for name, term in self.terms.items()}, self.weights, self.metrics)

    @property
    def total(self) -> Tensor:
        """The weighted sum of the terms: what is differentiated."""
        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum()


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is that: what losses and statistics are computed in."""
    return x if x.dtype == torch.float64 else x.float()

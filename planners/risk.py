"""Risk: one cost out of the costs that several models, or several samples of one model, give the same plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Literal

import torch
from torch import Tensor

from planners.types import CostFn

RiskKind = Literal["mean", "best", "worst", "pessimistic", "cvar"]


@dataclass(frozen=True)
class Risk:
    """How to judge a plan on which the members of an ensemble disagree (suffix M)."""

    kind: RiskKind = "pessimistic"
    """mean of the members; best or worst member; pessimistic: mean + caution x std; cvar: mean of the worst `tail`
    (conditional value at risk, Rockafellar & Uryasev 2000)."""
    caution: float = 1.0
    """Weight of the members' population std, where kind is pessimistic; above 0."""
    tail: float = 0.25
    """Share of the members that count, rounded up to whole members, where kind is cvar; in (0, 1]."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Risk: kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if not (isfinite(self.caution) and self.caution > 0):
            raise ValueError(f"Risk: caution is {self.caution}; it must be positive and finite (0 is kind mean)")
        if not 0 < self.tail <= 1:
            raise ValueError(f"Risk: tail is {self.tail}; it must lie in (0, 1], where 1 is kind mean")

    def combine(self, cost_BNM: Tensor) -> Tensor:
        """cost_BN out of the costs of M members; gradients pass through.

        A member whose cost is NaN or +inf makes the plan cost +inf, except for `best`, which asks the others.
        """
        failed_BNM = cost_BNM.isnan() | cost_BNM.isposinf()
        if self.kind == "best":
            return cost_BNM.masked_fill(failed_BNM, torch.inf).amin(-1)
        # Failures are taken out before the arithmetic: inf - inf would poison the gradient of the sound plans.
        return KINDS[self.kind](cost_BNM.masked_fill(failed_BNM, 0.0), self).masked_fill(failed_BNM.any(-1), torch.inf)


def pessimistic(cost_BNM: Tensor, risk: Risk) -> Tensor:
    """Mean + caution x population std."""
    variance_BN, mean_BN = torch.var_mean(cost_BNM, dim=-1, correction=0)
    # The slope of a square root is infinite at 0, where all members agree.
    std_BN = variance_BN.clamp(min=torch.finfo(cost_BNM.dtype).tiny).sqrt()
    return mean_BN + risk.caution * std_BN


def cvar(cost_BNM: Tensor, risk: Risk) -> Tensor:
    """Mean of the worst ceil(tail x M) members."""
    # Less than rounding: 0.07 x 100 is a little more than 7.
    return cost_BNM.topk(ceil(risk.tail * cost_BNM.shape[-1] - 1e-9), dim=-1).values.mean(-1)


KINDS: Mapping[str, Callable[[Tensor, Risk], Tensor]] = {
    "mean": lambda cost_BNM, risk: cost_BNM.mean(-1),
    "best": lambda cost_BNM, risk: cost_BNM.amin(-1),
    "worst": lambda cost_BNM, risk: cost_BNM.amax(-1),
    "pessimistic": pessimistic,
    "cvar": cvar,
}
"""Kind to (cost_BNM, risk) -> cost_BN, for finite costs."""


class RiskCost:
    """One cost function out of those of several members, for any planner that needs no more than a cost."""

    def __init__(self, members: Sequence[CostFn], risk: Risk) -> None:
        if not members:
            raise ValueError("RiskCost has no members; give it at least one cost function")
        self.members, self.risk = tuple(members), risk

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """cost_BN, see `Risk.combine`. Raises ValueError when a member's costs have the wrong shape."""
        costs = [member(action_BNHA) for member in self.members]
        for index, cost_BN in enumerate(costs):
            if cost_BN.shape != action_BNHA.shape[:2]:
                raise ValueError(
                    f"member {index} of RiskCost returned shape {tuple(cost_BN.shape)}; it must return one cost per "
                    f"problem and candidate, shape {tuple(action_BNHA.shape[:2])}"
                )
        return self.risk.combine(torch.stack(costs, -1))

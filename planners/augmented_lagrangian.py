"""Augmented Lagrangian: limits become prices, which rise from round to round of a search until they are kept."""

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.cem import CEM
from planners.checks import check_noise, check_positive
from planners.constraints import LARGEST_COST, Judge, Search
from planners.search import AroundSearch
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart


@dataclass(frozen=True)
class AugmentedLagrangian(AroundSearch):
    """The method of multipliers (Rockafellar 1973) around a search; needs a `ConstrainedCost`.

    Each round searches for the least L = cost + sum over limits of (max(0, price + rho g)^2 - price^2) / (2 rho),
    g <= 0 being kept, from where the last round ended; then price = max(0, price + rho g) at that round's answer, and
    rho grows. Unlike `FeasibleFirst` it lets the search pass through forbidden plans. Every problem and limit has its
    own price and rho. The answer is the best candidate ever scored, in the order of `FeasibleFirst`, and best_cost_BI
    counts only candidates that keep all limits, as there.
    """

    needs: ClassVar[tuple[Need, ...]] = ("violation",)

    name: Literal["augmented_lagrangian"] = "augmented_lagrangian"
    """Which planner this is."""
    search: Search = field(default_factory=lambda: CEM(iterations=3))
    """The search of one round, told apart by its `name`: cem, icem, mppi or categorical_cem."""
    rounds: int = 5
    """Searches, each with new prices."""
    penalty: float = 1.0
    """First rho in natural units: at 1 breaking a limit by its typical size among the first candidates costs half as
    much as their costs typically differ, whatever the units of cost and limit."""
    growth: float = 2.0
    """Factor on rho from round to round, at least 1."""
    max_penalty: float = 1e4
    """Largest rho, in natural units."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"AugmentedLagrangian: rounds is {self.rounds}; it must be at least 1")
        check_positive(self, "penalty")
        if not (isfinite(self.growth) and self.growth >= 1):
            raise ValueError(f"AugmentedLagrangian: growth is {self.growth}; it must be at least 1 and finite")
        if not (isfinite(self.max_penalty) and self.max_penalty >= self.penalty):
            raise ValueError(
                f"AugmentedLagrangian: max_penalty is {self.max_penalty}; it must be finite and at least penalty, "
                f"{self.penalty}"
            )

    @property
    def iterations(self) -> int:
        """Rounds of draw, score, refit, of all rounds of prices together."""
        return self.rounds * self.search.iterations

    @torch.no_grad()
    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the actions of lowest cost among those that keep the limits; see `planners.Planner.plan`."""
        check_noise(self, noise_BINHA, box)
        judge = Judge(cost_fn)
        lagrangian = Lagrangian(judge, self)
        plans: list[Plan] = []
        for noise in noise_BINHA.split(self.search.iterations, 1):
            plans.append(self.search.plan(lagrangian, noise, box, start))
            lagrangian.next_round(judge.violation(plans[-1].action_BHA[:, None]))
            start = WarmStart(plans[-1].mean_BHA)
        spread_BI = torch.cat([plan.spread_BI for plan in plans], 1)
        return judge.answer(replace(plans[-1], best_cost_BI=torch.stack(lagrangian.best_keys, 1), spread_BI=spread_BI))


class Lagrangian:
    """The cost of one plan call with the limits' present prices; the first candidates it sees set the unit of rho."""

    def __init__(self, judge: Judge, config: AugmentedLagrangian) -> None:
        self.judge, self.config = judge, config
        self.rho, self.price_B1G, self.unit_B1G = config.penalty, torch.zeros(()), torch.zeros(())
        self.best_keys: list[Tensor] = []
        """Smallest key_B of every iteration."""
        self.calls = 0
        """Calls in this round."""

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """L_BN of the candidates."""
        cost_BN, violation_BNG, key_BN = self.judge.look(action_BNHA)
        if not self.best_keys:
            self.unit_B1G = natural_unit(cost_BN, violation_BNG)
            self.price_B1G = torch.zeros_like(self.unit_B1G)
        # A search that executes its mean scores it after its last iteration.
        if self.calls < self.config.search.iterations:
            self.best_keys.append(key_BN.amin(1))
        self.calls += 1
        return cost_BN + penalty(violation_BNG, self.price_B1G, self.rho * self.unit_B1G)

    def next_round(self, violation_B1G: Tensor) -> None:
        """Raise prices and rho, from the violation of this round's answer; one without a number leaves its price."""
        price_B1G = raised(self.price_B1G, violation_B1G, self.rho * self.unit_B1G)
        self.price_B1G = torch.where(price_B1G.isfinite(), price_B1G, self.price_B1G)
        self.rho = min(self.rho * self.config.growth, self.config.max_penalty)
        self.calls = 0


def raised(price_B1G: Tensor, violation_BNG: Tensor, rho_B1G: Tensor) -> Tensor:
    """max(0, price + rho g): the price of a limit after it was broken, or kept, by that much."""
    return (price_B1G + rho_B1G * violation_BNG).clamp(min=0)


def penalty(violation_BNG: Tensor, price_B1G: Tensor, rho_B1G: Tensor) -> Tensor:
    """penalty_BN: what the limits add to the cost; a kept limit that has a price lowers it, down to a floor."""
    return ((raised(price_B1G, violation_BNG, rho_B1G).square() - price_B1G.square()) / (2 * rho_B1G)).sum(-1)


def natural_unit(cost_BN: Tensor, violation_BNG: Tensor) -> Tensor:
    """unit_B1G of rho: std of the costs over mean squared violation, of the candidates that did not fail.

    1 in place of a std or a mean square of 0, which say nothing.
    """
    cost_BN = cost_BN.clamp(min=-LARGEST_COST)
    sound_BN = cost_BN.isfinite() & violation_BNG.isfinite().all(-1)
    count_B1 = sound_BN.sum(1, keepdim=True).clamp(min=1)
    mean_B1 = cost_BN.masked_fill(~sound_BN, 0).sum(1, keepdim=True) / count_B1
    variance_B1 = (cost_BN - mean_B1).masked_fill(~sound_BN, 0).square().sum(1, keepdim=True) / count_B1
    square_B1G = violation_BNG.masked_fill(~sound_BN[..., None], 0).square().sum(1, keepdim=True) / count_B1[..., None]
    std_B11 = variance_B1.sqrt()[..., None]
    return torch.where(std_B11 > 0, std_B11, 1) / torch.where(square_B1G > 0, square_B1G, 1)

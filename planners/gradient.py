"""Gradient descent on the actions from many starts, and the descent with which other planners refine their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from planners.checks import Sized, check_inputs, check_not_negative, check_positive, check_sizes
from planners.search import as_noise, best_scored, draw, first_gaussian, pick, score, spread
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart

DECAY_1, DECAY_2, EPSILON = 0.9, 0.999, 1e-12
"""Adam's constants. Its epsilon is far below any gradient that matters, so that the scale of the cost does not."""


@dataclass(frozen=True)
class Gradient:
    """Adam (Kingma & Ba 2015) on whole action sequences, from several starts at once, projected to the box.

    The first iteration scores the starts, every later one is a step and a score; the cheapest sequence ever scored is
    executed, so the answer is never worse than a start. Every candidate descends on its own.
    """

    needs: ClassVar[tuple[Need, ...]] = ("gradient",)

    name: Literal["gradient"] = "gradient"
    """Which planner this is."""
    horizon: int = 5
    """Blocks planned ahead."""
    candidates: int = 32
    """Starts. The first is the centre of the box or the warm start, the next are its seeds, the others are drawn."""
    iterations: int = 30
    """Rounds of scoring; an Adam step lies between one and the next."""
    learning_rate: float = 0.3
    """Adam's step, in units of the box's std."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Whether the learning rate stays or falls to 0 along half a cosine."""
    noise: float = 0.0
    """Std of the noise added with each step, in units of the box's std; it falls with the learning rate."""
    initial_std: float = 1.0
    """Std of the starts without a warm start, in units of the box's std."""
    warm_std: float = 0.5
    """Std of the starts around a warm start, in units of the box's std."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_positive(self, "learning_rate", "initial_std", "warm_std")
        check_not_negative(self, "noise")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"Gradient: schedule is {self.schedule!r}; it must be 'constant' or 'cosine'")

    @torch.inference_mode(False)
    @torch.no_grad()
    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Descend to the actions of lowest cost; see `planners.Planner.plan`."""
        action_BNHA = draw_starts(self, noise_BINHA, box, start)
        rates = learning_rates(self.learning_rate, self.iterations - 1, self.schedule)
        jumps = None
        if self.noise:
            shares = [self.noise * rate / self.learning_rate for rate in rates]
            jumps = [share * noise_BNHA for share, noise_BNHA in zip(shares, noise_BINHA[:, 1:].unbind(1), strict=True)]
        descent = descend(cost_fn, action_BNHA, box, rates, jumps)
        return Plan(
            action_BHA=descent.best_B1HA[:, 0],
            cost_B=descent.best_cost_B1[:, 0],
            mean_BHA=descent.best_B1HA[:, 0],
            best_cost_BI=descent.cost_BI,
            spread_BI=descent.spread_BI,
        )


class StartConfig(Sized, Protocol):
    """The settings that decide where a descent starts; `Gradient` documents them."""

    @property
    def initial_std(self) -> float: ...
    @property
    def warm_std(self) -> float: ...


def learning_rates(rate: float, steps: int, schedule: Literal["constant", "cosine"]) -> list[float]:
    """The learning rate of each step; a cosine starts at `rate` and would reach 0 one step after the last."""
    if schedule == "constant":
        return [rate] * steps
    return [rate * (1 + cos(pi * step / steps)) / 2 for step in range(steps)]


def draw_starts(config: StartConfig, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None) -> Tensor:
    """action_BNHA inside the box: the centre of the search, the seeds, and draws around the centre (row 0 of noise)."""
    check_inputs(config, noise_BINHA, box, start)
    low_A, high_A, centre_A, unit_A = as_noise(noise_BINHA, box)
    std = config.initial_std if start is None else config.warm_std
    mean_B1HA, std_B1HA = first_gaussian(noise_BINHA, centre_A, unit_A * std, start)
    seeds_BSHA = None if start is None else start.seeds_BSHA
    return draw(mean_B1HA, std_B1HA, noise_BINHA[:, 0], True, seeds_BSHA, (low_A, high_A))


@dataclass(frozen=True)
class Descent:
    """What a descent of N candidates found, and where it ended; its I scorings are one more than its steps."""

    action_BNHA: Tensor
    """Where the candidates ended."""
    best_B1HA: Tensor
    """The cheapest sequence scored; candidate 0 as it started where all failed."""
    best_cost_B1: Tensor
    """Its cost; +inf where all failed."""
    cost_BI: Tensor
    """Lowest cost among the candidates of each scoring."""
    spread_BI: Tensor
    """Std over the candidates of each scoring, mean over H and A, in units of the box's std."""


def descend(
    cost_fn: CostFn, action_BNHA: Tensor, box: ActionBox, rates: Sequence[float], jumps: Sequence[Tensor] | None = None
) -> Descent:
    """Score the candidates, take an Adam step at each of the rates and score them again after it.

    rates: learning rates in units of the box's std. jumps: noise_BNHA to add with each step, in the same unit. Call it
    without gradients; static shapes and no host sync, so it can become part of a CUDA graph. Raises ValueError for a
    cost of the wrong shape or without a gradient.
    """
    adam, start_B1HA = Adam(action_BNHA, box), action_BNHA[:, :1]
    costs, winners, stds = [], [], []
    for step in range(len(rates) + 1):
        if step < len(rates):
            cost_BN, gradient_BNHA = differentiate(cost_fn, action_BNHA)
        else:
            cost_BN = score(cost_fn, action_BNHA)
        cost_B1, index_B1 = cost_BN.min(1, keepdim=True)
        costs.append(cost_B1)
        winners.append(pick(action_BNHA, index_B1))
        stds.append(action_BNHA.std(1, correction=0, keepdim=True))
        if step < len(rates):
            action_BNHA = adam.step(action_BNHA, gradient_BNHA, rates[step], jumps[step] if jumps else None)

    cost_BI = torch.cat(costs, 1)
    best_cost_B1, best_B1HA = best_scored(cost_BI, winners, start_B1HA)
    return Descent(action_BNHA, best_B1HA, best_cost_B1, cost_BI, spread(stds, adam.unit_A))


def differentiate(cost_fn: CostFn, action_BNHA: Tensor) -> tuple[Tensor, Tensor]:
    """cost_BN as `score` gives it, and its gradient_BNHA; no graph is left behind."""
    with torch.enable_grad():
        leaf_BNHA = action_BNHA.clone().requires_grad_()
        cost_BN = score(cost_fn, leaf_BNHA)
        return cost_BN.detach(), slope(cost_BN, leaf_BNHA)


def slope(cost_BN: Tensor, action_BNHA: Tensor) -> Tensor:
    """gradient_BNHA of each candidate's cost by its own actions, 0 where the cost or a part of the gradient failed.

    Raises ValueError where the cost was not computed from the actions by differentiable operations.
    """
    found: tuple[Tensor | None, ...] = (None,)
    if cost_BN.requires_grad:
        found = torch.autograd.grad(cost_BN.sum(), action_BNHA, allow_unused=True)
    (gradient_BNHA,) = found
    if gradient_BNHA is None:
        raise ValueError(
            "the cost has no gradient by the actions; gradient planners need one made of differentiable torch "
            "operations: plan with cem or mppi, or remove what cuts it off (detach, no_grad, numpy, rounding)"
        )
    valid_BN = gradient_BNHA.isfinite().flatten(2).all(2) & cost_BN.isfinite()
    return torch.where(valid_BN[:, :, None, None], gradient_BNHA, 0)


class Adam:
    """Adam on candidates that do not disturb each other, in units of the box's std, projected to the box."""

    def __init__(self, action_BNHA: Tensor, box: ActionBox) -> None:
        self.low_A, self.high_A = box.low_A.to(action_BNHA), box.high_A.to(action_BNHA)
        self.unit_A = box.std_A.to(action_BNHA)
        self.first_BNHA, self.second_BNHA = torch.zeros_like(action_BNHA), torch.zeros_like(action_BNHA)
        self.steps = 0

    def step(self, action_BNHA: Tensor, gradient_BNHA: Tensor, rate: float, jump_BNHA: Tensor | None = None) -> Tensor:
        """The next action_BNHA, inside the box; `rate` and the noise `jump_BNHA` are in units of the box's std."""
        self.steps += 1
        gradient_BNHA = gradient_BNHA * self.unit_A
        self.first_BNHA = self.first_BNHA.lerp(gradient_BNHA, 1 - DECAY_1)
        self.second_BNHA = self.second_BNHA.lerp(gradient_BNHA.square(), 1 - DECAY_2)
        first_BNHA = self.first_BNHA / (1 - DECAY_1**self.steps)
        second_BNHA = self.second_BNHA / (1 - DECAY_2**self.steps)
        move_BNHA = -rate * first_BNHA / (second_BNHA.sqrt() + EPSILON)
        if jump_BNHA is not None:
            move_BNHA = move_BNHA + jump_BNHA
        return torch.addcmul(action_BNHA, self.unit_A, move_BNHA).clamp_(self.low_A, self.high_A)

"""The loop that CEM and MPPI share: draw candidates from a Gaussian, score them, refit the Gaussian to the good ones.

Static shapes and no host sync from the first operation to the last, so a whole plan can become one CUDA graph.
"""

from collections.abc import Callable
from math import isfinite
from typing import Literal, Protocol

import torch
from torch import Tensor

from planners.types import ActionBox, CostFn, Plan, WarmStart

Fit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(cost_BN, action_BNHA) -> (mean_B1HA, std_B1HA): the Gaussian that describes the good candidates.

What it returns for a problem without any finite cost is not used."""


class SearchConfig(Protocol):
    """The settings every Gaussian search has; CEM and MPPI document them."""

    @property
    def horizon(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def iterations(self) -> int: ...
    @property
    def momentum(self) -> float: ...
    @property
    def min_std(self) -> float: ...
    @property
    def initial_std(self) -> float: ...
    @property
    def warm_std(self) -> float: ...
    @property
    def keep_mean(self) -> bool: ...
    @property
    def execute(self) -> Literal["mean", "best"]: ...


def check_config(config: SearchConfig) -> None:
    """Raise ValueError, naming the field, for a setting no Gaussian search can work with."""
    name = type(config).__name__
    for field in ("horizon", "candidates", "iterations"):
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{name}: {field} is {value}; it must be at least 1")
    if not 0 <= config.momentum < 1:
        raise ValueError(f"{name}: momentum is {config.momentum}; it must lie in [0, 1), where 0 forgets the old mean")
    for field in ("initial_std", "warm_std"):
        if not (isfinite(value := getattr(config, field)) and value > 0):
            raise ValueError(f"{name}: {field} is {value}; it must be positive and finite")
    if not 0 <= config.min_std <= min(config.initial_std, config.warm_std):
        raise ValueError(
            f"{name}: min_std is {config.min_std}; it must lie between 0 and the smaller of initial_std and warm_std, "
            f"{min(config.initial_std, config.warm_std)}"
        )
    if config.execute not in ("mean", "best"):
        raise ValueError(f"{name}: execute is {config.execute!r}; it must be 'mean' or 'best'")


def score(cost_fn: CostFn, action_BNHA: Tensor) -> Tensor:
    """cost_BN of the candidates in the dtype of the actions, NaN as +inf. Raises ValueError for a wrong shape."""
    cost_BN = cost_fn(action_BNHA)
    if cost_BN.shape != action_BNHA.shape[:2]:
        raise ValueError(
            f"the cost function returned shape {tuple(cost_BN.shape)} for actions of shape {tuple(action_BNHA.shape)}; "
            f"it must return one cost per problem and candidate, shape {tuple(action_BNHA.shape[:2])}"
        )
    # -inf becomes the lowest finite number, so that differences of costs stay numbers.
    return cost_BN.to(action_BNHA).nan_to_num(nan=torch.inf, posinf=torch.inf)


@torch.no_grad()
def search(
    config: SearchConfig,
    fit: Fit,
    cost_fn: CostFn,
    noise_BINHA: Tensor,
    box: ActionBox,
    start: WarmStart | None,
) -> Plan:
    """Fit a diagonal Gaussian over action_BHA to its own best samples, `iterations` times.

    Every iteration draws candidates = clip(mean + std x noise) and fits mean and std anew (momentum keeps a part of
    the old ones, min_std bounds the std from below). A problem whose candidates all failed keeps its mean and std, so
    that its plan stays finite. See `Planner.plan` for the arguments.
    """
    check_inputs(config, noise_BINHA, box, start)
    low_A, high_A, centre_A, unit_A = (x.to(noise_BINHA) for x in (box.low_A, box.high_A, box.mean_A, box.std_A))
    min_std_A = unit_A * config.min_std
    shape_B1HA = (len(noise_BINHA), 1, config.horizon, len(low_A))
    mean_B1HA = centre_A.expand(shape_B1HA) if start is None else start.mean_BHA.to(noise_BINHA)[:, None]
    std_B1HA = (unit_A * (config.initial_std if start is None else config.warm_std)).expand(shape_B1HA)
    if start is not None and start.std_BHA is not None:
        std_B1HA = start.std_BHA.to(noise_BINHA)[:, None]
    seeds_BSHA = None if start is None else start.seeds_BSHA

    stds, best_costs, best_actions = [], [], []
    for noise_BNHA in noise_BINHA.unbind(1):
        action_BNHA = torch.addcmul(mean_B1HA, std_B1HA, noise_BNHA)
        if config.keep_mean:
            action_BNHA[:, :1] = mean_B1HA
        if seeds_BSHA is not None:
            room = config.candidates - config.keep_mean
            action_BNHA[:, config.keep_mean :][:, : seeds_BSHA.shape[1]] = seeds_BSHA[:, :room]
            seeds_BSHA = None
        action_BNHA.clamp_(low_A, high_A)
        cost_BN = score(cost_fn, action_BNHA)

        best_cost_B1, best_B1 = cost_BN.min(1, keepdim=True)
        stds.append(std_B1HA)
        best_costs.append(best_cost_B1)
        if config.execute == "best":
            best_actions.append(pick(action_BNHA, best_B1))

        new_mean_B1HA, new_std_B1HA = fit(cost_BN, action_BNHA)
        if config.momentum:
            new_mean_B1HA = new_mean_B1HA.lerp(mean_B1HA, config.momentum)
            new_std_B1HA = new_std_B1HA.lerp(std_B1HA, config.momentum)
        failed_B111 = best_cost_B1[..., None, None].isposinf()
        mean_B1HA = torch.where(failed_B111, mean_B1HA, new_mean_B1HA)
        std_B1HA = torch.where(failed_B111, std_B1HA, new_std_B1HA).clamp_(min=min_std_A)

    best_cost_BI = torch.cat(best_costs, 1)
    action_B1HA = mean_B1HA.clamp(low_A, high_A)
    if config.execute == "mean":
        cost_B1 = score(cost_fn, action_B1HA)
    else:
        cost_B1, iteration_B1 = best_cost_BI.min(1, keepdim=True)
        best_B1HA = pick(torch.cat(best_actions, 1), iteration_B1)
        action_B1HA = torch.where(cost_B1[..., None, None].isposinf(), action_B1HA, best_B1HA)
    return Plan(
        action_BHA=action_B1HA[:, 0],
        cost_B=cost_B1[:, 0],
        mean_BHA=mean_B1HA[:, 0],
        best_cost_BI=best_cost_BI,
        spread_BI=(torch.cat(stds, 1) / unit_A).mean((2, 3)),
    )


def pick(action_BNHA: Tensor, index_BE: Tensor) -> Tensor:
    """action_BEHA: the candidates at index_BE."""
    H, A = action_BNHA.shape[2:]
    return action_BNHA.gather(1, index_BE[:, :, None, None].expand(-1, -1, H, A))


class Sized(Protocol):
    """What decides the shape of a planner's noise."""

    @property
    def horizon(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def iterations(self) -> int: ...


def check_inputs(config: Sized, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None) -> None:
    """Raise ValueError when noise or warm start do not belong to this planner and box."""
    expected_INHA = (config.iterations, config.candidates, config.horizon, len(box.low_A))
    if noise_BINHA.shape[1:] != expected_INHA:
        raise ValueError(
            f"noise has shape {tuple(noise_BINHA.shape)}; this {type(config).__name__} and box need (B, iterations, "
            f"candidates, horizon, A) = (B, {', '.join(map(str, expected_INHA))}): draw it with noise_table"
        )
    if start is None:
        return
    expected_BHA = (len(noise_BINHA), *expected_INHA[2:])
    for name, found_BHA in (("mean", start.mean_BHA), ("std", start.std_BHA)):
        if found_BHA is not None and found_BHA.shape != expected_BHA:
            raise ValueError(
                f"the warm start's {name} has shape {tuple(found_BHA.shape)}; these problems need {expected_BHA}: use "
                "Plan.warm_start of their last plan"
            )
    seeds_BSHA = start.seeds_BSHA
    if seeds_BSHA is not None and (seeds_BSHA.ndim != 4 or seeds_BSHA[:, 0].shape != expected_BHA):
        raise ValueError(
            f"the warm start's seeds have shape {tuple(seeds_BSHA.shape)}; these problems need (B, S, H, A) with "
            f"(B, H, A) = {expected_BHA}"
        )

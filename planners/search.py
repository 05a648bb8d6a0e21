"""The loop that CEM and MPPI share: draw candidates from a Gaussian, score them, refit the Gaussian to the good ones.

Static shapes and no host sync from the first operation to the last, so a whole plan can become one CUDA graph.
"""

from collections.abc import Callable
from math import isfinite
from typing import Literal, Protocol

import torch
from torch import Tensor

from planners.types import ActionBox, CostFn, Plan

Weigh = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(cost_BN, action_BNHA) -> (weight_BE, action_BEHA): the E candidates that count and their weights.

Weights are finite and sum to 1, except in problems without a finite cost, where any finite numbers do."""


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
    weigh: Weigh,
    cost_fn: CostFn,
    noise_BINHA: Tensor,
    box: ActionBox,
    warm_start_BHA: Tensor | None,
) -> Plan:
    """Refit a diagonal Gaussian over action_BHA `iterations` times to the candidates that `weigh` chooses.

    Every iteration draws candidates = clip(mean + std x noise) and refits the mean and the weighted population std to
    them (momentum keeps a part of the old ones, min_std bounds the std from below). A problem whose candidates all
    failed keeps its mean and std, so that its plan stays finite. See `Planner.plan` for the arguments.
    """
    _check_shapes(config, noise_BINHA, box, warm_start_BHA)
    B, I, _, H, A = noise_BINHA.shape  # noqa: E741
    low_A, high_A, centre_A, unit_A = (x.to(noise_BINHA) for x in (box.low_A, box.high_A, box.mean_A, box.std_A))
    mean_BHA = (centre_A if warm_start_BHA is None else warm_start_BHA.to(noise_BINHA)).expand(B, H, A)
    std_BHA = (unit_A * (config.initial_std if warm_start_BHA is None else config.warm_std)).expand(B, H, A)
    min_std_A = unit_A * config.min_std

    best_costs, best_actions, stds = [], [], []
    for i in range(I):
        action_BNHA = torch.addcmul(mean_BHA[:, None], std_BHA[:, None], noise_BINHA[:, i])
        if config.keep_mean:
            action_BNHA[:, 0] = mean_BHA
        action_BNHA.clamp_(low_A, high_A)
        cost_BN = score(cost_fn, action_BNHA)

        best_cost_B, best_B = cost_BN.min(1)
        best_costs.append(best_cost_B)
        stds.append(std_BHA)
        if config.execute == "best":
            best_actions.append(action_BNHA.take_along_dim(best_B[:, None, None, None], 1))

        weight_BE, chosen_BEHA = weigh(cost_BN, action_BNHA)
        # Where every candidate failed the weight of the old mean and std is 1.
        keep_B11 = best_cost_B.isposinf().to(cost_BN).clamp_(min=config.momentum)[:, None, None]
        old_mean_BHA, old_std_BHA = mean_BHA, std_BHA
        fit_BHA, spread_BHA = _fit(weight_BE, chosen_BEHA)
        mean_BHA = torch.lerp(fit_BHA, old_mean_BHA, keep_B11)
        std_BHA = torch.lerp(spread_BHA, old_std_BHA, keep_B11).clamp_(min=min_std_A)

    best_cost_BI = torch.stack(best_costs, 1)
    spread_BI = (torch.stack(stds, 1) / unit_A).mean((2, 3))
    action_BHA = mean_BHA.clamp(low_A, high_A)
    if config.execute == "mean":
        cost_B = score(cost_fn, action_BHA[:, None])[:, 0]
    else:
        cost_B, iteration_B = best_cost_BI.min(1)
        best_BHA = torch.cat(best_actions, 1).take_along_dim(iteration_B[:, None, None, None], 1)[:, 0]
        action_BHA = torch.where(cost_B[:, None, None].isposinf(), action_BHA, best_BHA)
    return Plan(action_BHA, cost_B, mean_BHA, best_cost_BI, spread_BI)


def _fit(weight_BE: Tensor, action_BEHA: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean_BHA and population std_BHA of the candidates.

    Multiply and sum instead of a matrix product, whose rounding may depend on the size of the batch.
    """
    weight_BE11 = weight_BE[:, :, None, None]
    mean_BHA = (weight_BE11 * action_BEHA).sum(1)
    deviation_BEHA = action_BEHA - mean_BHA[:, None]
    return mean_BHA, (weight_BE11 * deviation_BEHA.square_()).sum(1).sqrt_()


def _check_shapes(config: SearchConfig, noise_BINHA: Tensor, box: ActionBox, warm_start_BHA: Tensor | None) -> None:
    """Raise ValueError when noise or warm start do not belong to this planner and box."""
    expected_INHA = (config.iterations, config.candidates, config.horizon, len(box.low_A))
    if noise_BINHA.shape[1:] != expected_INHA:
        raise ValueError(
            f"noise has shape {tuple(noise_BINHA.shape)}; this {type(config).__name__} and box need (B, iterations, "
            f"candidates, horizon, A) = (B, {', '.join(map(str, expected_INHA))}): draw it with noise_table"
        )
    expected_BHA = (len(noise_BINHA), *expected_INHA[2:])
    if warm_start_BHA is not None and warm_start_BHA.shape != expected_BHA:
        raise ValueError(
            f"the warm start has shape {tuple(warm_start_BHA.shape)}; these problems need {expected_BHA}: use shift on "
            "the mean of their last plan"
        )

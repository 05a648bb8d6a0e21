"""The loop that CEM and MPPI share, and its parts: draw candidates from a Gaussian, score them, refit the Gaussian.

Static shapes and no host sync from the first operation to the last, so a whole plan can become one CUDA graph.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from planners.types import ActionBox, CostFn, Need, Plan, WarmStart

Fit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(cost_BN, action_BNHA) -> (mean_B1HA, std_B1HA): the Gaussian that describes the good candidates; None keeps the std.

What it returns for a problem without any finite cost is not used."""


class Sized(Protocol):
    """What decides the shape of a planner's noise and the boxes it can search."""

    needs: ClassVar[tuple[Need, ...]]

    @property
    def horizon(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def iterations(self) -> int: ...


class Refitted(Sized, Protocol):
    """The settings of a Gaussian that is fitted anew in every iteration."""

    @property
    def momentum(self) -> float: ...
    @property
    def min_std(self) -> float: ...
    @property
    def initial_std(self) -> float: ...


class SearchConfig(Refitted, Protocol):
    """The settings of `search`; CEM and MPPI document them."""

    @property
    def warm_std(self) -> float: ...
    @property
    def keep_mean(self) -> bool: ...
    @property
    def execute(self) -> Literal["mean", "best"]: ...


def check_sizes(config: Sized) -> None:
    """Raise ValueError, naming the field, for a size below 1."""
    for field in ("horizon", "candidates", "iterations"):
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{type(config).__name__}: {field} is {value}; it must be at least 1")


def check_positive(config: object, *fields: str) -> None:
    """Raise ValueError, naming the field, for a number that is not positive and finite."""
    for field in fields:
        if not (isfinite(value := getattr(config, field)) and value > 0):
            raise ValueError(f"{type(config).__name__}: {field} is {value}; it must be positive and finite")


def check_refit(config: Refitted, *stds: str) -> None:
    """Raise ValueError, naming the field, for settings of the Gaussian; `stds` are the fields with its first std."""
    name, smallest = type(config).__name__, min(getattr(config, field) for field in stds)
    if not 0 <= config.momentum < 1:
        raise ValueError(f"{name}: momentum is {config.momentum}; it must lie in [0, 1), where 0 forgets the old mean")
    check_positive(config, *stds)
    if not 0 <= config.min_std <= smallest:
        raise ValueError(
            f"{name}: min_std is {config.min_std}; it must lie between 0 and {smallest}, the smallest of "
            f"{', '.join(stds)}"
        )


def check_config(config: SearchConfig) -> None:
    """Raise ValueError, naming the field, for a setting no `search` can work with."""
    check_sizes(config)
    check_refit(config, "initial_std", "warm_std")
    if config.execute not in ("mean", "best"):
        raise ValueError(f"{type(config).__name__}: execute is {config.execute!r}; it must be 'mean' or 'best'")


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


class Decaying(Sized, Protocol):
    """The settings of planners with fewer and fewer candidates."""

    @property
    def elites(self) -> int: ...
    @property
    def decay(self) -> float: ...


def check_decay(config: Decaying) -> None:
    """Raise ValueError for elites or a decay that make no populations."""
    name = type(config).__name__
    if not 1 <= config.elites <= config.candidates:
        raise ValueError(f"{name}: elites is {config.elites}; it must lie in 1..{config.candidates}, the candidates")
    if not (isfinite(config.decay) and config.decay >= 1):
        raise ValueError(f"{name}: decay is {config.decay}; it must be finite and at least 1, the same number always")


def populations(config: Decaying) -> list[int]:
    """Candidates of each iteration: `decay` times fewer each time, at least twice the elites (Pinneri et al. 2020)."""
    least = min(config.candidates, 2 * config.elites)
    return [max(least, int(config.candidates / config.decay**i)) for i in range(config.iterations)]


def as_noise(noise_BINHA: Tensor, box: ActionBox) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """low_A, high_A, mean_A and std_A of the box in the dtype and on the device of the noise."""
    low_A, high_A, mean_A, std_A = (x.to(noise_BINHA) for x in (box.low_A, box.high_A, box.mean_A, box.std_A))
    return low_A, high_A, mean_A, std_A


def draw(
    mean_B1HA: Tensor,
    std_B1HA: Tensor,
    noise_BNHA: Tensor,
    keep_mean: bool,
    seeds_BSHA: Tensor | None,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """action_BNHA = mean + std x noise inside the bounds; first the mean itself if it is kept, then the seeds."""
    action_BNHA = torch.addcmul(mean_B1HA, std_B1HA, noise_BNHA)
    if keep_mean:
        action_BNHA[:, :1] = mean_B1HA
    if seeds_BSHA is not None:
        room = action_BNHA.shape[1] - keep_mean
        action_BNHA[:, keep_mean:][:, : seeds_BSHA.shape[1]] = seeds_BSHA[:, :room]
    return action_BNHA.clamp_(*bounds)


def refit(
    config: Refitted,
    old: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor | None],
    best_cost_B1: Tensor,
    min_std_A: Tensor,
) -> tuple[Tensor, Tensor]:
    """(mean_B1HA, std_B1HA) from the old and the newly fitted: momentum, min_std, and the old where all failed."""
    (old_mean, old_std), (mean, std) = old, new
    failed_B111 = best_cost_B1.view(-1, 1, 1, 1).isposinf()
    if config.momentum:
        mean = mean.lerp(old_mean, config.momentum)
        std = None if std is None else std.lerp(old_std, config.momentum)
    mean = torch.where(failed_B111, old_mean, mean)
    return mean, old_std if std is None else torch.where(failed_B111, old_std, std).clamp_(min=min_std_A)


@torch.no_grad()
def search(
    config: SearchConfig,
    fit: Fit,
    cost_fn: CostFn,
    noise_BINHA: Tensor,
    box: ActionBox,
    start: WarmStart | None,
    sizes_I: Sequence[int] | None = None,
) -> Plan:
    """Fit a diagonal Gaussian over action_BHA to its own best samples, `iterations` times.

    Every iteration draws candidates = clip(mean + std x noise), `sizes_I` of them or one for each row of noise, and
    fits mean and std anew (momentum keeps a part of the old ones, min_std bounds the std from below). A problem whose
    candidates all failed keeps its mean and std, so that its plan stays finite. See `Planner.plan` for the arguments,
    which `check_inputs` has passed.
    """
    low_A, high_A, centre_A, unit_A = as_noise(noise_BINHA, box)
    first_std = config.initial_std if start is None else config.warm_std
    mean_B1HA, std_B1HA = first_gaussian(noise_BINHA, centre_A, unit_A * first_std, start)
    seeds_BSHA = None if start is None else start.seeds_BSHA
    min_std_A = unit_A * config.min_std

    stds, best_costs, best_actions = [], [], []
    for i, noise_BNHA in enumerate(noise_BINHA.unbind(1)):
        if sizes_I is not None:
            noise_BNHA = noise_BNHA[:, : sizes_I[i]]
        action_BNHA = draw(mean_B1HA, std_B1HA, noise_BNHA, config.keep_mean, seeds_BSHA, (low_A, high_A))
        cost_BN = score(cost_fn, action_BNHA)
        best_cost_B1, best_B1 = cost_BN.min(1, keepdim=True)
        stds.append(std_B1HA)
        best_costs.append(best_cost_B1)
        if config.execute == "best":
            best_actions.append(pick(action_BNHA, best_B1))
        old, new = (mean_B1HA, std_B1HA), fit(cost_BN, action_BNHA)
        mean_B1HA, std_B1HA = refit(config, old, new, best_cost_B1, min_std_A)
        seeds_BSHA = None

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
        spread_BI=spread(stds, unit_A),
    )


def first_gaussian(
    noise_BINHA: Tensor, centre_A: Tensor, std_A: Tensor, start: WarmStart | None
) -> tuple[Tensor, Tensor]:
    """(mean_B1HA, std_B1HA) of the first iteration: what the warm start says, else the centre and std given."""
    shape_B1HA = (len(noise_BINHA), 1, *noise_BINHA.shape[3:])
    mean_B1HA = centre_A.expand(shape_B1HA) if start is None else start.mean_BHA.to(noise_BINHA)[:, None]
    if start is None or start.std_BHA is None:
        return mean_B1HA, std_A.expand(shape_B1HA)
    return mean_B1HA, start.std_BHA.to(noise_BINHA)[:, None]


def spread(stds: Sequence[Tensor], unit_A: Tensor) -> Tensor:
    """spread_BI of a plan, from the std_B1HA of each iteration."""
    return (torch.cat(list(stds), 1) / unit_A).mean((2, 3))


def pick(action_BNHA: Tensor, index_BE: Tensor) -> Tensor:
    """action_BEHA: the candidates at index_BE."""
    return action_BNHA.gather(1, index_BE.view(*index_BE.shape, 1, 1).expand(-1, -1, *action_BNHA.shape[2:]))


def check_inputs(config: Sized, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None) -> None:
    """Raise ValueError when noise, warm start or box do not suit this planner."""
    name = type(config).__name__
    if "choices" in config.needs and box.choices_A is None:
        raise ValueError(f"{name} searches discrete actions, but the box is continuous: use cem, or ActionBox.discrete")
    if "choices" not in config.needs and box.choices_A is not None:
        raise ValueError(
            f"{name} searches continuous actions, but the box has choices {box.choices_A}: use a planner for discrete "
            "actions, categorical_cem"
        )
    check_noise(config, noise_BINHA, box)
    if start is None:
        return
    expected_BHA = (len(noise_BINHA), *noise_BINHA.shape[3:])
    for part, found_BHA in (("mean", start.mean_BHA), ("std", start.std_BHA)):
        if found_BHA is not None and found_BHA.shape != expected_BHA:
            raise ValueError(
                f"the warm start's {part} has shape {tuple(found_BHA.shape)}; these problems need {expected_BHA}: use "
                "Plan.warm_start of their last plan"
            )
    seeds_BSHA = start.seeds_BSHA
    if seeds_BSHA is not None and (seeds_BSHA.ndim != 4 or seeds_BSHA[:, 0].shape != expected_BHA):
        raise ValueError(
            f"the warm start's seeds have shape {tuple(seeds_BSHA.shape)}; these problems need (B, S, H, A) with "
            f"(B, H, A) = {expected_BHA}"
        )


def check_noise(config: Sized, noise_BINHA: Tensor, box: ActionBox) -> None:
    """Raise ValueError when noise does not suit this planner and box."""
    expected_INHA = (config.iterations, config.candidates, config.horizon, len(box.low_A))
    if noise_BINHA.shape[1:] != expected_INHA:
        raise ValueError(
            f"noise has shape {tuple(noise_BINHA.shape)}; this {type(config).__name__} and box need (B, iterations, "
            f"candidates, horizon, A) = (B, {', '.join(map(str, expected_INHA))}): draw it with noise_table"
        )

"""The loop that CEM and MPPI share, and its parts: draw candidates from a Gaussian, score them, refit the Gaussian.

Static shapes and no host sync from the first operation to the last, so a whole plan can become one CUDA graph.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from planners.checks import Decaying, Refitted, SearchConfig, Sized
from planners.types import ActionBox, CostFn, Plan, WarmStart

Fit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(cost_BN, action_BNHA) -> (mean_B1HA, std_B1HA): the Gaussian that describes the good candidates; None keeps the std.

What it returns for a problem without any finite cost is not used."""


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
        seeds_BSHA = seeds_BSHA if config.keep_seeds else None

    best_cost_BI = torch.cat(best_costs, 1)
    action_B1HA = mean_B1HA.clamp(low_A, high_A)
    if config.execute == "mean":
        cost_B1 = score(cost_fn, action_B1HA)
    else:
        cost_B1, action_B1HA = best_scored(best_cost_BI, best_actions, action_B1HA)
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


def best_scored(best_cost_BI: Tensor, best_actions: Sequence[Tensor], failed_B1HA: Tensor) -> tuple[Tensor, Tensor]:
    """(cost_B1, action_B1HA) of the cheapest of the iterations' best candidates; `failed_B1HA` where all failed."""
    cost_B1, iteration_B1 = best_cost_BI.min(1, keepdim=True)
    best_B1HA = pick(torch.cat(list(best_actions), 1), iteration_B1)
    return cost_B1, torch.where(cost_B1[..., None, None].isposinf(), failed_B1HA, best_B1HA)


def pick(action_BNHA: Tensor, index_BE: Tensor) -> Tensor:
    """action_BEHA: the candidates at index_BE."""
    return action_BNHA.gather(1, index_BE.view(*index_BE.shape, 1, 1).expand(-1, -1, *action_BNHA.shape[2:]))


class AroundSearch:
    """What planners around another one, their `search`, have of it: its size."""

    search: Sized

    @property
    def horizon(self) -> int:
        """Blocks planned ahead."""
        return self.search.horizon

    @property
    def candidates(self) -> int:
        """Action sequences scored per iteration."""
        return self.search.candidates

    @property
    def iterations(self) -> int:
        """Rounds of draw, score, refit."""
        return self.search.iterations

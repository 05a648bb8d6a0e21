"""Random shooting: the best of many random action sequences, the yardstick of every other planner."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.checks import check_inputs, check_sizes
from planners.search import as_noise, draw, first_gaussian, pick, score, spread
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart


@dataclass(frozen=True)
class RandomShooting:
    """Executes the best of iterations x candidates sequences, drawn independently of what was scored before.

    They come from the Gaussian with the box's mean and std, clipped to the box, as other planners draw their first
    candidates: it exists for open boxes too, and in a box of recorded actions it looks where those lie. A warm start
    adds its mean and seeds; it moves the Gaussian only where it brings a std of its own.
    """

    needs: ClassVar[tuple[Need, ...]] = ()

    name: Literal["random_shooting"] = "random_shooting"
    """Which planner this is."""
    horizon: int = 5
    """Blocks planned ahead."""
    candidates: int = 300
    """Action sequences scored at a time."""
    iterations: int = 10
    """How many times; the sequences are scored iterations x candidates in all."""

    def __post_init__(self) -> None:
        check_sizes(self)

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the actions of lowest cost; see `planners.Planner.plan`."""
        check_inputs(self, noise_BINHA, box, start)
        return keep_best(cost_fn, noise_BINHA, box, start, 1.0, follow=False)


@torch.no_grad()
def keep_best(
    cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None, std: float, follow: bool
) -> Plan:
    """The cheapest of the start's mean, its seeds and all that is drawn from a Gaussian of fixed std.

    std: in units of the box's std, where the warm start brings none. follow: whether the Gaussian moves to the
    cheapest sequence so far after each iteration; else it stays, at the box's mean unless the start brings a std.
    """
    low_A, high_A, centre_A, unit_A = as_noise(noise_BINHA, box)
    mean_B1HA, std_B1HA = first_gaussian(noise_BINHA, centre_A, unit_A * std, start)
    around_B1HA = mean_B1HA if follow or start is None or start.std_BHA is not None else centre_A.expand_as(mean_B1HA)
    seeds_BSHA: Tensor | None = mean_B1HA
    if start is not None and start.seeds_BSHA is not None:
        seeds_BSHA = torch.cat([mean_B1HA, start.seeds_BSHA.to(mean_B1HA)], 1)

    best_B1HA, best_cost_B1 = mean_B1HA, noise_BINHA.new_full((len(noise_BINHA), 1), torch.inf)
    best_costs = []
    for noise_BNHA in noise_BINHA.unbind(1):
        action_BNHA = draw(around_B1HA, std_B1HA, noise_BNHA, False, seeds_BSHA, (low_A, high_A))
        cost_B1, index_B1 = score(cost_fn, action_BNHA).min(1, keepdim=True)
        better_B1 = cost_B1 < best_cost_B1
        best_B1HA = torch.where(better_B1[..., None, None], pick(action_BNHA, index_B1), best_B1HA)
        best_cost_B1 = torch.where(better_B1, cost_B1, best_cost_B1)
        best_costs.append(cost_B1)
        around_B1HA = best_B1HA if follow else around_B1HA
        seeds_BSHA = None

    return Plan(
        action_BHA=best_B1HA[:, 0].clamp(low_A, high_A),
        cost_B=best_cost_B1[:, 0],
        mean_BHA=best_B1HA[:, 0],
        best_cost_BI=torch.cat(best_costs, 1),
        spread_BI=spread([std_B1HA] * noise_BINHA.shape[1], unit_A),
    )

"""Cross-entropy method: refit the search to its elites."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.checks import check_config, check_decay, check_inputs
from planners.search import pick, populations, search
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart


@dataclass(frozen=True)
class CEM:
    """Cross-entropy method (Rubinstein & Kroese 2004), defaults near those of DINO-WM and LeWM.

    Each iteration keeps the `elites` cheapest candidates and refits mean and std to them with equal weights.
    """

    needs: ClassVar[tuple[Need, ...]] = ()

    name: Literal["cem"] = "cem"
    """Which planner this is."""
    horizon: int = 5
    """Blocks planned ahead."""
    candidates: int = 300
    """Action sequences scored per iteration."""
    iterations: int = 10
    """Rounds of draw, score, refit."""
    elites: int = 30
    """Cheapest candidates that the next mean and std are fitted to."""
    decay: float = 1.0
    """How many times fewer candidates each iteration has than the one before, though at least twice the elites."""
    momentum: float = 0.0
    """Weight of the old mean and std in the new ones, in [0, 1)."""
    min_std: float = 0.05
    """Smallest search std, in units of the box's std."""
    initial_std: float = 1.0
    """Search std of the first iteration without a warm start, in units of the box's std."""
    warm_std: float = 0.5
    """Search std of the first iteration with a warm start, in units of the box's std."""
    keep_mean: bool = True
    """Whether candidate 0 of every iteration is the current mean."""
    keep_seeds: bool = False
    """Whether the seeds of the start are candidates of every iteration, and not of the first alone."""
    execute: Literal["mean", "best"] = "mean"
    """Execute the final mean (safer with a learned model) or the best candidate ever scored (exact models)."""

    def __post_init__(self) -> None:
        check_config(self)
        check_decay(self)

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the actions of lowest cost; see `planners.Planner.plan`."""
        check_inputs(self, noise_BINHA, box, start)
        sizes_I = None if self.decay == 1 else populations(self)
        return search(self, self._fit, cost_fn, noise_BINHA, box, start, sizes_I)

    def _fit(self, cost_BN: Tensor, action_BNHA: Tensor) -> tuple[Tensor, Tensor]:
        return fit_elites(cost_BN, action_BNHA, self.elites)


def fit_elites(cost_BN: Tensor, action_BNHA: Tensor, elites: int) -> tuple[Tensor, Tensor]:
    """mean_B1HA and population std_B1HA of the `elites` cheapest candidates; see `cheapest`."""
    return mean_std(cheapest(cost_BN, action_BNHA, elites)[1])


def cheapest(cost_BN: Tensor, action_BNHA: Tensor, elites: int) -> tuple[Tensor, Tensor]:
    """cost_BE, rising, and action_BEHA of the `elites` cheapest candidates.

    Where fewer have a finite cost, the actions of the cheapest one take the places of those that failed.
    """
    cost_BE, index_BE = cost_BN.topk(elites, dim=1, largest=False)
    return cost_BE, pick(action_BNHA, torch.where(cost_BE.isposinf(), index_BE[:, :1], index_BE))


def mean_std(elite_BEHA: Tensor) -> tuple[Tensor, Tensor]:
    """mean_B1HA and population std_B1HA of elites with equal weights."""
    std_B1HA, mean_B1HA = torch.std_mean(elite_BEHA, dim=1, correction=0, keepdim=True)
    return mean_B1HA, std_B1HA

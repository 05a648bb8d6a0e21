"""Cross-entropy method: refit the search to its elites."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, inf

from planners.search import check_config, search
from planners.types import ActionBox, CostFn, Plan


@dataclass(frozen=True)
class CEM:
    """Cross-entropy method (Rubinstein & Kroese 2004), defaults near those of DINO-WM and LeWM.

    Each iteration keeps the `elites` cheapest candidates and refits mean and std to them with equal weights.
    """

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
    execute: Literal["mean", "best"] = "mean"
    """Execute the final mean (safer with a learned model) or the best candidate ever scored (exact models)."""

    def __post_init__(self) -> None:
        check_config(self)
        if not 1 <= self.elites <= self.candidates:
            raise ValueError(f"CEM: elites is {self.elites}; it must lie in 1..{self.candidates}, the candidates")

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, warm_start_BHA: Tensor | None = None) -> Plan:
        """Search for the actions of lowest cost; see `planners.Planner.plan`."""
        return search(self, self._weigh, cost_fn, noise_BINHA, box, warm_start_BHA)

    def _weigh(self, cost_BN: Tensor, action_BNHA: Tensor) -> tuple[Tensor, Tensor]:
        return elite_weights(cost_BN, action_BNHA, self.elites)


def elite_weights(cost_BN: Tensor, action_BNHA: Tensor, elites: int) -> tuple[Tensor, Tensor]:
    """Equal weight_BE for the cheapest candidates action_BEHA; where fewer have a finite cost, the others get 0."""
    cost_BE, index_BE = cost_BN.topk(elites, dim=1, largest=False)
    valid_BE = (cost_BE < inf).to(cost_BN)
    weight_BE = valid_BE / valid_BE.sum(1, keepdim=True).clamp_(min=1)
    return weight_BE, action_BNHA.take_along_dim(index_BE[:, :, None, None], 1)

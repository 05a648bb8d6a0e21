"""Model-predictive path integral control: refit the search to all candidates, weighted by their cost."""

from dataclasses import dataclass
from math import ceil, log
from typing import Literal

import torch
from torch import Tensor

from planners.search import check_config, search
from planners.types import ActionBox, CostFn, Plan

# Bracket of gap / temperature at the last candidate that should count: at the low end all of those have a weight
# within 0.1 % of the best one's, at the high end that last candidate has none. Two rounds of a 32-way section leave
# the temperature known to half a percent.
LOW, HIGH = log(1e-3), log(50.0)
SECTIONS, ROUNDS = 32, 2


@dataclass(frozen=True)
class MPPI:
    """Model-predictive path integral control (Williams et al. 2017) with a temperature that sets itself.

    Weights are softmax(-cost / temperature); in each problem and iteration the temperature is the one at which their
    effective sample size 1 / sum(w^2) is the fraction `ess` of the candidates, so the scale of the cost does not
    matter. The std adapts to the weighted candidates, as in TD-MPC2 (Hansen et al. 2024).
    """

    name: Literal["mppi"] = "mppi"
    """Which planner this is."""
    horizon: int = 5
    """Blocks planned ahead."""
    candidates: int = 300
    """Action sequences scored per iteration."""
    iterations: int = 10
    """Rounds of draw, score, refit."""
    ess: float = 0.1
    """Effective sample size of the weights, as a fraction of the candidates."""
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
        if not 1 / self.candidates <= self.ess <= 1:
            raise ValueError(
                f"MPPI: ess is {self.ess}; it is a fraction of the candidates and must lie in "
                f"[1/{self.candidates}, 1], so that at least one of them counts"
            )

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, warm_start_BHA: Tensor | None = None) -> Plan:
        """Search for the actions of lowest cost; see `planners.Planner.plan`."""
        return search(self, self._weigh, cost_fn, noise_BINHA, box, warm_start_BHA)

    def _weigh(self, cost_BN: Tensor, action_BNHA: Tensor) -> tuple[Tensor, Tensor]:
        return ess_weights(cost_BN, self.ess), action_BNHA


def ess_weights(cost_BN: Tensor, ess: float) -> Tensor:
    """weight_BN = softmax(-cost / temperature) with an effective sample size of ess x N, to about 2 %.

    Candidates of infinite cost weigh 0. Where ties or failures forbid that size the nearest possible one results:
    equal weights for the cheapest, or for all that have a finite cost. Equal weights where none has.
    """
    target = ess * cost_BN.shape[1]
    # With k = ceil(target), ESS >= k exp(-gap_k / temperature), and ESS <= k - 1 once candidate k weighs nothing: the
    # gap of candidate k brackets the temperature whatever the scale of the costs, outliers and failures included.
    cheapest_Bk = cost_BN.topk(ceil(target), dim=1, largest=False).values
    gap_BN = (cost_BN - cheapest_Bk[:, :1]).nan_to_num_(nan=0.0, posinf=torch.inf)
    unit_B1 = cheapest_Bk[:, -1:] - cheapest_Bk[:, :1]
    info = torch.finfo(cost_BN.dtype)
    gap_BN /= unit_B1.nan_to_num_(nan=1.0).clamp_(info.tiny, info.max)

    log_beta_B1, step = torch.full_like(unit_B1, LOW), HIGH - LOW
    for _ in range(ROUNDS):
        step /= SECTIONS
        offset_G = torch.arange(1, SECTIONS, dtype=cost_BN.dtype, device=cost_BN.device) * step
        logit_BGN = (log_beta_B1 + offset_G).exp_()[:, :, None] * -gap_BN[:, None]
        concentration_BG = torch.linalg.vector_norm(logit_BGN.softmax(2), dim=2)
        log_beta_B1 += (concentration_BG < target**-0.5).sum(1, keepdim=True) * step
    return (log_beta_B1.exp_() * -gap_BN).softmax(1)

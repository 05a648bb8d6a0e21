"""Model-predictive path integral control: refit the search to its candidates, weighted by their cost."""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.basis import check_smoothness, correlate
from planners.cem import cheapest
from planners.checks import check_config, check_elites, check_inputs, check_positive
from planners.search import search
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart

# The search for the inverse temperature beta, in units of 1 / (cost gap of the last candidate that should count): at
# LOW all those candidates weigh within 1 % of the best one, at HIGH the last of them weighs nothing. Two rounds of a
# 40-way section leave beta known to half a percent, in fewer operations than as many halvings.
LOW, HIGH = 1e-2, 30.0
SECTIONS, ROUNDS = 40, 2


@dataclass(frozen=True)
class MPPI:
    """Model-predictive path integral control (Williams et al. 2017) with a temperature that sets itself.

    Weights are softmax(-cost / temperature); in each problem and iteration the temperature is the one at which their
    effective sample size 1 / sum(w^2) is the fraction `ess` of the candidates, so the scale of the cost does not
    matter. The std adapts to the weighted candidates, as in TD-MPC2 (Hansen et al. 2024), unless told not to.
    TD-MPC2's own rule is a temperature of 2 and elites of an eighth of the candidates, with `keep_seeds`.
    """

    needs: ClassVar[tuple[Need, ...]] = ()

    name: Literal["mppi"] = "mppi"
    """Which planner this is."""
    horizon: int = 5
    """Blocks planned ahead."""
    candidates: int = 300
    """Action sequences scored per iteration."""
    iterations: int = 10
    """Rounds of draw, score, refit."""
    ess: float = 0.1
    """Effective sample size of the weights, as a fraction of the candidates, or of the elites where there are some."""
    temperature: float | None = None
    """Temperature in units of the cost, the same always; None: the one at which `ess` is met."""
    elites: int | None = None
    """Only so many of the cheapest candidates weigh anything; None: all of them."""
    adapt_std: bool = True
    """Whether the std follows the weighted candidates; else it stays that of the first iteration."""
    noise_beta: float = 0.0
    """Colour of the noise along raw time: its power falls with frequency^-noise_beta. 0 is white, 2 slow and smooth."""
    knots: int | None = None
    """Free points of the cubic spline along raw time that the noise follows; None: every raw action has its own."""
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
        check_smoothness(self)
        check_elites(self)
        if self.temperature is not None:
            check_positive(self, "temperature")
            return
        whole, size = ("candidates", self.candidates) if self.elites is None else ("elites", self.elites)
        if not 1 / size <= self.ess <= 1:
            raise ValueError(
                f"MPPI: ess is {self.ess}; it is a fraction of the {whole} and must lie in [1/{size}, 1], so that at "
                "least one of them counts"
            )

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the actions of lowest cost; see `planners.Planner.plan`."""
        check_inputs(self, noise_BINHA, box, start)
        noise_BINHA = correlate(self, noise_BINHA, box.steps)
        return search(self, self._fit, cost_fn, noise_BINHA, box, start)

    def _fit(self, cost_BN: Tensor, action_BNHA: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.elites is not None:
            cost_BN, action_BNHA = cheapest(cost_BN, action_BNHA, self.elites)
        if self.temperature is None:
            weight_BN = ess_weights(cost_BN, self.ess)
        else:
            weight_BN = (gaps(cost_BN) / -self.temperature).softmax(1)
        mean_B1HA, std_B1HA = fit_weighted(weight_BN, action_BNHA)
        return mean_B1HA, std_B1HA if self.adapt_std else None


def fit_weighted(weight_BN: Tensor, action_BNHA: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean_B1HA and population std_B1HA of the candidates; the weights of a problem sum to 1."""
    # Multiply and sum: the rounding of a matrix product may depend on how many problems share the batch.
    weight_BN11 = weight_BN[:, :, None, None]
    mean_B1HA = (weight_BN11 * action_BNHA).sum(1, keepdim=True)
    variance_B1HA = (weight_BN11 * (action_BNHA - mean_B1HA).square_()).sum(1, keepdim=True)
    return mean_B1HA, variance_B1HA.sqrt_()


def gaps(cost_BN: Tensor) -> Tensor:
    """gap_BN of every candidate to the cheapest; 0 for all where all failed."""
    return (cost_BN - cost_BN.amin(1, keepdim=True)).nan_to_num_(nan=0.0, posinf=torch.inf)


def ess_weights(cost_BN: Tensor, ess: float) -> Tensor:
    """weight_BN = softmax(-cost / temperature) with an effective sample size of ess x N, to about 2 %.

    Candidates of infinite cost weigh 0. Where ties or failures forbid that size the nearest possible one results:
    equal weights for the cheapest, or for all that have a finite cost. Equal weights where none has.
    """
    target = ess * cost_BN.shape[1]
    info = torch.finfo(cost_BN.dtype)
    gap_BN = gaps(cost_BN)
    # With k = ceil(target), ESS >= k exp(-gap_k / temperature), and ESS <= k - 1 once candidate k weighs nothing: the
    # gap of candidate k brackets the temperature whatever the scale of the costs, outliers and failures included.
    unit_B1 = gap_BN.kthvalue(ceil(target), dim=1, keepdim=True).values.clamp_(info.tiny, info.max)
    reward_B1N = gap_BN.div_(unit_B1).neg_()[:, None]

    enough_B1 = torch.full_like(unit_B1, target**-0.5)
    beta_B1, ratio = torch.full_like(unit_B1, HIGH), HIGH / LOW
    for _ in range(ROUNDS):
        ratio **= 1 / SECTIONS
        step_G = torch.logspace(1 - SECTIONS, 0, SECTIONS, ratio, dtype=unit_B1.dtype, device=unit_B1.device)
        beta_BG = beta_B1 * step_G
        concentration_BG = torch.linalg.vector_norm((beta_BG[:, :, None] * reward_B1N).softmax(2), dim=2)
        beta_B1 = beta_BG.gather(1, torch.searchsorted(concentration_BG, enough_B1).clamp_(max=SECTIONS - 1))
    return (beta_B1 * reward_B1N[:, 0]).softmax(1)

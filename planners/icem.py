"""Improved cross-entropy method: smooth noise, fewer and fewer candidates, elites that are kept."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.basis import check_smoothness, correlate
from planners.cem import cheapest, mean_std
from planners.checks import check_decay, check_inputs, check_refit, check_sizes
from planners.search import as_noise, draw, first_gaussian, populations, refit, score, spread
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart


@dataclass(frozen=True)
class ICEM:
    """Improved cross-entropy method (iCEM, Pinneri et al. 2020): CEM for few candidates.

    What it changes: noise that is smooth along raw time; a population that decays; the best elites stay in the pool
    of the next iteration at the cost they had, unscored; they are candidates of the next plan's first iteration too
    (`Plan.seeds_BSHA`), shifted; the mean is a candidate in the last iteration; the best sequence ever scored is
    executed; every plan starts with the full std again, unless the warm start brings its own.
    """

    needs: ClassVar[tuple[Need, ...]] = ()

    name: Literal["icem"] = "icem"
    """Which planner this is."""
    horizon: int = 5
    """Blocks planned ahead."""
    candidates: int = 100
    """Action sequences scored in the first iteration."""
    iterations: int = 5
    """Rounds of draw, score, refit."""
    elites: int = 10
    """Cheapest candidates, kept ones included, that the next mean and std are fitted to."""
    decay: float = 1.25
    """How many times fewer candidates each iteration has than the one before, though at least twice the elites."""
    keep: float = 0.3
    """Fraction of the elites that is kept, in (0, 1]; at least one is."""
    noise_beta: float = 2.0
    """Colour of the noise along raw time: its power falls with frequency^-noise_beta. 0 is white, 2 slow and smooth."""
    knots: int | None = None
    """Free points of the cubic spline along raw time that the noise follows; None: every raw action has its own."""
    momentum: float = 0.1
    """Weight of the old mean and std in the new ones, in [0, 1)."""
    min_std: float = 0.05
    """Smallest search std, in units of the box's std."""
    initial_std: float = 1.0
    """Search std of the first iteration, in units of the box's std."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_decay(self)
        check_smoothness(self)
        check_refit(self, "initial_std")
        if not 0 < self.keep <= 1:
            raise ValueError(f"ICEM: keep is {self.keep}; it is a fraction of the elites and must lie in (0, 1]")

    @property
    def kept(self) -> int:
        """Number of elites that are kept."""
        return max(1, int(self.keep * self.elites))

    @torch.no_grad()
    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the actions of lowest cost; see `planners.Planner.plan`.

        `Plan.best_cost_BI` counts the kept elites among the candidates.
        """
        check_inputs(self, noise_BINHA, box, start)
        noise_BINHA = correlate(self, noise_BINHA, box.steps)
        low_A, high_A, centre_A, unit_A = as_noise(noise_BINHA, box)
        mean_B1HA, std_B1HA = first_gaussian(noise_BINHA, centre_A, unit_A * self.initial_std, start)
        seeds_BSHA = None if start is None else start.seeds_BSHA
        min_std_A = unit_A * self.min_std
        kept_action_BKHA = noise_BINHA[:, 0, :0]
        kept_cost_BK = kept_action_BKHA[..., 0, 0]

        stds, best_costs = [], []
        for i, (noise_BNHA, size) in enumerate(zip(noise_BINHA.unbind(1), populations(self))):
            last = i == self.iterations - 1
            action_BNHA = draw(mean_B1HA, std_B1HA, noise_BNHA[:, :size], last, seeds_BSHA, (low_A, high_A))
            cost_BN = torch.cat([kept_cost_BK, score(cost_fn, action_BNHA)], 1)
            action_BNHA = torch.cat([kept_action_BKHA, action_BNHA], 1)
            cost_BE, elite_BEHA = cheapest(cost_BN, action_BNHA, self.elites)
            kept_cost_BK, kept_action_BKHA = cost_BE[:, : self.kept], elite_BEHA[:, : self.kept]
            stds.append(std_B1HA)
            best_costs.append(cost_BE[:, :1])
            old, new = (mean_B1HA, std_B1HA), mean_std(elite_BEHA)
            mean_B1HA, std_B1HA = refit(self, old, new, cost_BE[:, :1], min_std_A)
            seeds_BSHA = None

        cost_B = best_costs[-1][:, 0]
        action_BHA = torch.where(
            cost_B[:, None, None].isposinf(), mean_B1HA[:, 0].clamp(low_A, high_A), kept_action_BKHA[:, 0]
        )
        return Plan(
            action_BHA=action_BHA,
            cost_B=cost_B,
            mean_BHA=mean_B1HA[:, 0],
            best_cost_BI=torch.cat(best_costs, 1),
            spread_BI=spread(stds, unit_A),
            seeds_BSHA=kept_action_BKHA,
        )

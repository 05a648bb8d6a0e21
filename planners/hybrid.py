"""Search, then descend: a search finds the valley, a few gradient steps its floor."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.cem import CEM
from planners.checks import check_positive
from planners.gradient import descend, learning_rates
from planners.icem import ICEM
from planners.mppi import MPPI
from planners.search import AroundSearch, pick, score
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart


@dataclass(frozen=True)
class Hybrid(AroundSearch):
    """A search whose answer and cheapest candidates are refined by a few projected Adam steps.

    The answer of the search takes part in the final choice as it is, so the plan never costs more than it.
    """

    needs: ClassVar[tuple[Need, ...]] = ("gradient",)

    name: Literal["hybrid"] = "hybrid"
    """Which planner this is."""
    search: CEM | ICEM | MPPI = field(default_factory=CEM)
    """The search; its horizon, candidates and iterations are those of the whole planner."""
    refine: int = 4
    """Sequences that are refined: the answer of the search and the cheapest candidates it scored."""
    steps: int = 10
    """Adam steps on them."""
    learning_rate: float = 0.02
    """Adam's first step, in units of the box's std; it falls to 0 along half a cosine."""

    def __post_init__(self) -> None:
        check_positive(self, "learning_rate")
        if not 1 <= self.refine <= self.candidates:
            raise ValueError(
                f"Hybrid: refine is {self.refine}; it must lie in 1..{self.candidates}, the candidates of the search"
            )
        if self.steps < 1:
            raise ValueError(f"Hybrid: steps is {self.steps}; it must be at least 1: to refine nothing use cem")

    @torch.inference_mode(False)
    @torch.no_grad()
    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search and descend to the actions of lowest cost; see `planners.Planner.plan`."""
        cheapest = Cheapest(cost_fn, self.refine - 1)
        found = self.search.plan(cheapest, noise_BINHA, box, start)
        refined_BNHA = torch.cat([found.action_BHA[:, None], *cheapest.action_BNHA], 1)
        rates = learning_rates(self.learning_rate, self.steps, "cosine")
        descent = descend(cost_fn, refined_BNHA, box, rates)
        best_BHA = descent.best_B1HA[:, 0]
        failed_B11 = descent.best_cost_B1[..., None].isposinf()
        return Plan(
            action_BHA=best_BHA,
            cost_B=descent.best_cost_B1[:, 0],
            mean_BHA=torch.where(failed_B11, found.mean_BHA, best_BHA),
            best_cost_BI=found.best_cost_BI,
            spread_BI=found.spread_BI,
            seeds_BSHA=found.seeds_BSHA,
        )


class Cheapest:
    """A cost function that remembers the `keep` cheapest candidates it has ever scored, for each problem."""

    def __init__(self, cost_fn: CostFn, keep: int) -> None:
        self.cost_fn, self.keep = cost_fn, keep
        self.cost_BN: list[Tensor] = []
        self.action_BNHA: list[Tensor] = []

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """cost_BN of the cost function itself."""
        cost_BN = score(self.cost_fn, action_BNHA)
        if self.keep and action_BNHA.shape[1] > 1:
            every_BN = torch.cat([*self.cost_BN, cost_BN], 1)
            every_BNHA = torch.cat([*self.action_BNHA, action_BNHA], 1)
            cheapest_BN, index_BN = every_BN.topk(self.keep, dim=1, largest=False)
            self.cost_BN, self.action_BNHA = [cheapest_BN], [pick(every_BNHA, index_BN)]
        return cost_BN

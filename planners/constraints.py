"""Limits on a plan: candidates that keep all of them come first, whatever they cost."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.categorical_cem import CategoricalCEM
from planners.cem import CEM
from planners.icem import ICEM
from planners.mppi import MPPI
from planners.search import AroundSearch, pick, score
from planners.types import ActionBox, ConstrainedCost, CostFn, Need, Plan, WarmStart

Search = CEM | ICEM | MPPI | CategoricalCEM
"""The searches that can be asked to keep limits; each scores its candidates once per iteration."""

# One float orders (violation, cost) exactly: costs keep to |key| <= 2^45, violations of 2^-40 to 2^40 become keys of
# 2^46 to 2^126. Multiplying by a power of two rounds nothing, so that neither eats digits of the other.
LARGEST_COST = 2.0**45
SMALLEST_VIOLATION, LARGEST_VIOLATION, LIFT = 2.0**-40, 2.0**40, 2.0**86


@dataclass(frozen=True)
class FeasibleFirst(AroundSearch):
    """A search in which keeping the limits comes before the cost (the rules of Deb 2000); needs a `ConstrainedCost`.

    Of two candidates that keep all limits the cheaper wins, one that keeps them beats one that does not, and of two
    that do not the smaller sum of violations wins: among the candidates of an iteration and across iterations. The
    answer is the best candidate ever scored, so it breaks a limit only where every candidate did; then best_cost_BI,
    which counts only candidates that keep all limits, is +inf throughout.
    """

    needs: ClassVar[tuple[Need, ...]] = ("violation",)

    name: Literal["feasible_first"] = "feasible_first"
    """Which planner this is."""
    search: Search = field(default_factory=CEM)
    """The search, told apart by its `name`: cem, icem, mppi or categorical_cem. A final mean or mode that
    it scores is one more candidate."""

    @torch.no_grad()
    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the actions of lowest cost among those that keep the limits; see `planners.Planner.plan`."""
        judge = Judge(cost_fn)
        return judge.answer(self.search.plan(judge.rank, noise_BINHA, box, start))


class Judge:
    """Scores candidates of a cost with limits and remembers the best one ever seen of every problem."""

    def __init__(self, cost_fn: CostFn) -> None:
        if not isinstance(cost_fn, ConstrainedCost):
            raise ValueError(
                "this planner keeps limits, but the cost has none: give it a method violation (see "
                "planners.ConstrainedCost), or use another planner"
            )
        self.cost_fn = cost_fn
        self.best: tuple[Tensor, Tensor, Tensor] | None = None
        """key_B1, cost_B1 and action_B1HA of the best candidate so far."""

    def rank(self, action_BNHA: Tensor) -> Tensor:
        """key_BN of the candidates: its order is that of (violation, cost)."""
        return self.look(action_BNHA)[2]

    def look(self, action_BNHA: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(cost_BN, violation_BNG, key_BN) of the candidates, failures +inf."""
        cost_BN, violation_BNG = score(self.cost_fn, action_BNHA), self.violation(action_BNHA)
        key_BN = key(cost_BN, violation_BNG)

        key_B1, index_B1 = key_BN.min(1, keepdim=True)
        seen = key_B1, cost_BN.gather(1, index_B1), pick(action_BNHA, index_B1)
        if self.best is None:
            self.best = seen
        else:
            better_B1 = key_B1 < self.best[0]
            key_B1, cost_B1 = (torch.where(better_B1, new, old) for new, old in zip(seen[:2], self.best[:2]))
            self.best = key_B1, cost_B1, torch.where(better_B1[..., None, None], seen[2], self.best[2])
        return cost_BN, violation_BNG, key_BN

    def violation(self, action_BNHA: Tensor) -> Tensor:
        """violation_BNG of the limits in the dtype of the actions, NaN as +inf. Raises ValueError for a wrong shape."""
        violation_BNG = self.cost_fn.violation(action_BNHA)
        if violation_BNG.ndim != 3 or violation_BNG.shape[:2] != action_BNHA.shape[:2]:
            raise ValueError(
                f"the cost's violation has shape {tuple(violation_BNG.shape)}; it must hold G numbers per problem and "
                f"candidate, shape (B, N, G) with (B, N) = {tuple(action_BNHA.shape[:2])}"
            )
        return violation_BNG.to(action_BNHA).nan_to_num(nan=torch.inf, posinf=torch.inf)

    def answer(self, plan: Plan) -> Plan:
        """The plan of a search with the best candidate ever seen as its answer.

        plan.best_cost_BI holds the smallest key of each iteration; they become costs, +inf where a limit was broken.
        """
        assert self.best is not None
        key_B1, cost_B1, action_B1HA = self.best
        # Where every candidate failed, the search's own answer is where it stayed put.
        failed_B = key_B1[:, 0].isposinf()
        return replace(
            plan,
            action_BHA=torch.where(failed_B[:, None, None], plan.action_BHA, action_B1HA[:, 0]),
            cost_B=torch.where(failed_B, torch.inf, cost_B1[:, 0]),
            best_cost_BI=plan.best_cost_BI.masked_fill(plan.best_cost_BI > LARGEST_COST, torch.inf),
        )


def key(cost_BN: Tensor, violation_BNG: Tensor) -> Tensor:
    """key_BN: the cost where all limits are kept, above all costs else and growing with the sum of violations.

    +inf where the cost or a violation is. Exact for costs within 2^45 of 0 and sums of violations of 2^-40 to 2^40;
    those beyond count as equal to the nearest of these.
    """
    total_BN = violation_BNG.clamp(min=0).sum(-1)
    lifted_BN = total_BN.clamp(SMALLEST_VIOLATION, LARGEST_VIOLATION) * LIFT
    key_BN = torch.where(total_BN > 0, lifted_BN, cost_BN.clamp(-LARGEST_COST, LARGEST_COST))
    return key_BN.masked_fill(cost_BN.isposinf() | total_BN.isposinf(), torch.inf)

"""From a goal to a cost: how far every imagined frame is from the goal, and how the frames of a plan add up.

Adding a distance is one function and one row of `DISTANCES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lewm.cost_to_go import CostToGo
from lewm.world_model import WorldModel
from planners import CostFn


def latent_l2(latent_BNHKD: Tensor, goal_BKD: Tensor, head: CostToGo | None) -> Tensor:
    """Mean squared difference over tokens and width: about 2 between unrelated frames of a SIGReg latent."""
    return (latent_BNHKD - goal_BKD[:, None, None]).square().mean((-2, -1))


def cost_to_go(latent_BNHKD: Tensor, goal_BKD: Tensor, head: CostToGo | None) -> Tensor:
    """Blocks left, as the checkpoint's cost-to-go head sees it."""
    if head is None:
        raise ValueError(
            "cost cost_to_go: this checkpoint has no cost-to-go head; fit one with `lewm train --cost-to-go-only`"
        )
    blocks: Tensor = head(latent_BNHKD, goal_BKD[:, None, None])
    return blocks


DISTANCES: Mapping[str, Callable[[Tensor, Tensor, CostToGo | None], Tensor]] = {
    "latent_l2": latent_l2,
    "cost_to_go": cost_to_go,
}


@dataclass(frozen=True)
class CostConfig:
    """What a plan is judged by."""

    terms: dict[str, float] = field(default_factory=lambda: {"cost_to_go": 1.0})
    """Weight of each distance (latent_l2, cost_to_go); they are added."""
    reduce: Literal["terminal", "sum", "min"] = "sum"
    """Over the imagined frames: the last one, the mean of all (a plan that arrives early wins), or the closest."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError(f"cost.terms is empty; name at least one of {', '.join(DISTANCES)}")
        if unknown := sorted(set(self.terms) - set(DISTANCES)):
            raise ValueError(f"cost.terms: no distance is called {unknown[0]!r}; there are {', '.join(DISTANCES)}")

    @property
    def label(self) -> str:
        """Short text for tables, such as `cost_to_go + 0.3 latent_l2 (sum)`."""
        parts = [name if weight == 1 else f"{weight:g} {name}" for name, weight in self.terms.items()]
        return f"{' + '.join(parts)} ({self.reduce})"


@dataclass(frozen=True)
class Situation:
    """What a plan starts from: the frames seen and the blocks executed between them."""

    latent_BTKD: Tensor
    """The latest T encoded frames; the last one is now."""
    past_BTA: Tensor
    """The T - 1 raw action blocks between them."""


def goal_cost(
    model: WorldModel, head: CostToGo | None, config: CostConfig, situation: Situation, goal_BKD: Tensor
) -> CostFn:
    """The one function that turns a goal into something a planner can minimise: action_BNHA -> cost_BN."""

    def cost(action_BNHA: Tensor) -> Tensor:
        latent_BNHKD = model.rollout(situation.latent_BTKD, situation.past_BTA, action_BNHA)
        if config.reduce == "terminal":
            latent_BNHKD = latent_BNHKD[:, :, -1:]
        total = torch.zeros((), device=latent_BNHKD.device)
        for name, weight in config.terms.items():
            total = total + weight * DISTANCES[name](latent_BNHKD, goal_BKD, head)
        return total.amin(-1) if config.reduce == "min" else total.mean(-1)

    return cost

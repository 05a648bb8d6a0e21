"""Cross-entropy method for discrete actions: refit one categorical distribution per action entry to the elites."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.cem import cheapest
from planners.checks import check_elites, check_inputs, check_sizes
from planners.search import best_scored, score
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart


@dataclass(frozen=True)
class CategoricalCEM:
    """Cross-entropy method over discrete actions (Rubinstein & Kroese 2004, section 4); needs `ActionBox.discrete`.

    Every entry of every block has its own categorical distribution over its own number of choices (suffix C, padded
    to the largest number); each iteration replaces it by the frequencies of the choices among the elites. In the plan
    mean_BHA is the most probable choice of each entry, and spread_BI is the entropy of the distributions drawn from
    over that of uniform ones: 1 where nothing is known, 0 where nothing is open.
    """

    needs: ClassVar[tuple[Need, ...]] = ("choices",)

    name: Literal["categorical_cem"] = "categorical_cem"
    """Which planner this is."""
    horizon: int = 5
    """Blocks planned ahead."""
    candidates: int = 300
    """Action sequences scored per iteration."""
    iterations: int = 10
    """Rounds of draw, score, refit."""
    elites: int = 30
    """Cheapest candidates whose frequencies become the next distribution."""
    momentum: float = 0.1
    """Weight of the old distribution in the new one, in [0, 1)."""
    uniform_mix: float = 0.05
    """Share of every draw that is uniform over the choices, in [0, 1): no choice dies for want of an elite. It does
    what a pseudo-count of elites x uniform_mix / ((1 - uniform_mix) x choices) for each choice would do."""
    warm_weight: float = 0.5
    """Probability put on the warm start's choice, in [0, 1]; the rest is spread evenly over all choices."""
    keep_mode: bool = True
    """Whether candidate 0 of every iteration is the most probable choice of each entry."""
    execute: Literal["mode", "best"] = "best"
    """Execute the best candidate ever scored, or the final mode: safer with a learned model, but made of choices that
    may never have been scored together before."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_elites(self)
        for field in ("momentum", "uniform_mix"):
            if not 0 <= (value := getattr(self, field)) < 1:
                raise ValueError(f"CategoricalCEM: {field} is {value}; it must lie in [0, 1)")
        if not 0 <= self.warm_weight <= 1:
            raise ValueError(f"CategoricalCEM: warm_weight is {self.warm_weight}; it must lie in [0, 1]")
        if self.execute not in ("mode", "best"):
            raise ValueError(f"CategoricalCEM: execute is {self.execute!r}; it must be 'mode' or 'best'")

    @torch.no_grad()
    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the choices of lowest cost; see `planners.Planner.plan`.

        A warm start's mean and seeds are rounded to choices; it can have no std. A problem whose candidates all failed
        keeps its distribution.
        """
        check_inputs(self, noise_BINHA, box, start)
        if start is not None and start.std_BHA is not None:
            raise ValueError("the warm start has a std, but categorical_cem knows no width: leave std_BHA out")
        last_A = box.high_A.to(noise_BINHA)
        uniform_AC = uniform(box, last_A)
        prob_BHAC = uniform_AC.expand(len(noise_BINHA), self.horizon, -1, -1)
        choices, seeds_BSHA = prob_BHAC.shape[-1], None
        if start is not None:
            warm_B1HA = nearest(start.mean_BHA.to(noise_BINHA)[:, None], last_A)
            prob_BHAC = prob_BHAC.lerp(frequencies(warm_B1HA, choices), self.warm_weight)
            if start.seeds_BSHA is not None:
                room = self.candidates - self.keep_mode
                seeds_BSHA = nearest(start.seeds_BSHA.to(noise_BINHA)[:, :room], last_A)

        best_costs, best_actions, spreads = [], [], []
        for share_BNHA in torch.special.ndtr(noise_BINHA).unbind(1):
            drawn_BHAC = prob_BHAC.lerp(uniform_AC, self.uniform_mix)
            action_BNHA = draw(drawn_BHAC, share_BNHA, last_A)
            if self.keep_mode:
                action_BNHA[:, 0] = mode(prob_BHAC)
            if seeds_BSHA is not None:
                action_BNHA[:, self.keep_mode :][:, : seeds_BSHA.shape[1]] = seeds_BSHA
                seeds_BSHA = None
            cost_BE, elite_BEHA = cheapest(score(cost_fn, action_BNHA), action_BNHA, self.elites)
            best_costs.append(cost_BE[:, :1])
            best_actions.append(elite_BEHA[:, :1])
            spreads.append((torch.special.entr(drawn_BHAC).sum(-1) / last_A.log1p()).mean((1, 2)))
            new_BHAC = frequencies(elite_BEHA, choices).lerp(prob_BHAC, self.momentum)
            prob_BHAC = torch.where(cost_BE[:, :1, None, None].isposinf(), prob_BHAC, new_BHAC)

        best_cost_BI, mode_BHA = torch.cat(best_costs, 1), mode(prob_BHAC)
        if self.execute == "mode":
            action_B1HA = mode_BHA[:, None]
            cost_B1 = score(cost_fn, action_B1HA)
        else:
            cost_B1, action_B1HA = best_scored(best_cost_BI, best_actions, mode_BHA[:, None])
        return Plan(action_B1HA[:, 0], cost_B1[:, 0], mode_BHA, best_cost_BI, torch.stack(spreads, 1))


def uniform(box: ActionBox, last_A: Tensor) -> Tensor:
    """probability_AC: equal for the choices an entry has, 0 beyond its last one."""
    assert box.choices_A is not None
    choice_C = torch.arange(max(box.choices_A), device=last_A.device)
    return (choice_C <= last_A[:, None]) / (last_A + 1)[:, None]


def nearest(action_BSHA: Tensor, last_A: Tensor) -> Tensor:
    """The same rounded to choices that exist."""
    return action_BSHA.round().clamp(torch.zeros_like(last_A), last_A)


def draw(prob_BHAC: Tensor, share_BNHA: Tensor, last_A: Tensor) -> Tensor:
    """action_BNHA: the choice at which the cumulative probability passes `share`, which is uniform in [0, 1]."""
    edge_BHAC = prob_BHAC.cumsum(-1)[..., :-1]
    # The probabilities of an entry need not add up to exactly 1; no share of 1 may lead beyond its last choice.
    beyond_AC = torch.arange(edge_BHAC.shape[-1], device=last_A.device) >= last_A[:, None]
    edge_BHAC = edge_BHAC.masked_fill(beyond_AC, torch.inf)
    choice_BHAN = torch.searchsorted(edge_BHAC, share_BNHA.movedim(1, -1).contiguous(), right=True)
    return choice_BHAN.movedim(-1, 1).to(share_BNHA)


def frequencies(action_BEHA: Tensor, choices: int) -> Tensor:
    """frequency_BHAC of each choice among the sequences."""
    choice_C = torch.arange(choices, device=action_BEHA.device)
    return (action_BEHA[..., None] == choice_C).to(action_BEHA).mean(1)


def mode(prob_BHAC: Tensor) -> Tensor:
    """action_BHA: the most probable choice of every entry, the first of equals."""
    return prob_BHAC.argmax(-1).to(prob_BHAC)

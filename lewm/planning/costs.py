"""From a goal to a cost: how far every imagined frame is from the goal, and how the frames of a plan add up.

Adding a distance is one function and one row of `DISTANCES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lewm.cost_to_go import CostToGo
from lewm.planning.action_limits import AS_RECORDED, ActionLimits
from lewm.planning.fast_loop import Rollout
from lewm.planning.fast_rollout import FastModel
from lewm.readout import Readout
from lewm.world_model import WorldModel
from planners.risk import Risk


@dataclass(frozen=True)
class Heads:
    """The learned maps of latents that a distance may need."""

    cost_to_go: CostToGo | None = None
    readout: Readout | None = None
    picture_dim: int | None = None
    """Latent entries that come from the picture; those behind them were measured. None: all of them."""
    goal_measured_BM: Tensor | None = None
    """The measured entries of the goal, where they are known."""

    def pictured(self, latent: Tensor) -> Tensor:
        """The part of a latent that a goal picture shows."""
        return latent[..., : self.picture_dim]


def latent_l2(latent_BNHKD: Tensor, goal_BKD: Tensor, heads: Heads) -> Tensor:
    """Mean squared difference over tokens and width: about 2 between unrelated frames of a SIGReg latent."""
    return (heads.pictured(latent_BNHKD) - heads.pictured(goal_BKD)[:, None, None]).square().mean((-2, -1))


def latent_l1(latent_BNHKD: Tensor, goal_BKD: Tensor, heads: Heads) -> Tensor:
    """Mean absolute difference over tokens and width."""
    return (heads.pictured(latent_BNHKD) - heads.pictured(goal_BKD)[:, None, None]).abs().mean((-2, -1))


def cosine(latent_BNHKD: Tensor, goal_BKD: Tensor, heads: Heads) -> Tensor:
    """1 - cosine between a token and the goal's, mean over tokens: 0 for the same direction, 2 for opposite ones."""
    latent_BNHKD, goal_B11KD = heads.pictured(latent_BNHKD), heads.pictured(goal_BKD)[:, None, None]
    return (1 - F.cosine_similarity(latent_BNHKD, goal_B11KD, dim=-1)).mean(-1)


def cost_to_go(latent_BNHKD: Tensor, goal_BKD: Tensor, heads: Heads) -> Tensor:
    """Blocks left, as the checkpoint's cost-to-go head sees it."""
    if heads.cost_to_go is None:
        raise ValueError(
            "cost cost_to_go: this checkpoint has no cost-to-go head; fit one with `lewm train --cost-to-go-only`"
        )
    blocks: Tensor = heads.cost_to_go(latent_BNHKD, goal_BKD[:, None, None])
    return blocks


def proprio(latent_BNHKD: Tensor, goal_BKD: Tensor, heads: Heads) -> Tensor:
    """Mean squared difference of the state entries read out of both latents, in units of the recordings' variance."""
    if heads.readout is None:
        raise ValueError(
            "cost proprio: this checkpoint reads out no state entries; train with readout.entries, such as "
            "--readout.entries '[shoulder, elbow]'"
        )
    read_BNHP, goal_BP = heads.readout(latent_BNHKD), heads.readout(goal_BKD)
    difference_BNH: Tensor = (read_BNHP - goal_BP[:, None, None]).square().mean(-1)
    return difference_BNH


def measured(latent_BNHKD: Tensor, goal_BKD: Tensor, heads: Heads) -> Tensor:
    """Mean squared difference of the measured entries from those of the goal, of a model with `model.proprio`.

    With latent_l2 beside it this is DINO-WM's cost (Zhou et al. 2024, section 3.3).
    """
    if heads.goal_measured_BM is None:
        raise ValueError("cost measured: what should be measured at the goal is not known; pass goal_proprio to reset")
    measured_BNHM = latent_BNHKD[..., heads.picture_dim :].mean(-2)  # every token carries the same
    return (measured_BNHM - heads.goal_measured_BM[:, None, None]).square().mean(-1)


DISTANCES: Mapping[str, Callable[[Tensor, Tensor, Heads], Tensor]] = {
    "latent_l2": latent_l2,
    "latent_l1": latent_l1,
    "cosine": cosine,
    "cost_to_go": cost_to_go,
    "proprio": proprio,
    "measured": measured,
}
"""(latent_BNHKD, goal_BKD, heads) -> distance_BNH."""

Reduce = Literal["terminal", "sum", "min", "discounted"]


@dataclass(frozen=True)
class CostConfig:
    """What a plan is judged by."""

    terms: dict[str, float] = field(default_factory=lambda: {"cost_to_go": 1.0})
    """Weight of each distance (latent_l2, latent_l1, cosine, cost_to_go, proprio, measured); they are added."""
    reduce: Reduce = "sum"
    """Over the imagined frames: the last one, the mean of all (a plan that arrives early wins), the closest, or a mean
    whose weights shrink by `discount` from each frame to the next."""
    discount: float = 0.9
    """Weight of a frame over that of the frame before it, where reduce is discounted; above 1 the end counts most."""
    action_penalty: float = 0.0
    """Weight of the mean squared action, in units of the recordings' variance."""
    max_change: float | None = None
    """Largest change of a raw action entry from one environment step to the next, in units of the recordings' std: a
    limit for the planners that keep limits, ignored by the others."""
    risk: Risk | None = None
    """For a model with a latent variable: how the sampled futures of a candidate make one cost (mean, best, worst,
    pessimistic, cvar); null takes only the future whose every block is the likeliest."""
    samples: int = 8
    """Sampled futures per candidate, where there is a risk; all candidates of a plan share their noise."""
    likely: float = 0.05
    """Codes of this prior probability or less do not count for the best and the worst future."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError(f"cost.terms is empty; name at least one of {', '.join(DISTANCES)}")
        if unknown := sorted(set(self.terms) - set(DISTANCES)):
            raise ValueError(f"cost.terms: no distance is called {unknown[0]!r}; there are {', '.join(DISTANCES)}")
        if not self.discount > 0:
            raise ValueError(f"cost.discount is {self.discount}; it must be positive")
        if self.action_penalty < 0:
            raise ValueError(f"cost.action_penalty is {self.action_penalty}; it must be 0 or more")
        if self.max_change is not None and not self.max_change > 0:
            raise ValueError(f"cost.max_change is {self.max_change}; it must be positive, or null for no limit")
        if self.samples < 1:
            raise ValueError(f"cost.samples is {self.samples}; it must be at least 1")
        if not 0 <= self.likely < 1:
            raise ValueError(f"cost.likely is {self.likely}; it must lie in [0, 1)")

    @property
    def label(self) -> str:
        """Short text for tables, such as `cost_to_go + 0.3 latent_l2 (sum)`."""
        parts = [name if weight == 1 else f"{weight:g} {name}" for name, weight in self.terms.items()]
        parts += [f"{self.action_penalty:g} action"] * (self.action_penalty > 0)
        how = f"discounted {self.discount:g}" if self.reduce == "discounted" else self.reduce
        how += f", {self.risk.kind} of {self.samples}" if self.risk else ""
        return f"{' + '.join(parts)} ({how})"


@dataclass(frozen=True)
class Situation:
    """What a plan starts from: the frames seen and the blocks executed between them."""

    latent_BTKD: Tensor
    """The latest T encoded frames; the last one is now."""
    past_BTA: Tensor
    """The T - 1 raw action blocks between them."""
    chance_BMHV: Tensor | None = None
    """Noise of the M sampled futures, see `chance_table`; None where the cost has no risk."""
    goal_measured_BM: Tensor | None = None
    """Latent entries of what should be measured at the goal; None where only its picture counts."""


def reduce_frames(distance_BNH: Tensor, config: CostConfig) -> Tensor:
    """cost_BN: how the distances of a plan's frames add up."""
    if config.reduce == "terminal":
        return distance_BNH[..., -1]
    if config.reduce == "min":
        return distance_BNH.amin(-1)
    if config.reduce == "sum":
        return distance_BNH.mean(-1)
    frame_H = torch.arange(distance_BNH.shape[-1], device=distance_BNH.device)
    weight_H = torch.full_like(frame_H, config.discount, dtype=distance_BNH.dtype) ** frame_H
    return (distance_BNH * weight_H).sum(-1) / weight_H.sum()


@dataclass(frozen=True)
class GoalCost:
    """The one thing that turns a goal into something a planner can minimise: action_BNHA -> cost_BN.

    Differentiable by the actions. As a `planners.StateCost` its states are flat latents, S = K x D.
    """

    model: WorldModel
    head: CostToGo | None
    config: CostConfig
    situation: Situation
    goal_BKD: Tensor
    fast: FastModel | None = None
    """Model and head as `prepare` makes them: the same costs to fp32 rounding, sooner. None runs the plain ones."""
    readout: Readout | None = None
    """State entries read out of latents, for the proprioceptive distance."""
    actions: ActionLimits = AS_RECORDED
    """How planned actions are executed: candidates are judged by what would be done."""

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """cost_BN of candidates in raw action units."""
        action_BNHA = self._executed(action_BNHA)
        if self.config.risk is not None:
            cost_BN = self._risk(action_BNHA, self.config.risk)
        else:
            distance = self._plain if self._futures is None else self._fast
            cost_BN = reduce_frames(distance(action_BNHA), self.config)
        if self.config.action_penalty:
            effort_BN = self.model.scale_action(action_BNHA).square().mean((-2, -1))
            cost_BN = cost_BN + self.config.action_penalty * effort_BN
        return cost_BN

    def distance(self, state_BNHS: Tensor) -> Tensor:
        """distance_BNH of flat latents from the goal; the terms without the reduction over frames."""
        return self._distance(state_BNHS.unflatten(-1, self.goal_BKD.shape[1:]))

    def rollout(self, action_BNHA: Tensor) -> Tensor:
        """state_BNHS: the flat latents after each block."""
        action_BNHA = self._executed(action_BNHA)
        if self._futures is not None:
            return torch.stack(list(self._futures(action_BNHA)), 2).flatten(3)
        return self.model.rollout(self.situation.latent_BTKD, self.situation.past_BTA, action_BNHA).flatten(3)

    def follow(self, state_BNHS: Tensor, action_BNHA: Tensor) -> Tensor:
        """next_BNHS: one prediction for every block from the flat latents before it; see `planners.StateCost`.

        With a predictor that sees several frames those are the states before the block, the latest `context` of them.
        """
        if self.config.risk is not None:
            raise ValueError(
                "cost.risk samples futures, and this planner searches over the states of one: choose another planner, "
                "or leave cost.risk out"
            )
        action_BNHA = self._executed(action_BNHA)
        B, N, H, _ = state_BNHS.shape
        seen_BTKD, past_BTA = self.situation.latent_BTKD, self.situation.past_BTA
        state_MHKD = state_BNHS.flatten(0, 1).unflatten(-1, self.goal_BKD.shape[1:])
        frames = torch.cat([seen_BTKD.repeat_interleave(N, 0), state_MHKD[:, 1:]], 1)
        blocks = torch.cat([past_BTA.repeat_interleave(N, 0), action_BNHA.flatten(0, 1)], 1)
        context = self.model.context
        if context == 1 or frames.shape[1] <= context:
            next_MHKD = self.model.predict(frames, blocks)[:, -H:]
        else:
            ends = range(frames.shape[1] - H + 1, frames.shape[1] + 1)
            windows = [slice(max(0, end - context), end) for end in ends]
            next_MHKD = torch.stack([self.model.predict(frames[:, w], blocks[:, w])[:, -1] for w in windows], 1)
        return next_MHKD.flatten(2).unflatten(0, (B, N))

    def violation(self, action_BNHA: Tensor) -> Tensor:
        """violation_BNG: by how much each raw action entry changes more than allowed, G limits per plan."""
        if self.config.max_change is None:
            raise ValueError("this planner keeps limits, but the cost has none: set cost.max_change")
        entries = self.model.facts.action_dim
        scaled_BNTa = self.model.scale_action(self._executed(action_BNHA)).flatten(-2).unflatten(-1, (-1, entries))
        return (scaled_BNTa.diff(dim=-2).abs() - self.config.max_change).flatten(-2)

    def _executed(self, action_BNHA: Tensor) -> Tensor:
        return self.actions.executed(action_BNHA, self.model.facts.action_dim)

    def _risk(self, action_BNHA: Tensor, risk: Risk) -> Tensor:
        """cost_BN out of the costs of the sampled futures."""
        chance_BMHV = self.situation.chance_BMHV
        if chance_BMHV is None:
            raise ValueError(
                "cost.risk is set, but the situation has no noise to sample futures with: see chance_table"
            )
        N, M = action_BNHA.shape[1], chance_BMHV.shape[1]
        # An average needs every code at its weight; an extreme would be ruled by one that hardly ever comes.
        likely = self.config.likely if risk.kind in ("best", "worst") else 0.0
        latent_BRHKD = self.model.rollout(
            self.situation.latent_BTKD,
            self.situation.past_BTA,
            action_BNHA.repeat_interleave(M, 1),
            chance_BMHV.repeat(1, N, 1, 1),
            likely,
        )
        distance_BRH = self._distance(latent_BRHKD[:, :, -1:] if self.config.reduce == "terminal" else latent_BRHKD)
        return risk.combine(reduce_frames(distance_BRH, self.config).unflatten(1, (N, M)))

    def _plain(self, action_BNHA: Tensor) -> Tensor:
        """distance_BNH of the frames that count."""
        latent_BNHKD = self.model.rollout(self.situation.latent_BTKD, self.situation.past_BTA, action_BNHA)
        return self._distance(latent_BNHKD[:, :, -1:] if self.config.reduce == "terminal" else latent_BNHKD)

    def _fast(self, action_BNHA: Tensor) -> Tensor:
        """The same on the fast path; frames lead in memory, so that a step of all candidates is one matrix."""
        assert self._futures is not None
        latents = self._futures(action_BNHA)
        latent_HBNKD = latents[-1][None] if self.config.reduce == "terminal" else torch.stack(latents)
        total_HBN = torch.zeros((), device=latent_HBNKD.device)
        for name, weight in self.config.terms.items():
            if name == "cost_to_go" and self._blocks_left is not None:
                distance_HBN = self._blocks_left(latent_HBNKD)
            else:
                latent_BNHKD = latent_HBNKD.movedim(0, 2)
                distance_HBN = DISTANCES[name](latent_BNHKD, self.goal_BKD, self._heads).movedim(2, 0)
            total_HBN = total_HBN + weight * distance_HBN
        return total_HBN.movedim(0, 2)

    @property
    def _heads(self) -> Heads:
        return Heads(self.head, self.readout, self.model.picture_dim, self.situation.goal_measured_BM)

    @cached_property
    def _futures(self) -> Rollout | None:
        """The part of the fast rollout that all calls share; made at the first one."""
        if self.fast is None:
            return None
        latent_BTKD, past_BTA = self.situation.latent_BTKD, self.situation.past_BTA
        seen, past = latent_BTKD.shape[1], past_BTA.shape[1]
        if past != seen - 1:
            raise ValueError(f"situation: {seen} frames need {seen - 1} past action blocks, got {past}")
        return self.fast.rollout.begin(latent_BTKD, past_BTA)

    @cached_property
    def _blocks_left(self) -> Callable[[Tensor], Tensor] | None:
        """The part of the cost-to-go head that all calls share."""
        return None if self.fast is None or self.fast.head is None else self.fast.head.begin(self.goal_BKD)

    def _distance(self, latent_BNHKD: Tensor) -> Tensor:
        total_BNH = torch.zeros((), device=latent_BNHKD.device)
        for name, weight in self.config.terms.items():
            total_BNH = total_BNH + weight * DISTANCES[name](latent_BNHKD, self.goal_BKD, self._heads)
        return total_BNH

"""GCIVL, goal-conditioned implicit V-learning: a value of every frame for every goal, and the policy that raises it.

The V-only form of IQL (Kostrikov et al. 2021, arXiv 2110.06169) of HIQL and OGBench (Park et al. 2025, 2410.20092),
from where the settings are unless a field says otherwise.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lewm.baselines.goal_data import GoalBatch, GoalTransitions
from lewm.baselines.heads import (
    Actor,
    Value,
    advantage_weighted,
    check_goal_shares,
    check_settings,
    half_squared_error,
    members,
)
from lewm.heads_training import Fit, HeadGroup, Recorded, StepLoss, fit_head, follow
from lewm.world_model import WorldModel

VALUES = ("value_1", "value_2")


@dataclass(frozen=True, kw_only=True)
class GCIVLMethod:
    """Acts as the policy that `lewm train-baseline gcivl` fitted."""

    name: str = "gcivl"
    """Name in tables."""
    kind: Literal["gcivl"] = "gcivl"
    """Which kind of method this is."""
    path: str
    """Folder that `lewm train-baseline` wrote, relative to the working directory."""


@dataclass(frozen=True)
class GCIVLConfig:
    """How values and policy are built and trained."""

    width: int = 256
    """Hidden units per layer (OGBench: 512)."""
    layers: int = 3
    """Hidden layers."""
    steps: int = 2000
    """Optimiser steps (OGBench: 500,000 from pixels)."""
    batch: int = 256
    """Blocks per step, for the values and again for the policy (OGBench: 1024, and 256 from pixels)."""
    learning_rate: float = 1e-3
    """Peak learning rate, cosine to zero (OGBench: 3e-4, constant)."""
    discount: float = 0.99
    """Discount per environment step."""
    expectile: float = 0.9
    """Weight on blocks that did better than the value says."""
    temperature: float = 10.0
    """How sharply the policy prefers blocks of high advantage; 0 is behaviour cloning."""
    target_rate: float = 0.005
    """How fast the target values follow, per step."""
    current: float = 0.2
    """Share of the values' goals that are the present frame itself."""
    elsewhere: float = 0.3
    """Share of the values' goals that are frames of any episode; the others come later in the same one."""
    nearness: float = 2.0
    """The values' hindsight goals lie at a share u^nearness of what is left of the episode, u uniform; the policy's are
    drawn evenly (OGBench: geometric for the values)."""

    def __post_init__(self) -> None:
        check_settings("gcivl", self, ("discount", "expectile", "target_rate"))
        if self.temperature < 0:
            raise ValueError(f"gcivl.temperature is {self.temperature}; it must be 0 or more")
        check_goal_shares("gcivl", self)


def value_loss(value_VB: Tensor, now_VB: Tensor, next_VB: Tensor, batch: GoalBatch, expectile: float) -> Tensor:
    """Expectile temporal-difference loss of an ensemble of values, summed over its V members.

    value_VB: of the frames; now_VB, next_VB: the target ensemble's, of the frames and of those after the block. Whether
    a block did better than expected is asked of the target ensemble as a whole, the lower of its answers afterwards
    against the mean of those before; each member then learns from its own target (HIQL, Park et al. 2023, OGBench).
    """
    better_B = batch.outcome(next_VB.min(0).values) >= now_VB.mean(0)
    weight_B = torch.where(better_B, expectile, 1 - expectile)
    return (weight_B * (batch.outcome(next_VB) - value_VB).square()).mean(1).sum()


def advantage(now_VB: Tensor, next_VB: Tensor, batch: GoalBatch) -> Tensor:
    """(B,) what a block earned beyond what the values, mean over the ensemble, said (IQL's r + discount V' - V)."""
    return batch.outcome(next_VB.mean(0)) - now_VB.mean(0)


def build_gcivl(model: WorldModel, config: GCIVLConfig) -> HeadGroup:
    """The untrained values and actor."""
    return HeadGroup({**{name: Value(model, config) for name in VALUES}, "actor": Actor(model, config)})


def fit_gcivl(config: GCIVLConfig, fit: Fit) -> tuple[HeadGroup, float]:
    """The trained values and actor, and the seconds it took, see `fit_head`."""
    head = build_gcivl(fit.model, config).to(fit.model.device)
    target = HeadGroup({name: copy.deepcopy(head[name]) for name in VALUES})

    def begin(recorded: Recorded) -> StepLoss:
        data = GoalTransitions.of(fit.store, recorded, fit.model, config.discount)

        def loss(generator: torch.Generator) -> Tensor:
            batch = data.draw(config.batch, generator, config.nearness, config.current, config.elsewhere)
            with torch.no_grad():
                now_VB = members(target, VALUES, batch.latent_BKD, batch.goal_BKD)
                next_VB = members(target, VALUES, batch.next_BKD, batch.goal_BKD)
            value_VB = members(head, VALUES, batch.latent_BKD, batch.goal_BKD)
            return value_loss(value_VB, now_VB, next_VB, batch, config.expectile) + policy_loss(
                head, data.draw(config.batch, generator, nearness=1.0), config.temperature
            )

        return loss

    def after_step() -> None:
        for name in VALUES:
            follow(target[name], head[name], config.target_rate)

    return head, fit_head("gcivl", config, fit, 22, {"head": head, "target": target}, begin, after_step)


def policy_loss(head: HeadGroup, batch: GoalBatch, temperature: float) -> Tensor:
    """Advantage-weighted regression of the actor towards blocks on the way to goals."""
    with torch.no_grad():
        now_VB = members(head, VALUES, batch.latent_BKD, batch.goal_BKD)
        next_VB = members(head, VALUES, batch.next_BKD, batch.goal_BKD)
    error_B = half_squared_error(head["actor"](batch.latent_BKD, batch.goal_BKD), batch.action_BA, batch.known_BA)
    return advantage_weighted(error_B, advantage(now_VB, next_VB, batch), temperature)

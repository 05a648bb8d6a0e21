"""GCIQL, goal-conditioned implicit Q-learning: values of blocks, learned without asking for blocks nobody recorded.

IQL (Kostrikov et al. 2021, arXiv 2110.06169) with goals, and a policy that climbs Q near the recorded actions (DDPG+BC,
Fujimoto and Gu 2021, 2106.06860); settings after OGBench (Park et al. 2025, 2410.20092) unless a field says otherwise.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lewm.baselines.goal_data import GoalTransitions
from lewm.baselines.heads import (
    Actor,
    Value,
    check_goal_shares,
    check_settings,
    frozen,
    half_squared_error,
    members,
    scaled_bounds,
    weighted_mean,
)
from lewm.cost_to_go import expectile_loss
from lewm.heads_training import Fit, HeadGroup, PairHead, Recorded, StepLoss, fit_head, follow
from lewm.world_model import WorldModel

CRITICS = ("critic_1", "critic_2")


@dataclass(frozen=True, kw_only=True)
class GCIQLMethod:
    """Acts as the policy that `lewm train-baseline gciql` fitted."""

    name: str = "gciql"
    """Name in tables."""
    kind: Literal["gciql"] = "gciql"
    """Which kind of method this is."""
    path: str
    """Folder that `lewm train-baseline` wrote, relative to the working directory."""


@dataclass(frozen=True)
class GCIQLConfig:
    """How critics, value and policy are built and trained."""

    width: int = 256
    """Hidden units per layer (OGBench: 512)."""
    layers: int = 3
    """Hidden layers."""
    steps: int = 2000
    """Optimiser steps (OGBench: 500,000 from pixels)."""
    batch: int = 256
    """Blocks per step, for the critics and again for the policy (OGBench: 1024, and 256 from pixels)."""
    learning_rate: float = 1e-3
    """Peak learning rate, cosine to zero (OGBench: 3e-4, constant)."""
    discount: float = 0.99
    """Discount per environment step."""
    expectile: float = 0.9
    """Weight on blocks that are better than the value says."""
    cloning: float = 0.3
    """Weight of the recorded actions in the policy, beside Q in units of its mean size (alpha of DDPG+BC)."""
    target_rate: float = 0.005
    """How fast the target critics follow, per step."""
    current: float = 0.2
    """Share of the critics' goals that are the present frame itself."""
    elsewhere: float = 0.3
    """Share of the critics' goals that are frames of any episode; the others come later in the same one."""
    nearness: float = 2.0
    """The critics' hindsight goals lie at a share u^nearness of what is left of the episode, u uniform; the policy's
    are drawn evenly (OGBench: geometric for the critics)."""

    def __post_init__(self) -> None:
        check_settings("gciql", self, ("discount", "expectile", "target_rate"))
        if self.cloning < 0:
            raise ValueError(f"gciql.cloning is {self.cloning}; it must be 0 or more")
        check_goal_shares("gciql", self)


class Critic(PairHead):
    """Q(z, goal, block): minus the discounted blocks to the goal when this one comes first."""

    def __init__(self, model: WorldModel, config: GCIQLConfig) -> None:
        features = model.latent_dim * model.tokens
        super().__init__(features, config.width, config.layers, 1, extra=model.action_dim)

    def forward(self, latent_BKD: Tensor, goal_BKD: Tensor, action_BA: Tensor) -> Tensor:
        """quality_B of scaled blocks."""
        quality_B: Tensor = self.net(torch.cat([self.pair(latent_BKD, goal_BKD), action_BA], -1)).squeeze(-1)
        return quality_B


def critic_loss(quality_QB: Tensor, target_B: Tensor) -> Tensor:
    """Squared error of every critic against one target, reward + discount x value, summed over the critics (eq. 6)."""
    return (quality_QB - target_B).square().mean(1).sum()


def ddpg_bc_loss(quality_QB: Tensor, error: Tensor, cloning: float, weight_B: Tensor | None = None) -> Tensor:
    """Minus the lower Q of the policy's own blocks in units of its mean size, plus the weighted cloning error.

    error: of each block, or their mean. weight_B: how much each block's Q counts; None counts them alike.
    """
    quality_B = quality_QB.min(0).values
    size = weighted_mean(quality_B.abs(), weight_B).detach() + 1e-6
    return -weighted_mean(quality_B, weight_B) / size + cloning * error.mean()


def build_gciql(model: WorldModel, config: GCIQLConfig) -> HeadGroup:
    """The untrained critics, value and actor."""
    critics = {name: Critic(model, config) for name in CRITICS}
    return HeadGroup({**critics, "value": Value(model, config), "actor": Actor(model, config)})


def fit_gciql(config: GCIQLConfig, fit: Fit) -> tuple[HeadGroup, float]:
    """The trained critics, value and actor, and the seconds it took, see `fit_head`."""
    model = fit.model
    head = build_gciql(model, config).to(model.device)
    target = HeadGroup({name: copy.deepcopy(head[name]) for name in CRITICS})
    low_A, high_A = scaled_bounds(model)

    def begin(recorded: Recorded) -> StepLoss:
        data = GoalTransitions.of(fit.store, recorded, model, config.discount)

        def loss(generator: torch.Generator) -> Tensor:
            batch = data.draw(config.batch, generator, config.nearness, config.current, config.elsewhere)
            places = batch.latent_BKD, batch.goal_BKD
            with torch.no_grad():
                best_B = members(target, CRITICS, *places, batch.action_BA).min(0).values
                target_B = batch.outcome(head["value"](batch.next_BKD, batch.goal_BKD))
            learned = expectile_loss(best_B, head["value"](*places), config.expectile)
            learned = learned + critic_loss(members(head, CRITICS, *places, batch.action_BA), target_B)
            drawn = data.draw(config.batch, generator, nearness=1.0)
            mean_BA = head["actor"](drawn.latent_BKD, drawn.goal_BKD)
            tried_BA = mean_BA.clamp(low_A, high_A)
            quality = [frozen(head[name], drawn.latent_BKD, drawn.goal_BKD, tried_BA) for name in CRITICS]
            error_B = half_squared_error(mean_BA, drawn.action_BA, drawn.known_BA)
            return learned + ddpg_bc_loss(torch.stack(quality), error_B, config.cloning)

        return loss

    def after_step() -> None:
        for name in CRITICS:
            follow(target[name], head[name], config.target_rate)

    return head, fit_head("gciql", config, fit, 23, {"head": head, "target": target}, begin, after_step)

"""HILP, Hilbert foundation policies: a space in which straight lines are the shortest ways, and a policy that follows
any direction in it.

Park et al. 2024 (arXiv 2402.15567), goal-conditioned form: phi is trained so that minus the distance of two frames in
its space is their goal-conditioned value, then a policy is trained by IQL to move along directions z; towards a goal it
is given z = (phi(goal) - phi(now)) / length. Settings from the paper unless a field says otherwise.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lewm.baselines.gciql import critic_loss
from lewm.baselines.gcivl import value_loss
from lewm.baselines.goal_data import GoalBatch, GoalTransitions
from lewm.baselines.heads import (
    HeadSize,
    advantage_weighted,
    check_settings,
    half_squared_error,
    members,
    raw_block,
)
from lewm.checkpoint import Checkpoint
from lewm.cost_to_go import expectile_loss
from lewm.heads_training import Fit, HeadGroup, LatentHead, Recorded, StepLoss, fit_head, follow
from lewm.world_model import WorldModel

PHIS = ("phi_1", "phi_2")
"""Both are trained, as an ensemble of values; directions are those of the first."""
CRITICS = ("critic_1", "critic_2")


@dataclass(frozen=True, kw_only=True)
class HILPMethod:
    """Acts as the policy that `lewm train-baseline hilp` fitted."""

    name: str = "hilp"
    """Name in tables."""
    kind: Literal["hilp"] = "hilp"
    """Which kind of method this is."""
    path: str
    """Folder that `lewm train-baseline` wrote, relative to the working directory."""


@dataclass(frozen=True)
class HILPConfig:
    """How the representation and the policy are built and trained."""

    width: int = 256
    """Hidden units per layer (paper: 512)."""
    layers: int = 3
    """Hidden layers."""
    space: int = 32
    """Dimensions of the space."""
    steps: int = 2000
    """Optimiser steps (paper: 500,000 to 1,000,000)."""
    batch: int = 256
    """Blocks per step (paper: 1024, and 256 from pixels)."""
    learning_rate: float = 1e-3
    """Peak learning rate, cosine to zero (paper: 3e-4, constant)."""
    discount: float = 0.99
    """Discount per environment step, of distances and of the way along a direction."""
    expectile: float = 0.95
    """Weight on blocks that did better than the distance says."""
    policy_expectile: float = 0.9
    """Weight on blocks that went further along a direction than the policy's value says."""
    temperature: float = 10.0
    """How sharply the policy prefers blocks of high advantage."""
    target_rate: float = 0.005
    """How fast the target networks follow, per step."""
    elsewhere: float = 0.375
    """Share of the distances' goals that are frames of any episode; the others come later in the same one."""
    nearness: float = 2.0
    """Hindsight goals lie at a share u^nearness of what is left of the episode, u uniform (paper: geometric)."""
    to_goals: float = 0.5
    """Share of the policy's directions that lead to a goal drawn as the distances' are; the others are uniform on the
    sphere (paper: all uniform, which takes more steps in 32 dimensions)."""

    def __post_init__(self) -> None:
        check_settings("hilp", self, ("discount", "expectile", "policy_expectile", "target_rate"))
        if self.space < 1:
            raise ValueError(f"hilp.space is {self.space}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"hilp.temperature is {self.temperature}; it must be 0 or more")
        for name in ("elsewhere", "to_goals"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"hilp.{name} is {getattr(self, name)}; it must lie in [0, 1]")


class Phi(LatentHead):
    """Latents to points of the space."""

    def __init__(self, model: WorldModel, config: HILPConfig) -> None:
        features = model.latent_dim * model.tokens
        super().__init__(features, features, config.width, config.layers, config.space)

    def forward(self, latent_BKD: Tensor) -> Tensor:
        """point_BE."""
        point_BE: Tensor = self.net(self.scaled(latent_BKD))
        return point_BE


class Guided(LatentHead):
    """A head over a latent and further numbers: a direction, and for the critics a block."""

    def __init__(self, model: WorldModel, size: HeadSize, extra: int, outputs: int) -> None:
        features = model.latent_dim * model.tokens
        super().__init__(features, features + extra, size.width, size.layers, outputs)

    def forward(self, latent_BKD: Tensor, *extra_BX: Tensor) -> Tensor:
        """(B, outputs), or (B,) for a single output."""
        answer: Tensor = self.net(torch.cat([self.scaled(latent_BKD), *extra_BX], -1))
        return answer.squeeze(-1) if answer.shape[-1] == 1 else answer


def hilbert_value(point_BE: Tensor, goal_BE: Tensor) -> Tensor:
    """Minus the distance of points of the space; at least 0.001 away, so that its gradient is finite."""
    return -(point_BE - goal_BE).square().sum(-1).clamp(min=1e-6).sqrt()


def directions(point_BE: Tensor, goal_BE: Tensor) -> Tensor:
    """Unit vectors from points to goals; 0 where they coincide."""
    way_BE = goal_BE - point_BE
    return way_BE / way_BE.norm(dim=-1, keepdim=True).clamp(min=1e-6)


def progress(point_BE: Tensor, next_BE: Tensor, direction_BE: Tensor) -> Tensor:
    """(B,) how far a block moved along a direction: the policy's reward (paper, eq. 8)."""
    return ((next_BE - point_BE) * direction_BE).sum(-1)


def build_hilp(model: WorldModel, config: HILPConfig) -> HeadGroup:
    """The untrained phis, critics, value and actor."""
    space, block = config.space, model.action_dim
    parts: dict[str, nn.Module] = {name: Phi(model, config) for name in PHIS}
    parts |= {name: Guided(model, config, space + block, 1) for name in CRITICS}
    return HeadGroup(parts | {"value": Guided(model, config, space, 1), "actor": Guided(model, config, space, block)})


def distances(group: HeadGroup, latent_BKD: Tensor, goal_BKD: Tensor) -> Tensor:
    """value_VB of both phis."""
    return torch.stack([hilbert_value(group[name](latent_BKD), group[name](goal_BKD)) for name in PHIS])


def fit_hilp(config: HILPConfig, fit: Fit) -> tuple[HeadGroup, float]:
    """The trained phis, critics, value and actor, and the seconds it took, see `fit_head`."""
    head = build_hilp(fit.model, config).to(fit.model.device)
    target = HeadGroup({name: copy.deepcopy(head[name]) for name in (*PHIS, *CRITICS)})

    def begin(recorded: Recorded) -> StepLoss:
        data = GoalTransitions.of(fit.store, recorded, fit.model, config.discount)

        def loss(generator: torch.Generator) -> Tensor:
            batch = data.draw(config.batch, generator, config.nearness, elsewhere=config.elsewhere)
            with torch.no_grad():
                now_VB = distances(target, batch.latent_BKD, batch.goal_BKD)
                next_VB = distances(target, batch.next_BKD, batch.goal_BKD)
            value_VB = distances(head, batch.latent_BKD, batch.goal_BKD)
            space = value_loss(value_VB, now_VB, next_VB, batch, config.expectile)
            return space + guided_loss(head, target, batch, config, data.discount, generator)

        return loss

    def after_step() -> None:
        for name in (*PHIS, *CRITICS):
            follow(target[name], head[name], config.target_rate)

    return head, fit_head("hilp", config, fit, 24, {"head": head, "target": target}, begin, after_step)


def guided_loss(
    head: HeadGroup,
    target: HeadGroup,
    batch: GoalBatch,
    config: HILPConfig,
    discount: float,
    generator: torch.Generator,
) -> Tensor:
    """IQL of the policy along directions, some of which lead to the goals of the batch; nothing ends at a goal.

    discount: per block.
    """
    count, device = len(batch.reward_B), batch.reward_B.device
    with torch.no_grad():
        point_BE, next_BE, goal_BE = (head["phi_1"](x) for x in (batch.latent_BKD, batch.next_BKD, batch.goal_BKD))
        drawn_BE = torch.randn(count, config.space, generator=generator).to(device)
        led_B1 = (torch.rand(count, 1, generator=generator) < config.to_goals).to(device)
        direction_BE = torch.where(
            led_B1, directions(point_BE, goal_BE), directions(torch.zeros_like(drawn_BE), drawn_BE)
        )
        target_B = progress(point_BE, next_BE, direction_BE) + discount * head["value"](batch.next_BKD, direction_BE)
        best_B = members(target, CRITICS, batch.latent_BKD, direction_BE, batch.action_BA).min(0).values
    value_B = head["value"](batch.latent_BKD, direction_BE)
    quality_QB = members(head, CRITICS, batch.latent_BKD, direction_BE, batch.action_BA)
    mean_BA = head["actor"](batch.latent_BKD, direction_BE)
    error_B = half_squared_error(mean_BA, batch.action_BA, torch.ones_like(mean_BA))
    return (
        expectile_loss(best_B, value_B, config.policy_expectile)
        + critic_loss(quality_QB, target_B)
        + advantage_weighted(error_B, best_B - value_B, config.temperature)
    )


def act_by_hilp(networks: nn.Module, checkpoint: Checkpoint, latent_BKD: Tensor, goal_BKD: Tensor) -> Tensor:
    """The raw block (B, A) along the straight line to the goal."""
    phi, actor = networks.get_submodule("phi_1"), networks.get_submodule("actor")
    return raw_block(checkpoint.model, actor(latent_BKD, directions(phi(latent_BKD), phi(goal_BKD))))

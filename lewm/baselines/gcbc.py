"""GCBC, goal-conditioned behaviour cloning: do what the recording did before it saw the goal.

Ghosh et al. 2021 (arXiv 1912.06088), Lynch et al. 2020 (1903.01973); settings after OGBench (Park et al. 2025,
2410.20092) where a field says so.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lewm.baselines.goal_data import GoalBatch, GoalTransitions
from lewm.baselines.heads import Actor, check_settings, half_squared_error
from lewm.heads_training import Fit, HeadGroup, Recorded, StepLoss, fit_head
from lewm.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class GCBCMethod:
    """Acts as the policy that `lewm train-baseline gcbc` fitted."""

    name: str = "gcbc"
    """Name in tables."""
    kind: Literal["gcbc"] = "gcbc"
    """Which kind of method this is."""
    path: str
    """Folder that `lewm train-baseline` wrote, relative to the working directory."""


@dataclass(frozen=True)
class GCBCConfig:
    """How the policy is built and trained."""

    width: int = 256
    """Hidden units per layer (OGBench: 512)."""
    layers: int = 3
    """Hidden layers (OGBench: 3)."""
    steps: int = 2000
    """Optimiser steps (OGBench: 500,000 from pixels)."""
    batch: int = 512
    """Blocks per step (OGBench: 1024, and 256 from pixels)."""
    learning_rate: float = 1e-3
    """Peak learning rate, cosine to zero (OGBench: 3e-4, constant)."""
    nearness: float = 1.0
    """Goals lie at a share u^nearness of what is left of the episode, u uniform: 1 draws them evenly (OGBench)."""

    def __post_init__(self) -> None:
        check_settings("gcbc", self)


def gcbc_loss(mean_BA: Tensor, batch: GoalBatch) -> Tensor:
    """Half the squared error of the actions on the way to the goal, mean over entries and blocks."""
    return half_squared_error(mean_BA, batch.action_BA, batch.known_BA).mean()


def build_gcbc(model: WorldModel, config: GCBCConfig) -> HeadGroup:
    """The untrained actor."""
    return HeadGroup({"actor": Actor(model, config)})


def fit_gcbc(config: GCBCConfig, fit: Fit) -> tuple[HeadGroup, float]:
    """The trained actor and the seconds it took, see `fit_head`."""
    head = build_gcbc(fit.model, config).to(fit.model.device)

    def begin(recorded: Recorded) -> StepLoss:
        data = GoalTransitions.of(fit.store, recorded, fit.model)

        def loss(generator: torch.Generator) -> Tensor:
            batch = data.draw(config.batch, generator, config.nearness)
            return gcbc_loss(head["actor"](batch.latent_BKD, batch.goal_BKD), batch)

        return loss

    return head, fit_head("gcbc", config, fit, 21, {"head": head}, begin)

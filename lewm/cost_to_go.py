"""The learned distance between latents: how many blocks from here until the goal picture is seen.

Latent L2 knows neither walls nor dynamics. A cost-to-go head does: it is fitted after the world model, on the frozen
latents of the same recordings, by expectile temporal-difference learning (the offline shortest-path view of implicit
Q-learning, Kostrikov et al. 2021), and any model can be given one later.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lewm.data.store import Store
from lewm.heads_training import Fit, HindsightPairs, PairHead, Recorded, StepLoss, fit_head, follow
from lewm.training_loop import step_seed
from lewm.world_model import WorldModel


@dataclass(frozen=True)
class CostToGoConfig:
    """How the cost-to-go head is built and trained."""

    width: int = 256
    """Hidden units per layer."""
    layers: int = 2
    """Hidden layers."""
    steps: int = 4000
    """Optimiser steps; 0 trains none."""
    batch: int = 512
    """Transitions per step."""
    learning_rate: float = 1e-3
    """Peak learning rate, cosine to zero."""
    expectile: float = 0.9
    """Weight on over-estimates (0.5 averages over the recorded behaviour, towards 1 it follows the fastest)."""
    hindsight: float = 0.5
    """Share of goals taken later from the same episode; the others are frames of any episode."""
    nearness: float = 2.0
    """Hindsight goals lie at a share u^nearness of what is left of the episode, u uniform: 1 draws them evenly, more
    prefers the near ones, where a fraction of a block decides between reached and missed."""
    target_rate: float = 0.01
    """How fast the target head follows, per step."""
    horizon: float = 60.0
    """Largest distance in blocks: targets are clipped there."""

    def __post_init__(self) -> None:
        if self.nearness <= 0:
            raise ValueError(f"cost_to_go.nearness is {self.nearness}; it must be positive")
        for name in ("width", "layers", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"cost_to_go.{name} is {getattr(self, name)}; it must be at least 1")
        if self.steps < 0:
            raise ValueError(f"cost_to_go.steps is {self.steps}; it must be 0 or more")
        if not 0.5 <= self.expectile < 1:
            raise ValueError(f"cost_to_go.expectile is {self.expectile}; it must lie in [0.5, 1)")
        if not 0 <= self.hindsight <= 1:
            raise ValueError(f"cost_to_go.hindsight is {self.hindsight}; it must lie in [0, 1]")


class CostToGo(PairHead):
    """d(z, z_goal) >= 0 in blocks, over flattened tokens.

    Its first layer has 3 x K x D x width weights, and fitting holds K x D floats of every training frame: 16 tokens of
    384 are 4.7 million weights at width 256 and 24 kB per frame, 256 tokens are 75 million and 393 kB. Keep
    `encoder.grid` of a frozen encoder small, or plan with a latent distance.
    """

    def __init__(self, config: CostToGoConfig, latent_dim: int, tokens: int) -> None:
        super().__init__(latent_dim * tokens, config.width, config.layers, outputs=1)
        self.config = config

    def forward(self, latent_KD: Tensor, goal_KD: Tensor) -> Tensor:
        """Blocks from latent (..., K, D) to goal (..., K, D), broadcast over the leading axes."""
        return F.softplus(self.net(self.pair(latent_KD, goal_KD))).squeeze(-1)


def expectile_loss(distance: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Squared error, `expectile` of the weight on over-estimates: the smaller of the distances seen wins."""
    error = distance - target
    return (torch.where(error > 0, expectile, 1 - expectile) * error.square()).mean()


class Transitions:
    """Draws (z, z', goal, recorded distance) from the latents of whole episodes, at every raw environment step."""

    def __init__(self, latent_FKD: Tensor, goal_FKD: Tensor, lengths: np.ndarray, frame_skip: int) -> None:
        self.latent_FKD, self.goal_FKD, self.skip = latent_FKD, goal_FKD, frame_skip
        self.pairs = HindsightPairs(lengths, frame_skip)

    def draw(
        self, count: int, hindsight: float, generator: torch.Generator, nearness: float = 1.0
    ) -> tuple[Tensor, ...]:
        """latent, next latent, goal (B, K, D each), and the recorded distance in blocks (inf for random goals).

        A share `hindsight` of the goals are frames of the same episode, from the present one (distance 0) to its last.
        """
        now, ahead = self.pairs.draw(count, generator, nearness)
        own = torch.rand(count, generator=generator) < hindsight
        goal = torch.where(own, now + ahead, torch.randint(len(self.goal_FKD), (count,), generator=generator))
        recorded = torch.where(own, ahead / self.skip, torch.inf)
        device = self.latent_FKD.device
        now, goal, recorded = now.to(device), goal.to(device), recorded.to(device)
        return self.latent_FKD[now], self.latent_FKD[now + self.skip], self.goal_FKD[goal], recorded


def td_loss(head: CostToGo, target_head: CostToGo, sample: tuple[Tensor, ...], config: CostToGoConfig) -> Tensor:
    """Expectile TD loss of one draw.

    Target: one block plus the target head's distance from the next latent, but never more than the recording itself
    took (a goal passed within the block is a fraction of a block away).
    """
    latent, following, goal, recorded = sample
    with torch.no_grad():
        bootstrap = 1 + target_head(following, goal)
        target = torch.minimum(bootstrap, recorded).clamp(max=config.horizon)
    return expectile_loss(head(latent, goal), target, config.expectile)


def train_cost_to_go(
    model: WorldModel,
    config: CostToGoConfig,
    store: Store,
    out: Path,
    held_out: float,
    seed: int,
    quiet: bool = False,
) -> CostToGo:
    """Fit a cost-to-go head for a trained model on the training episodes of `store`; resumes like `train`.

    Raises RuntimeError when the loss is not finite.
    """
    torch.manual_seed(step_seed(seed, 0, 7))
    head, target_head = (CostToGo(config, model.latent_dim, model.tokens).to(model.device) for _ in range(2))
    target_head.load_state_dict(head.state_dict())

    def begin(recorded: Recorded) -> StepLoss:
        data = Transitions(recorded.latent_FKD, recorded.goal_FKD, recorded.lengths, model.config.frame_skip)
        return lambda generator: td_loss(
            head, target_head, data.draw(config.batch, config.hindsight, generator, config.nearness), config
        )

    fit = Fit(model, store, out, held_out, seed, quiet)
    parts = {"head": head, "target": target_head}
    fit_head("cost_to_go", config, fit, 8, parts, begin, lambda: follow(target_head, head, config.target_rate))
    return head.eval().requires_grad_(False)

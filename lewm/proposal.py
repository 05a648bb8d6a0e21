"""The learned proposal: which actions the recordings would take from here to the goal picture, in so many blocks.

A goal-conditioned inverse model (GC-IDM, arXiv 2605.08732) with a Gaussian per action (PRISM, arXiv 2606.07974), fitted
by hindsight on the frozen latents of the same recordings. It acts alone, seeds a search or narrows it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lewm.data.store import Store
from lewm.heads_training import Fit, HindsightPairs, PairHead, Recorded, StepLoss, fit_head
from lewm.training_loop import step_seed
from lewm.world_model import WorldModel


@dataclass(frozen=True)
class ProposalConfig:
    """How the proposal is built and trained."""

    width: int = 256
    """Hidden units per layer."""
    layers: int = 3
    """Hidden layers."""
    horizon: int = 5
    """Blocks it proposes."""
    steps: int = 0
    """Optimiser steps; 0 trains none."""
    batch: int = 512
    """Pairs of frame and goal per step."""
    learning_rate: float = 1e-3
    """Peak learning rate, cosine to zero."""
    nearness: float = 1.5
    """Goals lie at a share u^nearness of what is left of the episode, u uniform: more prefers the near ones."""
    beta: float = 0.5
    """Power of the variance that weighs an action's likelihood: 0 leaves it as it is, 1 fits the mean as a squared
    error does (beta-NLL, Seitzer et al. 2022)."""
    min_std: float = 0.05
    """Smallest std of a proposed action, in units of the recordings' std."""
    blocks_left: float = 8.0
    """Blocks assumed left to the goal where the checkpoint has no cost-to-go head that says it."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "horizon", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"proposal.{name} is {getattr(self, name)}; it must be at least 1")
        if self.steps < 0:
            raise ValueError(f"proposal.steps is {self.steps}; it must be 0 or more")
        for name in ("learning_rate", "nearness", "min_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"proposal.{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"proposal.beta is {self.beta}; it must lie in [0, 1]")
        if not self.blocks_left >= 1:
            raise ValueError(f"proposal.blocks_left is {self.blocks_left}; it must be at least 1")


class Proposal(PairHead):
    """A Gaussian over the next action blocks, given a frame, a goal and the blocks left between them."""

    longest: Tensor

    def __init__(self, config: ProposalConfig, latent_dim: int, tokens: int, action_dim: int) -> None:
        outputs = 2 * config.horizon * action_dim
        super().__init__(latent_dim * tokens, config.width, config.layers, outputs, extra=2)
        self.config = config
        self.register_buffer("longest", torch.ones(()))

    def forward(self, latent_BKD: Tensor, goal_BKD: Tensor, left_B: Tensor) -> tuple[Tensor, Tensor]:
        """mean_BHA and std_BHA of the next blocks, in units of `WorldModel.scale_action`.

        left_B: blocks left to the goal, positive; more than the longest recording counts as that.
        """
        left_B1 = left_B.minimum(self.longest)[:, None]
        features = torch.cat([self.pair(latent_BKD, goal_BKD), left_B1.log(), 1 / (1 + left_B1)], -1)
        return gaussian(self.net(features).unflatten(-1, (2, self.config.horizon, -1)), self.config.min_std, -3)


def gaussian(answer: Tensor, min_std: float, dim: int = -2) -> tuple[Tensor, Tensor]:
    """Mean and std, at least `min_std`, of a head's answer whose axis `dim` holds one half for each."""
    mean, raw = answer.unbind(dim)
    return mean, min_std + F.softplus(raw)


def beta_nll(mean: Tensor, std: Tensor, target: Tensor, known: Tensor, beta: float) -> Tensor:
    """Gaussian negative log-likelihood without its constant, weighed by variance^beta, mean over the known entries.

    The weight carries no gradient, so entries of large variance are not neglected (Seitzer et al. 2022, eq. 5).
    """
    variance = std.square()
    likelihood = 0.5 * (variance.log() + (target - mean).square() / variance)
    weighted = variance.detach() ** beta * likelihood
    return (weighted * known).sum() / known.sum()


class Demonstrations:
    """Draws frames, goals seen later in the same episode, and the actions recorded between them."""

    def __init__(self, recorded: Recorded, action_Fa: Tensor, frame_skip: int, horizon: int) -> None:
        self.recorded, self.action_Fa = recorded, action_Fa
        self.pairs = HindsightPairs(recorded.lengths, frame_skip)
        self.skip, self.horizon = frame_skip, horizon

    def draw(self, count: int, nearness: float, generator: torch.Generator) -> tuple[Tensor, ...]:
        """latent_BKD, goal_BKD, left_B in blocks, raw action_BHA, and known_BHA.

        An action is known when it was taken before the goal was seen, and so also before the episode ended.
        """
        now, ahead = self.pairs.draw(count, generator, nearness)
        ahead = ahead.clamp(min=1)
        step = torch.arange(self.horizon * self.skip)
        last = len(self.action_Fa) - 1
        device = self.action_Fa.device
        action = self.action_Fa[(now[:, None] + step).clamp(max=last).to(device)]
        known = (step < ahead[:, None]).to(device)[..., None].expand_as(action)
        shape_BHA = (count, self.horizon, -1)
        left = (ahead / self.skip).to(device)
        latent, goal = self.recorded.latent_FKD[now.to(device)], self.recorded.goal_FKD[(now + ahead).to(device)]
        return latent, goal, left, action.reshape(shape_BHA), known.reshape(shape_BHA)


def recorded_actions(store: Store, episodes: np.ndarray) -> Tensor:
    """action_Fa: the raw action that leaves each frame of the episodes; nothing leaves a last frame, where it is 0."""
    actions = [np.pad(store.actions(int(episode)), ((0, 1), (0, 0))) for episode in episodes]
    return torch.from_numpy(np.concatenate(actions))


def train_proposal(
    model: WorldModel,
    config: ProposalConfig,
    store: Store,
    out: Path,
    held_out: float,
    seed: int,
    quiet: bool = False,
) -> Proposal:
    """Fit a proposal for a trained model on the training episodes of `store`; resumes like `train`.

    Raises RuntimeError when the loss is not finite.
    """
    return fit_proposal(config, Fit(model, store, out, held_out, seed, quiet))[0]


def fit_proposal(config: ProposalConfig, fit: Fit) -> tuple[Proposal, float]:
    """As `train_proposal`, and the seconds it took, see `fit_head`."""
    model = fit.model
    torch.manual_seed(step_seed(fit.seed, 0, 9))
    head = Proposal(config, model.latent_dim, model.tokens, model.action_dim).to(model.device)

    def begin(recorded: Recorded) -> StepLoss:
        skip = model.config.frame_skip
        actions = recorded_actions(fit.store, recorded.episodes).to(model.device)
        data = Demonstrations(recorded, actions, skip, config.horizon)
        head.longest.fill_(recorded.lengths.max() / skip)

        def loss(generator: torch.Generator) -> Tensor:
            latent, goal, left, action, known = data.draw(config.batch, config.nearness, generator)
            mean, std = head(latent, goal, left)
            return beta_nll(mean, std, model.scale_action(action), known, config.beta)

        return loss

    seconds = fit_head("proposal", config, fit, 10, {"head": head}, begin)
    return head.eval().requires_grad_(False), seconds

"""TD-MPC2 with goals, offline: heads for reward, value and policy on the frozen world model, and what they learn.

Hansen et al. 2024 (arXiv 2310.16828) learn encoder, dynamics and these heads together, online, for rewards of a task.
Here encoder and dynamics are the checkpoint's and stay as they are (its consistency loss has nothing left to do), the
reward is minus the time to the goal (hindsight goals as in GCIQL), and the policy is held near the recorded actions
instead of at an entropy: with nobody to try what the critics overrate, this is what offline variants need (TD3+BC,
Fujimoto and Gu 2021, 2106.06860; for TD-MPC2 Lin et al. 2025, 2502.03550). How it plans: `lewm.baselines.tdmpc2_agent`.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lewm.baselines.gciql import ddpg_bc_loss
from lewm.baselines.goal_data import GoalBatch, GoalTransitions
from lewm.baselines.heads import (
    check_goal_shares,
    check_settings,
    frozen,
    members,
    raw_block,
    scaled_bounds,
    weighted_mean,
)
from lewm.baselines.two_hot import expected, two_hot_loss
from lewm.checkpoint import Checkpoint
from lewm.heads_training import Fit, HeadGroup, PairHead, Recorded, StepLoss, fit_head, follow
from lewm.proposal import beta_nll, gaussian
from lewm.world_model import WorldModel
from planners import MPPI, PlannerConfig

LARGEST = 10.0
"""The bins reach so far in symlog, to values of 22,025 (TD-MPC2)."""


def default_planner() -> MPPI:
    """TD-MPC2's search, except that the first std is the recordings' and not twice the action range."""
    return MPPI(
        horizon=3,
        candidates=512,
        iterations=6,
        elites=64,
        temperature=2.0,
        warm_std=1.0,
        keep_mean=False,
        keep_seeds=True,
    )


@dataclass(frozen=True, kw_only=True)
class TDMPC2Method:
    """Plans with the heads that `lewm train-baseline tdmpc2` fitted, in the checkpoint's world model."""

    name: str = "tdmpc2"
    """Name in tables."""
    kind: Literal["tdmpc2"] = "tdmpc2"
    """Which kind of method this is."""
    path: str
    """Folder that `lewm train-baseline` wrote, relative to the working directory."""
    planner: PlannerConfig | None = field(default_factory=default_planner)
    """Search over action blocks; null executes the policy alone."""
    policy_samples: int = 24
    """Candidates that the policy plays out in the world model, the first of them without noise."""

    def __post_init__(self) -> None:
        most = self.policy_samples if self.planner is None else self.planner.candidates
        if not 0 <= self.policy_samples <= most:
            raise ValueError(
                f"method {self.name}: policy_samples is {self.policy_samples}; it must lie in 0..{most}, the "
                "planner's candidates"
            )


@dataclass(frozen=True)
class TDMPC2Config:
    """How the heads are built and trained."""

    width: int = 256
    """Hidden units per layer (paper: 512)."""
    layers: int = 2
    """Hidden layers."""
    critics: int = 5
    """Members of the ensemble of values."""
    bins: int = 101
    """Bins of the discrete regression of rewards and values."""
    horizon: int = 3
    """Blocks in a row that are learned from, the later ones from latents that the world model imagines."""
    decay: float = 0.5
    """Weight of a block over that of the block before it (rho)."""
    steps: int = 2000
    """Optimiser steps."""
    batch: int = 128
    """Rows of blocks per step, for the critics and again for the policy (paper: 256)."""
    learning_rate: float = 1e-3
    """Peak learning rate, cosine to zero (paper: 3e-4, constant)."""
    discount: float = 0.99
    """Discount per environment step."""
    cloning: float = 0.3
    """Weight of the recorded actions in the policy, beside Q in units of its mean size (GCIQL's)."""
    min_std: float = 0.05
    """Smallest std of the policy, in units of the recordings' std."""
    target_rate: float = 0.01
    """How fast the target critics follow, per step."""
    current: float = 0.2
    """Share of the critics' goals that are the present frame itself."""
    elsewhere: float = 0.3
    """Share of the critics' goals that are frames of any episode; the others come later in the same one."""
    nearness: float = 2.0
    """The critics' hindsight goals lie at a share u^nearness of what is left of the episode, u uniform; the policy's
    are drawn evenly."""

    def __post_init__(self) -> None:
        check_settings("tdmpc2", self, ("discount", "target_rate"))
        check_goal_shares("tdmpc2", self)
        for name, least in (("critics", 2), ("bins", 2), ("horizon", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"tdmpc2.{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"tdmpc2.decay is {self.decay}; it must lie in (0, 1]")
        if not self.min_std > 0:
            raise ValueError(f"tdmpc2.min_std is {self.min_std}; it must be positive")
        if self.cloning < 0:
            raise ValueError(f"tdmpc2.cloning is {self.cloning}; it must be 0 or more")


class Prospect(PairHead):
    """A number that a block is worth at a frame towards a goal: its reward, or its value.

    The last layer starts at 0, so that every number is 0 before training (TD-MPC2).
    """

    bin_K: Tensor

    def __init__(self, model: WorldModel, config: TDMPC2Config) -> None:
        features = model.latent_dim * model.tokens
        super().__init__(features, config.width, config.layers, config.bins, extra=model.action_dim)
        self.register_buffer("bin_K", torch.linspace(-LARGEST, LARGEST, config.bins))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def logits(self, latent_KD: Tensor, goal_KD: Tensor, action_A: Tensor) -> Tensor:
        """Over the bins, (..., bins), for scaled blocks (..., A)."""
        logit_K: Tensor = self.net(torch.cat([self.pair(latent_KD, goal_KD), action_A], -1))
        return logit_K

    def forward(self, latent_KD: Tensor, goal_KD: Tensor, action_A: Tensor) -> Tensor:
        """The number (...) itself."""
        return expected(self.logits(latent_KD, goal_KD, action_A), self.bin_K)

    def loss(self, latent_KD: Tensor, goal_KD: Tensor, action_A: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy (...) against targets (...)."""
        return two_hot_loss(self.logits(latent_KD, goal_KD, action_A), target, self.bin_K)


class GaussianActor(PairHead):
    """A Gaussian over the next block, in units of `WorldModel.scale_action`."""

    def __init__(self, model: WorldModel, config: TDMPC2Config) -> None:
        features = model.latent_dim * model.tokens
        super().__init__(features, config.width, config.layers, 2 * model.action_dim)
        self.min_std = config.min_std

    def forward(self, latent_KD: Tensor, goal_KD: Tensor) -> tuple[Tensor, Tensor]:
        """mean and std, (..., A) each."""
        return gaussian(self.net(self.pair(latent_KD, goal_KD)).unflatten(-1, (2, -1)), self.min_std)


class TDMPC2Heads(HeadGroup):
    """`reward`, the critics and `actor`, untrained."""

    def __init__(self, model: WorldModel, config: TDMPC2Config) -> None:
        self.critics = [f"critic_{number + 1}" for number in range(config.critics)]
        prospects: dict[str, nn.Module] = {name: Prospect(model, config) for name in ("reward", *self.critics)}
        super().__init__({**prospects, "actor": GaussianActor(model, config)})
        self.config = config


class Rows:
    """Draws rows of blocks towards one goal each, and imagines the latents between them."""

    def __init__(self, data: GoalTransitions, config: TDMPC2Config) -> None:
        self.data, self.config = data, config

    @torch.no_grad()
    def draw(
        self, generator: torch.Generator, nearness: float, current: float = 0.0, elsewhere: float = 0.0
    ) -> tuple[GoalBatch, Tensor]:
        """horizon x batch blocks, all first ones first, and weight_B: falling along a row, 0 once its goal was passed.

        A row's first latent is the encoder's, the others are where the world model believes the blocks lead. Latents
        after blocks, for the targets, are the encoder's.
        """
        config, model, skip = self.config, self.data.model, self.data.skip
        now, goal, steps = self.data.pick(config.batch, generator, nearness, current, elsewhere)
        block_H1 = torch.arange(config.horizon)[:, None]
        left_HB = steps - skip * block_H1
        rows = self.data.batch((now + skip * block_H1).flatten(), goal.repeat(config.horizon), left_HB.flatten())
        weight_HB = config.decay**block_H1 * ((left_HB > 0) | (block_H1 == 0))
        action_BHA = raw_block(model, rows.action_BA).unflatten(0, (config.horizon, -1)).transpose(0, 1)
        first_BKD, nothing = rows.latent_BKD[: config.batch], action_BHA[:, :0]
        future_BHKD = model.rollout(first_BKD[:, None], nothing, action_BHA[:, None, :-1])[:, 0]
        latent_BKD = torch.cat([first_BKD, future_BHKD.transpose(0, 1).flatten(0, 1)])
        return replace(rows, latent_BKD=latent_BKD), weight_HB.flatten().to(latent_BKD.device)


def prospect_loss(head: HeadGroup, names: list[str], rows: GoalBatch, weight_B: Tensor, target_B: Tensor) -> Tensor:
    """Cross-entropy of the rewards, plus that of the critics `names` against their targets, mean over critics."""
    places = rows.latent_BKD, rows.goal_BKD, rows.action_BA
    prospects = [("reward", rows.reward_B, 1.0), *((name, target_B, 1 / len(names)) for name in names)]
    total = torch.zeros((), device=weight_B.device)
    for name, wanted_B, share in prospects:
        prospect = head[name]
        assert isinstance(prospect, Prospect)
        total = total + share * weighted_mean(prospect.loss(*places, wanted_B), weight_B)
    return total


def fit_tdmpc2(config: TDMPC2Config, fit: Fit) -> tuple[TDMPC2Heads, float]:
    """The trained reward, critics and actor, and the seconds it took, see `fit_head`.

    Raises ValueError for recordings of fewer than `horizon` blocks.
    """
    model, head = fit.model, TDMPC2Heads(fit.model, config).to(fit.model.device)
    names = head.critics
    target = HeadGroup({name: copy.deepcopy(head[name]) for name in names})
    low_A, high_A = scaled_bounds(model)

    def begin(recorded: Recorded) -> StepLoss:
        skip, longest = model.config.frame_skip, int(recorded.lengths.max())
        if longest < config.horizon * skip:
            raise ValueError(
                f"tdmpc2.horizon is {config.horizon} blocks of {skip} steps, but the longest recording has {longest}: "
                "lower it"
            )
        data = Rows(GoalTransitions.of(fit.store, recorded, model, config.discount, config.horizon), config)

        def loss(generator: torch.Generator) -> Tensor:
            rows, weight_B = data.draw(generator, config.nearness, config.current, config.elsewhere)
            two = [names[i] for i in torch.randperm(len(names), generator=generator)[:2]]
            with torch.no_grad():
                next_BA = head["actor"](rows.next_BKD, rows.goal_BKD)[0].clamp(low_A, high_A)
                lower_B = members(target, two, rows.next_BKD, rows.goal_BKD, next_BA).min(0).values
            learned = prospect_loss(head, names, rows, weight_B, rows.outcome(lower_B))

            rows, weight_B = data.draw(generator, nearness=1.0)
            mean_BA, std_BA = head["actor"](rows.latent_BKD, rows.goal_BKD)
            tried_BA = mean_BA.clamp(low_A, high_A)
            quality = [frozen(head[name], rows.latent_BKD, rows.goal_BKD, tried_BA) for name in two]
            known_BA = rows.known_BA * weight_B[:, None]
            # beta 1: the mean has the gradient of a squared error. Values are those of the mean; what the std spreads,
            # as wide as the recordings, is for planning to try.
            cloned = beta_nll(mean_BA, std_BA, rows.action_BA, known_BA, beta=1.0)
            return learned + ddpg_bc_loss(torch.stack(quality), cloned, config.cloning, weight_B)

        return loss

    def after_step() -> None:
        for name in names:
            follow(target[name], head[name], config.target_rate)

    return head, fit_head("tdmpc2", config, fit, 25, {"head": head, "target": target}, begin, after_step)


def act_by_gaussian_actor(networks: nn.Module, checkpoint: Checkpoint, latent_BKD: Tensor, goal_BKD: Tensor) -> Tensor:
    """The raw block (B, A) that the group's actor holds likeliest."""
    mean_BA, _ = networks.get_submodule("actor")(latent_BKD, goal_BKD)
    return raw_block(checkpoint.model, mean_BA)

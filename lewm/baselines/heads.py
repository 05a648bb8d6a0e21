"""What the offline baselines share: networks over latents, the terms of their losses, how one acts.

Deviations from OGBench's networks, for a CPU: narrower layers, SiLU and no layer norm, standardised latents as input.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lewm.checkpoint import Checkpoint
from lewm.heads_training import HeadGroup, PairHead
from lewm.world_model import WorldModel

LARGEST_WEIGHT = 100.0
"""No sample counts more than this in advantage-weighted regression (IQL, Kostrikov et al. 2021, section 4.3)."""


class HeadSize(Protocol):
    """The settings of a baseline that say how large its networks are."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...


def check_settings(kind: str, config: Any, shares: Sequence[str] = ()) -> None:
    """Raise ValueError for sizes below 1, numbers that must be positive, and shares outside (0, 1)."""
    for name in ("width", "layers", "steps", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"{kind}.{name} is {getattr(config, name)}; it must be at least 1")
    for name in ("learning_rate", "nearness"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{kind}.{name} is {getattr(config, name)}; it must be positive")
    for name in shares:
        if not 0 < getattr(config, name) < 1:
            raise ValueError(f"{kind}.{name} is {getattr(config, name)}; it must lie between 0 and 1")


class GoalShares(Protocol):
    """Settings of a method whose goals come from three places."""

    @property
    def current(self) -> float:
        """Share of the goals that are the present frame."""

    @property
    def elsewhere(self) -> float:
        """Share of the goals that are frames of any episode."""


def check_goal_shares(kind: str, config: GoalShares) -> None:
    """Raise ValueError unless `current` and `elsewhere` leave a share of 0 or more for goals of the same episode."""
    if not (config.current >= 0 and config.elsewhere >= 0 and config.current + config.elsewhere <= 1):
        raise ValueError(
            f"{kind}.current is {config.current} and {kind}.elsewhere {config.elsewhere}; they are shares of one whole"
        )


class Actor(PairHead):
    """Mean of a Gaussian of unit std over the next block, in units of `WorldModel.scale_action`."""

    def __init__(self, model: WorldModel, size: HeadSize) -> None:
        super().__init__(model.latent_dim * model.tokens, size.width, size.layers, model.action_dim)

    def forward(self, latent_BKD: Tensor, goal_BKD: Tensor) -> Tensor:
        """mean_BA."""
        mean_BA: Tensor = self.net(self.pair(latent_BKD, goal_BKD))
        return mean_BA


class Value(PairHead):
    """V(z, goal): minus the discounted blocks to the goal."""

    def __init__(self, model: WorldModel, size: HeadSize) -> None:
        super().__init__(model.latent_dim * model.tokens, size.width, size.layers, 1)

    def forward(self, latent_BKD: Tensor, goal_BKD: Tensor) -> Tensor:
        """value_B."""
        value_B: Tensor = self.net(self.pair(latent_BKD, goal_BKD)).squeeze(-1)
        return value_B


def members(group: HeadGroup, names: Sequence[str], *inputs: Tensor) -> Tensor:
    """What the named heads answer, stacked: (heads, B)."""
    return torch.stack([group[name](*inputs) for name in names])


def weighted_mean(value_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Mean by weight; without weights all count alike."""
    return value_B.mean() if weight_B is None else (weight_B * value_B).sum() / weight_B.sum()


def frozen(head: nn.Module, *inputs: Tensor) -> Tensor:
    """What a head answers, with gradients to the inputs and none to its weights."""
    answer: Tensor = functional_call(head, {name: p.detach() for name, p in head.named_parameters()}, inputs)
    return answer


def half_squared_error(mean_BA: Tensor, action_BA: Tensor, known_BA: Tensor) -> Tensor:
    """(B,) minus the log-likelihood per known entry under a unit Gaussian, without its constant.

    OGBench sums over the entries; the mean leaves temperatures and weights what they are for any block length.
    """
    return 0.5 * ((mean_BA - action_BA).square() * known_BA).sum(-1) / known_BA.sum(-1).clamp(min=1)


def advantage_weighted(error_B: Tensor, advantage_B: Tensor, temperature: float) -> Tensor:
    """Advantage-weighted regression: mean of exp(temperature x advantage), at most `LARGEST_WEIGHT`, times the error.

    No gradient goes through the weight (AWR, Peng et al. 2019; IQL, eq. 7).
    """
    weight_B = (temperature * advantage_B.detach()).exp().clamp(max=LARGEST_WEIGHT)
    return (weight_B * error_B).mean()


def scaled_bounds(model: WorldModel) -> tuple[Tensor, Tensor]:
    """Bounds of a block in the units of `WorldModel.scale_action`."""
    skip, device = model.config.frame_skip, model.device
    low = torch.tensor(model.facts.action_low).repeat(skip).to(device)
    high = torch.tensor(model.facts.action_high).repeat(skip).to(device)
    return model.scale_action(low), model.scale_action(high)


def raw_block(model: WorldModel, scaled_BA: Tensor) -> Tensor:
    """The inverse of `WorldModel.scale_action`."""
    return torch.addcmul(model.action_mean_A, model.action_std_A, scaled_BA)


def act_by_actor(networks: nn.Module, checkpoint: Checkpoint, latent_BKD: Tensor, goal_BKD: Tensor) -> Tensor:
    """The raw block (B, A) that the group's actor holds likeliest."""
    return raw_block(checkpoint.model, networks.get_submodule("actor")(latent_BKD, goal_BKD))

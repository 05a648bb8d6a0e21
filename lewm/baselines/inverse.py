"""GC-IDM, the goal-conditioned inverse model: which block leads from this frame to that goal in so many blocks.

It is the learned proposal (`lewm.proposal`) fitted as arXiv 2605.08732 does, one block and its mean by squared error,
and kept in a folder of its own; nothing is learned here that is not learned there.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lewm.checkpoint import Checkpoint
from lewm.planning.action_limits import action_box
from lewm.planning.informed_start import propose
from lewm.proposal import Proposal, ProposalConfig
from lewm.world_model import WorldModel

GC_IDM = ProposalConfig(horizon=1, steps=2000, beta=1.0)
"""Defaults of `lewm train-baseline inverse` (paper: three layers of 512, 20 minutes of training on a GPU)."""


@dataclass(frozen=True, kw_only=True)
class InverseMethod:
    """Acts as the inverse model that `lewm train-baseline inverse` fitted."""

    name: str = "inverse"
    """Name in tables."""
    kind: Literal["inverse"] = "inverse"
    """Which kind of method this is."""
    path: str
    """Folder that `lewm train-baseline` wrote, relative to the working directory."""


def build_inverse(model: WorldModel, config: ProposalConfig) -> Proposal:
    """The untrained inverse model."""
    return Proposal(config, model.latent_dim, model.tokens, model.action_dim)


def act_by_inverse(networks: nn.Module, checkpoint: Checkpoint, latent_BKD: Tensor, goal_BKD: Tensor) -> Tensor:
    """The raw block (B, A); blocks left are what the checkpoint's cost-to-go head says, see `propose`."""
    assert isinstance(networks, Proposal)
    mean_BHA, _ = propose(networks, checkpoint.cost_to_go, latent_BKD, goal_BKD, action_box(checkpoint.model), 1)
    return mean_BHA[:, 0]

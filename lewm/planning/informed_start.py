"""Where a search starts when the checkpoint has a learned proposal: with it as a seed, or narrowed by it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lewm.checkpoint import Checkpoint
from lewm.cost_to_go import CostToGo
from lewm.proposal import Proposal
from planners import ActionBox, CostFn, Need, Plan, Planner, WarmStart
from planners.prior import product_of_gaussians

ProposalUse = Literal["none", "seed", "prior"]
"""none: the search starts as if there were no proposal. seed: the proposed actions are one more candidate of its first
iteration. prior: the search's first Gaussian is also multiplied with the proposal's."""


def check_proposal(use: ProposalUse, checkpoint: Checkpoint) -> None:
    """Raise ValueError when a proposal is to be used and the checkpoint has none."""
    if use != "none" and checkpoint.proposal is None:
        raise ValueError(
            f"proposal is {use!r}, but {checkpoint.path} has none: use 'none', or fit one with "
            f"`lewm train RUN --proposal-only {checkpoint.path} --proposal.steps 4000 --out OUT`"
        )


def propose(
    proposal: Proposal, head: CostToGo | None, latent_BKD: Tensor, goal_BKD: Tensor, box: ActionBox, horizon: int
) -> tuple[Tensor, Tensor]:
    """The proposal's mean_BHA, inside the box, and std_BHA for `horizon` blocks, raw action units.

    Blocks left are what the cost-to-go head says, at least 1, or the proposal's `blocks_left` where there is no head.
    Beyond them, and beyond the proposal's own horizon, it knows nothing: there the mean is the box's and std is inf.
    """
    if head is None:
        left_B = torch.full_like(latent_BKD[:, 0, 0], proposal.config.blocks_left)
    else:
        left_B = head(latent_BKD, goal_BKD).clamp(min=1)
    scaled_BHA, scaled_std_BHA = proposal(latent_BKD, goal_BKD, left_B)
    B, H, A = scaled_BHA.shape
    step_HA = torch.arange(H * box.steps, device=left_B.device).repeat_interleave(A // box.steps).view(H, A)
    known_BHA = step_HA < box.steps * left_B[:, None, None]
    mean_BHA = torch.addcmul(box.mean_A, box.std_A, scaled_BHA).clamp(box.low_A, box.high_A)
    mean_BHA = mean_BHA.where(known_BHA, box.mean_A)
    std_BHA = (box.std_A * scaled_std_BHA).where(known_BHA, torch.inf)
    beyond_BHA = box.mean_A.expand(B, max(0, horizon - H), A)
    mean_BHA = torch.cat([mean_BHA[:, :horizon], beyond_BHA], 1)
    return mean_BHA, torch.cat([std_BHA[:, :horizon], torch.full_like(beyond_BHA, torch.inf)], 1)


def seeded_start(start: WarmStart | None, seeds_BSHA: Tensor, planner: Planner, box: ActionBox) -> WarmStart:
    """The start of a search that also scores seeds, before those it has.

    The search's own Gaussian is the one it would have started with: around the warm start or the centre of the box, as
    wide as the planner's `warm_std` or `initial_std` says (0.5 and 1, CEM's, for planners without that setting).
    """
    shape_BHA = seeds_BSHA[:, 0]
    if start is None:
        start = WarmStart(box.mean_A.expand_as(shape_BHA))
        scale: float = getattr(planner, "initial_std", 1.0)
    else:
        scale = getattr(planner, "warm_std", 0.5)
    std_BHA = start.std_BHA
    if std_BHA is None:
        std_BHA = (scale * box.std_A).expand_as(shape_BHA)
    if start.seeds_BSHA is not None:
        seeds_BSHA = torch.cat([seeds_BSHA, start.seeds_BSHA], 1)
    return WarmStart(start.mean_BHA, std_BHA, seeds_BSHA)


def informed_start(
    use: ProposalUse, start: WarmStart | None, mean_BHA: Tensor, std_BHA: Tensor, planner: Planner, box: ActionBox
) -> WarmStart:
    """The start of a search that also knows a proposal (mean_BHA, std_BHA); std may be inf, see `propose`."""
    seeded = seeded_start(start, mean_BHA[:, None], planner, box)
    if use != "prior":
        return seeded
    assert seeded.std_BHA is not None
    narrowed = product_of_gaussians(seeded.mean_BHA, seeded.std_BHA, mean_BHA, std_BHA)
    return WarmStart(*narrowed, seeded.seeds_BSHA)


@dataclass(frozen=True)
class Follow:
    """Executes the first seed of its start as it is: a proposal alone, without a search and without a cost."""

    needs: ClassVar[tuple[Need, ...]] = ()

    horizon: int
    """Blocks of the seed."""
    candidates: int = 1
    """Action sequences per plan."""
    iterations: int = 1
    """Rounds per plan."""

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """The first seed, inside the box; its costs are NaN, because none is computed."""
        if start is None or start.seeds_BSHA is None:
            raise ValueError("Follow was given no seed: it executes a proposal, so set the agent's proposal to 'seed'")
        action_BHA = start.seeds_BSHA[:, 0].clamp(box.low_A, box.high_A)
        unknown_B1 = torch.full_like(action_BHA[:, :1, 0], torch.nan)
        return Plan(action_BHA, unknown_B1[:, 0], action_BHA, unknown_B1, torch.zeros_like(unknown_B1))

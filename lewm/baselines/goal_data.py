"""What the offline baselines learn from: recorded blocks, each with a goal and what the block earned on the way there.

A block (frame_skip raw actions) is one step of their decision process, as it is one of the world model: the baselines
see the same transitions, decide as often as the planners they are compared with, and cost one encoding per block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lewm.data.store import Store
from lewm.heads_training import HindsightPairs, Recorded
from lewm.proposal import recorded_actions
from lewm.world_model import WorldModel


@dataclass(frozen=True)
class GoalBatch:
    """B recorded blocks, each with a goal."""

    latent_BKD: Tensor
    """Where the block began."""
    next_BKD: Tensor
    """Where it ended."""
    goal_BKD: Tensor
    """The goal, a picture."""
    action_BA: Tensor
    """The block, in units of `WorldModel.scale_action`."""
    known_BA: Tensor
    """1 for actions taken before the goal was seen, 0 for those after it, which say nothing about the way there."""
    reward_B: Tensor
    """Minus the blocks it took: -1, or the fraction of a block after which the goal was seen."""
    discount_B: Tensor
    """Weight of what comes after the block: 0 where the goal was seen within it."""

    def outcome(self, next_B: Tensor) -> Tensor:
        """(..., B) what the blocks are worth when the frames after them are worth next_B."""
        return self.reward_B + self.discount_B * next_B


class GoalTransitions:
    """Draws blocks and goals from the latents of whole episodes, at every raw environment step.

    discount: per environment step; a block of s steps is discounted by its s-th power. blocks: how many are left to
    the end of the episode, at least, wherever a block is drawn.
    """

    def __init__(
        self, recorded: Recorded, action_Fa: Tensor, model: WorldModel, discount: float, blocks: int = 1
    ) -> None:
        self.recorded, self.model, self.skip = recorded, model, model.config.frame_skip
        self.action_Fa, self.discount = action_Fa.to(model.device), discount**self.skip
        self.pairs = HindsightPairs(recorded.lengths, blocks * self.skip)

    @staticmethod
    def of(
        store: Store, recorded: Recorded, model: WorldModel, discount: float = 1.0, blocks: int = 1
    ) -> "GoalTransitions":
        """The blocks of the episodes that were encoded."""
        return GoalTransitions(recorded, recorded_actions(store, recorded.episodes), model, discount, blocks)

    def draw(
        self, count: int, generator: torch.Generator, nearness: float, current: float = 0.0, elsewhere: float = 0.0
    ) -> GoalBatch:
        """`count` blocks whose goals are the frame they begin with (a share `current`), any recorded frame (a share
        `elsewhere`), or a later frame of the same episode, the nearer the larger `nearness`.
        """
        return self.batch(*self.pick(count, generator, nearness, current, elsewhere))

    def pick(
        self, count: int, generator: torch.Generator, nearness: float, current: float = 0.0, elsewhere: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frame numbers of `count` blocks and their goals, see `draw`, and environment steps to them; inf elsewhere."""
        now, ahead = self.pairs.draw(count, generator, nearness)
        ahead = ahead.clamp(min=1)
        kind = torch.rand(count, generator=generator)
        ahead = ahead.where(kind >= current, 0)
        anywhere = torch.randint(len(self.recorded.goal_FKD), (count,), generator=generator)
        away = kind >= 1 - elsewhere
        goal = torch.where(away, anywhere, now + ahead)
        return now, goal, torch.where(away, torch.inf, ahead.float())  # nobody recorded how far a goal elsewhere is

    def batch(self, now: Tensor, goal: Tensor, steps: Tensor) -> GoalBatch:
        """The blocks that begin at frames `now`, with goals that many environment steps ahead."""
        seen = steps < self.skip
        frame = now[:, None] + torch.arange(self.skip)
        known = (torch.arange(self.skip) < steps[:, None]).float().repeat_interleave(self.action_Fa.shape[1], 1)
        device, latent_FKD = self.action_Fa.device, self.recorded.latent_FKD
        now, goal, frame = now.to(device), goal.to(device), frame.to(device)
        return GoalBatch(
            latent_FKD[now],
            latent_FKD[now + self.skip],
            self.recorded.goal_FKD[goal],
            self.model.scale_action(self.action_Fa[frame].flatten(1)),
            known.to(device),
            torch.where(seen, -steps / self.skip, -1.0).to(device),
            torch.where(seen, 0.0, self.discount).to(device),
        )

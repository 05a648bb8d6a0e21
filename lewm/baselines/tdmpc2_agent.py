"""How TD-MPC2 plans: the return its heads predict as a cost, and the policy's own rollouts among the candidates.

Hansen et al. 2024 (arXiv 2310.16828), section 3.3. The search is any planner's; TD-MPC2's is an MPPI over elites.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lewm.baselines.heads import members, raw_block
from lewm.baselines.tdmpc2 import TDMPC2Heads, TDMPC2Method
from lewm.checkpoint import Checkpoint
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.informed_start import seeded_start
from planners import ActionBox, WarmStart, noise_table


@dataclass(frozen=True)
class ReturnCost:
    """Minus the return of a plan: action_BNHA -> cost_BN, in blocks to the goal.

    The return is the reward of every block, discounted, and beyond the last one what the critics expect of the
    policy's block there, their mean (TD-MPC2: of two drawn at random, which would make plans depend on chance).
    """

    networks: TDMPC2Heads
    imagined: GoalCost
    """Where candidates lead; its distance is not asked."""
    box: ActionBox
    """Where the policy's blocks are kept."""

    def latents(self, action_BNHA: Tensor) -> Tensor:
        """latent_BNHKD after each block of candidates in raw action units."""
        goal_BKD = self.imagined.goal_BKD
        return self.imagined.rollout(action_BNHA).unflatten(-1, goal_BKD.shape[1:])

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """cost_BN of candidates in raw action units."""
        model, networks = self.imagined.model, self.networks
        N, H = action_BNHA.shape[1:3]
        latent_BNHKD, goal_B1KD = self.latents(action_BNHA), self.imagined.goal_BKD[:, None]
        now_BNKD = self.imagined.situation.latent_BTKD[:, -1:].expand(-1, N, -1, -1)
        before_BNHKD = torch.cat([now_BNKD[:, :, None], latent_BNHKD[:, :, :-1]], 2)
        reward_BNH = networks["reward"](before_BNHKD, goal_B1KD[:, None], model.scale_action(action_BNHA))
        last_BNKD = latent_BNHKD[:, :, -1]
        policy_BNA = model.scale_action(self._policy(last_BNKD))
        value_BN = members(networks, networks.critics, last_BNKD, goal_B1KD, policy_BNA).mean(0)
        discount = networks.config.discount**model.config.frame_skip
        weight_H = discount ** torch.arange(H, device=reward_BNH.device)
        return -((weight_H * reward_BNH).sum(-1) + discount**H * value_BN)

    def policy_plans(self, noise_BSHA: Tensor) -> Tensor:
        """action_BSHA of the policy played out in the world model, a standard normal draw for each entry."""
        now_BSKD = self.imagined.situation.latent_BTKD[:, -1:].expand(-1, noise_BSHA.shape[1], -1, -1)
        action_BSHA = noise_BSHA[:, :, :0]
        for block, noise_BSA in enumerate(noise_BSHA.unbind(2)):
            if block:
                now_BSKD = self.latents(action_BSHA)[:, :, -1]
            action_BSHA = torch.cat([action_BSHA, self._policy(now_BSKD, noise_BSA)[:, :, None]], 2)
        return action_BSHA

    def _policy(self, latent_BNKD: Tensor, noise_BNA: Tensor | None = None) -> Tensor:
        """Raw block_BNA of the policy: its mean, or a sample, inside the box."""
        block_BNA, std_BNA = self.networks["actor"](latent_BNKD, self.imagined.goal_BKD[:, None])
        if noise_BNA is not None:
            block_BNA = block_BNA + std_BNA * noise_BNA
        return raw_block(self.imagined.model, block_BNA).clamp(self.box.low_A, self.box.high_A)


class TDMPC2Agent(Agent):
    """An agent whose cost is the return that the heads predict, and whose policy adds candidates to every search."""

    def __init__(self, checkpoint: Checkpoint, method: TDMPC2Method, networks: TDMPC2Heads, seed: int) -> None:
        assert method.planner is not None
        self.networks, self.samples = networks, method.policy_samples
        super().__init__(checkpoint, method.planner, CostConfig({"latent_l2": 1.0}), seed=seed)

    def _cost(self, situation: Situation, goal_BKD: Tensor) -> ReturnCost:
        return ReturnCost(self.networks, self._goal_cost(situation, goal_BKD), self.box)

    def _informed(
        self, start: WarmStart | None, situation: Situation, goal_BKD: Tensor, keys: Sequence[tuple[int, ...]]
    ) -> WarmStart | None:
        """The warm start and the policy's plans; their noise is keyed like the search's, and apart from it."""
        if self.samples == 0:
            return start
        shape_INH = 1, self.samples, self.planner.horizon
        noise_BSHA = noise_table([(*key, 1) for key in keys], shape_INH, self.model.action_dim)[:, 0]
        noise_BSHA[:, 0] = 0
        plans_BSHA = self._cost(situation, goal_BKD).policy_plans(noise_BSHA.to(self.model.device))
        return seeded_start(start, plans_BSHA, self.planner, self.box)

"""Planning on the true simulator with the task's own distance: the ceiling of every table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lewm.planning.policy import Start
from planners import CEM, ActionBox, PlannerConfig, WarmStart, noise_table


@dataclass(frozen=True)
class OracleConfig:
    """A planner on the simulator itself, state in, true distance as cost."""

    name: str = "oracle"
    """Name in tables."""
    kind: Literal["oracle"] = "oracle"
    """Which kind of method this is."""
    planner: PlannerConfig = field(default_factory=lambda: CEM(candidates=64, iterations=4, elites=8, horizon=4))
    """The planner; its cost is the true distance averaged over the simulated steps."""
    frame_skip: int = 5
    """Environment steps per action block."""

    def __post_init__(self) -> None:
        if self.frame_skip < 1:
            raise ValueError(f"method {self.name}: frame_skip is {self.frame_skip}; it must be at least 1")


class OraclePolicy:
    """Replans every block on `GoalEnv.simulate`."""

    needs_frame = False
    knows_state = True

    def __init__(self, config: OracleConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def start(self, starts: Sequence[Start]) -> None:
        """Remember the simulators; nothing is planned yet."""
        self.starts, self.step = list(starts), 0
        self.warm: dict[int, WarmStart] = {}
        space, skip = starts[0].task.action_space, self.config.frame_skip
        low_A, high_A = torch.tensor(space.low).repeat(skip), torch.tensor(space.high).repeat(skip)
        self.box = ActionBox.from_bounds(low_A, high_A, skip)
        self.queue = np.zeros((len(starts), skip, space.shape[0]), np.float32)

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        """The next action of every problem's current plan."""
        offset = self.step % self.config.frame_skip
        if offset == 0:
            for row in np.flatnonzero(active):
                self._plan(int(row))
        self.step += 1
        return self.queue[:, offset]

    def _plan(self, row: int) -> None:
        """Plan one problem from its simulator's current state."""
        planner, skip = self.config.planner, self.config.frame_skip
        task, goal, index = self.starts[row].task, self.starts[row].goal_state, self.starts[row].index
        state = task.state

        def cost(action_BNHA: Tensor) -> Tensor:
            candidates = action_BNHA.shape[1]
            action_NTa = action_BNHA[0].reshape(candidates, -1, self.queue.shape[-1]).numpy().astype(np.float64)
            state_NTS = task.simulate(state, action_NTa)
            return torch.from_numpy(task.distance(state_NTS, goal).mean(1)[None].astype(np.float32))

        replan = self.step // skip
        noise = noise_table([(self.seed, index, replan)], planner, len(self.box.low_A))
        plan = planner.plan(cost, noise, self.box, self.warm.get(row))
        self.queue[row] = plan.action_BHA[0, 0].reshape(skip, -1).numpy()
        self.warm[row] = plan.warm_start(1, self.box)

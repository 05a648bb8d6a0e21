"""What an evaluation can run: the policy protocol, and our agent as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

import envs
from lewm.planning.agent import Agent
from lewm.planning.observation import measured_in


@dataclass(frozen=True)
class Start:
    """Where one evaluated episode begins."""

    index: int
    """Number of the problem: keys its private noise."""
    task: envs.GoalEnv
    """The environment, standing at its start state."""
    goal_state: np.ndarray
    """State to reach, (S,)."""
    past_states: np.ndarray
    """Recorded states just before the start, oldest first, (P, S)."""
    actions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """Recorded actions from the start to the goal, (T, a); empty where no recording leads there."""


def plays(task: envs.GoalEnv, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether an environment is of the task `name`: what was trained on these settings of it has the same states."""
    own = envs.make(name, **settings)
    own.close()
    return (type(own), own.state_names) == (type(task), task.state_names)


class Policy(Protocol):
    """Anything that can be evaluated: our agent and every baseline."""

    @property
    def needs_frame(self) -> bool:
        """Whether the next `act` looks at a picture."""

    def start(self, starts: Sequence[Start]) -> None:
        """Begin a batch of episodes."""

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        """Actions for the whole batch; rows where `active` is False are ignored."""


@dataclass(frozen=True)
class PlanClock:
    """What a policy says of its last plan, in milliseconds."""

    encode_ms: float
    """Spent in the encoder."""
    plan_ms: float | None = None
    """From the picture to the first action, where it is not what `act` took: in another process, say."""


@runtime_checkable
class Clocked(Protocol):
    """A policy with a clock of its own."""

    @property
    def clock(self) -> PlanClock:
        """Of the last plan."""


class AgentPolicy:
    """The agent sees pictures of the goal, the frames before the start and the present, and what it measures now."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    @property
    def needs_frame(self) -> bool:
        """As the agent says."""
        return self.agent.needs_frame

    @property
    def clock(self) -> PlanClock:
        """Of the agent's last plan."""
        return PlanClock(0.0 if self.agent.last is None else self.agent.last.encode_ms)

    def start(self, starts: Sequence[Start]) -> None:
        """Paint the goals and the past, and reset the agent."""
        self.tasks = [s.task for s in starts]
        goals = np.stack([s.task.goal_image(s.goal_state) for s in starts])
        depth = (self.agent.model.config.frame_stack - 1) * self.agent.model.config.stack_stride
        goal_proprio = measured_in(self.agent.model, [s.goal_state for s in starts])
        self.agent.reset(goals, [s.index for s in starts], self._past_frames(starts, depth), goal_proprio)

    def _past_frames(self, starts: Sequence[Start], depth: int) -> list[np.ndarray]:
        """The last `depth` frames before each start; where the recording is shorter its first frame is repeated."""
        frames = []
        for age in range(depth, 0, -1):
            states = [
                s.past_states[max(0, len(s.past_states) - age)] if len(s.past_states) else s.task.state for s in starts
            ]
            frames.append(np.stack([s.task.goal_image(state) for s, state in zip(starts, states, strict=True)]))
        return frames

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        """Delegate."""
        proprio = None if pixels is None else measured_in(self.agent.model, [task.state for task in self.tasks])
        return self.agent.act(pixels, active, proprio)

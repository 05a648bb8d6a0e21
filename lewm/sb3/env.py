"""A task as stable-baselines3 and its hindsight replay want it."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.goal_env import GoalEnv
from lewm.sb3.config import Reward
from lewm.sb3.views import View


class Sb3Env(gymnasium.Env[Any, Any]):
    """A task whose observations hold `observation`, `achieved_goal` and `desired_goal`, as a view shows them.

    Episodes are truncated after `episode_steps` and never terminate. The reward comes from the true state. A picture is
    drawn only where the view asks for one.
    """

    def __init__(self, task: GoalEnv, view: View, reward: Reward, episode_steps: int) -> None:
        self.task, self.view, self.reward, self.episode_steps = task, view, reward, episode_steps
        blank_YXC = np.zeros(task.observation_space.shape or (), np.uint8)
        task.render = lambda: blank_YXC  # type: ignore[method-assign]  # its reset would draw one
        self.observation_space = view.space
        self.action_space = task.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode from a random state to a random goal, as the task draws them."""
        super().reset(seed=seed)
        _, info = self.task.reset(seed=seed, options=options)
        self._goal_S, self._step = info["goal_state"], 0
        self._goal_F = self.view.goal(self._goal_S)
        self.view.begin()
        return self._observation(), {"is_success": info["is_success"]}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """One environment step; `info["is_success"]` says whether the task is at its goal now."""
        self.task.advance(action)
        self._step += 1
        observation = self._observation()
        reward = float(self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {}))
        success = bool(self.task.is_success(self.task.state, self._goal_S))
        return observation, reward, False, self._step >= self.episode_steps, {"is_success": success}

    def compute_reward(self, achieved_goal: ArrayLike, desired_goal: ArrayLike, info: Any) -> NDArray[np.float64]:
        """Rewards (...) of having achieved goals (..., F) when others (..., F) were desired."""
        state_S, goal_S = self.view.states(achieved_goal), self.view.states(desired_goal)
        if self.reward == "dense":
            return np.asarray(-self.task.distance(state_S, goal_S))
        return np.asarray(self.task.is_success(state_S, goal_S), np.float64) - 1.0

    def close(self) -> None:
        """Close the task."""
        self.task.close()

    def _observation(self) -> dict[str, NDArray[Any]]:
        achieved_F = self.view.goal(self.task.state)
        return {
            "observation": self.view.look(achieved_F),
            "achieved_goal": achieved_F,
            "desired_goal": self._goal_F,
        }

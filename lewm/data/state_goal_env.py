"""A task without pictures: states and goals as stable-baselines3 and its hindsight replay want them."""

from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.goal_env import GoalEnv
from lewm.data.sb3_policy import StateFeatures

Reward = Literal["sparse", "dense"]


class StateGoalEnv(gymnasium.Env[Any, Any]):
    """A task as stable-baselines3 and its HER want it: observation, achieved and desired goal are features of states.

    Episodes are truncated after `episode_steps` and never terminate. No picture is ever drawn.
    """

    def __init__(self, task: GoalEnv, reward: Reward, episode_steps: int) -> None:
        self.task, self.reward, self.episode_steps = task, reward, episode_steps
        self._features = StateFeatures.of(task)
        blank_YXC = np.zeros(task.observation_space.shape or (), np.uint8)
        task.render = lambda: blank_YXC  # type: ignore[method-assign]  # its reset would draw one
        entries = ("observation", "achieved_goal", "desired_goal")
        box = gymnasium.spaces.Box(-np.inf, np.inf, (self._features.width,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({entry: box for entry in entries})
        self.action_space = task.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Start an episode from a random state to a random goal, as the task draws them."""
        super().reset(seed=seed)
        _, info = self.task.reset(seed=seed, options=options)
        self._goal_S, self._step = info["goal_state"], 0
        return self._observation(), {"is_success": info["is_success"]}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        """One environment step; `info["is_success"]` says whether the task is at its goal now."""
        self.task.advance(action)
        self._step += 1
        observation = self._observation()
        reward = float(self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {}))
        success = bool(self.task.is_success(self.task.state, self._goal_S))
        return observation, reward, False, self._step >= self.episode_steps, {"is_success": success}

    def compute_reward(self, achieved_goal: ArrayLike, desired_goal: ArrayLike, info: Any) -> NDArray[np.float64]:
        """Rewards (...) of having come to features (..., F) when those of the goal are (..., F)."""
        state_S, goal_S = self._features.decode(achieved_goal), self._features.decode(desired_goal)
        if self.reward == "dense":
            return np.asarray(-self.task.distance(state_S, goal_S))
        return np.asarray(self.task.is_success(state_S, goal_S), np.float64) - 1.0

    def close(self) -> None:
        """Close the task."""
        self.task.close()

    def _observation(self) -> dict[str, NDArray[np.float32]]:
        return self._features.observation(self.task.state, self._goal_S)

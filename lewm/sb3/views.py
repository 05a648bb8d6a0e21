"""What a policy of stable-baselines3 is shown of a task: features of the true state, or pictures and nothing else.

HER asks the environment for the reward of having achieved one goal when another was desired. From pictures alone nobody
can tell, so in a goal entry of `PixelView` the bytes of the true state follow the picture; the reward reads them, the
networks are cut off from them (`lewm.sb3.pixels.PixelExtractor`).
"""

from collections import deque
from typing import Any, Protocol

import cv2
import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.goal_env import GoalEnv
from lewm.data.sb3_policy import StateFeatures
from lewm.sb3.config import Sb3Config

KEYS = ("observation", "achieved_goal", "desired_goal")
"""Entries of the observations, as HER names them."""


class View(Protocol):
    """Makes the entries of an observation. F numbers per goal entry, S state entries."""

    space: gymnasium.spaces.Dict

    def begin(self) -> None:
        """Forget the episode before."""

    def goal(self, state_S: NDArray[np.float64]) -> NDArray[Any]:
        """A state as an achieved or desired goal (F,)."""

    def look(self, achieved_F: NDArray[Any]) -> NDArray[Any]:
        """What is seen now, given the achieved goal of now."""

    def states(self, goal_F: ArrayLike) -> NDArray[np.float64]:
        """The states (..., S) behind goal entries (..., F)."""


class StateView:
    """The true state: all three entries are features of it."""

    def __init__(self, task: GoalEnv) -> None:
        self._features = StateFeatures.of(task)
        box = gymnasium.spaces.Box(-np.inf, np.inf, (self._features.width,), np.float32)
        self.space = gymnasium.spaces.Dict({key: box for key in KEYS})

    def begin(self) -> None:
        """Nothing is remembered."""

    def goal(self, state_S: NDArray[np.float64]) -> NDArray[Any]:
        """Features of the state."""
        return self._features.encode(state_S)

    def look(self, achieved_F: NDArray[Any]) -> NDArray[Any]:
        """The same features."""
        return achieved_F

    def states(self, goal_F: ArrayLike) -> NDArray[np.float64]:
        """Decoded features."""
        return self._features.decode(goal_F)


class PixelView:
    """Pictures: `observation` is uint8 (frames x C, Y, X), oldest first; goals are a picture's bytes and its state's.

    `depth` environment steps lie between the oldest picture of a stack and the present one.
    """

    def __init__(self, task: GoalEnv, size: int | None, frames: int, stride: int) -> None:
        drawn = task.observation_space.shape
        assert drawn is not None
        if size is not None and size > drawn[0]:
            raise ValueError(
                f"size is {size}, but the task draws pictures of {drawn[0]} pixels: lower size, or draw more"
            )
        side = size or drawn[0]
        self.shape = (drawn[2], side, side)
        self.pixels = int(np.prod(self.shape))
        self._task, self._stride = task, stride
        self._entries = len(task.state_names)
        self.depth = (frames - 1) * stride
        self._seen: deque[NDArray[np.uint8]] = deque(maxlen=self.depth + 1)
        goal = gymnasium.spaces.Box(0, 255, (self.pixels + 8 * self._entries,), np.uint8)
        stack = gymnasium.spaces.Box(0, 255, (frames * drawn[2], side, side), np.uint8)
        self.space = gymnasium.spaces.Dict(dict(zip(KEYS, (stack, goal, goal), strict=True)))

    def begin(self) -> None:
        """Forget the pictures before."""
        self._seen.clear()

    def goal(self, state_S: NDArray[np.float64]) -> NDArray[Any]:
        """The state's picture, then its bytes."""
        return np.concatenate([self.picture(self._task.goal_image(state_S)), np.float64(state_S).view(np.uint8)])

    def look(self, achieved_F: NDArray[Any]) -> NDArray[Any]:
        """The pictures up to now; before the first one it is repeated."""
        self._seen.append(achieved_F[: self.pixels].reshape(self.shape))
        ages = range(self.depth, -1, -self._stride)
        return np.concatenate([self._seen[max(len(self._seen) - 1 - age, 0)] for age in ages])

    def states(self, goal_F: ArrayLike) -> NDArray[np.float64]:
        """The states behind the pictures."""
        return np.ascontiguousarray(np.asarray(goal_F)[..., self.pixels :]).view(np.float64)

    def picture(self, pixels_YXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture at the size the networks see, channels first, flat."""
        side = self.shape[1]
        if len(pixels_YXC) != side:
            pixels_YXC = cv2.resize(pixels_YXC, (side, side), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        return pixels_YXC.transpose(2, 0, 1).reshape(-1)

    def unknown(self, pixels_YXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A goal entry of a picture whose state nobody is told: zeros in its place."""
        return np.concatenate([self.picture(pixels_YXC), np.zeros(8 * self._entries, np.uint8)])


def make_view(task: GoalEnv, config: Sb3Config) -> View:
    """What the configuration lets its networks see. Raises ValueError for pictures larger than the task's."""
    if config.observation == "state":
        return StateView(task)
    return PixelView(task, config.size, config.frames, config.stride)

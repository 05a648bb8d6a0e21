"""Pictures in stable-baselines3: the network that reads them, and a hindsight replay that keeps each of them once."""

from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

CHANNELS = (16, 32, 64, 64)
"""Of each layer, every one halving the picture: the shape of the world model's conv encoder."""
FEATURES = 64
"""Numbers the networks behind it are given."""


class PixelExtractor(BaseFeaturesExtractor):
    """One network over the present pictures and the goal's, stacked by their channels (as OGBench's visual agents).

    It cuts off what follows the goal's picture, which is the true state: no number behind it depends on the state. No
    batch norm, unlike the encoder of a world model: the statistics of a replay batch are not those of acting. A single
    picture has `channels`.
    """

    def __init__(self, observation_space: gymnasium.spaces.Dict, channels: int) -> None:
        super().__init__(observation_space, FEATURES)
        stacked, self.side, _ = observation_space["observation"].shape or ()
        self.pixels = channels * self.side**2
        layers: list[nn.Module] = []
        grid, before = self.side, stacked + channels
        for after in CHANNELS:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
            grid, before = (grid + 1) // 2, after
        self.layers = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Linear(before * grid**2, FEATURES), nn.LayerNorm(FEATURES), nn.Tanh())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Features (B, FEATURES); the goal's entry is raw bytes, which only pictures are scaled from."""
        goal_BF = observations["desired_goal"][:, : self.pixels] / 255
        goal_BCYX = goal_BF.unflatten(1, (-1, self.side, self.side))
        pixels_BCYX = torch.cat([observations["observation"], goal_BCYX], 1) - 0.5
        grid_BCYX = self.layers(pixels_BCYX.contiguous(memory_format=torch.channels_last))
        features: Tensor = self.out(grid_BCYX.flatten(1))
        return features


class PictureReplay(HerReplayBuffer):
    """HER's memory for pictures. Of a transition stable-baselines3 keeps six; here an episode of T steps keeps T + 2.

    Every episode must have exactly `episode_steps` steps. `n_sampled_goal` 0 is a replay without hindsight. A single
    picture has `channels`; those of a stack are `stride` steps apart.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: gymnasium.spaces.Dict,
        action_space: gymnasium.Space[Any],
        env: Any,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        n_sampled_goal: int = 4,
        *,
        episode_steps: int,
        channels: int,
        stride: int,
    ) -> None:
        if n_envs != 1 or buffer_size % episode_steps:
            raise ValueError(
                f"n_envs is {n_envs} and buffer_size {buffer_size}; it must be 1, and whole episodes of {episode_steps}"
            )
        tiny = gymnasium.spaces.Box(0, 255, (1,), np.uint8)  # what the parent allocates is not used
        nothing = gymnasium.spaces.Dict({key: tiny for key in observation_space})
        super().__init__(
            buffer_size, nothing, action_space, env, device, 1, optimize_memory_usage, n_sampled_goal=n_sampled_goal
        )
        shapes = {key: entry.shape or () for key, entry in observation_space.spaces.items()}
        self.observation_space, self.obs_shape = observation_space, shapes
        episodes, (width,) = buffer_size // episode_steps, shapes["achieved_goal"]
        frames_ETF = np.zeros((episodes, episode_steps + 1, width), np.uint8)
        goals_E1F = np.zeros((episodes, 1, width), np.uint8)
        ages = range((shapes["observation"][0] // channels - 1) * stride, -1, -stride)
        for later, kept in enumerate((self.observations, self.next_observations)):
            entries: dict[str, Any] = kept  # what they hold is no array, but is read and written like one
            entries["observation"] = _Stacks(frames_ETF, episode_steps, later, shapes["observation"], ages)
            entries["achieved_goal"] = _Entries(frames_ETF, episode_steps, later)
            entries["desired_goal"] = _Entries(goals_E1F, episode_steps, later)


def replay_bytes(space: gymnasium.spaces.Dict, steps: int, episode_steps: int) -> int:
    """What the pictures of `steps` environment steps, whole episodes, take in a `PictureReplay`."""
    return steps // episode_steps * (episode_steps + 2) * int((space["achieved_goal"].shape or ())[0])


class _Entries:
    """What the replay takes for an array of transitions, (N, 1, F): one entry of the observations, now or next."""

    def __init__(self, kept_ETF: NDArray[np.uint8], steps: int, later: int) -> None:
        self.kept_ETF, self.steps, self.later = kept_ETF, steps, later

    def __setitem__(self, row: int, value_1F: NDArray[np.uint8]) -> None:
        self.kept_ETF[row // self.steps, self.frame(row)] = value_1F[0]

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[np.uint8]:
        rows = index[0]
        return self.kept_ETF[rows // self.steps, self.frame(rows)]

    def frame(self, rows: Any) -> Any:
        """Which frame of its episode a transition means; where one serves the whole episode, that."""
        return np.minimum(rows % self.steps + self.later, self.kept_ETF.shape[1] - 1)


class _Stacks(_Entries):
    """The stacked pictures, (N, 1, C, Y, X), put together from the achieved goals of so many steps before."""

    def __init__(
        self, kept_ETF: NDArray[np.uint8], steps: int, later: int, shape: tuple[int, ...], ages: range
    ) -> None:
        super().__init__(kept_ETF, steps, later)
        self.shape, self.ages, self.pixels = shape, ages, int(np.prod(shape)) // len(ages)

    def __setitem__(self, row: int, value_1F: NDArray[np.uint8]) -> None:
        """Nothing: the achieved goal brings the picture."""

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[np.uint8]:
        rows = index[0]
        frames = [self.kept_ETF[rows // self.steps, np.maximum(self.frame(rows) - age, 0)] for age in self.ages]
        return np.concatenate([frame[:, : self.pixels] for frame in frames], 1).reshape(-1, *self.shape)

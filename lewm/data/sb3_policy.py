"""A policy trained with stable-baselines3 on states and goals: its observations, loading it, acting in a recording."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from envs.goal_env import GoalEnv


class Sb3Policy:
    """Follows a trained goal-conditioned policy to one random goal after another."""

    def __init__(self, env: "GoalEnv", model: Any, deterministic: bool, goal_steps: int) -> None:
        self._env, self._model, self._features = env, model, StateFeatures.of(env)
        self._deterministic, self._goal_steps = deterministic, goal_steps

    def reset(self, rng: np.random.Generator, state_S: NDArray[np.float64]) -> None:
        """Begin an episode and draw its first goal."""
        self._rng = rng
        self._new_goal(state_S)

    def act(self, state_S: NDArray[np.float64]) -> NDArray[np.float32]:
        """The trained policy's action towards the present goal."""
        from envs.policies import clip_action

        if self._steps_left == 0 or self._env.is_success(state_S, self.goal_S):
            self._new_goal(state_S)
        self._steps_left -= 1
        observation = self._features.observation(state_S, self.goal_S)
        return clip_action(predict(self._model, observation, None if self._deterministic else self._rng))

    def _new_goal(self, state_S: NDArray[np.float64]) -> None:
        """As the task draws its own goals: anywhere it can be, but not where it is."""
        self._steps_left = self._goal_steps
        self.goal_S = self._env._draw_state(self._rng)
        while self._env.is_success(state_S, self.goal_S):
            self.goal_S = self._env._draw_state(self._rng)


@dataclass(frozen=True)
class StateFeatures:
    """States as a network sees them: each angle as cosine and sine, everything else as it is. F features."""

    turns_S: tuple[bool, ...]
    """Which entries of the state are angles."""

    @staticmethod
    def of(env: "GoalEnv") -> "StateFeatures":
        """The features of a task's states."""
        return StateFeatures(tuple(name in env.angle_names for name in env.state_names))

    @property
    def width(self) -> int:
        """F."""
        return len(self.turns_S) + sum(self.turns_S)

    def encode(self, state_S: ArrayLike) -> NDArray[np.float32]:
        """States (..., S) as features (..., F)."""
        columns = []
        for turns, entry in zip(self.turns_S, np.moveaxis(np.asarray(state_S, np.float64), -1, 0), strict=True):
            columns += [np.cos(entry), np.sin(entry)] if turns else [entry]
        return np.stack(columns, -1).astype(np.float32)

    def decode(self, feature_F: ArrayLike) -> NDArray[np.float64]:
        """Features (..., F) back to states (..., S), angles in [-pi, pi]."""
        entries = iter(np.moveaxis(np.asarray(feature_F, np.float64), -1, 0))
        columns = [self._angle(next(entries), next(entries)) if turns else next(entries) for turns in self.turns_S]
        return np.stack(columns, -1)

    def observation(self, state_S: ArrayLike, goal_S: ArrayLike) -> dict[str, NDArray[np.float32]]:
        """What a goal-conditioned policy of stable-baselines3 is given."""
        feature_F = self.encode(state_S)
        return {"observation": feature_F, "achieved_goal": feature_F, "desired_goal": self.encode(goal_S)}

    @staticmethod
    def _angle(cosine: NDArray[np.float64], sine: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.arctan2(sine, cosine), np.float64)


def predict(model: Any, observation: dict[str, NDArray[np.float32]], rng: np.random.Generator | None) -> NDArray[Any]:
    """The model's mean action, or with `rng` one drawn as in training, which leaves torch's global generator alone."""
    import torch

    if rng is None:
        return np.asarray(model.predict(observation, deterministic=True)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        return np.asarray(model.predict(observation, deterministic=False)[0])


def sb3_class(algorithm: str) -> Any:
    """The class of stable-baselines3 behind `sac`, `td3` or `ppo`."""
    from stable_baselines3 import PPO, SAC, TD3

    return {"sac": SAC, "td3": TD3, "ppo": PPO}[algorithm]


def unpickle_sb3(path: Path, algorithm: str | None) -> Any:
    """Whatever stable-baselines3 saved in a zip, to act with, on the CPU. It can run code of the file's maker.

    Raises FileNotFoundError without file or card, ValueError for a file that holds no policy of that algorithm.
    """
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"there is no policy {path}: train one with `lewm train-expert`, or mend the path")
    if algorithm is None:
        card = path.with_name("card.json")
        if not card.is_file():
            raise FileNotFoundError(f"{card} is missing, so give {path.name} its `algorithm`: sac, td3 or ppo")
        algorithm = str(json.loads(card.read_text())["algorithm"])
    # A policy that only acts needs no memory of its training, and HER's would ask for a training environment.
    unused: dict[str, Any] = {"replay_buffer_class": None, "replay_buffer_kwargs": {}, "buffer_size": 1}
    with torch.random.fork_rng(devices=[]):  # its networks are initialised before they are loaded
        try:
            return sb3_class(algorithm).load(path, device="cpu", custom_objects=unused)
        except (AttributeError, AssertionError, KeyError, TypeError, RuntimeError) as error:
            first = " ".join(str(error).split())
            raise ValueError(f"{path} holds no policy of {algorithm} ({first}): correct its algorithm") from error


def load_sb3(path: Path, algorithm: str | None, env: "GoalEnv") -> Any:
    """Load a trained policy to act in `env`, on the CPU. This unpickles: it can run code of the file's maker.

    Raises FileNotFoundError without file or card, ValueError when the policy expects other observations or actions.
    """
    model = unpickle_sb3(path, algorithm)
    sample = StateFeatures.of(env).observation(env.state, env.state)
    spaces = getattr(model.observation_space, "spaces", {})
    wanted = {key: value.shape for key, value in sample.items()}
    found = {key: space.shape for key, space in spaces.items()} or model.observation_space.shape
    if found != wanted or model.action_space.shape != env.action_space.shape:
        raise ValueError(
            f"{path} sees {found} and acts with {model.action_space.shape}, the task gives {wanted} and takes "
            f"{env.action_space.shape}: use a policy that `lewm train-expert` trained on this task"
        )
    return model

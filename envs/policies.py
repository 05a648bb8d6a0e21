"""What scripted policies share: the protocol, random actions, and time-correlated noise."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Policy(Protocol):
    """A controller that sees the true state. Everything random comes from the generator given to `reset`."""

    def reset(self, rng: np.random.Generator, state_S: NDArray[np.float64]) -> None:
        """Begin an episode at a state (S,)."""

    def act(self, state_S: NDArray[np.float64]) -> NDArray[np.float32]:
        """The action (A,), inside [-1, 1], for a state (S,)."""


class OrnsteinUhlenbeck:
    """Gaussian noise of a given standard deviation whose correlation falls to 1/e in `memory` steps."""

    def __init__(self, width: int, std: float, memory: float) -> None:
        self.width, self.std = width, std
        self._keep = math.exp(-1.0 / memory)
        self._fresh = std * math.sqrt(1.0 - self._keep**2)

    def reset(self, rng: np.random.Generator) -> None:
        """Start from the stationary distribution."""
        self._rng = rng
        self._value_A = rng.normal(0.0, self.std, self.width)

    def draw(self) -> NDArray[np.float64]:
        """The next value (A,)."""
        self._value_A = self._keep * self._value_A + self._fresh * self._rng.standard_normal(self.width)
        return self._value_A


class UniformRandom:
    """Independent uniform actions."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def reset(self, rng: np.random.Generator, state_S: NDArray[np.float64]) -> None:
        self._rng = rng

    def act(self, state_S: NDArray[np.float64]) -> NDArray[np.float32]:
        return self._rng.uniform(-1.0, 1.0, self.action_dim).astype(np.float32)


class CorrelatedRandom:
    """Ornstein-Uhlenbeck actions: they keep a direction for about `memory` steps."""

    def __init__(self, action_dim: int, std: float, memory: float) -> None:
        self._process = OrnsteinUhlenbeck(action_dim, std, memory)

    def reset(self, rng: np.random.Generator, state_S: NDArray[np.float64]) -> None:
        self._process.reset(rng)

    def act(self, state_S: NDArray[np.float64]) -> NDArray[np.float32]:
        return clip_action(self._process.draw())


class Noisy:
    """A policy disturbed by Ornstein-Uhlenbeck noise on its actions."""

    def __init__(self, policy: Policy, action_dim: int, std: float, memory: float) -> None:
        self.policy = policy
        self._process = OrnsteinUhlenbeck(action_dim, std, memory)

    def reset(self, rng: np.random.Generator, state_S: NDArray[np.float64]) -> None:
        self.policy.reset(rng, state_S)
        self._process.reset(rng)

    def act(self, state_S: NDArray[np.float64]) -> NDArray[np.float32]:
        return clip_action(self.policy.act(state_S) + self._process.draw())


def clip_action(action_A: NDArray[np.floating]) -> NDArray[np.float32]:
    """An action as float32 inside [-1, 1]."""
    return np.minimum(np.maximum(action_A, -1.0), 1.0).astype(np.float32)


def check_policy(name: str, noise: float, known: Sequence[str]) -> None:
    """Raise ValueError unless the policy is known and the noise is finite and not negative."""
    if name not in known:
        raise ValueError(f"unknown policy {name!r}{closest(name, known)}; this task's policies are {', '.join(known)}.")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is {noise}, but must be finite and >= 0 (a standard deviation in action units).")


def closest(name: str, known: Iterable[str]) -> str:
    """The part of an error message that offers the known name closest to a wrong one, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {match[0]!r}?" if match else ""

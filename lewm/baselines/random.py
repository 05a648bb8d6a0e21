"""Uniform random actions, held for one block: the floor of every table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lewm.planning.policy import Start


@dataclass(frozen=True)
class RandomConfig:
    """Uniform random actions."""

    name: str = "random"
    """Name in tables."""
    kind: Literal["random"] = "random"
    """Which kind of method this is."""
    hold: int = 5
    """Environment steps each action is held."""

    def __post_init__(self) -> None:
        if self.hold < 1:
            raise ValueError(f"method {self.name}: hold is {self.hold}; it must be at least 1")


class RandomPolicy:
    """Draws per problem, so that an outcome does not depend on its neighbours."""

    needs_frame = False

    def __init__(self, config: RandomConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def start(self, starts: Sequence[Start]) -> None:
        """Seed one generator per problem."""
        self.space = starts[0].task.action_space
        self.held = np.zeros((len(starts), *self.space.shape), np.float32)
        self.rngs = [np.random.default_rng((self.seed, s.index)) for s in starts]
        self.step = 0

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        """The held action, or a new one every `hold` steps."""
        if self.step % self.config.hold == 0:
            self.held = np.stack([rng.uniform(self.space.low, self.space.high) for rng in self.rngs])
        self.step += 1
        return self.held

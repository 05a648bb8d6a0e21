"""The zero action, always: what a task does by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lewm.planning.policy import Start


@dataclass(frozen=True)
class ZeroConfig:
    """Does nothing."""

    name: str = "zero"
    """Name in tables."""
    kind: Literal["zero"] = "zero"
    """Which kind of method this is."""


class ZeroPolicy:
    """Nothing is drawn, so the seed does not matter."""

    needs_frame = False

    def __init__(self, config: ZeroConfig, seed: int) -> None:
        self.config = config

    def start(self, starts: Sequence[Start]) -> None:
        """Remember how many actions of how many entries."""
        self.zeros = np.zeros((len(starts), *starts[0].task.action_space.shape), np.float32)

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        """Zeros."""
        return self.zeros

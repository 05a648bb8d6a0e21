"""The recorded actions, open loop from the recorded start: what whoever recorded it achieves on these goals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lewm.planning.policy import Start


@dataclass(frozen=True)
class ReplayConfig:
    """Repeats the recording that leads from each start to its goal; goals from elsewhere have none and no row."""

    name: str = "replay"
    """Name in tables."""
    kind: Literal["replay"] = "replay"
    """Which kind of method this is."""


class ReplayPolicy:
    """Nothing is drawn, so the seed does not matter; after the last recorded action come zeros."""

    needs_frame = False

    def __init__(self, config: ReplayConfig, seed: int) -> None:
        self.config = config

    def start(self, starts: Sequence[Start]) -> None:
        """Line up the recorded actions. Raises ValueError for a problem that has none."""
        for start in starts:
            if not len(start.actions):
                raise ValueError(
                    f"method {self.config.name}: problem {start.index} has no recorded actions to replay; "
                    "leave the method out, or draw a new manifest of goals ahead or across"
                )
        steps = max(len(start.actions) for start in starts)
        self.queue_TBa = np.zeros((steps + 1, len(starts), *starts[0].task.action_space.shape), np.float32)
        for row, start in enumerate(starts):
            self.queue_TBa[: len(start.actions), row] = start.actions
        self.step = 0

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        """The next recorded action of every problem."""
        action_Ba = self.queue_TBa[min(self.step, len(self.queue_TBa) - 1)]
        self.step += 1
        return action_Ba

"""Actions in [-1, 1] for a foreign action space: an affine map to a box, the largest entry for a choice."""

import math
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class ActionMap:
    """Turns an action (A,) in [-1, 1] into the environment's own.

    A Box of any bounds and shape: -1 is its lower bound, 1 its upper one. Discrete(n): n entries, of which the largest
    is executed, the first one of equals. Raises ValueError for other spaces and for a box without bounds.
    """

    def __init__(self, space: gymnasium.Space[Any], id: str, drives: tuple[str, ...] = ()) -> None:
        """`drives` are names of the entries, used when there are as many."""
        self._space = space
        if isinstance(space, gymnasium.spaces.Discrete):
            self.names = tuple(f"choose_{choice}" for choice in range(int(space.n)))
        elif isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.floating):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise ValueError(
                    f"the actions of {id} are {space}, but a plan needs bounds: wrap it in "
                    "gymnasium.wrappers.RescaleAction, or a wrapper of yours, and register that."
                )
            width = math.prod(space.shape)
            self.names = drives if len(drives) == width else tuple(f"action_{i}" for i in range(width))
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            self._centre, self._half = (low + high) / 2, (high - low) / 2
        else:
            raise ValueError(
                f"the actions of {id} are {space}, but must be a Box of floats or Discrete: wrap it in an "
                "environment of yours that has one of these, and register that."
            )

    def native(self, action_A: Array) -> Any:
        """The environment's own action."""
        if isinstance(self._space, gymnasium.spaces.Discrete):
            return int(self._space.start + np.argmax(action_A))
        assert isinstance(self._space, gymnasium.spaces.Box)
        raw = self._centre + self._half * action_A.reshape(self._space.shape)
        return np.clip(raw.astype(self._space.dtype), self._space.low, self._space.high)

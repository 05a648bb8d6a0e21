"""OGBench's scripted pick-and-place as a policy: block to a random place on the table, hand away, next place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.random import get_state, seed, set_state
from numpy.typing import NDArray

from envs.cube_physics import Physics
from envs.policies import clip_action

Array = NDArray[np.float64]

TARGETS = np.array([[0.30, -0.30], [0.55, 0.30]])  # m; the corners between which OGBench draws blocks and targets
HALF_BLOCK = 0.02


class Expert:
    """`ogbench`'s CubeMarkovOracle with a new target whenever it is done, or has tried for 200 steps.

    It sees the state, and feels what its fingers would press if it repeated its last action.
    """

    def __init__(self, physics: Physics) -> None:
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        self._physics = physics
        self._oracle: Any = CubeMarkovOracle(env=physics.env, min_norm=0.4)

    def reset(self, rng: np.random.Generator, state_S: Array) -> None:
        self._rng = rng
        self._action_A = np.zeros(5)
        self._choose_target()

    def act(self, state_S: Array) -> NDArray[np.float32]:
        if self._oracle.done:
            self._choose_target()
        info = self._physics.observe(state_S, self._action_A, self.target_3, self.target_yaw)
        action_A = clip_action(self._oracle.select_action(None, info))
        self._action_A = action_A.astype(np.float64)
        return action_A

    def _choose_target(self) -> None:
        self.target_3 = np.append(self._rng.uniform(*TARGETS), HALF_BLOCK)
        self.target_yaw = float(self._rng.uniform(-np.pi, np.pi))
        with global_draws_from(self._rng):
            self._oracle.reset(None, {})


@contextmanager
def global_draws_from(rng: np.random.Generator) -> Iterator[None]:
    """Inside, numpy's global generator follows `rng`; afterwards it is where it was. OGBench's oracles draw from it."""
    before = get_state()  # noqa: NPY002
    seed(int(rng.integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        set_state(before)  # noqa: NPY002

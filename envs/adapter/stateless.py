"""An environment whose state is not touched: it is recorded, and driven to a goal picture from a file; nothing else."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.adapter.actions import ActionMap
from envs.adapter.simulator import fit, open_env, own_picture, reset_seeded, seconds_per_step
from envs.adapter.state import WITHOUT_STATE
from envs.adapter.task import UNDIRECTED, undirected
from envs.goal_env import GoalEnv
from envs.policies import Policy
from envs.variation import Factor

Array = NDArray[np.float64]


class StatelessEnv(GoalEnv):
    """Pictures and actions of a foreign environment; `envs.adapter.make_goal_env(id, state="none")` builds it.

    A state has no entries and the reward is always 0. The environment draws itself. Once it has ended an episode it
    stands still until the next reset, because nothing is known of what lies beyond.
    """

    state_names = ()
    policies = UNDIRECTED
    success_distance = 0.0
    home_state = ()
    factors: ClassVar[Mapping[str, Factor]] = {}
    # What a task of ours says of its class is known here once the environment is made.
    action_names: tuple[str, ...]  # type: ignore[misc]
    control_dt: float  # type: ignore[misc]

    def __init__(self, id: str, size: int, control_dt: float | None, make_kwargs: dict[str, Any]) -> None:
        self.id, self._make_kwargs = id, make_kwargs
        self._env = open_env(id, make_kwargs)
        self._actions = ActionMap(self._env.action_space, id)
        self.action_names = self._actions.names
        self.control_dt = seconds_per_step(self._env, id, control_dt)
        super().__init__(size, renderer="camera")
        reset_seeded(self._env, 0)
        self._over = False

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make("gym:ID", ...)` needs to build this environment again."""
        return {
            "size": self.size,
            "state": "none",
            "control_dt": self.control_dt,
            "make_kwargs": copy.deepcopy(self._make_kwargs),
        }

    @property
    def state(self) -> Array:
        """No entries (0,)."""
        return np.empty(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode as the environment itself does, from the seed alone. Raises RuntimeError for options."""
        if options:
            self._refuse(f"reset with {', '.join(options)}")
        super(GoalEnv, self).reset(seed=seed)
        reset_seeded(self._env, int(self.np_random.integers(2**31)))
        self._over, self._goal_S = False, np.empty(0)
        return self.render(), self._info()

    def advance(self, action_A: ArrayLike) -> None:
        """One step of the environment; none after it has ended the episode."""
        action = self._actions.native(self.check_actions(action_A, ()))
        if not self._over:
            _, _, terminated, truncated, _ = self._env.step(action)
            self._over = bool(terminated or truncated)

    def render(self) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3) of the present."""
        return fit(own_picture(self._env, self.id), self.size)

    def set_state(self, state_S: ArrayLike) -> None:
        """Raises RuntimeError."""
        self._refuse("set_state")

    def goal_image(self, state_S: ArrayLike) -> NDArray[np.uint8]:
        """Raises RuntimeError."""
        self._refuse("goal_image")

    def simulate(self, state_S: ArrayLike, action_NTA: ArrayLike) -> Array:
        """Raises RuntimeError."""
        self._refuse("simulate")

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """Raises RuntimeError."""
        self._refuse("distance")

    def make_policy(self, name: str, noise: float) -> Policy:
        """`correlated` (smooth random actions) or `random` (uniform)."""
        return undirected(name, noise, len(self.action_names))

    def renderer_fingerprint(self) -> str:
        """A sha256 of the first picture after `reset(seed=0)`, drawn by an instance of its own."""
        env = open_env(self.id, self._make_kwargs)
        reset_seeded(env, 0)
        pixels_YXC = fit(own_picture(env, self.id), self.size)
        env.close()
        return hashlib.sha256(self.id.encode() + pixels_YXC.tobytes()).hexdigest()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _info(self) -> dict[str, Any]:
        return {"state": self.state, "goal_state": self.state, "is_success": False}

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(f"{self.id} was made with state='none', so there is no {what}: {WITHOUT_STATE}.")

"""Any Gymnasium environment whose state can be set, as a goal-image task."""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.adapter.actions import ActionMap
from envs.adapter.known import Attributes, Rule, known
from envs.adapter.mujoco_state import MujocoState
from envs.adapter.simulator import Simulator, fit, seconds_per_step
from envs.adapter.success import Success, find_rule
from envs.adapter.view import Look, ModelCamera
from envs.goal_env import GoalEnv, wrap_angle
from envs.policies import CorrelatedRandom, Noisy, Policy, UniformRandom, check_policy, closest

Array = NDArray[np.float64]

REPEATS = 5  # steps by which the simulation is checked to depend on state and action alone
MOST_DRAWS = 200
UNDIRECTED = ("correlated", "random")
"""Policies that need to know nothing of a task."""


class AdaptedEnv(GoalEnv):
    """A foreign environment behind the contract of a goal-image task; `envs.adapter.make_goal_env` builds it.

    Of F entries of the whole state, the S chosen ones are the state; the others stand where `reset(seed=0)` put them
    whenever a state is set. The instance that acts is reset only while it is made; another one draws random states and
    a third answers `simulate` and `goal_image`, each made when it is first needed.
    """

    policies = UNDIRECTED
    # What a task of ours says of its class is known here once the environment is made.
    state_names: tuple[str, ...]  # type: ignore[misc]
    angle_names: tuple[str, ...]  # type: ignore[misc]
    action_names: tuple[str, ...]  # type: ignore[misc]
    control_dt: float  # type: ignore[misc]
    success_distance: float  # type: ignore[misc]
    home_state: tuple[float, ...]  # type: ignore[misc]

    def __init__(
        self,
        id: str,
        size: int,
        success: str | Rule | Sequence[Rule] | None,
        state: Sequence[str] | Attributes | None,
        look: Look,
        scatter: int,
        control_dt: float | None,
        make_kwargs: dict[str, Any],
    ) -> None:
        attributes = state if isinstance(state, Attributes) else None
        self.id = id
        self._given = (id, make_kwargs, attributes)
        self._live = Simulator(*self._given)
        source = self._live.source
        self._home_F = source.canonical(source.read())
        chosen = choose(None if isinstance(state, Attributes) else state, source.names, source.idle)
        self._columns = [source.names.index(name) for name in chosen]
        self._turns_F = np.array([name in source.angles for name in source.names])
        self.state_names = tuple(chosen)
        self.angle_names = tuple(name for name in chosen if name in source.angles)
        self.home_state = tuple(self._chosen(self._home_F).tolist())
        self._success = Success(find_rule(success, id, chosen), chosen, source.angles, source.rotations)
        self.success_distance = self._success.below
        drives = actuator_names(source.model) if isinstance(source, MujocoState) else ()
        self._actions = ActionMap(self._live.env.action_space, id, drives)
        self.action_names = self._actions.names
        self._check_repeats()
        self.control_dt = find_control_dt(self._live, control_dt, self._actions)
        self._live.source.write(self._home_F)
        super().__init__(size, renderer="camera")
        self.scatter = scatter
        self._look = look
        self._camera: ModelCamera | None = None
        if isinstance(source, MujocoState):
            self._camera = ModelCamera(source, self._live.env.unwrapped, size, look)
        elif look != Look():
            raise ValueError(f"camera, flags and hide are for MuJoCo environments; {id} draws itself: leave them out.")

    @property
    def settings(self) -> dict[str, Any]:
        """What `envs.make("gym:ID", ...)` needs to build this environment again; the success rule in full."""
        _, make_kwargs, attributes = self._given
        return {
            "size": self.size,
            "success": copy.deepcopy(self._success.parts),
            "state": list(self.state_names) if attributes is None else attributes.plain(),
            "camera": copy.deepcopy(self._look.camera),
            "flags": dict(self._look.flags),
            "hide": list(self._look.hide),
            "scatter": self.scatter,
            "control_dt": self.control_dt,
            "make_kwargs": copy.deepcopy(make_kwargs),
        } | self._variation_setting()

    @property
    def state(self) -> Array:
        """A copy of the chosen entries, angles wrapped."""
        return self._chosen(self._live.source.read())

    def set_state(self, state_S: ArrayLike) -> None:
        """Put the environment into a state; entries that are not chosen go back to their places after the reset."""
        self._live.source.write(self._whole(self.check_state(state_S)))

    def advance(self, action_A: ArrayLike) -> None:
        """One step of the environment, which goes on through what it calls the end of an episode."""
        self._live.step(self._actions.native(self.check_actions(action_A, ())))

    def simulate(self, state_S: ArrayLike, action_NTA: ArrayLike) -> Array:
        """The states (N, T, S) after each step of N action sequences, by the environment's own steps one by one."""
        start_F = self._whole(self.check_state(state_S))
        action_NTA = self.check_actions(action_NTA, "NT")
        twin = self._twin
        state_NTS = np.empty((*action_NTA.shape[:2], len(self.state_names)))
        for n, action_TA in enumerate(action_NTA):
            twin.source.write(start_F)
            for t, action_A in enumerate(action_TA):
                twin.step(self._actions.native(action_A))
                state_NTS[n, t] = self._chosen(twin.source.read())
        return state_NTS

    def distance(self, state_S: ArrayLike, goal_S: ArrayLike) -> Array:
        """The largest error of the success rule's parts, in the first one's unit; leading axes broadcast."""
        return self._success.distance(self.as_states(state_S), self.as_states(goal_S))

    def make_policy(self, name: str, noise: float) -> Policy:
        """`correlated` (smooth random actions) or `random` (uniform)."""
        return undirected(name, noise, len(self.action_names))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """As the contract says; a drawn state is the environment's own reset and up to `scatter` random steps."""
        self._draws = 0
        return super().reset(seed=seed, options=options)

    def render(self) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3) of the present, entries that are not part of the state included."""
        if self._camera is not None:
            return self._finished(self._camera.draw(self._live.source.read()))
        return self._finished(fit(self._live.picture(), self.size))

    def close(self) -> None:
        """Close the environments and free the camera's OpenGL context."""
        if self._camera is not None:
            self._camera.close()
        for name in ("_live", "_twin", "_dice"):
            if name in self.__dict__:
                self.__dict__[name].env.close()

    @cached_property
    def _twin(self) -> Simulator:
        """Answers questions about states."""
        return Simulator(*self._given)

    @cached_property
    def _dice(self) -> Simulator:
        """Draws random states; its resets may change its model, and nobody else's."""
        return Simulator(*self._given)

    def _chosen(self, state_F: Array) -> Array:
        return np.where(self._turns_F, wrap_angle(state_F), state_F)[self._columns]

    def _whole(self, state_S: Array) -> Array:
        state_F = self._home_F.copy()
        state_F[self._columns] = state_S
        return state_F

    def _check_inside(self, state_S: Array) -> Array:
        wrapped_F = self._whole(state_S)
        wrapped_F = np.where(self._turns_F, wrap_angle(wrapped_F), wrapped_F)
        return self._chosen(self._live.source.canonical(wrapped_F))

    def _draw_state(self, rng: np.random.Generator) -> Array:
        self._draws += 1
        if self._draws > MOST_DRAWS:
            raise RuntimeError(
                f"{MOST_DRAWS} drawn goals are all met by the start: lower success.tolerance or raise scatter, "
                f"now {self.scatter} steps."
            )
        dice = self._dice
        dice.reset(int(rng.integers(2**31)))
        policy = self.make_policy("correlated", noise=0.0)
        policy.reset(rng, self._chosen(dice.source.read()))
        for _ in range(rng.integers(self.scatter, endpoint=True)):
            dice.step(self._actions.native(policy.act(self._home_F).astype(np.float64)))
        return self.check_state(self._chosen(dice.source.read()))

    def _picture(self, state_S: Array) -> NDArray[np.uint8]:
        if self._camera is not None:
            return self._camera.draw(self._whole(state_S))
        self._twin.source.write(self._whole(state_S))
        return fit(self._twin.picture(), self.size)

    def _renderer_name(self) -> str:
        return self.id if self._camera is None else f"{self.id} on {self._camera.driver()}"

    def _check_repeats(self) -> None:
        """Raise ValueError unless reset, state and actions fix what happens."""
        id, source = self.id, self._live.source
        self._live.reset(0)
        if not np.array_equal(source.canonical(source.read()), self._home_F):
            raise ValueError(f"{id} starts elsewhere every time it is reset with seed 0: make its reset use its seed.")
        rng = np.random.default_rng(0)
        action_TA = rng.uniform(-1.0, 1.0, (REPEATS, len(self.action_names)))
        ends = []
        for _ in range(2):
            source.write(self._home_F)
            for action_A in action_TA:
                self._live.step(self._actions.native(action_A))
            ends.append(source.read())
        if not np.array_equal(ends[0], ends[1]):
            raise ValueError(
                f"{id} does not repeat itself: {REPEATS} equal steps from the same state end in two different states; "
                "either it is random, or it keeps something outside the entries "
                f"{', '.join(source.names)}, which state={{'attributes': [...]}} would have to name."
            )


def choose(wanted: Sequence[str] | None, names: Sequence[str], idle: frozenset[str]) -> list[str]:
    """The entries that form the state: those asked for, else all that an action can change, in the source's order."""
    if wanted is None:
        return [name for name in names if name not in idle]
    for name in wanted:
        if name not in names:
            raise ValueError(f"state names {name!r}{closest(name, names)}; the entries are {', '.join(names)}.")
    if not wanted:
        raise ValueError(f"state is empty: name entries of {', '.join(names)}, or pass state='none'.")
    return [name for name in names if name in wanted]


def undirected(name: str, noise: float, width: int) -> Policy:
    """`correlated` (random actions that keep a direction for about eight steps) or `random` (uniform)."""
    check_policy(name, noise, UNDIRECTED)
    policy: Policy = UniformRandom(width) if name == "random" else CorrelatedRandom(width, std=0.6, memory=8.0)
    return Noisy(policy, width, noise, memory=5.0) if noise > 0 else policy


def actuator_names(model: Any) -> tuple[str, ...]:
    """Names of a model's actuators; none unless every one has a name."""
    names = tuple(str(model.actuator(i).name) for i in range(model.nu))
    return names if all(names) else ()


def find_control_dt(live: Simulator, given: float | None, actions: ActionMap) -> float:
    """Seconds per step: as given, what passes on MuJoCo's clock, what is known, or 1 / render_fps."""
    if given is not None:
        return given
    if isinstance(live.source, MujocoState):
        before = live.source.data.time
        live.step(actions.native(np.zeros(len(actions.names))))
        return round(float(live.source.data.time - before), 9)  # a clock that counts up rounds
    row = known(live.id)
    if row is not None and row.control_dt is not None:
        return row.control_dt
    return seconds_per_step(live.env, live.id, None)

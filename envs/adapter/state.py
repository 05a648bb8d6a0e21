"""Where a foreign environment keeps its state, and how to read it and put it back: a MuJoCo model, or attributes."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.adapter.known import Attributes, known
from envs.adapter.mujoco_state import MujocoState, find_model

Array = NDArray[np.float64]

WITHOUT_STATE = (
    "state='none' still records it, trains on it and plans to a picture from a file; it cannot draw the goal of a "
    "state, measure success, evaluate or plan on the simulator"
)


class StateSource(Protocol):
    """Reads and writes the whole state F of one instance of an environment."""

    names: tuple[str, ...]
    """Names of the entries."""
    angles: frozenset[str]
    """Entries that are angles in rad and mean the same a full turn further."""
    rotations: frozenset[str]
    """Entries of quaternions: they mean nothing one by one."""
    idle: frozenset[str]
    """Entries that no action can ever change, such as a target that is only drawn."""

    def read(self) -> Array:
        """The state (F,). Raises RuntimeError where the simulation has diverged."""

    def write(self, state_F: Array) -> None:
        """Put the environment into a state; all that is not in it goes back to where `reset(seed=0)` put it."""

    def canonical(self, state_F: Array) -> Array:
        """The state as `read` would give it after `write`. Raises ValueError for one that cannot be written."""

    def hold(self) -> None:
        """Put back what would disturb the next step or picture: counters, drawings of the last action."""


class AttributeState:
    """A state kept in attributes of the environment, which keep their types: float, array, tuple, tensor."""

    rotations: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()

    def __init__(self, env: gymnasium.Env[Any, Any], id: str, where: Attributes) -> None:
        self._env, self._where = env.unwrapped, where
        self._templates = [copy.deepcopy(self._look_up(name, id)) for name in where.attributes]
        sizes = [_flat(value, f"{id}'s {name}").size for name, value in zip(where.attributes, self._templates)]
        self._ends = np.cumsum(sizes)
        self.names = where.names or tuple(_numbered(where.attributes, sizes))
        if len(self.names) != self._ends[-1]:
            raise ValueError(
                f"state.names are {', '.join(self.names)}, but {', '.join(where.attributes)} hold {self._ends[-1]} "
                "numbers: name each."
            )
        self.angles = frozenset(where.angles)
        if unknown := self.angles - set(self.names):
            raise ValueError(f"state.angles names {sorted(unknown)}, but the entries are {', '.join(self.names)}.")
        try:
            self.write(self.read())
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"the state of {id} can be read from {', '.join(where.attributes)} but not set ({error}): name the "
                f"attributes behind it in state.attributes. Without, {WITHOUT_STATE}."
            ) from error

    def read(self) -> Array:
        """The state (F,). Raises RuntimeError for a NaN or an infinity."""
        state_F = np.concatenate([_flat(_get(self._env, name), name) for name in self._where.attributes])
        if not np.isfinite(state_F).all():
            raise RuntimeError(f"the simulation diverged: {dict(zip(self.names, state_F.tolist()))}.")
        return state_F

    def write(self, state_F: Array) -> None:
        """Set every attribute."""
        for name, value in zip(self._where.attributes, self._values(state_F)):
            _set(self._env, name, value)

    def canonical(self, state_F: Array) -> Array:
        """Rounded to the attributes' own number types."""
        return np.concatenate([_flat(value, "state") for value in self._values(state_F)])

    def hold(self) -> None:
        """Put the constants back."""
        for name, value in self._where.constants.items():
            _set(self._env, name, value)

    def _values(self, state_F: Array) -> list[Any]:
        return [_like(old, part) for old, part in zip(self._templates, np.split(state_F, self._ends[:-1]))]

    def _look_up(self, name: str, id: str) -> Any:
        try:
            return _get(self._env, name)
        except AttributeError as error:
            raise ValueError(f"{id} has no attribute {name!r} ({error}): correct state.attributes.") from error


class PymunkPushT(AttributeState):
    """gym-pusht: bodies of a pymunk space, which keeps contacts of its own and is therefore built anew."""

    def write(self, state_F: Array) -> None:
        """A new space with its bodies in place."""
        env: Any = self._env
        env._setup()
        super().write(state_F)
        for body in (env.agent, env.block):
            env.space.reindex_shapes_for_body(body)


SPECIAL: dict[str, type[AttributeState]] = {"gym_pusht/PushT": PymunkPushT}
"""Start of an id -> how its attributes are written."""


def find_source(env: gymnasium.Env[Any, Any], id: str, attributes: Attributes | None) -> StateSource:
    """How the state of an environment that has been reset is read and written.

    The given attributes, else its MuJoCo model, else what is known by its name, else a numeric attribute `state`.
    Raises ValueError, saying what still works, where there is none of these.
    """
    if attributes is None:
        found = find_model(env.unwrapped)
        if found is not None:
            return MujocoState(env.unwrapped, found)
        row = known(id)
        attributes = row.state if row is not None else None
    if attributes is None and _numeric(getattr(env.unwrapped, "state", None)):
        attributes = Attributes(("state",))
    if attributes is None:
        raise ValueError(
            f"the state of {id} cannot be set: it has no MuJoCo model and no numeric attribute `state`; name the "
            f"attributes that hold it, state={{'attributes': [...]}}. Without, {WITHOUT_STATE}."
        )
    kind = next((kind for start, kind in SPECIAL.items() if id.startswith(start)), AttributeState)
    return kind(env, id, attributes)


def _get(owner: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        owner = getattr(owner, name)
    return owner


def _set(owner: Any, dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    setattr(_get(owner, ".".join(path)) if path else owner, last, value)


def _numeric(value: Any) -> bool:
    try:
        return value is not None and np.asarray(value, np.float64).ndim <= 1
    except (TypeError, ValueError):
        return False


def _flat(value: Any, what: str) -> Array:
    if not _numeric(value):
        raise ValueError(f"{what} is {' '.join(repr(value).split())}, but must be a number or a flat array of numbers.")
    return np.atleast_1d(np.asarray(value, np.float64))


def _like(old: Any, numbers: Array) -> Any:
    """The numbers in the type of an old value."""
    if isinstance(old, bool | int | np.integer | np.bool_):
        return type(old)(round(float(numbers[0])))
    if isinstance(old, float | np.floating):
        return type(old)(numbers[0])
    if isinstance(old, tuple | list):
        items = [_like(item, numbers[i : i + 1]) for i, item in enumerate(old)]
        return tuple(items) if isinstance(old, tuple) else items
    new = copy.deepcopy(old)  # an array or a tensor
    if new.ndim == 0:
        new[()] = numbers[0]
    for i in range(len(numbers) if new.ndim else 0):
        new[i] = numbers[i]
    return new


def _numbered(attributes: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """An attribute's own name for one number, `name:0`, `name:1`, ... for several."""
    return [
        name if size == 1 else f"{name}:{i}" for name, size in zip(attributes, sizes, strict=True) for i in range(size)
    ]

"""When a state of a foreign environment satisfies a goal: tolerances on named entries of the state."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.adapter.known import Rule, known
from envs.goal_env import wrap_angle
from envs.policies import closest

Array = NDArray[np.float64]

KEYS = ("entries", "tolerance", "norm")
NORMS = ("max", "euclidean")


class Success:
    """All parts of a rule at once, as one distance in units of the first part's entries.

    A part holds when the norm of its entries' errors, angles the short way round, is below its tolerance.
    """

    def __init__(
        self, parts: Sequence[Rule], names: Sequence[str], angles: Collection[str], rotations: Collection[str]
    ) -> None:
        if not parts:
            raise ValueError(f"success has no parts: give one, {example(names)}")
        self.parts = [check_part(part, names, rotations) for part in parts]
        self.below = float(self.parts[0]["tolerance"])
        self._columns = [[list(names).index(name) for name in part["entries"]] for part in self.parts]
        self._turns = [np.array([name in angles for name in part["entries"]]) for part in self.parts]

    def distance(self, state_S: Array, goal_S: Array) -> Array:
        """The largest of the parts' errors, scaled so that each part's tolerance counts as `below`."""
        errors = []
        for part, columns, turns in zip(self.parts, self._columns, self._turns):
            error = np.abs(state_S[..., columns] - goal_S[..., columns])
            error = np.where(turns, np.abs(wrap_angle(error)), error)
            size = error.max(-1) if part["norm"] == "max" else np.sqrt((error**2).sum(-1))
            errors.append(size * (self.below / part["tolerance"]))
        return np.asarray(np.max(errors, axis=0))


def find_rule(success: Any, id: str, names: Sequence[str]) -> list[Rule]:
    """The parts of a rule given as a part, as parts, as the name of a known rule, or as None for the known one.

    Raises ValueError, listing the entries, where nothing is known or the name is unknown.
    """
    if isinstance(success, dict):
        return [success]
    if isinstance(success, list | tuple):
        return list(success)
    row = known(id)
    rules = {} if row is None else row.success
    if success is None and rules:
        return list(next(iter(rules.values())))
    if isinstance(success, str) and success in rules:
        return list(rules[success])
    said = f"success is {success!r}, and" if success is not None else "success is not given, and"
    offered = f"the rules of {id} are {', '.join(rules)}" if rules else f"no rule is known for {id}"
    raise ValueError(f"{said} {offered}: say which entries have to match, {example(names)}")


def example(names: Sequence[str]) -> str:
    """How a rule is written, with the entries there are."""
    return f"success={{'entries': ['{names[0]}'], 'tolerance': 0.05}}; the entries are {', '.join(names)}."


def check_part(part: Any, names: Sequence[str], rotations: Collection[str]) -> Rule:
    """A part with everything said in it; raises ValueError for what cannot be."""
    if not isinstance(part, dict) or not {"entries", "tolerance"} <= set(part):
        raise ValueError(f"a part of success is {part!r}, but must have entries and a tolerance: {example(names)}")
    for key in part:
        if key not in KEYS:
            raise ValueError(f"success has no key {key!r}{closest(key, KEYS)}; its keys are {', '.join(KEYS)}.")
    entries, norm, tolerance = part["entries"], part.get("norm", "max"), part["tolerance"]
    if isinstance(entries, str) or not entries:
        raise ValueError(f"success.entries is {entries!r}, but must be a list of names: {example(names)}")
    for name in entries:
        if name not in names:
            raise ValueError(
                f"success.entries names {name!r}{closest(name, names)}; the entries of the state are "
                f"{', '.join(names)}."
            )
        if name in rotations:
            raise ValueError(
                f"success.entries names {name!r}, one number of a quaternion, which is no error by itself: "
                "leave the rotation out."
            )
    if norm not in NORMS:
        raise ValueError(f"success.norm is {norm!r}, but must be one of {', '.join(NORMS)}.")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < float("inf"):
        raise ValueError(f"success.tolerance is {tolerance!r}, but must be a number above 0, in the entries' unit.")
    return {"entries": list(entries), "tolerance": float(tolerance), "norm": norm}

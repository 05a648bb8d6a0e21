"""Factors of variation: what of a task's world can be another than usual, in which ranges, and how values are drawn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from envs.policies import closest

Number = int | float
Value = Number | tuple[Number, ...]
"""What a factor can be: a number, or several that belong together, such as red, green and blue."""
Range = tuple[Value, Value]
"""Lowest and highest value, both possible, number by number."""
Colour = tuple[int, int, int]
Draw = Literal["usual", "shifted"]
How = Literal["default", "usual", "shifted"] | Mapping[str, Value | Draw]
"""How a world is chosen: all factors drawn from one kind of range, or some factors by name, the others at their
default."""

HOWS = ("default", "usual", "shifted")
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
LAYOUTS = 2**16


@dataclass(frozen=True)
class Factor:
    """One row of a task's table of factors."""

    default: Value
    """The value of the world as the task describes it."""
    usual: Range
    """Small differences, to record with; the default is among them."""
    shifted: tuple[Range, ...]
    """Large differences, to test with; a draw takes one of these ranges at random. None of them meets `usual`."""
    allowed: Range
    """Values that mean something at all."""
    acts: Literal["picture", "physics"]
    """What it changes. A factor of the picture never changes what an action does, and one of the physics no pixel."""
    what: str
    """One line for tables: meaning and unit."""
    whole: bool = False
    """Whether its numbers are whole."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("usual", self.usual), *(("shifted", shifted) for shifted in self.shifted)):
            inside = _within(low, self.allowed) and _within(high, self.allowed)
            if not inside or (np.asarray(low) > np.asarray(high)).any():
                raise ValueError(f"{name} is {low} to {high}, but must be a range inside {self.allowed}: {self.what}.")
        if not _within(self.default, self.usual):
            raise ValueError(f"default is {self.default}, but must be in usual, {self.usual}: {self.what}.")
        for shifted in self.shifted:
            if _overlap(shifted, self.usual):
                raise ValueError(f"shifted {shifted} must not meet usual, {self.usual}: {self.what}.")

    def check(self, name: str, value: object) -> Value:
        """The value as plain numbers. Raises ValueError unless it has the default's shape and is allowed."""
        try:
            numbers = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            numbers = np.array(math.nan)
        low, high = self.allowed
        if (
            numbers.shape != np.shape(self.default)
            or not np.isfinite(numbers).all()
            or not _within(numbers, self.allowed)
            or (self.whole and (numbers % 1).any())
        ):
            kind = "whole numbers" if self.whole else "numbers"
            raise ValueError(f"factor {name!r} is {value!r}, but must be {kind} from {low} to {high}: {self.what}.")
        return self._plain(numbers)

    def draw(self, rng: np.random.Generator, kind: Draw) -> Value:
        """A uniform value from the usual range, or from one of the shifted ranges."""
        low, high = self.usual if kind == "usual" else self.shifted[int(rng.integers(len(self.shifted)))]
        if self.whole:
            return self._plain(rng.integers(np.asarray(low, np.int64), np.asarray(high, np.int64) + 1))
        return self._plain(rng.uniform(low, high))

    def _plain(self, numbers: object) -> Value:
        plain: Any = np.asarray(numbers, np.int64 if self.whole else np.float64).tolist()
        return tuple(plain) if isinstance(plain, list) else plain


def colour(default: Colour, low: Colour, high: Colour, what: str) -> Factor:
    """A colour whose red, green and blue usually differ by at most 16, and are shifted into low to high."""
    usual = tuple(max(c - 16, 0) for c in default), tuple(min(c + 16, 255) for c in default)
    return Factor(default, usual, ((low, high),), (BLACK, WHITE), "picture", f"{what}, red green blue", whole=True)


def ratio(acts: Literal["picture", "physics"], allowed: Range, *shifted: Range, what: str) -> Factor:
    """A factor by which something is multiplied, usually within 10 %."""
    return Factor(1.0, (0.9, 1.1), shifted, allowed, acts, f"{what}, times the task's own")


def check_names(factors: Mapping[str, Factor], names: object) -> None:
    """Raise ValueError, with the closest name, for one that is no factor."""
    for name in names if isinstance(names, Mapping | list | tuple) else ():
        if name not in factors:
            raise ValueError(
                f"there is no factor {name!r}{closest(str(name), factors)}; the factors are {', '.join(factors)}."
            )


def check_values(factors: Mapping[str, Factor], values: Mapping[str, object]) -> dict[str, Value]:
    """Given values as plain numbers, those equal to the default left out, in the table's order."""
    check_names(factors, values)
    checked = {name: factors[name].check(name, values[name]) for name in factors if name in values}
    return {name: value for name, value in checked.items() if value != factors[name].default}


def check_how(factors: Mapping[str, Factor], how: object) -> None:
    """Raise ValueError unless `how` says how to choose a world with these factors."""
    if isinstance(how, Mapping):
        check_values(factors, {name: value for name, value in how.items() if not _is_draw(value)})
        check_names(factors, how)
    elif not isinstance(how, str) or how not in HOWS:
        raise ValueError(f"variation is {how!r}, but must be one of {', '.join(HOWS)}, or factors and their values.")


def choose(factors: Mapping[str, Factor], how: How, rng: np.random.Generator) -> dict[str, Value]:
    """A world: what is given as a value is taken, what is given as "usual" or "shifted" is drawn in table order."""
    check_how(factors, how)
    if isinstance(how, str):
        wanted: Mapping[str, object] = {} if how == "default" else dict.fromkeys(factors, how)
    else:
        wanted = how
    values: dict[str, object] = {}
    for name, factor in factors.items():
        if name in wanted:
            given = wanted[name]
            values[name] = factor.draw(rng, given) if _is_draw(given) else given  # type: ignore[arg-type]
    return check_values(factors, values)


def _is_draw(value: object) -> bool:
    return isinstance(value, str) and value in ("usual", "shifted")


def _within(value: object, allowed: Range) -> bool:
    numbers = np.asarray(value, np.float64)
    return bool(((numbers >= np.asarray(allowed[0])) & (numbers <= np.asarray(allowed[1]))).all())


def _overlap(one: Range, other: Range) -> bool:
    """Whether two boxes have a common point."""
    low, high = np.maximum(one[0], other[0]), np.minimum(one[1], other[1])
    return bool((low <= high).all())

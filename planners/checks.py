"""What a planner checks: its settings when it is made, and the noise, box and warm start it is called with."""

from math import isfinite
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from planners.types import ActionBox, Need, WarmStart


class Sized(Protocol):
    """What decides the shape of a planner's noise and the boxes it can search."""

    needs: ClassVar[tuple[Need, ...]]

    @property
    def horizon(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def iterations(self) -> int: ...


class Refitted(Sized, Protocol):
    """The settings of a Gaussian that is fitted anew in every iteration."""

    @property
    def momentum(self) -> float: ...
    @property
    def min_std(self) -> float: ...
    @property
    def initial_std(self) -> float: ...


class SearchConfig(Refitted, Protocol):
    """The settings of `search`; CEM and MPPI document them."""

    @property
    def warm_std(self) -> float: ...
    @property
    def keep_mean(self) -> bool: ...
    @property
    def keep_seeds(self) -> bool: ...
    @property
    def execute(self) -> Literal["mean", "best"]: ...


class Selecting(Sized, Protocol):
    """The settings of planners that may learn from their elites alone."""

    @property
    def elites(self) -> int | None: ...


class Decaying(Sized, Protocol):
    """The settings of planners with fewer and fewer candidates."""

    @property
    def elites(self) -> int: ...
    @property
    def decay(self) -> float: ...


def check_sizes(config: Sized) -> None:
    """Raise ValueError, naming the field, for a size below 1."""
    for field in ("horizon", "candidates", "iterations"):
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{type(config).__name__}: {field} is {value}; it must be at least 1")


def check_positive(config: object, *fields: str) -> None:
    """Raise ValueError, naming the field, for a number that is not positive and finite."""
    for field in fields:
        if not (isfinite(value := getattr(config, field)) and value > 0):
            raise ValueError(f"{type(config).__name__}: {field} is {value}; it must be positive and finite")


def check_not_negative(config: object, *fields: str) -> None:
    """Raise ValueError, naming the field, for a number that is negative or not finite."""
    for field in fields:
        if not (isfinite(value := getattr(config, field)) and value >= 0):
            raise ValueError(f"{type(config).__name__}: {field} is {value}; it must be 0 or more, and finite")


def check_refit(config: Refitted, *stds: str) -> None:
    """Raise ValueError, naming the field, for settings of the Gaussian; `stds` are the fields with its first std."""
    name, smallest = type(config).__name__, min(getattr(config, field) for field in stds)
    if not 0 <= config.momentum < 1:
        raise ValueError(f"{name}: momentum is {config.momentum}; it must lie in [0, 1), where 0 forgets the old mean")
    check_positive(config, *stds)
    if not 0 <= config.min_std <= smallest:
        raise ValueError(
            f"{name}: min_std is {config.min_std}; it must lie between 0 and {smallest}, the smallest of "
            f"{', '.join(stds)}"
        )


def check_config(config: SearchConfig) -> None:
    """Raise ValueError, naming the field, for a setting no `search` can work with."""
    check_sizes(config)
    check_refit(config, "initial_std", "warm_std")
    if config.execute not in ("mean", "best"):
        raise ValueError(f"{type(config).__name__}: execute is {config.execute!r}; it must be 'mean' or 'best'")


def check_elites(config: Selecting) -> None:
    """Raise ValueError for more elites than candidates, or fewer than one; None takes no elites."""
    if config.elites is not None and not 1 <= config.elites <= config.candidates:
        raise ValueError(
            f"{type(config).__name__}: elites is {config.elites}; it must lie in 1..{config.candidates}, the candidates"
        )


def check_decay(config: Decaying) -> None:
    """Raise ValueError for elites or a decay that make no populations."""
    check_elites(config)
    if not (isfinite(config.decay) and config.decay >= 1):
        name = type(config).__name__
        raise ValueError(f"{name}: decay is {config.decay}; it must be finite and at least 1, the same number always")


def check_inputs(config: Sized, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None) -> None:
    """Raise ValueError when noise, warm start or box do not suit this planner."""
    name = type(config).__name__
    if "choices" in config.needs and box.choices_A is None:
        raise ValueError(f"{name} searches discrete actions, but the box is continuous: use cem, or ActionBox.discrete")
    if "choices" not in config.needs and box.choices_A is not None:
        raise ValueError(
            f"{name} searches continuous actions, but the box has choices {box.choices_A}: use a planner for discrete "
            "actions, categorical_cem"
        )
    check_noise(config, noise_BINHA, box)
    if start is None:
        return
    expected_BHA = (len(noise_BINHA), *noise_BINHA.shape[3:])
    for part, found_BHA in (("mean", start.mean_BHA), ("std", start.std_BHA)):
        if found_BHA is not None and found_BHA.shape != expected_BHA:
            raise ValueError(
                f"the warm start's {part} has shape {tuple(found_BHA.shape)}; these problems need {expected_BHA}: use "
                "Plan.warm_start of their last plan"
            )
    seeds_BSHA = start.seeds_BSHA
    if seeds_BSHA is not None and (seeds_BSHA.ndim != 4 or seeds_BSHA[:, 0].shape != expected_BHA):
        raise ValueError(
            f"the warm start's seeds have shape {tuple(seeds_BSHA.shape)}; these problems need (B, S, H, A) with "
            f"(B, H, A) = {expected_BHA}"
        )


def check_noise(config: Sized, noise_BINHA: Tensor, box: ActionBox) -> None:
    """Raise ValueError when noise does not suit this planner and box."""
    expected_INHA = (config.iterations, config.candidates, config.horizon, len(box.low_A))
    if noise_BINHA.shape[1:] != expected_INHA:
        raise ValueError(
            f"noise has shape {tuple(noise_BINHA.shape)}; this {type(config).__name__} and box need (B, iterations, "
            f"candidates, horizon, A) = (B, {', '.join(map(str, expected_INHA))}): draw it with noise_table"
        )

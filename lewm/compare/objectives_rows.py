"""One row of the comparison: what is measured of an objective in the course of its training and at the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lewm.probes import Health
from lewm.schema import read_rows

COLLAPSED_RANK, COLLAPSED_STD = 0.1, 0.05
"""A latent counts as collapsed below this share of the ideal effective rank, or below this mean standard deviation: the
rank does not see a latent that shrinks evenly."""
CONTEXT = "information in the context"
"""The criterion that ranks and standard deviations are taken from."""


@dataclass(frozen=True)
class Success:
    """One planning cost on one goal set."""

    goals: str
    """Name of the goal set."""
    method: str
    """Name of the planning method, which says its cost."""
    n: int
    """Goals tried."""
    successes: int
    """Goals reached."""
    success: float
    """Share of the goals reached."""
    low: float
    """Lower end of the Wilson 95 % interval."""
    high: float
    """Upper end of the Wilson 95 % interval."""


@dataclass(frozen=True)
class CurvePoint:
    """The latent after some steps of training, on held-out episodes; probes are fitted on training episodes."""

    step: int
    """Optimiser steps done; 0 for the fresh weights."""
    effective_rank: float
    """Over the clips, averaged over the frames of a clip."""
    ideal_rank: float
    """Of an isotropic Gaussian of the same size."""
    condition_number: float | None
    """Largest over smallest eigenvalue of the covariance; None if it is infinite."""
    std_mean: float
    """Mean over dimensions of the standard deviation."""
    std_min: float
    """Standard deviation of the dimension that varies least."""
    linear_r2: dict[str, float | None]
    """R2 of a linear probe per state factor (angles as cos and sin); None where the factor does not vary."""
    mlp_r2: dict[str, float | None]
    """The same for a small MLP; empty where it was not fitted."""
    rollout_error: tuple[float, ...]
    """Error after 1, 2, ... blocks, divided by the variance of the latents."""
    seconds_per_step: float | None
    """Training alone since the point before; None for the first point of a process."""

    @property
    def collapsed(self) -> bool:
        """Whether the latent counts as collapsed here."""
        return self.effective_rank < COLLAPSED_RANK * self.ideal_rank or self.std_mean < COLLAPSED_STD


@dataclass(frozen=True)
class CompareRow:
    """One objective, trained once. The last three fields are missing in rows from before they were measured."""

    task: str
    """Task name, as in `envs.TASKS`."""
    objective: str
    """Name in `OBJECTIVES`, and after a + those of add-ons."""
    seed: int
    """Training seed: initial weights, data order and the episodes held out."""
    change: str
    """What differs from the published constants, in words; empty for none."""
    steps: int
    """Optimiser steps."""
    seconds_per_step: float | None
    """Training alone, median over the stretches between two points; None if no stretch was timed."""
    effective_rank: float
    """At the end, as in CurvePoint."""
    ideal_rank: float
    """Of an isotropic Gaussian of the same size."""
    std_min: float
    """Standard deviation of the dimension that varies least."""
    std_mean: float
    """Mean over dimensions of the standard deviation."""
    linear_r2: dict[str, float | None]
    """Held-out R2 of a linear probe per state factor; None where the factor does not vary."""
    mlp_r2: dict[str, float | None]
    """The same for a small MLP."""
    rollout_error: tuple[float, ...]
    """Held-out error after 1, 2, ... blocks, divided by the variance of the latents."""
    collapsed_at: int | None
    """First point from which the latent stayed collapsed (see COLLAPSED_RANK); None for never."""
    success: tuple[Success, ...]
    """Every planning cost on every goal set."""
    hardware: str
    """Processor and accelerator."""
    torch: str
    """Its version."""
    condition_number: float | None = None
    """Largest over smallest eigenvalue of the covariance; None if it is infinite."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the objective that differ from its defaults, by dotted key."""
    curve: tuple[CurvePoint, ...] = ()
    """The latent in the course of the training."""


def curve_point(step: int, health: Health, mlp: bool, seconds_per_step: float | None = None) -> CurvePoint:
    """What a measurement says, with the MLP probe fitted now if wanted."""
    criteria = {name.removeprefix(f"{CONTEXT}/"): value for name, value in health.criteria.items()}
    return CurvePoint(
        step=step,
        effective_rank=criteria["effective_rank"],
        ideal_rank=criteria["effective_rank/ideal"],
        condition_number=known(criteria["condition_number"]),
        std_mean=criteria["std_mean"],
        std_min=criteria["std_min"],
        linear_r2={name: known(r2) for name, r2 in health.probe_r2.items()},
        mlp_r2={name: known(r2) for name, r2 in health.sample.mlp_r2().items()} if mlp else {},
        rollout_error=tuple(health.rollout_error_T.tolist()),
        seconds_per_step=seconds_per_step,
    )


def known(value: float) -> float | None:
    """None for NaN and infinity, which JSON cannot write."""
    return value if math.isfinite(value) else None


def collapse_step(curve: Sequence[CurvePoint]) -> int | None:
    """The step of the first point from which on all are collapsed; fresh weights, at step 0, do not count."""
    healthy = max((point.step for point in curve if not point.collapsed), default=0)
    return min((point.step for point in curve if point.step > healthy), default=None)


def load_rows(path: Path) -> list[CompareRow]:
    """Rows that `lewm compare objectives --json` wrote. Raises SchemaError naming what does not fit."""
    return read_rows(CompareRow, path, "give a file that `lewm compare objectives --json` wrote")

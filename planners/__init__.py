"""Planners: a cost function in, a plan out. They know no model and no task."""

from planners.cem import CEM
from planners.mppi import MPPI
from planners.noise import noise_table
from planners.types import (
    ActionBox,
    ConstrainedCost,
    CostFn,
    Need,
    Plan,
    Planner,
    StateCost,
    WarmStart,
    shift,
)

PlannerConfig = CEM | MPPI
"""What a configuration file may say, told apart by `name`."""

PLANNERS: dict[str, type[PlannerConfig]] = {"cem": CEM, "mppi": MPPI}
"""Name to planner. A new one is a file, a row here and a member of `PlannerConfig`; the tests cover it from here."""

__all__ = [
    "CEM",
    "MPPI",
    "PLANNERS",
    "ActionBox",
    "ConstrainedCost",
    "CostFn",
    "Need",
    "Plan",
    "Planner",
    "PlannerConfig",
    "StateCost",
    "WarmStart",
    "noise_table",
    "shift",
]

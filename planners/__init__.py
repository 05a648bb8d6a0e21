"""Planners: a cost function in, a plan out. They know no model and no task."""

from planners.augmented_lagrangian import AugmentedLagrangian
from planners.categorical_cem import CategoricalCEM
from planners.cem import CEM
from planners.constraints import FeasibleFirst
from planners.gradient import Gradient
from planners.grasp import Grasp
from planners.hybrid import Hybrid
from planners.icem import ICEM
from planners.mppi import MPPI
from planners.noise import noise_table
from planners.predictive_sampling import PredictiveSampling
from planners.random_shooting import RandomShooting
from planners.risk import Risk, RiskCost
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

PlannerConfig = (
    AugmentedLagrangian
    | CategoricalCEM
    | CEM
    | FeasibleFirst
    | Gradient
    | Grasp
    | Hybrid
    | ICEM
    | MPPI
    | PredictiveSampling
    | RandomShooting
)
"""What a configuration file may say, told apart by `name`."""

PLANNERS: dict[str, type[PlannerConfig]] = {
    "augmented_lagrangian": AugmentedLagrangian,
    "categorical_cem": CategoricalCEM,
    "cem": CEM,
    "feasible_first": FeasibleFirst,
    "gradient": Gradient,
    "grasp": Grasp,
    "hybrid": Hybrid,
    "icem": ICEM,
    "mppi": MPPI,
    "predictive_sampling": PredictiveSampling,
    "random_shooting": RandomShooting,
}
"""Name to planner. A new one is a file, a row here and a member of `PlannerConfig`; the tests cover it from here."""

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "PLANNERS",
    "ActionBox",
    "AugmentedLagrangian",
    "CategoricalCEM",
    "ConstrainedCost",
    "CostFn",
    "FeasibleFirst",
    "Gradient",
    "Grasp",
    "Hybrid",
    "Need",
    "Plan",
    "Planner",
    "PlannerConfig",
    "PredictiveSampling",
    "RandomShooting",
    "Risk",
    "RiskCost",
    "StateCost",
    "WarmStart",
    "noise_table",
    "shift",
]

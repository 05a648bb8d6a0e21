"""How each planner of PLANNERS is made for the contract tests, and which toys it is promised to solve.

A new planner needs a row in CASES. A second row for the same planner covers another way of running it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from toys import TOYS, Toy

from planners import CEM, ICEM, MPPI, PLANNERS, AugmentedLagrangian, FeasibleFirst, Hybrid, PlannerConfig


@dataclass(frozen=True)
class Case:
    """One planner with the options it is tested with."""

    planner: str
    """Its name in PLANNERS."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Fields beside horizon, candidates and iterations."""
    candidates: int = 256
    """Candidates with which it solves its toys."""
    iterations: int = 12
    """Iterations with which it solves its toys."""
    only: tuple[str, ...] | None = None
    """Toys it must solve; by default every everyday toy that offers what it needs."""
    also: tuple[str, ...] = ()
    """Further toys it must solve."""
    ladder: tuple[int, ...] = (1, 3, 9)
    """Numbers of iterations, with 64 candidates, each of which finds better plans than the one before."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """Toys of which it may miss the optimum by another cost than `Toy.tolerance`."""
    factory: Callable[[int, int, int], PlannerConfig] | None = None
    """(horizon, candidates, iterations) to planner, for one whose fields have other names."""

    def make(self, toy: Toy, candidates: int | None = None, iterations: int | None = None) -> PlannerConfig:
        """The planner for a toy, with the budget of this case unless told otherwise."""
        size = toy.horizon, candidates or self.candidates, iterations or self.iterations
        if self.factory:
            return self.factory(*size)
        horizon, candidates, iterations = size
        return PLANNERS[self.planner](horizon=horizon, candidates=candidates, iterations=iterations, **self.options)

    @property
    def toys(self) -> tuple[str, ...]:
        """Names of the toys it is promised to solve; the first stands for all where one is enough."""
        needs = set(PLANNERS[self.planner].needs)
        fitting = (
            name
            for name, toy in TOYS.items()
            if toy.everyday and needs <= toy.offers and (toy.box.choices_A is not None) == ("choices" in needs)
        )
        return (tuple(fitting) if self.only is None else self.only) + self.also

    def tolerance(self, toy_name: str) -> float:
        return self.tolerances.get(toy_name, TOYS[toy_name].tolerance)


def feasible_first(search: type[CEM] | type[MPPI]) -> Callable[[int, int, int], PlannerConfig]:
    """Makes feasible_first around one search."""

    def make(horizon: int, candidates: int, iterations: int) -> PlannerConfig:
        return FeasibleFirst(search=search(horizon=horizon, candidates=candidates, iterations=iterations))

    return make


def augmented_lagrangian(horizon: int, candidates: int, iterations: int) -> PlannerConfig:
    """Rounds of 3 iterations where these add up, else of 2 or 1."""
    each = next(each for each in (3, 2, 1) if iterations % each == 0)
    search = CEM(horizon=horizon, candidates=candidates, iterations=each)
    return AugmentedLagrangian(search=search, rounds=iterations // each)


def hybrid(search: type[CEM] | type[ICEM]) -> Callable[[int, int, int], PlannerConfig]:
    """Makes hybrid around one search."""

    def make(horizon: int, candidates: int, iterations: int) -> PlannerConfig:
        return Hybrid(search=search(horizon=horizon, candidates=candidates, iterations=iterations))

    return make


CASES = {
    "augmented_lagrangian": Case("augmented_lagrangian", factory=augmented_lagrangian, only=("fence", "ring")),
    "categorical_cem": Case("categorical_cem"),
    "categorical_cem, mode": Case("categorical_cem", {"execute": "mode", "elites": 15}),
    "cem": Case("cem"),
    "cem, best": Case("cem", {"execute": "best"}),
    "cem, decaying": Case("cem", {"decay": 1.2, "elites": 10}, tolerances={"beyond the box": 0.04, "valley": 0.03}),
    "feasible_first": Case("feasible_first", factory=feasible_first(CEM), only=("fence", "ring")),
    "feasible_first, mppi": Case("feasible_first", factory=feasible_first(MPPI), only=("fence",)),
    "gradient": Case("gradient", candidates=64, iterations=24),
    "gradient, noise": Case("gradient", {"noise": 0.05, "schedule": "constant"}, candidates=64, iterations=60),
    "grasp": Case("grasp", candidates=32, iterations=20, only=("gap", "point mass"), ladder=(1, 20)),
    "hybrid": Case("hybrid", factory=hybrid(CEM)),
    "hybrid, icem": Case("hybrid", factory=hybrid(ICEM)),
    "icem": Case("icem"),
    "icem, spline": Case("icem", {"noise_beta": 0.0, "knots": 2}, only=("point mass", "beyond the box")),
    "mppi": Case("mppi"),
    "mppi, best": Case("mppi", {"execute": "best"}),
    "mppi, elites": Case("mppi", {"elites": 32, "ess": 0.3, "keep_seeds": True}),
    "mppi, smooth": Case("mppi", {"noise_beta": 2.0}),
    "mppi, fixed std": Case("mppi", {"adapt_std": False, "initial_std": 0.5}, only=("point mass",)),
    "predictive_sampling": Case("predictive_sampling"),
    "random_shooting": Case(
        "random_shooting",
        tolerances={"point mass": 0.02, "beyond the box": 0.6, "valley": 0.15, "around a disc": 0.12},
    ),
}
"""Name of the test case to planner and options."""

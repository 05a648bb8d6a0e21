"""Planners at a given budget, whatever their own settings are called."""

from typing import Any

from planners import CEM, PLANNERS, Hybrid, PlannerConfig


def searches() -> list[str]:
    """Planners that need nothing but a cost: candidates x iterations mean the same work to each of them."""
    return [name for name, planner in PLANNERS.items() if not planner.needs]


def continuous_planners() -> list[str]:
    """Planners of continuous actions that keep no limits; some need the gradient or the states of the cost."""
    return [name for name, planner in PLANNERS.items() if not {"choices", "violation"} & set(planner.needs)]


def planner_at(name: str, candidates: int, iterations: int, horizon: int, execute: str = "mean") -> PlannerConfig:
    """A planner of `continuous_planners` at a budget; a fifth of the candidates are elites, where it takes any.

    Where candidates are weighted instead, a tenth of them counts (`ess`), at least two. Raises ValueError for others.
    """
    if name not in continuous_planners():
        raise ValueError(
            f"planner {name} cannot be run at a budget; those that can are {', '.join(continuous_planners())}"
        )
    if name == "hybrid":
        search = planner_at("cem", candidates, iterations, horizon, execute)
        assert isinstance(search, CEM)
        return Hybrid(search=search)
    options: dict[str, Any] = {"candidates": candidates, "iterations": iterations, "horizon": horizon}
    extras: dict[str, Any] = {
        "elites": max(2, candidates // 5),
        "ess": max(0.1, 2 / candidates),
        "execute": execute,
    }
    plain = PLANNERS[name]()
    return PLANNERS[name](**options, **{k: v for k, v in extras.items() if getattr(plain, k, None) is not None})

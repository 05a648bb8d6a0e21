"""Anytime planning: the largest search whose plans stay within a budget of milliseconds on this machine.

Candidates x iterations come from a fixed ladder of sizes, so that a noisy moment moves the choice by a rung or not at
all. What to spend on: three iterations first (one refit is no search, and more than three rarely help a warm-started
plan), then candidates up to 256, then iterations up to 30, then candidates again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, Protocol

import numpy as np
import torch

from planners import Planner

WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
DEPTHS = (4, 5, 6, 8, 10, 13, 16, 20, 25, 30)
LADDER = (
    (8, 1),
    (8, 2),
    *((width, 3) for width in WIDTHS),
    *((WIDTHS[-1], depth) for depth in DEPTHS),
    *((width, DEPTHS[-1]) for width in (384, 512, 768, 1024, 1536, 2048, 3072, 4096)),
)
"""Candidates and iterations, every rung more work than the one below it."""
PROBES = ((8, 1), (8, 3), (48, 3), (256, 3), (256, 10))
"""Sizes that are timed for the fit, until one is beyond the budget."""
PROBE_PLANS, PLANS, WARMUP = 12, 50, 3
"""Timed plans per probe and per verification; plans thrown away before either."""
MARGIN = 0.1
"""Share of the budget that the prediction leaves free; the verification uses all of it."""

Times = Callable[[Planner, int], Sequence[float]]
"""(planner, plans) -> milliseconds of that many plans, frames to actions."""


class PlanTime(Protocol):
    """What an agent says of one act of planning."""

    @property
    def encode_ms(self) -> float: ...
    @property
    def plan_ms(self) -> float: ...


class TimedAgent(Protocol):
    """An agent, as far as it has to be known to time its plans."""

    @property
    def frame_shape(self) -> tuple[int, int, int]: ...
    @property
    def proprio_dim(self) -> int: ...
    @property
    def skip(self) -> int: ...
    @property
    def replan_every(self) -> int: ...
    @property
    def history(self) -> int: ...
    @property
    def last(self) -> PlanTime | None: ...
    def reset(self, goal: np.ndarray, *, goal_proprio: np.ndarray | None) -> None: ...
    def act(self, pixels: np.ndarray, *, proprio: np.ndarray | None) -> np.ndarray: ...


@dataclass(frozen=True)
class Budget:
    """A budget, and the search that keeps it."""

    budget_ms: float
    """Most milliseconds a plan may take, frames to actions, at the 95th percentile."""
    planner: Planner
    """The planner at the chosen size."""
    p95_ms: float
    """What it took when it was verified."""
    plans: int
    """Over how many plans."""
    threads: int
    """Torch threads they ran on."""

    @property
    def line(self) -> str:
        """The choice in one line."""
        planner = self.planner
        return (
            f"budget {self.budget_ms:g} ms: {type(planner).__name__} with {planner.candidates} candidates x "
            f"{planner.iterations} iterations x {planner.horizon} blocks, p95 {self.p95_ms:.2f} ms of {self.plans} "
            f"plans on {self.threads} thread(s)"
        )


def something_seen(agent: TimedAgent) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture of noise, and measurements where the agent takes any: times do not depend on what they show."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, agent.frame_shape, np.uint8)
    return picture, rng.normal(size=agent.proprio_dim) if agent.proprio_dim else None


def replan_times(agent: TimedAgent, plans: int) -> list[float]:
    """Milliseconds of `plans` plans for one problem, encoder included, with full history and a warm start."""
    picture, proprio = something_seen(agent)
    agent.reset(picture, goal_proprio=proprio)
    times = []
    for _ in range(WARMUP + agent.history + plans):
        for _ in range(agent.skip * agent.replan_every):
            agent.act(picture, proprio=proprio)
        assert agent.last is not None
        times.append(agent.last.encode_ms + agent.last.plan_ms)
    return times[-plans:]


def resize(planner: Planner, candidates: int, iterations: int) -> Planner:
    """The planner with another amount of search; elites, where it has them, stay the same share of the candidates.

    Raises ValueError where the planner refuses the size, or has no size of its own.
    """
    named = {field.name for field in fields(planner)}  # type: ignore[arg-type]
    if missing := sorted({"candidates", "iterations"} - named):
        raise ValueError(
            f"budget_ms sizes planners by candidates and iterations, and {type(planner).__name__} has no setting "
            f"called {missing[0]}; leave budget_ms out or choose another planner"
        )
    changes: dict[str, Any] = {"candidates": candidates, "iterations": iterations}
    elites: int | None = getattr(planner, "elites", None)
    if elites is not None:
        changes["elites"] = min(candidates, max(2, round(candidates * elites / planner.candidates)))
    resized: Planner = replace(planner, **changes)  # type: ignore[type-var]
    return resized


def rungs(planner: Planner) -> list[Planner]:
    """The ladder for one planner, smallest first; sizes that its other settings forbid are no rungs."""
    resize(planner, planner.candidates, planner.iterations)
    allowed = []
    for size in LADDER:
        try:
            allowed.append(resize(planner, *size))
        except ValueError:
            continue  # such as an MPPI of 8 candidates whose ess is a tenth of them
    return allowed


@dataclass(frozen=True)
class Speed:
    """Milliseconds of a plan by its size: fixed + per_iteration x I + per_candidate x I x N at the median."""

    fixed: float
    per_iteration: float
    per_candidate: float
    tail: float
    """p95 over median."""

    def p95(self, planner: Planner) -> float:
        """Predicted 95th percentile of a plan's milliseconds."""
        iterations, candidates = planner.iterations, planner.candidates
        return self.tail * (self.fixed + iterations * (self.per_iteration + self.per_candidate * candidates))

    @classmethod
    def fit(cls, times: dict[tuple[int, int], Sequence[float]]) -> "Speed":
        """From the milliseconds measured at several (candidates, iterations), each counted relative to its size."""
        medians = np.array([np.median(t) for t in times.values()])
        rows = np.array([(1, iterations, iterations * candidates) for candidates, iterations in times])
        found = np.linalg.lstsq(rows / medians[:, None], np.ones(len(rows)), rcond=None)[0]
        fixed, per_iteration, per_candidate = found.clip(min=0).tolist()
        tail = float(np.median([np.percentile(t, 95) / m for t, m in zip(times.values(), medians, strict=True)]))
        return cls(fixed, per_iteration, per_candidate, tail)


def probe(ladder: Sequence[Planner], budget_ms: float, times: Times) -> Speed:
    """Time a few rungs from below until one is beyond the budget, and fit how time grows."""
    measured: dict[tuple[int, int], Sequence[float]] = {}
    chosen = [rung for rung in ladder if (rung.candidates, rung.iterations) in PROBES] or [ladder[0]]
    for rung in chosen:
        taken = times(rung, PROBE_PLANS)
        measured[rung.candidates, rung.iterations] = taken
        if np.median(taken) > budget_ms:
            break
    return Speed.fit(measured)


def fit_budget(planner: Planner, budget_ms: float, times: Times) -> Budget:
    """The largest rung of the ladder whose p95 over 50 plans is within the budget.

    A first choice is predicted from a few timed sizes, with a tenth of the budget to spare; it is then timed, and made
    smaller, by about half at most each time, until it keeps the budget. Horizon, elites ratio and all other settings
    stay. Raises ValueError for a budget that is no positive number and for one that the smallest size does not keep,
    with the time that one took.
    """
    if not (isfinite(budget_ms) and budget_ms > 0):
        raise ValueError(f"budget_ms is {budget_ms}; it must be a positive number of milliseconds")
    ladder = rungs(planner)
    if not ladder:
        raise ValueError(
            f"budget_ms: {type(planner).__name__} refuses every size of the ladder up to {LADDER[-1][0]} candidates "
            "with its other settings; leave budget_ms out"
        )
    speed = probe(ladder, budget_ms, times)
    scale = 1 / (1 - MARGIN)
    at = len(ladder)
    while at > 0:
        fitting = [i for i in range(at) if scale * speed.p95(ladder[i]) <= budget_ms]
        at = fitting[-1] if fitting else 0
        p95 = float(np.percentile(times(ladder[at], PLANS), 95))
        if p95 <= budget_ms:
            return Budget(budget_ms, ladder[at], p95, PLANS, torch.get_num_threads())
        # A busy moment of the machine must not cost more than half of the search.
        scale = float(np.clip(p95 / speed.p95(ladder[at]), scale, 2 * scale))
    raise ValueError(
        f"budget_ms is {budget_ms:g}, but even {ladder[0].candidates} candidates x {ladder[0].iterations} iteration(s) "
        f"take {p95:.2f} ms here (p95 of {PLANS} plans, frames to actions): allow more, or a smaller model or horizon"
    )

"""Milliseconds per plan over planners, budgets and batch sizes; the cost is the model's own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from lewm import tables
from lewm.bench.sized import planner_at, searches
from lewm.checkpoint import load
from lewm.config import load as load_config
from lewm.cost_to_go import CostToGo
from lewm.evaluate.energy import EnergyMeter
from lewm.evaluate.timing import hardware, load_average, torch_threads, where_measured
from lewm.pipeline import pick_device
from lewm.planning.action_limits import action_box
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_rollout import prepare
from lewm.progress import Stage
from lewm.world_model import ModelFacts, WorldModel
from planners import PlannerConfig, noise_table

BUDGETS = ((32, 3, 2), (64, 3, 4), (300, 10, 5))
"""Candidates, iterations, horizon."""
BATCHES = (1, 10, 50)
"""Problems planned for together."""
WARMUP = 3
"""Plans that are made and thrown away before measuring."""
ROW_SECONDS = 3.0
"""No further plan is begun after so long: at least one to warm up, three that are timed (fewer only if asked for)."""


@dataclass(frozen=True)
class BenchRow:
    """One planner at one budget."""

    case: str
    device: str
    threads: int
    model: str
    batch: int
    candidates: int
    iterations: int
    horizon: int
    cost: str
    ours_ms_p50: float
    """Milliseconds per plan and problem, latents to actions."""
    ours_ms_p95: float
    plans_per_second: float
    """1000 / ms, of the median: problems planned for, not batches."""
    plans: int
    """How many batches were timed."""
    joules: float | None
    """Per plan and problem, of everything the devices did while the row was timed; None where they count nothing.

    As coarse as the counter: NVIDIA's moves about every 0.1 s, which should be little of plans x batch x ms.
    """
    hardware: str
    load: float | None
    """Load average of the last minute when the row was begun: what else the machine was doing; None if unknown."""
    torch: str


@dataclass(frozen=True)
class Timed:
    """What plans took, per plan and problem."""

    ms: list[float]
    joules: float | None


def fresh_model(config: str) -> tuple[WorldModel, CostToGo]:
    """Randomly initialised weights of a run's architecture; speed does not depend on the values."""
    run = load_config(config)
    size = int(run.settings.get("size", 64))
    facts = ModelFacts(size, (-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    model = WorldModel(run.model, facts).eval()
    return model, CostToGo(run.cost_to_go, model.latent_dim, model.tokens).eval()


def load_or_fresh(
    checkpoint: Path | None, config: str, device: torch.device
) -> tuple[WorldModel, CostToGo | None, str]:
    """Model, learned distance and their name: a checkpoint's, or without one fresh weights of a run."""
    if checkpoint is not None:
        loaded = load(checkpoint, str(device))
        return loaded.model, loaded.cost_to_go, str(checkpoint)
    model, head = fresh_model(config)
    return model.to(device), head.to(device), f"{config} (fresh weights)"


def planning(
    model: WorldModel, head: CostToGo | None, planner: PlannerConfig, cost: CostConfig, batch: int
) -> Callable[[], None]:
    """A function that makes one plan for `batch` random problems, latents to actions, noise drawing included."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, batch, 1, model.tokens, model.latent_dim)
    now_BTKD, goal_BTKD = torch.randn(shape, generator=generator).to(model.device)
    situation = Situation(now_BTKD, torch.zeros(batch, 0, model.action_dim, device=model.device))
    fast, box, keys = prepare(model, head), action_box(model), [(0, problem, 0) for problem in range(batch)]

    def plan() -> None:
        cost_fn = GoalCost(model, head, cost, situation, goal_BTKD[:, 0], fast)
        noise_BINHA = noise_table(keys, planner, model.action_dim).to(model.device)
        planner.plan(cost_fn, noise_BINHA, box).action_BHA.cpu()

    return plan


@torch.no_grad()
def time_plan(
    model: WorldModel,
    head: CostToGo | None,
    planner_name: str,
    budget: tuple[int, int, int],
    batch: int,
    cost: CostConfig,
    plans: int,
) -> Timed:
    """Up to `plans` plans, as many as `ROW_SECONDS` allow; noise drawing included, warm-up excluded."""
    plan = planning(model, head, planner_at(planner_name, *budget), cost, batch)
    meter = EnergyMeter.of(model.device)
    _repeat(plan, WARMUP, 1)
    before = meter.joules()
    ms = [took / batch for took in _repeat(plan, plans, min(plans, 3))]
    used = meter.since(before)
    return Timed(ms, None if used is None else used / (len(ms) * batch))


def _repeat(plan: Callable[[], None], most: int, least: int) -> list[float]:
    """Milliseconds of every plan: `most`, or after `ROW_SECONDS` not more than `least`."""
    took: list[float] = []
    while len(took) < least or (len(took) < most and sum(took) < 1000 * ROW_SECONDS):
        start = time.perf_counter()
        plan()
        took.append(1000 * (time.perf_counter() - start))
    return took


def bench_plan(
    checkpoint: Path | None,
    config: str,
    threads: int,
    plans: int,
    device: str,
    planners: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
) -> list[BenchRow]:
    """Searches (default all) at every budget and batch size, with latent-L2 and, where there is a head, cost-to-go."""
    planners, batches = planners or searches(), batches or BATCHES
    if plans < 1:
        raise ValueError(f"--plans is {plans}; time at least one plan per row")
    if min(batches) < 1:
        raise ValueError(f"--batches has {min(batches)}; plan for at least one problem")
    if unknown := [name for name in planners if name not in searches()]:
        raise ValueError(f"--planners: {unknown[0]} is none of {', '.join(searches())}")
    chosen = pick_device(device)
    model, head, name = load_or_fresh(checkpoint, config, chosen)
    costs = [CostConfig({"latent_l2": 1.0}, "terminal")] + ([CostConfig()] if head is not None else [])
    cases = list(product(planners, BUDGETS, batches, costs))
    rows = []
    with torch_threads(threads), Stage("bench plan", len(cases), "rows") as stage:
        for planner, budget, batch, cost in cases:
            load = load_average()
            timed = time_plan(model, head, planner, budget, batch, cost, plans)
            p50, p95 = np.percentile(timed.ms, [50, 95]).tolist()
            rows.append(
                BenchRow(
                    planner,
                    chosen.type,
                    threads,
                    name,
                    batch,
                    *budget,
                    cost=cost.label,
                    ours_ms_p50=p50,
                    ours_ms_p95=p95,
                    plans_per_second=1000 / p50,
                    plans=len(timed.ms),
                    joules=timed.joules,
                    hardware=hardware(),
                    load=load,
                    torch=torch.__version__,
                )
            )
            stage.update()
    return rows


def table(rows: Sequence[BenchRow]) -> str:
    """The rows as aligned text."""
    counted = any(r.joules is not None for r in rows)
    lines = [
        f"{'planner':<19} {'batch':>5} {'budget':>10}  {'cost':<20} {'ms p50':>8} {'ms p95':>8} {'plans/s':>8}"
        f" {'timed':>5}{'   joules' if counted else ''}"
    ]
    for r in rows:
        budget = f"{r.candidates}x{r.iterations}x{r.horizon}"
        lines.append(
            f"{r.case:<19} {r.batch:>5} {budget:>10}  {r.cost:<20} {r.ours_ms_p50:>8.2f} {r.ours_ms_p95:>8.2f}"
            f" {r.plans_per_second:>8.1f} {r.plans:>5}{f' {_joules(r):>8}' if counted else ''}"
        )
    return "\n".join([*lines, *_notes(rows)])


def markdown(rows: Sequence[BenchRow]) -> str:
    """The rows as docs show them: one per search, budget and cost; milliseconds and joules at the smallest batch."""
    batches, counted = sorted({r.batch for r in rows}), any(r.joules is not None for r in rows)
    together: dict[tuple[str, str, str], dict[int, BenchRow]] = {}
    for r in rows:
        budget = f"{r.candidates} x {r.iterations} x {r.horizon}"
        together.setdefault((r.case, budget, r.cost), {})[r.batch] = r
    head = ["search", "budget", "cost", f"ms per plan at batch {batches[0]}, p50 / p95"]
    head += [f"plans per second at batch {batch}" for batch in batches] + ["joules per plan"] * counted
    lines = []
    for key, by_batch in together.items():
        first = by_batch[batches[0]]
        cells = [*key, f"{first.ours_ms_p50:.1f} / {first.ours_ms_p95:.1f}"]
        cells += [_rate(by_batch[batch]) for batch in batches] + [_joules(first)] * counted
        lines.append(cells)
    return "\n\n".join([tables.markdown(head, lines), "; ".join(_notes(rows))])


def _rate(row: BenchRow) -> str:
    return f"{row.plans_per_second:,.{0 if row.plans_per_second >= 10 else 1}f}"


def _joules(row: BenchRow) -> str:
    return "-" if row.joules is None else f"{row.joules:.3f}"


def _notes(rows: Sequence[BenchRow]) -> list[str]:
    return ["candidates x iterations x horizon; per plan and problem, latents to actions", where_measured(rows[0])]
